//! `/generate`, and `/health_generate`.

use std::sync::Arc;
use std::time::Instant;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use patchhost_runtime::lora::Adapter;
use patchhost_runtime::scheduler::{Event, SampleParams};
use serde::Deserialize;
use serde_json::{Value, json};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::answer::{SgResult, Success};
use super::many::{OneOrMany, OneOrManyOf};
use super::meta::{About, answer};
use super::sampling::SamplingParams;
use crate::serve::ask::sse::{self, Chunks};
use crate::serve::ask::{
    Batch, Limit, Output, Prompt, Running, cache_salt, check_choices, check_logprobs, max_tokens, refuse,
};
use crate::serve::doors::Door;
use crate::serve::error::{ApiError, ApiResult};
use crate::serve::json::Json;
use crate::serve::state::App;

/// Tokens where the request says nothing.
const MAX_NEW_TOKENS: usize = 128;

/// Body of `/generate`.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[allow(dead_code, reason = "for the OpenAPI document: some fields are accepted and ask for nothing here")]
pub struct GenerateRequest {
    /// Texts of the prompts.
    #[schema(value_type = Option<OneOrManyOf<String>>)]
    pub text: Option<OneOrMany<String>>,
    /// Tokens of the prompts, in place of texts.
    #[schema(value_type = Option<OneOrManyOf<Ids>>)]
    pub input_ids: Option<OneOrMany<Ids>>,
    /// How tokens are chosen.
    #[schema(value_type = Option<SamplingParams>)]
    pub sampling_params: Option<OneOrMany<SamplingParams>>,
    /// Ids of the requests, for aborts.
    #[schema(value_type = Option<String>)]
    pub rid: Option<OneOrMany<String>>,
    /// Give log probabilities.
    #[schema(value_type = Option<bool>)]
    pub return_logprob: Option<OneOrMany<bool>>,
    /// The first position of the prompt whose log probability is given; -1 (the default) gives those of the answer only.
    #[schema(value_type = Option<i64>)]
    pub logprob_start_len: Option<OneOrMany<i64>>,
    /// Give this many of the best tokens at each place.
    #[schema(value_type = Option<u32>)]
    pub top_logprobs_num: Option<OneOrMany<u32>>,
    /// Give these tokens at each place.
    pub token_ids_logprob: Option<Ids>,
    /// Texts beside token ids in log probabilities.
    #[serde(default)]
    pub return_text_in_logprobs: bool,
    /// Send what there is after every token; each event holds all so far.
    #[serde(default)]
    pub stream: bool,
    /// Name of a loaded adapter.
    #[schema(value_type = Option<String>)]
    pub lora_path: Option<OneOrMany<Option<String>>>,
    /// Prefixes are shared only with requests that have the same key.
    #[schema(value_type = Option<String>)]
    pub extra_key: Option<OneOrMany<Option<String>>>,
    /// Accepted; nothing is logged anyway.
    pub log_metrics: Option<bool>,
    #[schema(ignore)]
    return_routed_experts: Option<bool>,
    #[schema(ignore)]
    return_hidden_states: Option<Value>,
    #[schema(ignore)]
    input_embeds: Option<Value>,
    #[schema(ignore)]
    image_data: Option<Value>,
    #[schema(ignore)]
    video_data: Option<Value>,
    #[schema(ignore)]
    audio_data: Option<Value>,
    #[schema(ignore)]
    session_params: Option<Value>,
    #[schema(ignore)]
    custom_logit_processor: Option<Value>,
}

/// Token ids, of one prompt or of a part of a list of prompts.
#[derive(Debug, Clone, Deserialize, ToSchema)]
#[serde(untagged)]
pub enum Ids {
    /// One token of the only prompt.
    Token(u32),
    /// The tokens of a prompt.
    List(Vec<u32>),
}

/// One prompt with everything that belongs to it.
struct Piece {
    about: About,
    params: SampleParams,
    n: usize,
    adapter: Option<Arc<Adapter>>,
}

