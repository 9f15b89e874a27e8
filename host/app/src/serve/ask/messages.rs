//! The turns of a conversation, and the prompt that the chat template makes of them.

use std::sync::Arc;

use patchhost_runtime::tokenizer::Message;
use serde::Deserialize;
use utoipa::ToSchema;

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
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string or a list of content parts")]
pub enum Content {
    /// A text.
    Text(String),
    /// Parts of a text.
    Parts(Vec<ContentPart>),
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
    /// The tokens of the prompt.
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
        tokio::task::spawn_blocking(move || {
            let text = tokenizer.render_with(&messages, generation, &more)?;
            Ok(tokenizer.encode_with(&text, specials)?)
        })
        .await
        .map_err(|e| ApiError::internal(&e))?
    }

    /// The same, cut to the last tokens (as many as `last` says) and checked against the model.
    pub async fn prompt(self, app: &Arc<App>, last: Option<u32>) -> ApiResult<Vec<u32>> {
        // The template writes the special tokens itself.
        let mut prompt = self.tokens(app, false).await?;
        truncate(&mut prompt, last);
        check(app, &prompt)?;
        Ok(prompt)
    }
}
