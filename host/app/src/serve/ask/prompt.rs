//! Prompts: texts and token ids become tokens, and are checked against the model before anything runs.

use std::sync::Arc;

use axum::http::StatusCode;
use serde::Deserialize;
use utoipa::ToSchema;

use patchhost_runtime::tokenizer::fits;

use crate::serve::error::{ApiError, ApiResult};
use crate::serve::state::App;

/// A prompt, or several.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a string, a list of strings, a list of token ids, or a list of such lists")]
pub enum Prompt {
    /// A text.
    Text(String),
    /// Texts.
    Texts(Vec<String>),
    /// The tokens of one prompt.
    Tokens(Vec<u32>),
    /// The tokens of several.
    TokenLists(Vec<Vec<u32>>),
}

impl Default for Prompt {
    fn default() -> Self {
        Self::Text(String::new())
    }
}

impl Prompt {
    /// The tokens of each prompt. `specials`: texts get the special tokens that the tokenizer adds by itself.
    pub async fn tokens(&self, app: &Arc<App>, specials: bool, last: Option<u32>) -> ApiResult<Vec<Vec<u32>>> {
        let mut prompts = match self {
            Self::Text(text) => encode(app, vec![text.clone()], specials).await?,
            Self::Texts(texts) => encode(app, texts.clone(), specials).await?,
            Self::Tokens(ids) => vec![ids.clone()],
            Self::TokenLists(lists) => lists.clone(),
        };
        if prompts.is_empty() {
            return Err(ApiError::bad("`prompt`", "the list is empty", "give at least one prompt").param("prompt"));
        }
        for prompt in &mut prompts {
            truncate(prompt, last);
            check(app, prompt)?;
        }
        Ok(prompts)
    }
}

/// Keeps only the last tokens: as many as `last` says, or all.
pub fn truncate(prompt: &mut Vec<u32>, last: Option<u32>) {
    if let Some(last) = last {
        prompt.drain(..prompt.len().saturating_sub(last as usize));
    }
}

async fn encode(app: &Arc<App>, texts: Vec<String>, specials: bool) -> ApiResult<Vec<Vec<u32>>> {
    for text in &texts {
        check_bytes(app, text.len())?;
    }
    let tokenizer = Arc::clone(&app.tokenizer);
    // Long texts take long: not on the threads that serve connections.
    tokio::task::spawn_blocking(move || texts.iter().map(|t| Ok(tokenizer.encode_with(t, specials)?)).collect())
        .await
        .map_err(|e| ApiError::internal(&e))?
}

/// Refuses a text that no tokenizer could fit into the context.
pub fn check_bytes(app: &App, bytes: usize) -> ApiResult<()> {
    let positions = app.live.engine().model().max_positions();
    match fits(bytes, positions) {
        true => Ok(()),
        false => Err(too_long(
            format!("a prompt of {bytes} bytes"),
            positions,
            &format!("your prompt has {bytes} bytes, which are more tokens than that with any tokenizer"),
        )),
    }
}

/// Refuses a prompt that is empty, too long for the model, or has tokens that the model does not know.
pub fn check(app: &App, prompt: &[u32]) -> ApiResult<()> {
    let model = app.live.engine().model();
    if prompt.is_empty() {
        return Err(ApiError::bad("an empty prompt", "it has no tokens", "give a prompt of at least one character")
            .param("prompt"));
    }
    if let Some(id) = prompt.iter().find(|id| **id as usize >= model.vocab()) {
        return Err(ApiError::bad(
            format!("token {id} in the prompt"),
            format!("the model's vocabulary has the tokens 0 to {}", model.vocab().saturating_sub(1)),
            "tokenize with the model's own tokenizer",
        )
        .param("prompt"));
    }
    if prompt.len() >= model.max_positions() {
        let (n, positions) = (prompt.len(), model.max_positions());
        let resulted = match n == positions {
            true => format!("your messages resulted in {n} tokens, which leaves none for an answer"),
            false => format!("your messages resulted in {n} tokens"),
        };
        return Err(too_long(format!("a prompt of {n} tokens"), positions, &resulted));
    }
    Ok(())
}

/// How many tokens may be generated: what was asked for, if it fits behind the longest prompt.
pub fn max_tokens(app: &App, prompts: &[Vec<u32>], asked: Option<u32>) -> ApiResult<usize> {
    let positions = app.live.engine().model().max_positions();
    let longest = prompts.iter().map(Vec::len).max().unwrap_or(0);
    let room = positions.saturating_sub(longest);
    match asked {
        None => Ok(room),
        Some(n) if n as usize <= room => Ok(n as usize),
        Some(n) => {
            let all = longest.saturating_add(n as usize);
            let requested = format!("you requested {all} tokens ({longest} in the messages, {n} in the completion)");
            Err(too_long(format!("a prompt of {longest} tokens and {n} more"), positions, &requested)
                .param("max_tokens"))
        }
    }
}

/// In OpenAI's words, by which agents' frameworks know that they have to shorten a conversation.
fn too_long(what: String, positions: usize, however: &str) -> ApiError {
    ApiError::new(
        StatusCode::BAD_REQUEST,
        "context_length_exceeded",
        what,
        format!("This model's maximum context length is {positions} tokens. However, {however}."),
        "Please reduce the length of the messages or completion",
    )
    .param("prompt")
}

/// Refuses more sequences than one request may have.
pub fn check_choices(app: &App, prompts: usize, n: usize) -> ApiResult<()> {
    let (asked, most) = (prompts.saturating_mul(n), app.options.max_choices);
    if asked <= most {
        return Ok(());
    }
    Err(ApiError::bad(
        format!("{asked} sequences ({prompts} prompts, n {n})"),
        format!("one request may have {most}"),
        "send several requests, or start the server with a larger --max-choices",
    )
    .param("n"))
}
