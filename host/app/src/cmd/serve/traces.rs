//! Where traces go.

use std::time::Duration;

use super::super::environment::variable;
use super::super::failure::UsageError;
use crate::serve::{Endpoint, Traces};

/// How long the last spans may take when the server ends: nobody waits for a collector that is gone.
pub const LAST_SPANS: Duration = Duration::from_secs(3);

/// Where traces of requests, refits and swaps go.
#[derive(Debug, clap::Args)]
pub struct TraceArgs {
    /// Send traces of requests, refits and swaps to this OpenTelemetry collector over HTTP, such as http://localhost:4318
    /// [default: $OTEL_EXPORTER_OTLP_ENDPOINT]
    #[arg(long, value_name = "URL", conflicts_with = "otlp_traces_endpoint")]
    otlp_endpoint: Option<String>,
    /// The same by vLLM's name; a URL with a path is taken as it is [default: $OTEL_EXPORTER_OTLP_TRACES_ENDPOINT]
    #[arg(long, value_name = "URL")]
    otlp_traces_endpoint: Option<String>,
}

impl TraceArgs {
    /// Begins to trace, where somebody wants it.
    pub fn open(&self) -> Result<Option<(Traces, Endpoint)>, UsageError> {
        let usage =
            |refusal: patchhost_runtime::error::Refusal| UsageError::new(refusal.what, refusal.why, refusal.next);
        let (base, exact) = (self.otlp_endpoint.as_deref(), self.otlp_traces_endpoint.as_deref());
        let Some(endpoint) = Endpoint::choose(base, exact, &variable).map_err(usage)? else {
            if base.or(exact).is_some() {
                errln!("note: no traces are sent: OTEL_SDK_DISABLED or OTEL_TRACES_EXPORTER switches them off");
            }
            return Ok(None);
        };
        if let Some(doubt) = &endpoint.doubt {
            errln!("note: {doubt}");
        }
        let traces = Traces::open(&endpoint, &variable).map_err(usage)?;
        Ok(Some((traces, endpoint)))
    }
}
