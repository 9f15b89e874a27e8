//! Counters and clocks: what dashboards of vLLM read, by its names, and what patches do, as `patchhost_*`.

mod text;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use patchhost_runtime::generate::FinishReason;
use patchhost_runtime::scheduler::Scheduler;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use crate::live::LiveModel;
pub use text::{Form, OPEN, PLAIN, plain};

/// Seconds of vLLM's histograms, with finer steps at the lower end: models here are small.
const SECONDS: [f64; 20] = [
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0, 30.0,
    60.0,
];

type Labels = Vec<(&'static str, String)>;

/// The counters of one server.
pub struct Metrics {
    registry: Registry,
    success: Family<Labels, Counter>,
    first_token: Histogram,
    between_tokens: Histogram,
    end_to_end: Histogram,
    update_seconds: Family<Labels, Histogram, fn() -> Histogram>,
    updates_in_flight: Gauge,
    answers: Family<Labels, Counter>,
}

impl Metrics {
    /// Counters of a server of this model; those of patches and of the scheduler are read when they are asked for.
    pub fn new(model: &str, live: Arc<LiveModel>, scheduler: Scheduler) -> Self {
        let histogram = || Histogram::new(SECONDS);
        let metrics = Self {
            registry: Registry::default(),
            success: Family::default(),
            first_token: histogram(),
            between_tokens: histogram(),
            end_to_end: histogram(),
            update_seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            updates_in_flight: Gauge::default(),
            answers: Family::default(),
        };
        metrics.registered(model, live, scheduler)
    }

    fn registered(mut self, model: &str, live: Arc<LiveModel>, scheduler: Scheduler) -> Self {
        let mut registry = Registry::default();
        let own = &mut registry;
        own.register("patchhost_http_responses", "Answers by route and status", self.answers.clone());
        own.register_collector(Box::new(PatchCollector(live)));
        let vllm = registry.sub_registry_with_label(("model_name".into(), text::label(model).into()));
        vllm.register("vllm:request_success", "Finished sequences by reason", self.success.clone());
        vllm.register(
            "vllm:time_to_first_token_seconds",
            "From the arrival of a sequence to its first token",
            self.first_token.clone(),
        );
        vllm.register(
            "vllm:inter_token_latency_seconds",
            "Between two tokens of a sequence",
            self.between_tokens.clone(),
        );
        vllm.register(
            "vllm:e2e_request_latency_seconds",
            "From the arrival of a sequence to its end",
            self.end_to_end.clone(),
        );
        vllm.register(
            "vllm:rl_weight_update_operation_duration_seconds",
            "Operations of weight updates",
            self.update_seconds.clone(),
        );
        vllm.register(
            "vllm:rl_weight_update_operations_in_flight",
            "Operations of weight updates that are running",
            self.updates_in_flight.clone(),
        );
        vllm.register_collector(Box::new(LoadCollector(scheduler)));
        self.registry = registry;
        self
    }

    /// A sequence gave its first token after this long.
    pub fn first_token(&self, after: Duration) {
        self.first_token.observe(after.as_secs_f64());
    }

    /// A sequence gave its next token after this long.
    pub fn next_token(&self, after: Duration) {
        self.between_tokens.observe(after.as_secs_f64());
    }

    /// A sequence ended so long after its request came.
    pub fn finished(&self, reason: FinishReason, after: Duration) {
        self.end_to_end.observe(after.as_secs_f64());
        self.success.get_or_create(&vec![("finished_reason", reason_name(reason).to_string())]).inc();
    }

    /// An answer of a route.
    pub fn answered(&self, route: &str, status: u16) {
        let labels = vec![("route", route.to_string()), ("status", status.to_string())];
        self.answers.get_or_create(&labels).inc();
    }

    /// Counts an operation of a weight update as running, and measures its time, until what is returned is dropped.
    pub fn weight_update(self: &Arc<Self>, operation: &'static str) -> WeightUpdate {
        self.updates_in_flight.inc();
        WeightUpdate { metrics: Arc::clone(self), operation, since: Instant::now() }
    }

    /// The metrics as OpenMetrics text.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

/// Why a sequence ended, in the words of answers and metrics.
pub fn reason_name(reason: FinishReason) -> &'static str {
    match reason {
        FinishReason::Stop => "stop",
        FinishReason::Length => "length",
        FinishReason::Abort => "abort",
        FinishReason::Error => "error",
    }
}

/// An operation of a weight update that is running.
pub struct WeightUpdate {
    metrics: Arc<Metrics>,
    operation: &'static str,
    since: Instant,
}

impl Drop for WeightUpdate {
    fn drop(&mut self) {
        self.metrics.updates_in_flight.dec();
        let labels = vec![("operation", self.operation.to_string())];
        self.metrics.update_seconds.get_or_create(&labels).observe(self.since.elapsed().as_secs_f64());
    }
}

/// Writes a metric that has one value and no labels.
fn put(encoder: &mut DescriptorEncoder<'_>, name: &str, help: &str, metric: &impl EncodeMetric) -> fmt::Result {
    metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
}

/// Reads the scheduler when Prometheus asks.
struct LoadCollector(Scheduler);

impl fmt::Debug for LoadCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("LoadCollector")
    }
}

