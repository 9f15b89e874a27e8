//! The two texts that Prometheus reads, and which of them a client prefers.

use axum::http::{HeaderMap, header};

/// The content type of OpenMetrics.
pub const OPEN: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The content type of Prometheus' own text form.
pub const PLAIN: &str = "text/plain; version=0.0.4; charset=utf-8";

/// In which form metrics are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Prometheus' own, which everybody reads.
    Prometheus,
    /// OpenMetrics.
    OpenMetrics,
}

impl Form {
    /// What the header `Accept` prefers; Prometheus' own form where it says nothing that is known here, as its libraries do.
    pub fn of(headers: &HeaderMap) -> Self {
        let all = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut best = (0.0, Self::Prometheus);
        for range in all.flat_map(|value| value.split(',')) {
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
            let (mut quality, mut version) = (1.0f32, None);
            for (name, value) in parts.filter_map(|part| part.split_once('=')) {
                match name.trim().to_ascii_lowercase().as_str() {
                    "q" => quality = value.trim().parse().unwrap_or(0.0),
                    "version" => version = Some(value.trim().trim_matches('"')),
                    _ => {}
                }
            }
            let form = match (kind.as_str(), version) {
                ("application/openmetrics-text", None | Some("1.0.0" | "0.0.1")) => Self::OpenMetrics,
                ("text/plain", None | Some("0.0.4")) | ("text/*" | "*/*", _) => Self::Prometheus,
                _ => continue,
            };
            // Of equals the first.
            if quality > best.0 {
                best = (quality, form);
            }
        }
        best.1
    }
}

/// A text as the value of a label: the library writes values as they are.
pub fn label(text: &str) -> String {
    text.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// OpenMetrics text in Prometheus' own form: a counter's name has its `_total` in every line, types that Prometheus does not
/// know get the one it has for them, and there is neither a unit nor an end.
pub fn plain(open: &str) -> String {
    let mut text = String::with_capacity(open.len());
    // The help of a family comes before its type, which decides what the family is called.
    let mut help: Option<(&str, &str)> = None;
    for line in open.lines() {
        if let Some((name, words)) = line.strip_prefix("# HELP ").map(|rest| rest.split_once(' ').unwrap_or((rest, "")))
        {
            help = Some((name, words));
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            let (suffix, kind) = match kind {
                "counter" => ("_total", "counter"),
                "info" => ("_info", "gauge"),
                "stateset" => ("", "gauge"),
                "gaugehistogram" => ("", "histogram"),
                "unknown" => ("", "untyped"),
                known => ("", known),
            };
            if let Some((_, words)) = help.take().filter(|(of, _)| *of == name) {
                text.push_str(&format!("# HELP {name}{suffix} {words}\n"));
            }
            text.push_str(&format!("# TYPE {name}{suffix} {kind}\n"));
        } else if !line.starts_with('#') && !line.is_empty() {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use prometheus_client::encoding::text::encode;
    use prometheus_client::metrics::counter::Counter;
    use prometheus_client::metrics::family::Family;
    use prometheus_client::metrics::gauge::Gauge;
    use prometheus_client::metrics::histogram::Histogram;
    use prometheus_client::metrics::info::Info;
    use prometheus_client::registry::{Registry, Unit};

    use super::*;

    #[test]
    fn what_accept_prefers_is_given() {
        let form = |accept: &[&str]| {
            let mut headers = HeaderMap::new();
            accept.iter().for_each(|value| {
                headers.append(header::ACCEPT, value.parse().unwrap());
            });
            Form::of(&headers)
        };
        for plain in [
            &[][..],
            &["*/*"],
            &["text/plain"],
            &["text/plain;version=0.0.4"],
            &["text/html,application/xhtml+xml,*/*;q=0.8"],
            &["application/json"],
            &["text/plain, application/openmetrics-text;q=0.9"],
            &["application/openmetrics-text;version=2.0.0, */*;q=0.1"],
            &["application/openmetrics-text;q=0"],
            &["application/openmetrics-text;q=x"],
            &[";;=,,q"],
        ] {
            assert_eq!(form(plain), Form::Prometheus, "{plain:?}");
        }
        for open in [
            &["application/openmetrics-text"][..],
            // Prometheus 2 and 3.
            &[
                "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            ],
            &[
                "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            ],
            &["text/plain;q=0.2", "Application/OpenMetrics-Text; version=\"1.0.0\"; q=0.3"],
        ] {
            assert_eq!(form(open), Form::OpenMetrics, "{open:?}");
        }
    }

    #[test]
    fn every_kind_of_metric_is_written_in_prometheus_own_form() {
        let mut registry = Registry::default();
        let counter = Family::<Vec<(&str, String)>, Counter>::default();
        counter.get_or_create(&vec![("a", label("x\"y"))]).inc();
        registry.register("jobs", "All jobs", counter);
        registry.register("depth", "How deep", Gauge::<i64>::default());
        registry.register_with_unit("wait", "How long", Unit::Seconds, Histogram::new([1.0]));
        registry.register("build", "Which", Info::new(vec![("v", "1")]));
        let mut open = String::new();
        encode(&mut open, &registry).unwrap();
        assert!(open.contains("# TYPE jobs counter") && open.contains("# UNIT") && open.ends_with("# EOF\n"), "{open}");
        assert_eq!(
            plain(&open),
            "# HELP jobs_total All jobs.\n# TYPE jobs_total counter\njobs_total{a=\"x\\\"y\"} 1\n\
             # HELP depth How deep.\n# TYPE depth gauge\ndepth 0\n\
             # HELP wait_seconds How long.\n# TYPE wait_seconds histogram\nwait_seconds_sum 0.0\nwait_seconds_count 0\n\
             wait_seconds_bucket{le=\"1.0\"} 0\nwait_seconds_bucket{le=\"+Inf\"} 0\n\
             # HELP build_info Which.\n# TYPE build_info gauge\nbuild_info{v=\"1\"} 1\n"
        );
    }
}
