//! `/v1/chat/completions`.

mod answer;
mod render;
mod stream;

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::request::request;
use super::tools::{self, Thoughts, Tools};
use crate::serve::ask::{
    Asked, Batch, ChatMessage, Conversation, Limit, Running, check_choices, check_logprobs, max_tokens, refuse, sse,
};
use crate::serve::error::{ApiError, ApiResult, ErrorBody};
use crate::serve::fields::Ignored;
use crate::serve::json::Json;
use crate::serve::state::{App, unix_seconds};
use answer::{Answer, ChatResponse};
use stream::Stream;

/// Tokens at the end of a prompt that are looked at for thoughts that it opens.
const PROMPT_END: usize = 64;

request! {
    /// A conversation to go on with, and how.
    pub struct ChatRequest {
        /// The turns so far.
        #[schema(min_items = 1)]
        pub messages: Vec<ChatMessage>,
        /// Most tokens per answer; the rest of the context where it is absent.
        pub max_completion_tokens: Option<u32>,
        /// The older name of `max_completion_tokens`.
        pub max_tokens: Option<u32>,
        /// Log probabilities of the answer's tokens.
        pub logprobs: Option<bool>,
        /// With this many of the most likely tokens; needs `logprobs`.
        #[schema(minimum = 0, maximum = 20)]
        pub top_logprobs: Option<i64>,
        /// End the prompt where the assistant's answer begins; the default is true.
        pub add_generation_prompt: Option<bool>,
        /// Further variables of the chat template.
        #[schema(value_type = Option<Object>)]
        pub chat_template_kwargs: Option<serde_json::Map<String, serde_json::Value>>,
        /// End the prompt within the last message, which the answer goes on with.
        pub continue_final_message: Option<bool>,
        /// Another chat template, where the server takes one (`--trust-request-chat-template`).
        #[schema(max_length = 1048576)]
        pub chat_template: Option<String>,
        /// Documents that the model may quote, for templates that know them.
        #[schema(value_type = Option<Vec<Object>>)]
        pub documents: Option<Vec<serde_json::Value>>,
        /// How long the model should think, for templates that know it.
        pub reasoning_effort: Option<String>,
        /// The tools that the model may call.
        #[schema(value_type = Option<Vec<super::tools::Tool>>)]
        pub tools: Option<Vec<serde_json::Value>>,
        /// `none`, or `auto`: the model may call tools. A choice that binds it is refused.
        #[schema(value_type = Option<String>, pattern = "^(none|auto|required)$")]
        pub tool_choice: Option<serde_json::Value>,
        /// Whether an answer may have several calls; the default is true.
        pub parallel_tool_calls: Option<bool>,
        #[schema(ignore)]
        functions: Option<serde_json::Value>,
        #[schema(ignore)]
        function_call: Option<serde_json::Value>,
        #[schema(ignore)]
        modalities: Option<serde_json::Value>,
        #[schema(ignore)]
        audio: Option<serde_json::Value>,
        #[schema(ignore)]
        prediction: Option<serde_json::Value>,
        #[schema(ignore)]
        web_search_options: Option<serde_json::Value>,
    }
}

/// Answers in a conversation
#[utoipa::path(post, path = "/v1/chat/completions", tag = "openai", request_body = ChatRequest, responses(
    (status = 200, description = "The answer, or with `stream` its chunks", content(
        (ChatResponse = "application/json"), (String = "text/event-stream"),
    )),
    (status = 400, description = "The request is wrong", body = ErrorBody),
    (status = 404, description = "There is no such model", body = ErrorBody),
    (status = 408, description = "It took too long", body = ErrorBody),
    (status = 413, description = "The body is too large", body = ErrorBody),
    (status = 415, description = "The body is not JSON", body = ErrorBody),
    (status = 429, description = "The queue is full", body = ErrorBody),
    (status = 503, description = "The server is going down", body = ErrorBody),
))]
async fn chat(State(app): State<Arc<App>>, ignored: Ignored, Json(request): Json<ChatRequest>) -> ApiResult<Response> {
    let adapter = app.adapter(request.model.as_deref())?;
    let streamed = request.streamed()?;
    let Prepared { asked, prompt, tools } = request.prepared(&app, ignored).await?;
    let id = app.claim("chatcmpl-", request.request_id.as_deref())?;
    let thoughts = app.options.reasoning_parser.map(|parser| {
        // What opens thoughts stands at the end of the prompt.
        let tail = &prompt[prompt.len().saturating_sub(PROMPT_END)..];
        Thoughts::behind(parser, &app.tokenizer.decode_all(tail).unwrap_or_default())
    });
    let answer = Answer {
        id: id.as_str().to_string(),
        created: unix_seconds(),
        model: request.model.clone().unwrap_or_else(|| app.served_name.clone()),
        tools,
        thoughts,
        logprobs: asked.params.logprobs.is_some(),
        token_ids: request.return_token_ids.unwrap_or(false),
        as_ids: request.return_tokens_as_token_ids.unwrap_or(false),
        app: Arc::clone(&app),
        prompt: prompt.clone(),
        asked,
        usage: streamed.clone().unwrap_or_default(),
    };
    let batch = Batch { prompts: vec![prompt], n: answer.asked.n, params: answer.asked.params.clone(), adapter };
    if streamed.is_some() {
        let running = Running::start(&app, id, batch, Limit::Idle)?;
        return Ok(sse::stream(running, Stream::new(answer)));
    }
    let outputs = Running::start(&app, id, batch, Limit::Total)?.collect().await?;
    Ok(answer.whole(&outputs))
}

