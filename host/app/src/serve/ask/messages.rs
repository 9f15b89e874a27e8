//! The turns of a conversation, and the prompt that the chat template makes of them.

use std::sync::Arc;

use patchhost_runtime::tokenizer::Message;
use serde::de::value::SeqAccessDeserializer;
use serde::de::{SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use utoipa::openapi::RefOr;
use utoipa::openapi::schema::{OneOfBuilder, Schema};
use utoipa::{PartialSchema, ToSchema};

use super::prompt::{check, check_bytes, truncate};
use crate::base::text::clean;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::state::App;

/// One turn.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct ChatMessage {
    /// Who speaks.
    pub role: Role,
    /// What is said.
    pub content: Option<Content>,
    #[schema(ignore)]
    tool_calls: Option<serde_json::Value>,
    #[schema(ignore)]
    function_call: Option<serde_json::Value>,
    #[schema(ignore)]
    audio: Option<serde_json::Value>,
}

/// Who speaks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Who set the model up.
    System,
    /// OpenAI's newer name of `system`; templates know it as that.
    Developer,
    /// Who asks.
    #[default]
    User,
    /// The model.
    Assistant,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::System | Self::Developer => "system",
            Self::User => "user",
            Self::Assistant => "assistant",
        }
    }
}

/// A text, or parts of one.
#[derive(Debug, Clone)]
pub enum Content {
    /// A text.
    Text(String),
    /// Parts of a text.
    Parts(Vec<ContentPart>),
}

/// Not derived as an untagged enum is: that reads a copy, and unknown fields of the parts would not be found.
impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Reader;

        impl<'de> Visitor<'de> for Reader {
            type Value = Content;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a string or a list of content parts")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<Content, E> {
                Ok(Content::Text(text.to_string()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, parts: A) -> Result<Content, A::Error> {
                Deserialize::deserialize(SeqAccessDeserializer::new(parts)).map(Content::Parts)
            }
        }

        deserializer.deserialize_any(Reader)
    }
}

impl PartialSchema for Content {
    fn schema() -> RefOr<Schema> {
        OneOfBuilder::new().item(String::schema()).item(Vec::<ContentPart>::schema()).into()
    }
}

impl ToSchema for Content {
    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        ContentPart::schemas(schemas);
    }
}

/// A part of a text.
#[derive(Debug, Clone, Deserialize, ToSchema)]
pub struct ContentPart {
    /// `text`: other kinds are refused.
    #[serde(rename = "type")]
    #[schema(pattern = "^text$")]
    pub kind: String,
    /// The text.
    pub text: Option<String>,
}

impl ChatMessage {
    /// The turn as chat templates read it. `at` is its place in the conversation: errors name it.
    fn message(&self, at: usize) -> ApiResult<Message> {
        for (name, value) in
            [("tool_calls", &self.tool_calls), ("function_call", &self.function_call), ("audio", &self.audio)]
        {
            if value.as_ref().is_some_and(|v| v.as_array().is_none_or(|list| !list.is_empty())) {
                return Err(ApiError::unsupported(
                    &format!("messages[{at}].{name}"),
                    "messages are plain text: there are no tools and no audio",
                ));
            }
        }
        let content = match &self.content {
            None if self.role == Role::Assistant => String::new(),
            None => {
                let field = format!("messages[{at}].content");
                return Err(ApiError::bad(format!("`{field}`"), "it is missing", "give a text").param(field));
            }
            Some(Content::Text(text)) => text.clone(),
            Some(Content::Parts(parts)) => {
                parts.iter().enumerate().map(|(i, part)| part.text(at, i)).collect::<ApiResult<Vec<_>>>()?.join("\n")
            }
        };
        Ok(Message { role: self.role.name().to_string(), content })
    }
}

impl ContentPart {
    fn text(&self, message: usize, at: usize) -> ApiResult<&str> {
        let field = format!("messages[{message}].content[{at}]");
        if self.kind != "text" {
            return Err(ApiError::unsupported(
                &field,
                format!("its type is `{}`, and the model reads text only", clean(&self.kind, 60)),
            ));
        }
        self.text
            .as_deref()
            .ok_or_else(|| ApiError::bad(format!("`{field}`"), "its `text` is missing", "give the text").param(field))
    }
}

/// A conversation as it goes to the template.
pub struct Conversation<'a> {
    pub messages: &'a [ChatMessage],
    /// End where the assistant's answer begins.
    pub add_generation_prompt: bool,
    /// Further variables of the template.
    pub more: serde_json::Map<String, serde_json::Value>,
}

impl Conversation<'_> {
    /// The tokens of the prompt. `specials`: with those that the tokenizer adds by itself, which a template usually writes.
    pub async fn tokens(self, app: &Arc<App>, specials: bool) -> ApiResult<Vec<u32>> {
        if self.messages.is_empty() {
            return Err(ApiError::bad("`messages`", "the list is empty", "give at least one message").param("messages"));
        }
        let messages =
            self.messages.iter().enumerate().map(|(i, m)| m.message(i)).collect::<ApiResult<Vec<Message>>>()?;
        check_bytes(app, messages.iter().map(|m| m.content.len()).sum())?;
        if !app.tokenizer.has_template() {
            return Err(ApiError::bad(
                "a conversation",
                "the model has no chat template",
                "use /v1/completions, or start the server with --chat-template FILE",
            )
            .param("messages"));
        }
        let tokenizer = Arc::clone(&app.tokenizer);
        let (generation, more) = (self.add_generation_prompt, self.more);
        let of = Arc::clone(app);
        tokio::task::spawn_blocking(move || {
            let text = tokenizer.render_with(&messages, generation, &more)?;
            check_bytes(&of, text.len())?;
            Ok(tokenizer.encode_with(&text, specials)?)
        })
        .await
        .map_err(|e| ApiError::internal(&e))?
    }

    /// The same, cut to the last tokens (as many as `last` says) and checked against the model.
    pub async fn prompt(self, app: &Arc<App>, specials: bool, last: Option<u32>) -> ApiResult<Vec<u32>> {
        let mut prompt = self.tokens(app, specials).await?;
        truncate(&mut prompt, last);
        check(app, &prompt)?;
        Ok(prompt)
    }
}
