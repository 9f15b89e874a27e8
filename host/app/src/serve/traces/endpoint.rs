//! Where traces go: the flags, else the variables that OpenTelemetry's SDKs read.

use std::time::Duration;

use axum::http::Uri;
use axum::http::uri::Scheme;
use patchhost_runtime::error::Refusal;

use crate::base::text::clean;

/// Below a collector's address, where it takes traces.
const PATH: &str = "/v1/traces";
/// How long a batch may take, where nobody says otherwise: as the SDKs have it.
const TIMEOUT: Duration = Duration::from_secs(10);
/// The port where collectors speak gRPC.
const GRPC_PORT: u16 = 4317;

const NEXT: &str = "give the collector's HTTP address, such as http://localhost:4318";

/// The variables of the environment, by name; an empty one is none.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// A collector.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    /// Where spans are posted to.
    pub url: String,
    /// Its host and port, for messages.
    pub host: String,
    /// The flag or variable that named it, with its value.
    pub given_by: String,
    /// How long a batch may take.
    pub timeout: Duration,
    /// What is probably not meant so.
    pub doubt: Option<String>,
}

/// Which address it is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Form {
    /// The collector's: the path for traces is below it.
    Base,
    /// The one for traces: it is taken as it is, where it has a path.
    Traces,
}

impl Endpoint {
    /// The collector that the flags or the variables name; none where nobody does, or where traces are switched off.
    pub fn choose(base: Option<&str>, traces: Option<&str>, variables: Variables<'_>) -> Result<Option<Self>, Refusal> {
        let named = [
            ("--otlp-traces-endpoint", traces.map(str::to_string), Form::Traces),
            ("--otlp-endpoint", base.map(str::to_string), Form::Base),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", variables("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"), Form::Traces),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", variables("OTEL_EXPORTER_OTLP_ENDPOINT"), Form::Base),
        ];
        let Some((by, url, form)) = named.into_iter().find_map(|(by, url, form)| Some((by, url?, form))) else {
            return Ok(None);
        };
        if off(variables) {
            return Ok(None);
        }
        spoken(variables)?;
        let mut endpoint = Self::read(by, &url, form)?;
        endpoint.timeout = timeout(variables)?;
        Ok(Some(endpoint))
    }

    fn read(by: &str, text: &str, form: Form) -> Result<Self, Refusal> {
        let separator = if by.starts_with('-') { ' ' } else { '=' };
        let shown = text.rsplit_once('@').map_or_else(|| text.to_string(), |(_, host)| format!("…@{host}"));
        let given_by = format!("{by}{separator}{}", clean(&shown, 300));
        let bad = |why: &str, next: &str| Err(Refusal::new(given_by.clone(), why, next));
        let Ok(uri) = text.trim().parse::<Uri>() else { return bad("it is no URL", NEXT) };
        let host = uri.host().unwrap_or_default().to_string();
        match uri.scheme() {
            None => return bad("it has no scheme", NEXT),
            Some(scheme) if *scheme == Scheme::HTTP => {}
            Some(scheme) if *scheme == Scheme::HTTPS => {
                return bad(
                    "this program speaks no TLS",
                    "send to a collector on this machine or in this pod (http://localhost:4318), which sends on with TLS",
                );
            }
            Some(scheme) if scheme.as_str().starts_with("grpc") => {
                let next = format!("give the collector's HTTP port, which is 4318: http://{host}:4318");
                return bad("traces are sent over HTTP (protobuf), not gRPC", &next);
            }
            Some(_) => return bad("its scheme is not http", NEXT),
        }
        if host.is_empty() {
            return bad("it names no host", NEXT);
        }
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            let next = "leave them away, and set OTEL_EXPORTER_OTLP_HEADERS=Authorization=…";
            return bad("it holds a user's name or password", next);
        }
        let path = uri.path().trim_end_matches('/');
        let path = match form {
            Form::Traces if !path.is_empty() => uri.path().to_string(),
            // Who gives the whole address means it.
            Form::Base if path.ends_with(PATH) => path.to_string(),
            _ => format!("{path}{PATH}"),
        };
        let authority = uri.authority().map(ToString::to_string).unwrap_or_default();
        let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
        let doubt = (uri.port_u16() == Some(GRPC_PORT)).then(|| {
            format!("{given_by}: collectors speak gRPC at port {GRPC_PORT}, and HTTP, which is spoken here, at 4318")
        });
        Ok(Self { url: format!("http://{authority}{path}{query}"), host: authority, given_by, timeout: TIMEOUT, doubt })
    }
}

/// Whether traces are switched off by the variables that are there for it.
fn off(variables: Variables<'_>) -> bool {
    let disabled = variables("OTEL_SDK_DISABLED").is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let elsewhere =
        variables("OTEL_TRACES_EXPORTER").is_some_and(|list| !list.split(',').any(|name| name.trim() == "otlp"));
    disabled || elsewhere
}

