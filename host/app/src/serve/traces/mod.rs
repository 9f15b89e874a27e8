//! Traces by OpenTelemetry: of requests, and of what is done to the weights and patches. Spans go to a collector over HTTP from a
//! thread of their own; a collector that is slow or gone costs spans and nothing else.
//!
//! | file | what |
//! |---|---|
//! | [`endpoint`] | where they go, out of flags and the variables that all SDKs read |
//! | [`client`] | how they get there, and who is told when they do not |
//! | [`request`] | the span of a request, and what it says of the text that was made |
//! | [`deeds`] | spans of refits, swaps and candidates |

mod client;
mod deeds;
mod endpoint;
mod request;

use std::sync::Arc;
use std::time::Duration;

use opentelemetry::KeyValue;
use opentelemetry::trace::TracerProvider as _;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SdkTracer, SdkTracerProvider};
use patchhost_runtime::error::Refusal;

pub use endpoint::{Endpoint, Variables};
pub use request::Tally;
pub(super) use request::trace;

use crate::base::text::clean;
use crate::live::Listener;

/// What the program is called where nobody says otherwise.
const SERVICE: &str = "patchhost";

/// Where spans are made, and what sends them.
#[derive(Debug, Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

impl Traces {
    /// Begins to send spans. Nothing is sent yet, so whether anybody is there is not known.
    pub fn open(endpoint: &Endpoint, variables: Variables<'_>) -> Result<Self, Refusal> {
        let exporter = SpanExporter::builder()
            .with_http()
            .with_endpoint(&endpoint.url)
            .with_protocol(Protocol::HttpBinary)
            .with_timeout(endpoint.timeout)
            .with_http_client(client::Client::new(endpoint))
            .build()
            .map_err(|e| {
                let next = "mend the variable that it names (OTEL_EXPORTER_OTLP_…), or unset it";
                Refusal::new(endpoint.given_by.clone(), clean(&e.to_string(), 400), next)
            })?;
        let provider =
            SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource(variables)).build();
        let tracer = provider.tracer(SERVICE);
        Ok(Self { provider, tracer })
    }

    /// Who is told what is done to the weights and patches, and makes spans of it.
    pub fn listener(&self) -> Listener {
        let tracer = self.tracer.clone();
        Arc::new(move |deed| deeds::told(&tracer, deed))
    }

    /// Sends what is left, for no longer than this.
    pub fn shutdown(&self, within: Duration) {
        if let Err(error) = self.provider.shutdown_with_timeout(within) {
            tracing::warn!(target: client::TARGET, "the last traces were not sent within {within:?}: {error}");
        }
    }
}

/// Who sends the spans: what the variables say, and else this program.
fn resource(variables: Variables<'_>) -> Resource {
    let named = variables("OTEL_SERVICE_NAME").is_some();
    let attributes = variables("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
    let has = |key: &str| attributes.split(',').any(|pair| pair.split_once('=').is_some_and(|(k, _)| k.trim() == key));
    let mut resource = Resource::builder();
    if !named && !has("service.name") {
        resource = resource.with_service_name(SERVICE);
    }
    if !has("service.version") {
        resource = resource.with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")));
    }
    resource.build()
}
