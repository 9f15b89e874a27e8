//! What every handler shares: [`App`], made of what the lower rooms keep. Extractors of those rooms do not know it; they
//! take their part of it by [`FromRef`].

use std::collections::{BTreeSet, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use axum::extract::FromRef;
use patchhost_runtime::grammar::Grammars;
use patchhost_runtime::lora::Adapter;
use patchhost_runtime::scheduler::{LogprobsMode, Scheduler, SchedulerOptions};
use patchhost_runtime::tokenizer::Tokenizer;
use serde_json::{Map, Value};
use tokio::sync::{Notify, watch};

use super::auth::{AdminAuth, RlAuth};
use super::doors::Door;
use super::error::{ApiError, ApiResult};
use super::hosts::Hosts;
use super::intake::Room;
use super::json::Bodies;
use super::keys::ApiKeys;
use super::metrics::Metrics;
use super::openai::{ReasoningParser, ToolParser};
use super::traces::Traces;
use super::weights::{RlState, Roots};
use crate::base::text::clean;
use crate::live::LiveModel;

/// Longest request id that a client may choose.
const REQUEST_ID: usize = 128;

/// Limits and names of one server.
#[derive(Debug, Clone)]
pub struct ServeOptions {
    /// Other names of the served model.
    pub aliases: Vec<String>,
    /// Where the served model was read from, as requests may name it too: the first as it was given, then in other forms.
    pub paths: Vec<String>,
    /// A request that is not answered after this long is aborted; a stream, when no token came for this long.
    pub request_timeout: Duration,
    /// Largest body in bytes. Endpoints that take weights have their own.
    pub max_body: usize,
    /// How long running requests may go on after the server was told to stop.
    pub drain_timeout: Duration,
    /// Most `logprobs` and `top_logprobs` that a request may ask for; none: as many as the vocabulary has.
    pub max_logprobs: Option<usize>,
    /// What `logprobs` are computed from; none: what the original of each door gives.
    pub logprobs_mode: Option<LogprobsMode>,
    /// Most choices (`n` times prompts) of one request.
    pub max_choices: usize,
    /// Most connections at once of each address.
    pub max_connections: usize,
    /// The content of tokenizer_config.json, for clients that ask for it.
    pub tokenizer_config: Map<String, Value>,
    /// What the scheduler was started with, for clients that ask for it.
    pub scheduler: SchedulerOptions,
    /// Requests may bring chat templates.
    pub trust_request_chat_template: bool,
    /// In which form the model calls tools; none where its chat template says it.
    pub tool_parser: Option<ToolParser>,
    /// How the model's thoughts are taken out of its answers; none where they stay in the text.
    pub reasoning_parser: Option<ReasoningParser>,
    /// Tools are left out of a prompt whose answer may not call them.
    pub exclude_tools_when_tool_choice_none: bool,
}

impl Default for ServeOptions {
    fn default() -> Self {
        Self {
            aliases: Vec::new(),
            paths: Vec::new(),
            request_timeout: Duration::from_secs(300),
            max_body: 4 << 20,
            drain_timeout: Duration::from_secs(30),
            max_logprobs: Some(20),
            logprobs_mode: None,
            max_choices: 1024,
            max_connections: 4096,
            tokenizer_config: Map::new(),
            scheduler: SchedulerOptions::default(),
            trust_request_chat_template: false,
            tool_parser: None,
            reasoning_parser: None,
            exclude_tools_when_tool_choice_none: false,
        }
    }
}

/// A part of the memory that can be put to sleep.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Memory {
    /// The weights; they stay in memory, and are not used.
    Weights,
    /// Keys and values, and the prefix cache: given back.
    KvCache,
}

/// What all handlers of a server share: the model behind it, its limits, and what happens to it.
pub struct App {
    /// The model and its patches.
    pub live: Arc<LiveModel>,
    /// The tokenizer, with the chat template that the server uses.
    pub tokenizer: Arc<Tokenizer>,
    /// Grammars that answers must follow.
    pub grammars: Grammars,
    /// Who runs the sequences.
    pub scheduler: Scheduler,
    /// Name of the model for clients.
    pub served_name: String,
    /// Limits and names, as the command line gave them.
    pub options: ServeOptions,
    /// What `/metrics` shows.
    pub metrics: Arc<Metrics>,
    /// Folders that requests may name.
    pub roots: Roots,
    /// Who may change the server.
    pub admin: AdminAuth,
    /// Who may ask the model.
    pub keys: ApiKeys,
    /// What the server may be called.
    pub hosts: Hosts,
    /// Where traces of requests go, where somebody wants them.
    pub traces: Option<Traces>,
    /// The weights that are on their way, and who may send them.
    pub rl: RlState,
    /// Seconds since 1970 when the server started, for `created` of the models.
    pub started: u64,
    /// The memory for bodies without weights.
    pub bodies: Room,
    /// A request was answered.
    pub answered: Notify,
    draining: watch::Sender<bool>,
    sleeping: AtomicBool,
    asleep: Mutex<BTreeSet<Memory>>,
    ids: Mutex<HashSet<String>>,
}

impl App {
    /// A server without roots and tokens, ready to take requests.
    pub fn new(
        live: Arc<LiveModel>,
        tokenizer: Arc<Tokenizer>,
        scheduler: Scheduler,
        served_name: String,
        options: ServeOptions,
    ) -> Self {
        let metrics = Arc::new(Metrics::new(&served_name, live.clone(), scheduler.clone()));
        let rl = RlState::new(live.clone(), scheduler.clone(), metrics.clone());
        Self {
            live,
            grammars: Grammars::new(Arc::clone(&tokenizer)),
            tokenizer,
            scheduler,
            served_name,
            options,
            metrics,
            roots: Roots::default(),
            admin: AdminAuth::default(),
            keys: ApiKeys::default(),
            hosts: Hosts::default(),
            traces: None,
            rl,
            started: unix_seconds(),
            bodies: Room::default(),
            answered: Notify::new(),
            draining: watch::Sender::new(false),
            sleeping: AtomicBool::new(false),
            asleep: Mutex::default(),
            ids: Mutex::default(),
        }
    }

