//! `patchhost serve`: an HTTP server over a live model.
//!
//! | file | what |
//! |---|---|
//! | [`state`] | what handlers share: [`App`] |
//! | [`router`] | routes, layers, the OpenAPI document |
//! | [`listen`], [`connections`] | ports and sockets, connections on them |
//! | [`error`], [`json`] | errors in OpenAI's form, bodies |
//! | [`generation`] | the sequences of one request, as events or whole |
//! | [`openai`] | `/v1/completions`, `/v1/chat/completions`, `/v1/models` |
//! | [`tokenize`] | `/tokenize`, `/detokenize` |
//! | [`health`], [`metrics`] | liveness, readiness, status, Prometheus |
//! | [`vllm`], [`sglang`], [`trl`], [`lora`] | what RL trainers use: pauses, weights, adapters, tokens in and out |
//! | [`weight_sync`], [`weights_body`], [`rl_body`], [`roots`] | how weights come in: one update at a time, from bodies and files |
//! | [`inspect`] | checksums and values of the live weights |
//! | [`admin`], [`auth`] | which patches run, and who may say so |

pub mod admin;
pub mod auth;
pub mod connections;
pub mod error;
pub mod generation;
pub mod health;
pub mod inspect;
pub mod json;
pub mod listen;
pub mod lora;
pub mod metrics;
pub mod openai;
pub mod rl_body;
pub mod roots;
pub mod router;
pub mod sglang;
pub mod state;
pub mod tokenize;
pub mod trl;
pub mod vllm;
pub mod weight_sync;
pub mod weights_body;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

pub use auth::{AdminAuth, RlAuth, RlMode, Secret};
pub use error::{ApiError, ApiResult};
pub use json::Json;
pub use listen::{Address, Listener};
pub use roots::Roots;
pub use state::{App, ServeOptions, Via};

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
        let router = router::router(&app, listener.via);
        servers.spawn(connections::accept(listener, router, Arc::clone(&app)));
    }
    shutdown.await;
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
