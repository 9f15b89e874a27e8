//! The dashboard for Grafana asks for metrics that a server gives.

use std::collections::BTreeSet;

use serde_json::{Value, json};

use crate::http_client::Server;
use crate::http_rl::{file, step};
use crate::support::repo;

/// What PromQL has itself.
const WORDS: [&str; 14] = [
    "sum",
    "rate",
    "increase",
    "max",
    "min",
    "avg",
    "by",
    "le",
    "histogram_quantile",
    "clamp_min",
    "changes",
    "or",
    "without",
    "count",
];

fn dashboard() -> Value {
    serde_json::from_str(&std::fs::read_to_string(repo().join("docs/grafana/patchhost.json")).unwrap()).unwrap()
}

/// The expressions of all panels and variables.
fn expressions(of: &Value, into: &mut Vec<String>) {
    match of {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("expr", Value::String(text)) => into.push(text.clone()),
                    // `label_values(metric, label)` of a variable.
                    ("definition" | "query", Value::String(text)) if text.starts_with("label_values(") => {
                        into.push(text["label_values(".len()..].split(',').next().unwrap().to_string());
                    }
                    _ => expressions(value, into),
                }
            }
        }
        Value::Array(all) => all.iter().for_each(|one| expressions(one, into)),
        _ => {}
    }
}

/// The names in an expression that are no words of PromQL, no labels and no text.
fn names(expression: &str) -> BTreeSet<String> {
    let mut plain = String::new();
    let (mut depth, mut quoted) = (0, false);
    for c in expression.chars() {
        match c {
            '"' => quoted = !quoted,
            '{' | '[' if !quoted => depth += 1,
            '}' | ']' if !quoted => depth -= 1,
            c if depth == 0 && !quoted => plain.push(c),
            _ => {}
        }
    }
    // Labels stand in brackets behind `by`.
    let mut rest = plain.as_str();
    let mut without_labels = String::new();
    while let Some(at) = rest.find("by (") {
        without_labels.push_str(&rest[..at]);
        rest = &rest[at..][rest[at..].find(')').unwrap() + 1..];
    }
    without_labels.push_str(rest);
    without_labels
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'))
        .filter(|word| word.starts_with(|c: char| c.is_ascii_alphabetic()) && !WORDS.contains(word))
        .map(str::to_string)
        .collect()
}

#[test]
fn every_metric_of_the_dashboard_is_one_of_the_server() {
    let server = Server::start(&[]);
    server.json("/v1/completions", &json!({ "prompt": "To be", "max_tokens": 3 })).good();
    server.json("/start_weight_update", &json!({ "step": 1 })).good();
    server.bytes("/update_weights", &file(&step(1), &[])).good();
    server.json("/finish_weight_update", &json!({})).good();
    let text = server.get("/metrics").text;
    let given: BTreeSet<&str> =
        text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split(['{', ' ']).next()).collect();
    let mut expressions_of_all = Vec::new();
    expressions(&dashboard(), &mut expressions_of_all);
    assert!(expressions_of_all.len() > 20, "{}", expressions_of_all.len());
    let asked: BTreeSet<String> = expressions_of_all.iter().flat_map(|e| names(e)).collect();
    for name in &asked {
        assert!(given.contains(name.as_str()), "{name} is none of {given:#?}");
    }
    for needed in [
        "vllm:generation_tokens_total",
        "vllm:time_to_first_token_seconds_bucket",
        "vllm:inter_token_latency_seconds_bucket",
        "vllm:rl_weight_update_operation_duration_seconds_bucket",
        "patchhost_swaps_total",
        "patchhost_ledger_lost_events_total",
        "patchhost_patch_active",
    ] {
        assert!(asked.contains(needed), "{needed} is not shown");
    }
}

#[test]
fn the_dashboard_can_be_imported() {
    let dashboard = dashboard();
    assert!(dashboard["schemaVersion"].as_u64().unwrap() >= 36);
    assert!(dashboard["id"].is_null() && dashboard["uid"].as_str().unwrap().len() <= 40);
    let source = json!({ "type": "prometheus", "uid": "${datasource}" });
    let variables = dashboard["templating"]["list"].as_array().unwrap();
    assert!(
        variables.iter().any(|v| v["name"] == "datasource" && v["type"] == "datasource" && v["query"] == "prometheus")
    );
    let mut ids = BTreeSet::new();
    let mut taken: BTreeSet<(u64, u64)> = BTreeSet::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        let at = |name: &str| panel["gridPos"][name].as_u64().unwrap();
        assert!(at("x") + at("w") <= 24, "{}", panel["title"]);
        for x in at("x")..at("x") + at("w") {
            for y in at("y")..at("y") + at("h") {
                assert!(taken.insert((x, y)), "{} lies on another panel", panel["title"]);
            }
        }
        if panel["type"] != "row" {
            assert_eq!(panel["datasource"], source, "{}", panel["title"]);
            for target in panel["targets"].as_array().unwrap() {
                assert_eq!(target["datasource"], source, "{}", panel["title"]);
                assert!(target["expr"].as_str().unwrap().contains("$instance"), "{}", panel["title"]);
            }
        }
    }
}

#[test]
fn names_are_found_in_expressions() {
    let found = |text: &str| names(text).into_iter().collect::<Vec<_>>();
    assert_eq!(
        found(
            r#"histogram_quantile(0.9, sum by (le, model_name) (rate(vllm:a_bucket{x="b_total"}[$__rate_interval])))"#
        ),
        ["vllm:a_bucket"]
    );
    assert_eq!(found("a_total / clamp_min(b_total, 1)"), ["a_total", "b_total"]);
}
