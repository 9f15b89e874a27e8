//! The span of a request: from its arrival until the last of its answer is made. What it says of the text that was made has the
//! names that vLLM gives it.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::StatusCode;
use axum::middleware::Next;
use axum::response::Response;
use opentelemetry::propagation::TextMapPropagator as _;
use opentelemetry::trace::{FutureExt as _, SpanBuilder, SpanKind, Status, TraceContextExt as _};
use opentelemetry::{Array, Context, KeyValue, StringValue, Value};
use opentelemetry_http::HeaderExtractor;
use opentelemetry_sdk::propagation::TraceContextPropagator;
use patchhost_runtime::generate::{FinishReason, TokenVersion};
use patchhost_runtime::lora::Adapter;
use patchhost_runtime::scheduler::{Event, SampleParams};

use super::Traces;
use crate::base::text::clean;
use crate::serve::error::ApiError;
use crate::serve::guard::is_probe;
use crate::serve::metrics::reason_name;
use crate::serve::state::App;

/// What the span of a request for text is called, as in vLLM.
const GENERATION: &str = "llm_request";
/// Most names of weights that one request's span holds: one that was kept over updates has several.
const MOST_VERSIONS: usize = 64;

/// A request that is being answered. Its span ends when everybody who works on it has dropped this.
pub struct Traced {
    app: Arc<App>,
    cx: Context,
    arrived: Instant,
    seen: Mutex<Seen>,
}

/// What is known of a request so far.
#[derive(Default)]
struct Seen {
    status: Option<StatusCode>,
    error: Option<String>,
    made: Option<Made>,
}

/// The sequences of a request; of several calls to the scheduler, all together.
#[derive(Debug, Clone, Default)]
struct Made {
    ids: Vec<String>,
    model: String,
    max_tokens: usize,
    temperature: f32,
    top_p: f32,
    /// Sequences for each prompt.
    n: usize,
    sequences: usize,
    prompt_tokens: usize,
    cached_tokens: usize,
    completion_tokens: usize,
    /// The longest wait of a sequence in the queue.
    queued: Option<Duration>,
    admitted: Option<Instant>,
    first: Option<Instant>,
    last: Option<Instant>,
    reasons: Vec<FinishReason>,
    /// Weights and patch sets that made tokens, the last one last.
    versions: Vec<(String, String)>,
}

/// Makes a span of each request but probes, within the trace that its client names.
pub async fn trace(
    State((app, traces)): State<(Arc<App>, Traces)>,
    path: Option<MatchedPath>,
    request: Request,
    next: Next,
) -> Response {
    // What is no route is somebody's mistake, and nothing to follow.
    let Some(path) = path.filter(|path| !is_probe(path.as_str()) && path.as_str() != "/metrics") else {
        return next.run(request).await;
    };
    let Some(traced) = Traced::begin(app, &traces, path.as_str(), &request) else { return next.run(request).await };
    let cx = traced.cx.with_value(Arc::clone(&traced));
    let response = next.run(request).with_context(cx).await;
    traced.seen().status = Some(response.status());
    if let Some(error) = response.extensions().get::<ApiError>() {
        traced.seen().error.get_or_insert_with(|| error.message());
    }
    response
}

impl Traced {
    fn begin(app: Arc<App>, traces: &Traces, route: &str, request: &Request) -> Option<Arc<Self>> {
        let parent =
            TraceContextPropagator::new().extract_with_context(&Context::new(), &HeaderExtractor(request.headers()));
        let method = request.method().as_str();
        let attributes = [
            KeyValue::new("http.request.method", clean(method, 20)),
            KeyValue::new("http.route", route.to_string()),
            KeyValue::new("url.path", clean(request.uri().path(), 200)),
            KeyValue::new("url.scheme", "http"),
        ];
        let span = SpanBuilder::from_name(format!("{} {route}", clean(method, 20)))
            .with_kind(SpanKind::Server)
            .with_attributes(attributes)
            .start_with_context(&traces.tracer, &parent);
        let cx = parent.with_span(span);
        // The client decided that its trace is not followed.
        if !cx.span().is_recording() {
            return None;
        }
        Some(Arc::new(Self { app, cx, arrived: Instant::now(), seen: Mutex::default() }))
    }