impl Collector for LoadCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let load = self.0.load();
        let e = &mut encoder;
        let gauge = |n: usize| ConstGauge::new(n as i64);
        let counter = |n: u64| ConstCounter::new(n);
        put(e, "vllm:num_requests_running", "Sequences that run", &gauge(load.running))?;
        put(e, "vllm:num_requests_waiting", "Sequences that wait", &gauge(load.waiting))?;
        let usage = load.kv_bytes as f64 / load.kv_limit.max(1) as f64;
        put(e, "vllm:kv_cache_usage_perc", "Share of the memory for keys and values in use", &ConstGauge::new(usage))?;
        put(
            e,
            "patchhost_kv_cache_bytes",
            "Memory of the keys and values of running sequences",
            &gauge(load.kv_bytes),
        )?;
        put(e, "patchhost_prefix_cache_bytes", "Memory of kept prefixes", &gauge(load.prefix_bytes))?;
        put(e, "vllm:prefix_cache_queries", "Tokens looked up in the prefix cache", &counter(load.prefix_queries))?;
        put(e, "vllm:prefix_cache_hits", "Tokens found in the prefix cache", &counter(load.prefix_hits))?;
        put(e, "vllm:prompt_tokens", "Tokens of prompts", &counter(load.prompt_tokens))?;
        put(e, "vllm:generation_tokens", "Tokens generated", &counter(load.generation_tokens))?;
        put(e, "vllm:num_preemptions", "Sequences that were put back", &counter(load.preempted))
    }
}

/// Reads the patches when Prometheus asks.
struct PatchCollector(Arc<LiveModel>);

impl fmt::Debug for PatchCollector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PatchCollector")
    }
}

/// Name, help, and how the number is read.
type PatchCounter = (&'static str, &'static str, fn(&crate::patch::FunctionStats) -> f64);

const PATCH_COUNTERS: [PatchCounter; 4] = [
    ("patchhost_patch_calls", "Calls of a patch's functions", |s| s.calls as f64),
    ("patchhost_patch_traps", "Calls that trapped or reached a limit", |s| s.traps as f64),
    ("patchhost_patch_fuel", "Fuel of a patch's calls", |s| s.fuel_total as f64),
    ("patchhost_patch_seconds", "Wall time of a patch's calls", |s| s.wall_ns as f64 / 1e9),
];

impl Collector for PatchCollector {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let board = self.0.board();
        let patches = board.patches();
        for (name, help, read) in PATCH_COUNTERS {
            let kind = ConstCounter::new(0u64).metric_type();
            let mut family = encoder.encode_descriptor(name, help, None, kind)?;
            for patch in &patches {
                for (function, stats) in patch.stats().functions {
                    let labels = [
                        ("patch", patch.info().name.clone()),
                        ("generation", patch.generation().short()),
                        ("function", function.to_string()),
                    ];
                    ConstCounter::new(read(&stats)).encode(family.encode_family(&labels)?)?;
                }
            }
        }
        self.active(&mut encoder)?;
        let status = board.status();
        let e = &mut encoder;
        let gauge = |n: usize| ConstGauge::new(n as i64);
        let counter = |n: u64| ConstCounter::new(n);
        put(e, "patchhost_swaps", "Changes of the patch set that landed", &counter(status.swaps))?;
        put(e, "patchhost_rollbacks", "Of those, rollbacks", &counter(status.rollbacks))?;
        put(e, "patchhost_refused", "Candidates that were refused or reversed", &counter(status.refused))?;
        put(e, "patchhost_refits", "Times that weights were published", &counter(self.0.engine().version()))?;
        if let Some(step) = self.0.last_refit().and_then(|last| last.step) {
            let step = ConstGauge::new(i64::try_from(step).unwrap_or(i64::MAX));
            put(e, "patchhost_step", "Step that the trainer named with the weights that serve", &step)?;
        }
        // The first record has the number 0.
        put(e, "patchhost_ledger_events", "Records of the ledger", &counter(self.0.ledger().head().seq + 1))?;
        let health = self.0.ledger().health();
        put(e, "patchhost_ledger_up", "1: the last event could be written", &gauge(usize::from(health.ok)))?;
        put(e, "patchhost_ledger_lost_events", "Events that could not be written", &counter(health.lost))?;
        put(
            e,
            "patchhost_tainted",
            "1: something was forced in this process",
            &gauge(usize::from(!status.tainted.is_empty())),
        )?;
        put(
            e,
            "patchhost_transition",
            "1: a change of the set is under way",
            &gauge(usize::from(status.transition.is_some())),
        )?;
        put(e, "patchhost_staged", "Candidates that passed every stage", &gauge(status.staged.len()))?;
        put(e, "patchhost_quarantined", "Components that may not run", &gauge(status.quarantine.len()))?;
        put(e, "patchhost_draining", "Superseded sets that are still in use", &gauge(status.draining.len()))
    }
}

impl PatchCollector {
    /// The active set: one line per patch, its digests as labels.
    fn active(&self, encoder: &mut DescriptorEncoder<'_>) -> fmt::Result {
        let active = self.0.board().active();
        let set = active.set();
        let kind = ConstGauge::new(1i64).metric_type();
        let mut family =
            encoder.encode_descriptor("patchhost_patch_active", "Patches of the active set", None, kind)?;
        for patch in set.patches() {
            let hooks: Vec<String> = patch.hooks().iter().map(ToString::to_string).collect();
            let labels = [
                ("patch", patch.info().name.clone()),
                ("version", patch.info().version.clone()),
                ("digest", patch.digest().to_string()),
                ("generation", patch.generation().to_string()),
                ("hooks", hooks.join(",")),
                ("patch_set", set.digest().to_string()),
            ];
            ConstGauge::new(1i64).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}
