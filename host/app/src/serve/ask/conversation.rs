//! A conversation with its tools, and the prompt that the chat template makes of it.

use std::sync::Arc;

use patchhost_runtime::tokenizer::{Message, Turns};
use serde_json::{Map, Value};

use super::messages::ChatMessage;
use super::prompt::{check, check_bytes, truncate};
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::fields::{Ignored, Known};
use crate::serve::state::App;

/// A conversation as it goes to the template.
#[derive(Default)]
pub struct Conversation<'a> {
    /// The turns.
    pub messages: &'a [ChatMessage],
    /// The tools that the model may call, as the template gets them.
    pub tools: Option<Vec<Value>>,
    /// The documents that the model may quote.
    pub documents: Option<Vec<Value>>,
    /// End where the assistant's answer begins; where it is absent, unless the last turn goes on.
    pub add_generation_prompt: Option<bool>,
    /// End within the last turn.
    pub continue_final_message: bool,
    /// Another template than the server's.
    pub template: Option<String>,
    /// Further variables of the template.
    pub more: Map<String, Value>,
    /// Where fields are noted that neither the server nor the template knows.
    pub ignored: Ignored,
}

impl Conversation<'_> {
    /// The tokens of the prompt. `specials`: with those that the tokenizer adds by itself, which a template usually writes.
    pub async fn tokens(self, app: &Arc<App>, specials: bool) -> ApiResult<Vec<u32>> {
        if self.messages.is_empty() {
            return Err(ApiError::bad("`messages`", "the list is empty", "give at least one message").param("messages"));
        }
        let messages = self.messages.iter().enumerate().map(|(i, m)| m.message(i)).collect::<ApiResult<Vec<_>>>()?;
        check_bytes(app, self.messages.iter().map(ChatMessage::bytes).sum())?;
        let turns = self.turns(app, messages)?;
        let tokenizer = Arc::clone(&app.tokenizer);
        let of = Arc::clone(app);
        tokio::task::spawn_blocking(move || {
            let text = tokenizer.render_with(turns)?;
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

    /// What the tokenizer renders.
    fn turns(self, app: &App, mut messages: Vec<Message>) -> ApiResult<Turns> {
        if self.continue_final_message && self.add_generation_prompt == Some(true) {
            return Err(ApiError::bad(
                "`continue_final_message` with `add_generation_prompt`",
                "a prompt ends either within the last message or where the next one begins",
                "set one of them to false",
            )
            .param("continue_final_message"));
        }
        if self.template.is_some() && !app.options.trust_request_chat_template {
            return Err(ApiError::new(
                axum::http::StatusCode::BAD_REQUEST,
                "unsupported_parameter",
                "`chat_template`",
                "a template is code, and this server takes none from requests",
                "leave `chat_template` away, or start the server with --trust-request-chat-template",
            )
            .param("chat_template"));
        }
        for (name, list) in [("tools", &self.tools), ("documents", &self.documents)] {
            if let Some(at) = list.iter().flatten().position(|value| !value.is_object()) {
                let field = format!("{name}[{at}]");
                return Err(ApiError::bad(format!("`{field}`"), "it is no object", "give objects").param(field));
            }
        }
        let Some(template) = self.template.as_deref().or_else(|| app.tokenizer.template(self.tools.is_some())) else {
            return Err(ApiError::bad(
                "a conversation",
                "the model has no chat template",
                "use /v1/completions, or start the server with --chat-template FILE",
            )
            .param("messages"));
        };
        // OpenAI's newer name of `system`, which most templates know as that.
        if !template.contains("developer") {
            messages = messages.into_iter().map(|message| renamed(message, "developer", "system")).collect();
        }
        for name in self.messages.iter().flat_map(ChatMessage::strange).filter(|name| !template.contains(*name)) {
            let meant = |_: &str| Known::of::<ChatMessage>().meant(name).map(|meant| format!("messages[].{meant}"));
            self.ignored.note(|| format!("messages[].{name}"), meant);
        }
        Ok(Turns {
            messages,
            tools: self.tools,
            documents: self.documents,
            add_generation_prompt: self.add_generation_prompt.unwrap_or(!self.continue_final_message),
            continue_final_message: self.continue_final_message,
            template: self.template,
            more: self.more,
        })
    }
}

/// The message with another role, if it has this one.
fn renamed(message: Message, from: &str, to: &str) -> Message {
    if message.fields().get("role").is_none_or(|role| role != from) {
        return message;
    }
    let mut fields = message.fields().clone();
    fields.insert("role".to_owned(), Value::from(to));
    Message::from(fields)
}