    /// The request that this thread works on, where it is traced.
    fn current() -> Option<Arc<Self>> {
        Context::map_current(|cx| cx.get::<Arc<Self>>().cloned())
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The weights and the patch set that made the answer; those that serve, where no text was made.
    fn versions(&self, made: Option<&Made>) -> Vec<(String, String)> {
        match made {
            Some(made) if !made.versions.is_empty() => made.versions.clone(),
            _ => {
                let live = self.app.live.engine().live().ok();
                live.map(|w| (self.app.rl.version_of(&w), w.patches().to_string())).into_iter().collect()
            }
        }
    }
}

impl Drop for Traced {
    fn drop(&mut self) {
        let Seen { status, error, made } = std::mem::take(&mut *self.seen());
        let span = self.cx.span();
        if let Some(status) = status {
            span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status.as_u16())));
            if status.is_client_error() || status.is_server_error() {
                span.set_attribute(KeyValue::new("error.type", status.as_u16().to_string()));
            }
        }
        let versions = self.versions(made.as_ref());
        if let Some((version, patch_set)) = versions.last() {
            span.set_attribute(KeyValue::new("patchhost.weight_version", version.clone()));
            span.set_attribute(KeyValue::new("patchhost.patch_set", patch_set.clone()));
        }
        if versions.len() > 1 {
            let all = versions.into_iter().map(|(version, _)| version);
            span.set_attribute(KeyValue::new("patchhost.weight_versions", texts(all)));
        }
        if let Some(made) = &made {
            span.update_name(GENERATION);
            span.set_attributes(made.attributes(self.arrived));
        }
        // A refusal that is the client's own fault is no error of a server (the conventions for HTTP); one in the middle of a
        // stream, whose status was sent, is.
        let failed = status.is_none_or(|status| !status.is_client_error());
        if let Some(error) = error.filter(|_| failed) {
            span.set_status(Status::error(clean(&error.replace('\n', " "), 1000)));
        } else if status.is_some_and(|status| status.is_server_error()) {
            span.set_status(Status::error("the server failed"));
        } else if status.is_none() {
            span.set_status(Status::error("the client went away, or the server went down, before it was answered"));
        }
        span.end();
    }
}

fn texts(all: impl IntoIterator<Item = String>) -> Value {
    Value::Array(Array::String(all.into_iter().map(StringValue::from).collect()))
}

impl Made {
    fn attributes(&self, arrived: Instant) -> Vec<KeyValue> {
        let count = |n: usize| Value::I64(i64::try_from(n).unwrap_or(i64::MAX));
        let since = |from: Instant, to: Instant| Value::F64(to.saturating_duration_since(from).as_secs_f64());
        let mut all = vec![
            KeyValue::new("gen_ai.response.model", self.model.clone()),
            KeyValue::new("gen_ai.request.max_tokens", count(self.max_tokens)),
            KeyValue::new("gen_ai.request.temperature", f64::from(self.temperature)),
            KeyValue::new("gen_ai.request.top_p", f64::from(self.top_p)),
            KeyValue::new("gen_ai.request.n", count(self.n)),
            KeyValue::new("gen_ai.usage.num_sequences", count(self.sequences)),
            KeyValue::new("gen_ai.usage.prompt_tokens", count(self.prompt_tokens)),
            KeyValue::new("gen_ai.usage.cached_tokens", count(self.cached_tokens)),
            KeyValue::new("gen_ai.usage.completion_tokens", count(self.completion_tokens)),
            KeyValue::new(
                "gen_ai.response.finish_reasons",
                texts(self.reasons.iter().map(|reason| reason_name(*reason).to_string())),
            ),
            KeyValue::new("gen_ai.latency.e2e", since(arrived, Instant::now())),
        ];
        match &self.ids[..] {
            [id] => all.push(KeyValue::new("gen_ai.request.id", id.clone())),
            ids => all.push(KeyValue::new("gen_ai.request.id", ids.join(","))),
        }
        if let Some(queued) = self.queued {
            all.push(KeyValue::new("gen_ai.latency.time_in_queue", queued.as_secs_f64()));
        }
        if let Some(first) = self.first {
            all.push(KeyValue::new("gen_ai.latency.time_to_first_token", since(arrived, first)));
        }
        if let (Some(admitted), Some(first), Some(last)) = (self.admitted, self.first, self.last) {
            all.push(KeyValue::new("gen_ai.latency.time_in_model_prefill", since(admitted, first)));
            all.push(KeyValue::new("gen_ai.latency.time_in_model_decode", since(first, last)));
            all.push(KeyValue::new("gen_ai.latency.time_in_model_inference", since(admitted, last)));
        }
        all
    }