impl GenerateRequest {
    fn refuse(&self) -> ApiResult<()> {
        if self.return_routed_experts == Some(true) {
            let why = "which experts a token went to is not recorded here";
            return Err(ApiError::unsupported("return_routed_experts", why));
        }
        let media = "the model takes text only";
        refuse(
            &[
                ("return_hidden_states", &self.return_hidden_states, "hidden states stay inside"),
                ("input_embeds", &self.input_embeds, "prompts are texts or token ids"),
                ("image_data", &self.image_data, media),
                ("video_data", &self.video_data, media),
                ("audio_data", &self.audio_data, media),
                ("session_params", &self.session_params, "every request stands for itself; equal prefixes are cached"),
                (
                    "custom_logit_processor",
                    &self.custom_logit_processor,
                    "it is a pickle of code; mask tokens by a patch",
                ),
            ],
            |_, value| value == &Value::Bool(false),
        )
    }

    /// The prompts, and whether there may be several.
    fn prompt(&self) -> ApiResult<(Prompt, bool)> {
        let bad = |why: &str| ApiError::bad("the prompt", why, "give `text` or `input_ids`").param("text");
        match (&self.text, &self.input_ids) {
            (Some(_), Some(_)) => Err(bad("both text and input_ids are given")),
            (None, None) => Err(bad("neither text nor input_ids is given")),
            (Some(OneOrMany::One(text)), None) => Ok((Prompt::Text(text.clone()), false)),
            (Some(OneOrMany::Many(texts)), None) => Ok((Prompt::Texts(texts.clone()), true)),
            (None, Some(OneOrMany::One(Ids::Token(_)))) => Err(bad("input_ids is a number, and must be a list")),
            (None, Some(OneOrMany::One(Ids::List(ids)))) => Ok((Prompt::Tokens(ids.clone()), false)),
            (None, Some(OneOrMany::Many(all))) => {
                let flat: Option<Vec<u32>> =
                    all.iter().map(|i| if let Ids::Token(id) = i { Some(*id) } else { None }).collect();
                let lists: Option<Vec<Vec<u32>>> =
                    all.iter().map(|i| if let Ids::List(l) = i { Some(l.clone()) } else { None }).collect();
                match (flat, lists) {
                    (Some(ids), _) => Ok((Prompt::Tokens(ids), false)),
                    (None, Some(lists)) => Ok((Prompt::TokenLists(lists), true)),
                    (None, None) => Err(bad("input_ids mixes tokens and lists of tokens")),
                }
            }
        }
    }

    async fn piece(&self, app: &Arc<App>, prompt: Vec<u32>, i: usize, of: usize) -> ApiResult<Piece> {
        let sampling = OneOrMany::at(self.sampling_params.as_ref(), i, of, "sampling_params")?.unwrap_or_default();
        let return_logprob = OneOrMany::at(self.return_logprob.as_ref(), i, of, "return_logprob")?.unwrap_or(false);
        let top = OneOrMany::at(self.top_logprobs_num.as_ref(), i, of, "top_logprobs_num")?;
        let start = OneOrMany::at(self.logprob_start_len.as_ref(), i, of, "logprob_start_len")?.unwrap_or(-1);
        let adapter = OneOrMany::at(self.lora_path.as_ref(), i, of, "lora_path")?.flatten();
        let ids: &[u32] = match &self.token_ids_logprob {
            None => &[],
            Some(Ids::List(ids)) => ids,
            Some(Ids::Token(id)) => std::slice::from_ref(id),
        };
        let top = check_logprobs(app, "top_logprobs_num", top.map(i64::from))?.unwrap_or(0);
        let mut asked = sampling.asked(app, if return_logprob { ids } else { &[] })?.structured(app).await?;
        let key = OneOrMany::at(self.extra_key.as_ref(), i, of, "extra_key")?.flatten();
        asked.params.cache_salt = cache_salt("extra_key", key.as_deref())?;
        asked.params.logprobs_mode = app.logprobs_mode(Door::Sglang);
        let start = usize::try_from(start).ok().filter(|_| return_logprob);
        if start.is_some_and(|s| s > prompt.len()) {
            let why = format!("the prompt has {} tokens", prompt.len());
            return Err(
                ApiError::bad("`logprob_start_len`", why, "give a smaller one, or -1").param("logprob_start_len")
            );
        }
        let prompts = [prompt];
        let room = max_tokens(app, &prompts, None)?;
        let most =
            sampling.max_new_tokens.map_or(Ok(room.min(MAX_NEW_TOKENS)), |n| max_tokens(app, &prompts, Some(n)))?;
        asked.params.max_tokens = most;
        asked.params.logprobs = return_logprob.then_some(top);
        asked.params.prompt_logprobs = start.map(|_| top);
        let [prompt] = prompts;
        let about = About {
            id: String::new(),
            prompt,
            max_new_tokens: most,
            return_logprob,
            logprob_start: start,
            top,
            by_id: return_logprob && !ids.is_empty(),
            texts: self.return_text_in_logprobs,
            logprobs_mode: asked.params.logprobs_mode.name(),
            weight_version: app.rl.version_of(&*app.live.engine().live()?),
        };
        Ok(Piece { about, params: asked.params, n: asked.n, adapter: app.adapter(adapter.as_deref())? })
    }
}

