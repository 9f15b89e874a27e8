//! Spans of what was done to the weights and patches.

use opentelemetry::trace::{Span as _, SpanBuilder, SpanKind, Status, TraceContextExt as _};
use opentelemetry::{Context, KeyValue, Value};
use opentelemetry_sdk::trace::SdkTracer;

use crate::live::{Deed, Fact};

/// Makes a span of a deed and one of each of its steps. Whose request it was done for is known by the thread that tells it.
pub fn told(tracer: &SdkTracer, deed: Deed) {
    let Deed { name, began, ended, facts, steps, error } = deed;
    let facts: Vec<(&str, Value)> = facts.into_iter().map(|(name, fact)| (name, fact.into())).collect();
    let named = |name: &str| facts.iter().find(|(n, _)| *n == name).map(|(_, value)| value.clone());
    let attributes = facts.iter().map(|(name, value)| KeyValue::new(format!("patchhost.{name}"), value.clone()));
    let parent = Context::current();
    let builder = SpanBuilder::from_name(format!("patchhost.{name}")).with_kind(SpanKind::Internal);
    let span = builder.with_start_time(began).with_attributes(attributes).start_with_context(tracer, &parent);
    let cx = parent.with_span(span);
    for step in steps {
        let builder = SpanBuilder::from_name(format!("patchhost.{name}.{}", step.name)).with_kind(SpanKind::Internal);
        let mut span = builder.with_start_time(step.began).start_with_context(tracer, &cx);
        span.end_with_timestamp(step.ended);
    }
    let span = cx.span();
    if name == "refit" {
        let event = |name: &str, of: &[&str]| {
            let known = of.iter().filter_map(|of| Some(KeyValue::new(format!("patchhost.{of}"), named(of)?)));
            let known: Vec<KeyValue> = known.collect();
            if !known.is_empty() {
                span.add_event_with_timestamp(name.to_string(), ended, known);
            }
        };
        event("swap.landed", &["swap.from", "swap.to"]);
        event("swap.reversed", &["reversed"]);
        event("refit.degraded", &["degraded"]);
    }
    if let Some(error) = error {
        span.set_status(Status::error(error));
    }
    span.end_with_timestamp(ended);
}

impl From<Fact> for Value {
    fn from(fact: Fact) -> Self {
        match fact {
            Fact::Number(number) => Self::I64(i64::try_from(number).unwrap_or(i64::MAX)),
            Fact::Text(text) => Self::String(text.into()),
            Fact::Flag(flag) => Self::Bool(flag),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::{Arc, Mutex};
    use std::time::{Duration, SystemTime};

    use opentelemetry::trace::{Tracer as _, TracerProvider as _};
    use opentelemetry_sdk::error::OTelSdkResult;
    use opentelemetry_sdk::trace::{SdkTracerProvider, SpanData, SpanProcessor};

    use super::*;
    use crate::live::Step;

    /// Keeps the spans that ended.
    #[derive(Debug, Clone, Default)]
    struct Kept(Arc<Mutex<Vec<SpanData>>>);

    impl SpanProcessor for Kept {
        fn on_start(&self, _: &mut opentelemetry_sdk::trace::Span, _: &Context) {}

        fn on_end(&self, span: SpanData) {
            self.0.lock().unwrap().push(span);
        }

        fn force_flush(&self) -> OTelSdkResult {
            Ok(())
        }

        fn shutdown_with_timeout(&self, _: Duration) -> OTelSdkResult {
            Ok(())
        }
    }

    #[test]
    fn a_deed_is_a_span_with_its_steps_below() {
        let kept = Kept::default();
        let provider = SdkTracerProvider::builder().with_span_processor(kept.clone()).build();
        let tracer = provider.tracer("test");
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let deed = Deed {
            name: "refit",
            began: at(10),
            ended: at(14),
            facts: vec![("refit", 3u64.into()), ("patch_set", "abc".into()), ("swap.to", "def".into())],
            steps: vec![Step { name: "prove", began: at(11), ended: at(13) }],
            error: Some("it was given up".to_string()),
        };
        let request = Context::new().with_span(tracer.start_with_context("request", &Context::new()));
        let trace = request.span().span_context().trace_id();
        {
            let _in = request.clone().attach();
            told(&tracer, deed);
        }
        drop(request);
        let spans = kept.0.lock().unwrap().clone();
        let named = |name: &str| spans.iter().find(|span| span.name == name).unwrap();
        let (refit, step, request) = (named("patchhost.refit"), named("patchhost.refit.prove"), named("request"));
        assert!(spans.iter().all(|span| span.span_context.trace_id() == trace));
        assert_eq!(refit.parent_span_id, request.span_context.span_id());
        assert_eq!(step.parent_span_id, refit.span_context.span_id());
        assert_eq!((refit.start_time, refit.end_time), (at(10), at(14)));
        assert_eq!((step.start_time, step.end_time), (at(11), at(13)));
        assert!(refit.attributes.contains(&KeyValue::new("patchhost.refit", 3i64)));
        assert!(refit.attributes.contains(&KeyValue::new("patchhost.patch_set", "abc")));
        assert_eq!(refit.status, Status::error("it was given up"));
        assert_eq!(refit.events.iter().map(|event| event.name.as_ref()).collect::<Vec<_>>(), ["swap.landed"]);
    }
}