    fn add(&mut self, other: Self) {
        let (least, most) = (
            |a: Option<Instant>, b: Option<Instant>| [a, b].into_iter().flatten().min(),
            |a: Option<Instant>, b: Option<Instant>| a.max(b),
        );
        self.ids.extend(other.ids);
        self.sequences += other.sequences;
        self.prompt_tokens += other.prompt_tokens;
        self.cached_tokens += other.cached_tokens;
        self.completion_tokens += other.completion_tokens;
        self.queued = self.queued.max(other.queued);
        self.admitted = least(self.admitted, other.admitted);
        self.first = least(self.first, other.first);
        self.last = most(self.last, other.last);
        self.reasons.extend(other.reasons);
        for (version, patch_set) in other.versions {
            self.used(version, patch_set);
        }
    }

    /// Tokens were made with these weights.
    fn used(&mut self, version: String, patch_set: String) {
        let used = (version, patch_set);
        self.versions.retain(|known| *known != used);
        if self.versions.len() < MOST_VERSIONS {
            self.versions.push(used);
        }
    }
}

/// Counts for the span of its request what sequences give. Dropping it adds that to the span.
pub struct Tally {
    to: Arc<Traced>,
    made: Made,
    /// Sequences that have not ended.
    open: usize,
    error: Option<String>,
}

impl Tally {
    /// For `n` sequences of each prompt, which begin now by the request `id`; none where the request is not traced.
    pub fn begin(
        id: &str,
        prompts: &[Vec<u32>],
        n: usize,
        params: &SampleParams,
        adapter: Option<&Adapter>,
    ) -> Option<Self> {
        let to = Traced::current()?;
        let sequences = prompts.len() * n;
        let made = Made {
            ids: vec![id.to_string()],
            model: adapter.map_or(to.app.served_name.as_str(), Adapter::name).to_string(),
            max_tokens: params.max_tokens,
            temperature: params.temperature,
            top_p: params.top_p,
            n,
            sequences,
            prompt_tokens: prompts.iter().map(Vec::len).sum(),
            ..Made::default()
        };
        Some(Self { to, made, open: sequences, error: None })
    }

    /// Something happened to a sequence.
    pub fn event(&mut self, event: &Event) {
        let made = &mut self.made;
        match event {
            Event::Started(started) => {
                let queued = started.admitted_at.saturating_duration_since(started.queued_at);
                made.queued = made.queued.max(Some(queued));
                made.admitted = Some(made.admitted.map_or(started.admitted_at, |at| at.min(started.admitted_at)));
            }
            Event::Token(token) => {
                made.completion_tokens += 1;
                made.first = Some(made.first.map_or(token.at, |at| at.min(token.at)));
                made.last = made.last.max(Some(token.at));
            }
            Event::Done(done) => {
                self.open = self.open.saturating_sub(1);
                made.cached_tokens += done.cached_tokens;
                made.reasons.push(done.finish_reason);
                for TokenVersion { version, patches, .. } in &done.weight_versions {
                    made.used(version.clone(), patches.clone());
                }
            }
        }
    }

    /// They end with an error.
    pub fn failed(&mut self, error: &ApiError) {
        self.error.get_or_insert_with(|| error.message());
    }
}

impl Drop for Tally {
    fn drop(&mut self) {
        let mut made = std::mem::take(&mut self.made);
        // What was still running is aborted.
        made.reasons.extend(std::iter::repeat_n(FinishReason::Abort, self.open));
        let mut seen = self.to.seen();
        seen.error = seen.error.take().or(self.error.take());
        match &mut seen.made {
            Some(all) => all.add(made),
            none => *none = Some(made),
        }
    }
}