/// Generate, as SGLang does
#[utoipa::path(post, path = "/generate", tag = "rl", request_body = GenerateRequest, responses(
    (status = 200, description = "text, output_ids and meta_info; a list of them for several prompts or samples; or a stream", content(
        (Object = "application/json"), (String = "text/event-stream"),
    )),
    (status = "4XX", description = "Refused", body = Success),
    (status = 503, description = "Not now", body = Success),
))]
async fn generate(State(app): State<Arc<App>>, Json(request): Json<GenerateRequest>) -> SgResult<Response> {
    request.refuse()?;
    let (prompt, several) = request.prompt()?;
    let prompts = prompt.tokens(&app, true, None).await?;
    let of = prompts.len();
    let mut pieces = Vec::with_capacity(of);
    for (i, prompt) in prompts.into_iter().enumerate() {
        pieces.push(request.piece(&app, prompt, i, of).await?);
    }
    let samples: usize = pieces.iter().map(|p| p.n).sum();
    check_choices(&app, 1, samples)?;
    if request.stream {
        return stream(&app, &request, pieces);
    }
    let began = Instant::now();
    let mut running = Vec::with_capacity(of);
    for (i, mut piece) in pieces.into_iter().enumerate() {
        let own = OneOrMany::at(request.rid.as_ref(), i, of, "rid")?;
        // One id for several prompts: each gets its own, made from it.
        let own = match (own, &request.rid) {
            (Some(id), Some(OneOrMany::One(_))) if of > 1 => Some(format!("{id}-{i}")),
            (own, _) => own,
        };
        let id = app.claim("", own.as_deref())?;
        piece.about.id = id.as_str().to_string();
        let batch = Batch {
            prompts: vec![piece.about.prompt.clone()],
            n: piece.n,
            params: piece.params.clone(),
            adapter: piece.adapter.clone(),
        };
        running.push((Running::start(&app, id, batch, Limit::Total)?, piece));
    }
    let mut answers = Vec::with_capacity(samples);
    let tokenizer = &app.tokenizer;
    for (running, piece) in running {
        let outputs = running.collect().await?;
        let seconds = began.elapsed().as_secs_f64();
        answers.extend(outputs.iter().map(|o| answer(&piece.about, o, true, tokenizer, seconds)));
    }
    let body = match (several || samples > 1, answers.pop()) {
        (false, Some(only)) => only,
        (_, last) => {
            answers.extend(last);
            Value::Array(answers)
        }
    };
    Ok(Json(body).into_response())
}

