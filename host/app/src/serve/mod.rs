//! `patchhost serve`: an HTTP server over a live model.
//!
//! A dialect (`openai`, `vllm`, `sglang`, `trl`) only translates: it reads JSON by its names, calls what lies
//! below, and answers in its form. Dialects never import each other. From the ground up:
//!
//! | room | what |
//! |---|---|
//! | `error`, `fields` | errors in OpenAI's form; fields that nobody knows |
//! | `intake`, `json` | bodies, bounded; JSON and queries |
//! | `auth`, `keys`, `hosts`, `metrics` | who may do what; API keys; names of the server; counters and clocks |
//! | `traces` | spans of requests, refits and swaps, and how they get to a collector |
//! | `weights` | how weights come in: one update at a time, from bodies and files |
//! | `state`, `doors` | what handlers share: [`App`]; what log probabilities are at each door |
//! | `control`, `adapters` | pauses and memory; adapters that come and go |
//! | `ask` | asking for text: parameters, prompts, the sequences of one request |
//! | `openai` | `/v1/completions`, `/v1/chat/completions`, `/v1/models` |
//! | `vllm`, `sglang`, `trl` | what RL trainers use: pauses, weights, adapters, tokens in and out |
//! | `tokenize`, `health`, `admin` | `/tokenize`, `/detokenize`; liveness, status, metrics; which patches run |
//! | `info`, `loads` | what the server is and how busy, as clients and routers of vLLM and SGLang ask for it |
//! | `router`, `bodies`, `guard` | routes, layers, the OpenAPI document; what of a request no route takes; what a route asks for |
//! | `listen`, `connections`, `patience` | ports and sockets, connections on them, slow clients |
//! | `heap` | memory that goes back to the system after requests |

mod adapters;
mod admin;
mod ask;
mod auth;
mod bodies;
mod connections;
mod control;
mod doors;
mod error;
mod fields;
mod guard;
mod health;
mod heap;
mod hosts;
mod info;
mod intake;
mod json;
mod keys;
mod listen;
mod loads;
mod metrics;
mod openai;
mod patience;
mod router;
mod sglang;
mod state;
mod tokenize;
mod traces;
mod trl;
mod vllm;
pub mod weights;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use auth::{AdminAuth, RlAuth, RlMode, Secret};
pub use error::{ApiError, ApiResult};
pub use hosts::Hosts;
pub use json::parse as parse_json;
pub use keys::{ApiKey, ApiKeys};
pub use listen::{Address, Listener};
pub use openai::{ChatRequest, CompletionRequest, ReasoningParser, ToolParser};
pub use state::{App, ServeOptions};
pub use traces::{Endpoint, Traces};
pub use weights::Roots;

/// How long aborted requests get to send what they have.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// How a server ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Drained {
    /// Sequences that did not end in time and were aborted.
    pub aborted: usize,
}

/// Serves until `shutdown`, then drains: no new connections, `/readyz` says no, running requests may end within the drain
/// timeout, the rest is aborted.
pub async fn run(listeners: Vec<Listener>, app: Arc<App>, shutdown: impl Future<Output = ()>) -> Drained {
    let mut servers = tokio::task::JoinSet::new();
    for listener in listeners {
        let router = router::router(&app, listener.via, listener.reach());
        servers.spawn(connections::accept(listener, router, Arc::clone(&app)));
    }
    let heap = tokio::spawn(heap::keep_small(Arc::clone(&app)));
    shutdown.await;
    heap.abort();
    app.drain();
    tracing::info!("draining");
    let all = async { while servers.join_next().await.is_some() {} };
    let mut all = std::pin::pin!(all);
    let mut aborted = 0;
    if tokio::time::timeout(app.options.drain_timeout, &mut all).await.is_err() {
        let scheduler = app.scheduler.clone();
        // Blocks until the decode thread has seen it.
        aborted = tokio::task::spawn_blocking(move || scheduler.abort_all()).await.unwrap_or_default();
        let _ = tokio::time::timeout(LAST_WORDS, &mut all).await;
    }
    Drained { aborted }
}
