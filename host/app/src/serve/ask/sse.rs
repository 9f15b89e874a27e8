//! Answers as server-sent events: `data: {…}` for each chunk, `data: [DONE]` at the end.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::time::Duration;

use axum::http::{HeaderName, HeaderValue};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::response::{IntoResponse, Response};
use futures_util::stream;
use patchhost_runtime::scheduler::Event;
use serde::Serialize;

use super::generation::Running;
use crate::serve::error::{ApiError, ApiResult};

/// How often a comment is sent while no tokens come: proxies end connections that say nothing.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// How a dialect writes the events of a stream down.
pub trait Chunks: Send + 'static {
    /// The chunks of an event, as JSON.
    fn event(&mut self, choice: usize, event: Event) -> ApiResult<Vec<String>>;
    /// What comes behind the last event, before `[DONE]`.
    fn end(&mut self) -> ApiResult<Vec<String>>;
}

/// A chunk as JSON text.
pub fn chunk(value: &impl Serialize) -> ApiResult<String> {
    serde_json::to_string(value).map_err(|e| ApiError::internal(&e))
}

struct Flow<C> {
    /// None behind the last event.
    running: Option<Running>,
    chunks: C,
    ready: VecDeque<String>,
}

/// Streams the sequences of a request. When the client hangs up, the stream is dropped, and with it the sequences.
pub fn stream(running: Running, chunks: impl Chunks) -> Response {
    let flow = Flow { running: Some(running), chunks, ready: VecDeque::new() };
    let events = stream::unfold(flow, |mut flow| async move {
        let data = flow.next().await?;
        Some((Ok::<_, Infallible>(SseEvent::default().data(data)), flow))
    });
    let mut response = Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)).into_response();
    // nginx would collect the whole answer first.
    response.headers_mut().insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    response
}

impl<C: Chunks> Flow<C> {
    async fn next(&mut self) -> Option<String> {
        loop {
            if let Some(data) = self.ready.pop_front() {
                return Some(data);
            }
            let next = self.running.as_mut()?.next().await;
            let made = match next {
                Some(Ok((choice, event))) => self.chunks.event(choice, event),
                Some(Err(e)) => Err(e),
                None => {
                    self.running = None;
                    self.chunks.end().map(|mut chunks| {
                        chunks.push("[DONE]".to_string());
                        chunks
                    })
                }
            };
            match made {
                Ok(chunks) => self.ready.extend(chunks),
                // The status has been sent long ago: the error is a chunk of its own, and the last one.
                Err(e) => {
                    self.running = None;
                    self.ready.extend(serde_json::to_string(&e.body()));
                    self.ready.push_back("[DONE]".to_string());
                }
            }
        }
    }
}