    /// Takes no more requests from now on.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }

    /// Whether the server is going down.
    pub fn is_draining(&self) -> bool {
        *self.draining.borrow()
    }

    /// Ends when the server starts to go down.
    pub async fn draining(&self) {
        let mut receiver = self.draining.subscribe();
        // The sender lives as long as `self`: an error cannot come.
        let _ = receiver.wait_for(|draining| *draining).await;
    }

    /// Whether the server was put to sleep: its weights are not to be used.
    pub fn is_sleeping(&self) -> bool {
        self.sleeping.load(Ordering::Acquire)
    }

    /// Puts the server to sleep, or wakes it.
    pub fn set_sleeping(&self, sleeping: bool) {
        self.sleeping.store(sleeping, Ordering::Release);
    }

    /// Which parts of the memory were put to sleep.
    pub fn asleep(&self) -> MutexGuard<'_, BTreeSet<Memory>> {
        self.asleep.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The adapter that a request's `model` names; none for the served model itself.
    pub fn adapter(&self, model: Option<&str>) -> ApiResult<Option<Arc<Adapter>>> {
        let Some(name) = model.filter(|name| !self.is_served(name)) else { return Ok(None) };
        let adapter = self.live.engine().adapters().get(name);
        adapter.map(Some).ok_or_else(|| ApiError::no_model(name, &self.served_name))
    }

    /// Whether a name is the served model's, or the path of its folder.
    pub fn is_served(&self, name: &str) -> bool {
        let path = name.trim_end_matches('/');
        self.is_name(name) || self.options.paths.iter().any(|known| known.trim_end_matches('/') == path)
    }

    /// Whether a name is one of those that the served model is listed under.
    pub fn is_name(&self, name: &str) -> bool {
        self.served_name == name || self.options.aliases.iter().any(|alias| alias == name)
    }

    /// Where the served model was read from, or its name where it is the bundled one.
    pub fn model_path(&self) -> &str {
        self.options.paths.first().unwrap_or(&self.served_name)
    }

    /// Most log probabilities per place that a request may ask for.
    pub fn max_logprobs(&self) -> usize {
        let vocabulary = self.live.engine().model().vocab();
        self.options.max_logprobs.map_or(vocabulary, |most| most.min(vocabulary))
    }

    /// What the log probabilities of a door's answers are.
    pub fn logprobs_mode(&self, door: Door) -> LogprobsMode {
        self.options.logprobs_mode.unwrap_or_else(|| door.logprobs_mode())
    }

    /// Takes an id for a request: the client's own, or a fresh one. Two requests at once cannot have the same, so that an
    /// abort means one of them.
    pub fn claim(self: &Arc<Self>, prefix: &str, own: Option<&str>) -> ApiResult<RequestId> {
        let id = match own {
            None => format!("{prefix}{}", random_id()),
            Some(own) if own.is_empty() || own.len() > REQUEST_ID || !own.bytes().all(|b| b.is_ascii_graphic()) => {
                return Err(ApiError::bad(
                    format!("request id `{}`", clean(own, 100)),
                    format!("an id is 1 to {REQUEST_ID} printable ASCII characters without spaces"),
                    "give another id, or none",
                )
                .param("request_id"));
            }
            Some(own) if own.starts_with(prefix) => own.to_string(),
            Some(own) => format!("{prefix}{own}"),
        };
        let mut ids = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        if !ids.insert(id.clone()) {
            return Err(ApiError::bad(
                format!("request id `{id}`"),
                "a request with this id is running",
                "give another id, or none",
            )
            .param("request_id"));
        }
        Ok(RequestId { id, app: Arc::clone(self) })
    }
}

impl FromRef<Arc<App>> for Bodies {
    fn from_ref(app: &Arc<App>) -> Self {
        Self { limit: app.options.max_body, room: app.bodies.clone() }
    }
}

impl FromRef<Arc<App>> for RlAuth {
    fn from_ref(app: &Arc<App>) -> Self {
        app.rl.auth.clone()
    }
}

impl FromRef<Arc<App>> for AdminAuth {
    fn from_ref(app: &Arc<App>) -> Self {
        app.admin.clone()
    }
}

/// Runs work that takes long or waits on another thread: those that serve connections must never stand still.
pub async fn blocking<T: Send + 'static>(
    app: &Arc<App>,
    work: impl FnOnce(&Arc<App>) -> ApiResult<T> + Send + 'static,
) -> ApiResult<T> {
    let app = Arc::clone(app);
    // What is done there belongs to the trace of this request.
    let traced = opentelemetry::Context::current();
    let work = move || {
        let _traced = traced.attach();
        work(&app)
    };
    tokio::task::spawn_blocking(work).await.map_err(|e| ApiError::internal(&e))?
}

/// The id of a running request; it is free again when this is dropped.
pub struct RequestId {
    id: String,
    app: Arc<App>,
}

impl RequestId {
    /// The id as answers have it.
    pub fn as_str(&self) -> &str {
        &self.id
    }
}

impl Drop for RequestId {
    fn drop(&mut self) {
        self.app.ids.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.id);
    }
}

/// 32 hex digits, which no client can guess.
fn random_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

/// Now, in seconds since 1970: OpenAI's `created`.
pub fn unix_seconds() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs())
}