/// Refuses another protocol than the one that is spoken here.
fn spoken(variables: Variables<'_>) -> Result<(), Refusal> {
    let names = ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"];
    match names.iter().find_map(|name| Some((name, variables(name)?))) {
        Some((name, protocol)) if protocol != "http/protobuf" => Err(Refusal::new(
            format!("{name}={}", clean(&protocol, 100)),
            "traces are sent over HTTP as protobuf",
            "set OTEL_EXPORTER_OTLP_TRACES_PROTOCOL=http/protobuf, with the collector's HTTP port (4318) as the endpoint",
        )),
        _ => Ok(()),
    }
}

fn timeout(variables: Variables<'_>) -> Result<Duration, Refusal> {
    let names = ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"];
    let Some((name, text)) = names.iter().find_map(|name| Some((name, variables(name)?))) else { return Ok(TIMEOUT) };
    match text.trim().parse::<u64>() {
        Ok(milliseconds) if (1..=600_000).contains(&milliseconds) => Ok(Duration::from_millis(milliseconds)),
        _ => Err(Refusal::new(
            format!("{name}={}", clean(&text, 100)),
            "it is no number of milliseconds from 1 to 600000",
            "give one such as 10000, or unset it",
        )),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn choose(base: Option<&str>, traces: Option<&str>, set: &[(&str, &str)]) -> Result<Option<Endpoint>, Refusal> {
        let variables = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, value)| (*value).to_string());
        Endpoint::choose(base, traces, &variables)
    }

    fn url(base: Option<&str>, traces: Option<&str>, set: &[(&str, &str)]) -> Option<String> {
        choose(base, traces, set).unwrap().map(|endpoint| endpoint.url)
    }

    #[test]
    fn the_path_for_traces_is_below_the_collector() {
        for (base, expected) in [
            ("http://localhost:4318", "http://localhost:4318/v1/traces"),
            ("http://localhost:4318/", "http://localhost:4318/v1/traces"),
            ("http://c.example/otlp/", "http://c.example/otlp/v1/traces"),
            ("http://[::1]:4318/v1/traces", "http://[::1]:4318/v1/traces"),
        ] {
            assert_eq!(url(Some(base), None, &[]).as_deref(), Some(expected));
            assert_eq!(url(None, None, &[("OTEL_EXPORTER_OTLP_ENDPOINT", base)]).as_deref(), Some(expected));
        }
        for (traces, expected) in
            [("http://c:4318/in?key=1", "http://c:4318/in?key=1"), ("http://c:4318", "http://c:4318/v1/traces")]
        {
            assert_eq!(url(None, Some(traces), &[]).as_deref(), Some(expected));
            assert_eq!(url(None, None, &[("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", traces)]).as_deref(), Some(expected));
        }
    }

    #[test]
    fn flags_come_before_variables_and_off_is_off() {
        let set =
            [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://b:1"), ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t:1/x")];
        assert_eq!(url(Some("http://f:1"), None, &set).as_deref(), Some("http://f:1/v1/traces"));
        assert_eq!(url(None, None, &set).as_deref(), Some("http://t:1/x"));
        assert_eq!(url(None, None, &[]), None);
        for off in
            [("OTEL_SDK_DISABLED", "true"), ("OTEL_TRACES_EXPORTER", "none"), ("OTEL_TRACES_EXPORTER", "console")]
        {
            assert_eq!(url(Some("http://f:1"), None, &[off]), None, "{off:?}");
        }
        for on in [("OTEL_SDK_DISABLED", "false"), ("OTEL_TRACES_EXPORTER", "console,otlp")] {
            assert!(url(Some("http://f:1"), None, &[on]).is_some(), "{on:?}");
        }
    }

    #[test]
    fn what_cannot_be_sent_to_is_refused_with_what_can() {
        for (given, why, next) in [
            ("grpc://localhost:4317", "not gRPC", "http://localhost:4318"),
            ("https://c.example", "no TLS", "http://localhost:4318"),
            ("localhost:4318", "scheme", "http://localhost:4318"),
            ("ftp://c", "not http", "4318"),
            ("http://", "it ", "4318"),
            ("not a url", "URL", "4318"),
            ("http://me:secret@c:4318", "password", "OTEL_EXPORTER_OTLP_HEADERS"),
        ] {
            let refusal = choose(Some(given), None, &[]).unwrap_err();
            assert!(refusal.why.contains(why) && refusal.next.contains(next), "{refusal}");
            assert!(!refusal.to_string().contains("secret"), "{refusal}");
            assert!(choose(None, Some(given), &[]).is_err(), "{given}");
        }
        for set in [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "soon")] {
            let refusal = choose(Some("http://c:4318"), None, &[set]).unwrap_err();
            assert!(refusal.what.starts_with(set.0), "{refusal}");
        }
        let both = [("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        assert!(choose(Some("http://c:4318"), None, &both).is_ok());
        let late = choose(Some("http://c:4318"), None, &[("OTEL_EXPORTER_OTLP_TIMEOUT", "1500")]).unwrap().unwrap();
        assert_eq!((late.timeout, late.doubt), (Duration::from_millis(1500), None));
        assert!(choose(Some("http://c:4317"), None, &[]).unwrap().unwrap().doubt.unwrap().contains("4318"));
    }
}
