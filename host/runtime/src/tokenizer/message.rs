//! One turn of a conversation, and a whole one with what belongs to it.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// One turn of a conversation, with all fields that a template may read: `role`, `content`, `tool_calls`, …
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Message(Map<String, Value>);

impl Message {
    /// A turn that is only text.
    pub fn new(role: &str, content: &str) -> Self {
        Self(Map::from_iter([("role", role), ("content", content)].map(|(k, v)| (k.to_owned(), Value::from(v)))))
    }

    /// Its fields, in the order in which they were given.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.0
    }
}

impl From<Map<String, Value>> for Message {
    fn from(fields: Map<String, Value>) -> Self {
        Self(fields)
    }
}

/// A conversation as it is asked for: what the model's own files do not say.
#[derive(Debug, Clone, Default)]
pub struct Turns {
    /// The turns.
    pub messages: Vec<Message>,
    /// The tools that the model may call, as JSON schemas.
    pub tools: Option<Vec<Value>>,
    /// The documents that the model may quote.
    pub documents: Option<Vec<Value>>,
    /// End where the model's answer begins.
    pub add_generation_prompt: bool,
    /// End within the last turn, which the model goes on with.
    pub continue_final_message: bool,
    /// Another template than the model's.
    pub template: Option<String>,
    /// Further variables of the template (vLLM's `chat_template_kwargs`, for example `enable_thinking`).
    pub more: Map<String, Value>,
}