fn stream(app: &Arc<App>, request: &GenerateRequest, pieces: Vec<Piece>) -> SgResult<Response> {
    let n = pieces.first().map_or(1, |p| p.n);
    let params = pieces.first().map(|p| p.params.clone()).unwrap_or_default();
    let adapter = pieces.first().and_then(|p| p.adapter.clone());
    let same = |p: &Piece| {
        let adapters = p.adapter.as_ref().map(|a| a.name()) == adapter.as_ref().map(|a| a.name());
        // How much fits is each prompt's own.
        let others = SampleParams { max_tokens: params.max_tokens, ..p.params.clone() };
        p.n == n && others == params && adapters
    };
    if !pieces.iter().all(same) {
        return Err(ApiError::bad(
            "`stream`",
            "the prompts have different sampling parameters",
            "stream them in several requests",
        )
        .param("stream")
        .into());
    }
    let own = match &request.rid {
        None => None,
        Some(OneOrMany::One(id)) => Some(id.as_str()),
        Some(OneOrMany::Many(ids)) if ids.len() == 1 => ids.first().map(String::as_str),
        Some(OneOrMany::Many(_)) => {
            let why = "the prompts of a stream have one id together";
            return Err(ApiError::bad("`rid`", why, "give one id").param("rid").into());
        }
    };
    let id = app.claim("", own)?;
    let least = pieces.iter().map(|p| p.params.max_tokens).min().unwrap_or(params.max_tokens);
    let params = SampleParams { max_tokens: least, ..params };
    let mut abouts: Vec<About> = pieces.into_iter().map(|p| p.about).collect();
    for about in &mut abouts {
        about.id = id.as_str().to_string();
        about.max_new_tokens = least;
    }
    let batch = Batch { prompts: abouts.iter().map(|a| a.prompt.clone()).collect(), n, params, adapter };
    let total = abouts.len() * n;
    let running = Running::start(app, id, batch, Limit::Idle)?;
    let outputs = vec![Output::default(); total];
    Ok(sse::stream(running, Stream { app: Arc::clone(app), abouts, n, outputs, began: Instant::now() }))
}

/// A stream as SGLang sends it: each event holds everything that was generated so far.
struct Stream {
    app: Arc<App>,
    abouts: Vec<About>,
    n: usize,
    outputs: Vec<Output>,
    began: Instant,
}

impl Chunks for Stream {
    fn event(&mut self, choice: usize, event: Event) -> ApiResult<Vec<String>> {
        let (quiet, finished) = (matches!(event, Event::Started(_)), matches!(event, Event::Done(_)));
        self.outputs[choice].add(event);
        if quiet {
            return Ok(Vec::new());
        }
        let seconds = self.began.elapsed().as_secs_f64();
        let tokenizer = &self.app.tokenizer;
        let about = &self.abouts[choice / self.n];
        let mut body = answer(about, &self.outputs[choice], finished, tokenizer, seconds);
        if let (Some(map), true) = (body.as_object_mut(), self.outputs.len() > 1) {
            map.insert("index".to_string(), json!(choice));
        }
        Ok(vec![sse::chunk(&body)?])
    }

    fn end(&mut self) -> ApiResult<Vec<String>> {
        Ok(Vec::new())
    }
}

/// Liveness by a token that is generated
#[utoipa::path(get, path = "/health_generate", tag = "rl", responses(
    (status = 200, description = "A token came"),
    (status = 503, description = "None came", body = Success),
))]
async fn health_generate(State(app): State<Arc<App>>) -> ApiResult<StatusCode> {
    if app.scheduler.is_paused().is_some() || app.is_sleeping() {
        let why = "the server is paused or asleep: no token would come";
        return Err(ApiError::unavailable("a health check", why, "resume it, or ask GET /health", 5));
    }
    let params = SampleParams { max_tokens: 1, temperature: 0.0, ignore_eos: true, ..SampleParams::default() };
    let batch = Batch { prompts: vec![vec![0]], n: 1, params, adapter: None };
    let id = app.claim("", None)?;
    Running::start(&app, id, batch, Limit::Total)?.collect().await?;
    Ok(StatusCode::OK)
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(generate)).routes(routes!(health_generate))
}
