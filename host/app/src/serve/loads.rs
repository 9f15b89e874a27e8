//! How busy the server is, in the forms that routers ask for: SGLang's `/v1/loads` and `/get_load`, vLLM's `/load`.

use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use patchhost_runtime::scheduler::Load;
use serde::{Deserialize, Serialize};
use serde_json::json;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::error::{ApiError, ApiResult, ErrorBody};
use super::json::{Json, UrlQuery};
use super::metrics::PLAIN;
use super::state::App;
use crate::base::text::clean;

/// What `include` may name. Only `core` is anything here: there is one process, which does not speculate.
const SECTIONS: [&str; 7] = ["core", "memory", "spec", "lora", "disagg", "queues", "all"];

/// Query of `/v1/loads`.
#[derive(Debug, Default, Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
#[serde(default)]
struct LoadsQuery {
    /// Only this data-parallel rank; there is rank 0.
    dp_rank: Option<u32>,
    /// Sections, with commas; those that do not exist here are empty.
    include: Option<String>,
    /// `json` (the default) or `prometheus`.
    format: Option<String>,
}

/// How busy one process is.
#[derive(Debug, Clone, Serialize, ToSchema)]
struct RankLoad {
    /// Rank of the process: there is one.
    dp_rank: u32,
    /// Sequences that run and that wait.
    num_reqs: usize,
    /// Sequences that run.
    num_running_reqs: usize,
    /// Sequences that wait.
    num_waiting_reqs: usize,
    /// Sequences that run and that wait, by SGLang's longer name.
    num_total_reqs: usize,
    /// Tokens whose keys and values are held for sequences that run.
    num_tokens: usize,
    /// Most sequences that run at once.
    max_running_requests: usize,
    /// Share of the memory for keys and values that is in use.
    token_usage: f64,
    /// Share of prompt tokens that were found in the prefix cache.
    cache_hit_rate: f64,
}

impl RankLoad {
    fn of(app: &App) -> Self {
        let load: Load = app.scheduler.load();
        let share = |part: f64, all: f64| if all > 0.0 { part / all } else { 0.0 };
        let model = app.live.engine().model();
        // Keys and values lie in blocks of 16 positions.
        let position = (model.cache_bytes(32).saturating_sub(model.cache_bytes(16)) / 16).max(1);
        Self {
            dp_rank: 0,
            num_reqs: load.running + load.waiting,
            num_running_reqs: load.running,
            num_waiting_reqs: load.waiting,
            num_total_reqs: load.running + load.waiting,
            num_tokens: load.kv_bytes / position,
            max_running_requests: app.options.scheduler.max_num_seqs,
            token_usage: share(load.kv_bytes as f64, load.kv_limit as f64),
            cache_hit_rate: share(load.prefix_hits as f64, load.prefix_queries as f64),
        }
    }

    /// As Prometheus reads it, under SGLang's names.
    fn text(&self) -> String {
        let gauges = [
            ("num_running_reqs", self.num_running_reqs as f64),
            ("num_waiting_reqs", self.num_waiting_reqs as f64),
            ("num_tokens", self.num_tokens as f64),
            ("max_running_requests", self.max_running_requests as f64),
            ("token_usage", self.token_usage),
            ("cache_hit_rate", self.cache_hit_rate),
        ];
        let line = |(name, value): &(&str, f64)| {
            format!("# TYPE sglang_{name} gauge\nsglang_{name}{{dp_rank=\"0\"}} {value}\n")
        };
        gauges.iter().map(line).collect()
    }
}

/// How busy the server is, as SGLang says it
#[utoipa::path(get, path = "/v1/loads", tag = "server", params(LoadsQuery), responses(
    (status = 200, description = "How busy it is", content((Object = "application/json"), (String = "text/plain"))),
    (status = 400, description = "The query is wrong", body = ErrorBody),
))]
async fn loads(State(app): State<Arc<App>>, UrlQuery(query): UrlQuery<LoadsQuery>) -> ApiResult<Response> {
    let bad = |name: &str, value: &str, known: &str| {
        let what = format!("`{name}` {}", clean(value, 60));
        ApiError::bad(what, format!("known are {known}"), "give one of them, or none").param(name)
    };
    if let Some(rank) = query.dp_rank.filter(|rank| *rank != 0) {
        return Err(bad("dp_rank", &rank.to_string(), "rank 0: there is one process"));
    }
    let include = query.include.unwrap_or_default();
    let unknown = |section: &&str| !section.is_empty() && !SECTIONS.contains(section);
    if let Some(section) = include.split(',').map(str::trim).find(unknown) {
        return Err(bad("include", section, &SECTIONS.join(", ")));
    }
    let load = RankLoad::of(&app);
    match query.format.as_deref() {
        None | Some("json") => Ok(Json(json!({
            "timestamp": humantime::format_rfc3339_millis(SystemTime::now()).to_string(),
            "version": env!("CARGO_PKG_VERSION"),
            "accelerator": null,
            "num_accelerators": 0,
            "loads": [load],
        }))
        .into_response()),
        Some("prometheus") => Ok(([(header::CONTENT_TYPE, PLAIN)], load.text()).into_response()),
        Some(other) => Err(bad("format", other, "json and prometheus")),
    }
}

/// How busy the server is, as SGLang's routers ask for it
#[utoipa::path(get, path = "/get_load", tag = "server", responses((status = 200, description = "One entry per process: one", body = Vec<RankLoad>)))]
async fn get_load(State(app): State<Arc<App>>) -> Json<[RankLoad; 1]> {
    Json([RankLoad::of(&app)])
}

/// How many requests there are.
#[derive(Debug, Serialize, ToSchema)]
struct ServerLoad {
    /// Sequences that run and that wait.
    server_load: usize,
}

/// How busy the server is, as vLLM says it
#[utoipa::path(get, path = "/load", tag = "server", responses((status = 200, description = "How busy it is", body = ServerLoad)))]
async fn load(State(app): State<Arc<App>>) -> Json<ServerLoad> {
    Json(ServerLoad { server_load: RankLoad::of(&app).num_reqs })
}

pub fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new().routes(routes!(loads)).routes(routes!(get_load)).routes(routes!(load))
}