/// A request that was checked: what it asks for, its prompt and its tools.
struct Prepared {
    asked: Asked,
    prompt: Vec<u32>,
    tools: Tools,
}

impl ChatRequest {
    async fn prepared(&self, app: &Arc<App>, ignored: Ignored) -> ApiResult<Prepared> {
        self.refuse_unsupported()?;
        let mut asked = self.asked(app)?;
        let logprobs = self.logprobs.unwrap_or(false);
        let top_logprobs = check_logprobs(app, "top_logprobs", self.top_logprobs)?;
        if top_logprobs.is_some_and(|n| n > 0) && !logprobs {
            return Err(ApiError::bad(
                "`top_logprobs`",
                "`logprobs` is not true",
                "set `logprobs` to true, or leave `top_logprobs` away",
            )
            .param("top_logprobs"));
        }
        let tools = self.tools(app)?;
        if let Some(call) = tools.structure() {
            // A format is for what is said, and here a tool is called.
            asked.structure = Some(call.clone());
        }
        let mut asked = asked.structured(app).await?;
        let prompt = self.prompt(app, &tools, ignored).await?;
        check_choices(app, 1, asked.n)?;
        let params = &mut asked.params;
        // Marks of calls and thoughts can be special tokens.
        if (tools.parser().is_some() || app.options.reasoning_parser.is_some()) && self.skip_special_tokens.is_none() {
            params.skip_special_tokens = false;
        }
        let asked_tokens = self.max_completion_tokens.or(self.max_tokens);
        params.max_tokens = max_tokens(app, std::slice::from_ref(&prompt), asked_tokens)?;
        params.logprobs = logprobs.then(|| top_logprobs.unwrap_or(0));
        Ok(Prepared { asked, prompt, tools })
    }

    fn refuse_unsupported(&self) -> ApiResult<()> {
        let text_only = "the model reads and writes text only";
        let older = [("functions", &self.functions, "tools"), ("function_call", &self.function_call, "tool_choice")];
        let asked = older.iter().find(|(_, value, _)| value.as_ref().is_some_and(|value| !harmless("", value)));
        if let Some((name, _, newer)) = asked {
            let why = "it is the form that OpenAI had before tools";
            let next = format!("send `{newer}` instead of `{name}`");
            return Err(ApiError::new(
                StatusCode::BAD_REQUEST,
                "unsupported_parameter",
                format!("`{name}`"),
                why,
                next,
            )
            .param(*name));
        }
        refuse(
            &[
                ("modalities", &self.modalities, text_only),
                ("audio", &self.audio, text_only),
                ("prediction", &self.prediction, "predicted output is not used"),
                ("web_search_options", &self.web_search_options, "this server searches nothing"),
            ],
            harmless,
        )
    }

    /// What the request says of tools.
    fn tools(&self, app: &App) -> ApiResult<Tools> {
        let asked = tools::Asked {
            tools: self.tools.as_deref(),
            choice: self.tool_choice.as_ref(),
            parallel: self.parallel_tool_calls,
            template: self.chat_template.as_deref(),
        };
        Tools::of(app, &asked)
    }

    /// The tokens of the prompt.
    async fn prompt(&self, app: &Arc<App>, tools: &Tools, ignored: Ignored) -> ApiResult<Vec<u32>> {
        let mut more = self.chat_template_kwargs.clone().unwrap_or_default();
        if let Some(effort) = &self.reasoning_effort {
            more.insert("reasoning_effort".to_owned(), effort.as_str().into());
        }
        let conversation = Conversation {
            messages: &self.messages,
            tools: tools.rendered(),
            documents: self.documents.clone(),
            add_generation_prompt: self.add_generation_prompt,
            continue_final_message: self.continue_final_message.unwrap_or(false),
            template: self.chat_template.clone(),
            more,
            ignored,
        };
        conversation.prompt(app, self.add_special_tokens.unwrap_or(false), self.truncate_prompt_tokens).await
    }
}

/// Values that clients send as defaults and that ask for nothing.
fn harmless(_: &str, value: &serde_json::Value) -> bool {
    use serde_json::Value;
    match value {
        Value::Bool(false) => true,
        Value::String(text) => text == "none" || text == "auto",
        Value::Array(list) => list.iter().all(|v| v == "text"),
        _ => false,
    }
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(chat)).merge(render::routes())
}
