//! `/tokenize`, `/detokenize` and `/tokenizer_info`, as vLLM has them.

use std::sync::Arc;

use axum::extract::State;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::ask::{ChatMessage, Conversation, check_bytes};
use super::error::{ApiError, ApiResult, ErrorBody};
use super::fields::Ignored;
use super::json::Json;
use super::state::App;

/// A text or a conversation.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct TokenizeRequest {
    /// The served model, or an adapter: both have one tokenizer.
    pub model: Option<String>,
    /// A text.
    pub prompt: Option<String>,
    /// Or a conversation.
    #[schema(min_items = 1)]
    pub messages: Option<Vec<ChatMessage>>,
    /// The special tokens that the tokenizer adds by itself; the default is true for texts and false for conversations.
    pub add_special_tokens: Option<bool>,
    /// End a conversation where the assistant's answer begins; the default is true.
    pub add_generation_prompt: Option<bool>,
    /// Give the tokens as the vocabulary writes them too.
    pub return_token_strs: Option<bool>,
    /// Further variables of the chat template.
    #[schema(value_type = Option<Object>)]
    pub chat_template_kwargs: Option<serde_json::Map<String, serde_json::Value>>,
    /// End a conversation within its last message.
    pub continue_final_message: Option<bool>,
    /// Another chat template, where the server takes one (`--trust-request-chat-template`).
    #[schema(max_length = 1048576)]
    pub chat_template: Option<String>,
    /// The tools of a conversation, as the template gets them.
    #[schema(value_type = Option<Vec<Object>>)]
    pub tools: Option<Vec<serde_json::Value>>,
    /// The documents of a conversation.
    #[schema(value_type = Option<Vec<Object>>)]
    pub documents: Option<Vec<serde_json::Value>>,
}

/// Its tokens.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct TokenizeResponse {
    /// How many.
    pub count: usize,
    /// Positions of the model.
    pub max_model_len: usize,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// As the vocabulary writes them, where asked for.
    pub token_strs: Option<Vec<String>>,
}

/// Tokens.
#[derive(Debug, Clone, Default, Deserialize, ToSchema)]
pub struct DetokenizeRequest {
    /// The served model, or an adapter: both have one tokenizer.
    pub model: Option<String>,
    /// Their ids.
    pub tokens: Vec<u32>,
}

/// Their text.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub struct DetokenizeResponse {
    /// The text, special tokens included.
    pub prompt: String,
}

/// Text to tokens
#[utoipa::path(post, path = "/tokenize", tag = "tokens", request_body = TokenizeRequest, responses(
    (status = 200, description = "The tokens", body = TokenizeResponse),
    (status = 400, description = "The request is wrong", body = ErrorBody),
    (status = 404, description = "There is no such model", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
    (status = 415, description = "The body is not JSON", body = ErrorBody),
))]
async fn tokenize(
    State(app): State<Arc<App>>,
    ignored: Ignored,
    Json(request): Json<TokenizeRequest>,
) -> ApiResult<Json<TokenizeResponse>> {
    app.adapter(request.model.as_deref())?;
    let tokenizer = Arc::clone(&app.tokenizer);
    let tokens = match (request.prompt, request.messages) {
        (Some(text), None) => {
            check_bytes(&app, text.len())?;
            let specials = request.add_special_tokens.unwrap_or(true);
            let tokenizer = Arc::clone(&tokenizer);
            let encoded = tokio::task::spawn_blocking(move || tokenizer.encode_with(&text, specials)).await;
            encoded.map_err(|e| ApiError::internal(&e))??
        }
        (None, Some(messages)) => {
            let conversation = Conversation {
                messages: &messages,
                tools: request.tools.filter(|tools| !tools.is_empty()),
                documents: request.documents,
                add_generation_prompt: request.add_generation_prompt,
                continue_final_message: request.continue_final_message.unwrap_or(false),
                template: request.chat_template,
                more: request.chat_template_kwargs.unwrap_or_default(),
                ignored,
            };
            conversation.tokens(&app, request.add_special_tokens.unwrap_or(false)).await?
        }
        _ => {
            return Err(ApiError::bad(
                "the request's body",
                "it must have either `prompt` or `messages`",
                "give one of the two",
            )
            .param("prompt"));
        }
    };
    let strings = |ids: &[u32]| ids.iter().map(|id| tokenizer.token(*id).unwrap_or_default()).collect();
    Ok(Json(TokenizeResponse {
        count: tokens.len(),
        max_model_len: app.live.engine().model().max_positions(),
        token_strs: (request.return_token_strs == Some(true)).then(|| strings(&tokens)),
        tokens,
    }))
}

/// Tokens to text
#[utoipa::path(post, path = "/detokenize", tag = "tokens", request_body = DetokenizeRequest, responses(
    (status = 200, description = "The text", body = DetokenizeResponse),
    (status = 400, description = "The request is wrong", body = ErrorBody),
    (status = 404, description = "There is no such model", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
    (status = 415, description = "The body is not JSON", body = ErrorBody),
))]
async fn detokenize(
    State(app): State<Arc<App>>,
    Json(request): Json<DetokenizeRequest>,
) -> ApiResult<Json<DetokenizeResponse>> {
    app.adapter(request.model.as_deref())?;
    let tokenizer = &app.tokenizer;
    let vocabulary = app.live.engine().model().vocab().max(tokenizer.vocabulary());
    if let Some(id) = request.tokens.iter().find(|id| **id as usize >= vocabulary) {
        return Err(ApiError::bad(
            format!("token {id}"),
            format!("the vocabulary has the tokens 0 to {}", vocabulary.saturating_sub(1)),
            "give tokens of this model",
        )
        .param("tokens"));
    }
    Ok(Json(DetokenizeResponse { prompt: tokenizer.decode_all(&request.tokens)? }))
}

/// What tokenizer_config.json says, and the chat template that is used
#[utoipa::path(get, path = "/tokenizer_info", tag = "tokens", responses(
    (status = 200, description = "As the file has it; tokens are texts", body = Object),
))]
async fn tokenizer_info(State(app): State<Arc<App>>) -> Json<Value> {
    let mut info: Map<String, Value> =
        app.options.tokenizer_config.iter().map(|(name, value)| (name.clone(), plain(value))).collect();
    info.entry("tokenizer_class").or_insert_with(|| Value::from("PreTrainedTokenizerFast"));
    // Where they stand in another file.
    for (name, token) in app.tokenizer.specials() {
        info.insert(name.clone(), Value::from(token.as_str()));
    }
    info.insert("chat_template".to_string(), app.tokenizer.template(false).map_or(Value::Null, Value::from));
    Json(Value::Object(info))
}

/// A value in which each token that is described by an object is its text.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => match fields.get("content") {
            Some(Value::String(text)) => Value::from(text.as_str()),
            _ => Value::Object(fields.iter().map(|(name, value)| (name.clone(), plain(value))).collect()),
        },
        Value::Array(all) => all.iter().map(plain).collect(),
        other => other.clone(),
    }
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(tokenize)).routes(routes!(detokenize)).routes(routes!(tokenizer_info))
}
