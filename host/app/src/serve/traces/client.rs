//! How spans get to a collector: one connection, from the thread that has them. Where they do not get there somebody is told, but
//! not for every batch.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};

use super::Endpoint;
use crate::base::text::clean;

/// What messages about traces are marked with.
pub const TARGET: &str = "patchhost::traces";
/// How often the same trouble is told at most.
const EVERY: Duration = Duration::from_secs(60);
/// Most bytes of an answer: it says how many spans were refused, at most.
const ANSWER: u64 = 64 << 10;

/// A client for one collector.
#[derive(Debug)]
pub struct Client {
    agent: ureq::Agent,
    host: String,
    trouble: Mutex<Trouble>,
}

#[derive(Debug, Default)]
struct Trouble {
    told: Option<Instant>,
    /// Tries that failed since the last that did not.
    failed: u64,
}

impl Client {
    /// For this collector.
    pub fn new(endpoint: &Endpoint) -> Self {
        let agent = ureq::Agent::config_builder()
            .timeout_global(Some(endpoint.timeout))
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("patchhost/", env!("CARGO_PKG_VERSION")))
            .build();
        Self { agent: agent.into(), host: endpoint.host.clone(), trouble: Mutex::default() }
    }

    fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let (parts, body) = request.into_parts();
        let mut answer = match self.agent.run(Request::from_parts(parts, &body[..])) {
            Ok(answer) => answer,
            Err(error) => {
                self.failed(&error.to_string());
                return Err(error.into());
            }
        };
        match answer.status() {
            status if status.is_success() => self.worked(),
            status => self.failed(&format!("it answers {status}")),
        }
        let read = answer.body_mut().with_config().limit(ANSWER).read_to_vec().unwrap_or_default();
        Ok(answer.map(|_| Bytes::from(read)))
    }

    fn failed(&self, why: &str) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        trouble.failed += 1;
        if trouble.told.is_some_and(|told| told.elapsed() < EVERY) {
            return;
        }
        trouble.told = Some(Instant::now());
        let (host, why, failed) = (&self.host, clean(why, 300), trouble.failed);
        tracing::warn!(
            target: TARGET,
            "traces do not reach {host}: {why} (failed tries: {failed}); what does not fit into the queue is lost. Is an OTLP \
             collector there that speaks HTTP? This is told once a minute at most"
        );
    }

    fn worked(&self) {
        let mut trouble = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if std::mem::take(&mut trouble.failed) > 0 {
            tracing::warn!(target: TARGET, "traces reach {} again", self.host);
            trouble.told = None;
        }
    }
}

impl HttpClient for Client {
    // As the macro of that trait writes it.
    fn send_bytes<'s, 'f>(
        &'s self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'f>>
    where
        's: 'f,
        Self: 'f,
    {
        // It waits in the thread of the batches, where nothing else is done.
        Box::pin(async move { self.send(request) })
    }
}
