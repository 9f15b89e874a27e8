//! `patchhost status`: what runs in a server.

use serde_json::Value;

use super::Call;
use super::admin_client::{Sent, ServerArgs};
use super::args::Format;
use super::failure::Result;
use super::output::json as print_json;

/// Show the weights and patches of a running server
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    server: ServerArgs,
    /// Show the newest N records of its ledger too
    #[arg(long, value_name = "N")]
    ledger: Option<usize>,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let status = args.server.ask("GET", "/admin/v1/status", Sent::Nothing)?;
    let ledger = match args.ledger {
        None => None,
        Some(n) => Some(args.server.ask("GET", &format!("/admin/v1/ledger?last={n}"), Sent::Nothing)?),
    };
    if format == Format::Json {
        return print_json(&serde_json::json!({ "status": status, "ledger": ledger }));
    }
    print(&status);
    if let Some(entries) = ledger.as_ref().and_then(|l| l.get("entries")).and_then(Value::as_array) {
        outln!("ledger");
        for e in entries {
            outln!("  {} {} {} by {}", text(e, "/seq"), text(e, "/ts"), text(e, "/event"), text(e, "/actor"));
        }
    }
    Ok(())
}

fn text(value: &Value, pointer: &str) -> String {
    match value.pointer(pointer) {
        Some(Value::String(text)) => text.clone(),
        Some(Value::Null) | None => "none".to_string(),
        Some(other) => other.to_string(),
    }
}

fn print(status: &Value) {
    outln!("model {}, weights `{}`", text(status, "/architecture"), text(status, "/weight_version"));
    outln!("patch set {}", text(status, "/patch_set"));
    let list = |pointer: &str| status.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    for p in list("/board/patches") {
        outln!("  {} {}  {}", text(&p, "/name"), text(&p, "/version"), text(&p, "/sha256"));
    }
    if let Some(t) = status.pointer("/board/transition").filter(|t| !t.is_null()) {
        outln!("coming: {} ({}, {}) by {}", text(t, "/to"), text(t, "/mode"), text(t, "/when"), text(t, "/by"));
    }
    for one in list("/staging") {
        let since = one.get("seconds").and_then(Value::as_f64).unwrap_or_default();
        outln!(
            "on its way: {} ({}, for {since:.0} s) by {}",
            text(&one, "/name"),
            text(&one, "/step"),
            text(&one, "/by")
        );
    }
    for p in list("/board/staged") {
        outln!("staged: {} {}  generation {}", text(&p, "/name"), text(&p, "/version"), text(&p, "/generation"));
    }
    for set in list("/board/retained") {
        outln!("retained: {}", set.as_str().unwrap_or_default());
    }
    for q in list("/board/quarantine") {
        outln!("quarantine: {} by {}: {}", text(&q, "/sha256"), text(&q, "/by"), text(&q, "/reason"));
    }
    for why in list("/board/tainted") {
        outln!("tainted: {}", why.as_str().unwrap_or_default());
    }
    if let Some(step) = status.pointer("/last_refit/step").and_then(Value::as_u64) {
        outln!("last refit: step {step} of the trainer");
    }
    if let Some(why) = status.pointer("/last_refit/degraded").and_then(Value::as_str) {
        outln!("degraded: {why}");
    }
    outln!("ledger: seq {}, {}", text(status, "/ledger/seq"), text(status, "/ledger/hash"));
    if status.pointer("/ledger/ok") == Some(&Value::Bool(false)) {
        outln!("ledger: FAILING, {}", text(status, "/ledger/why"));
    }
    if let Some(lost) = status.pointer("/ledger/lost").and_then(Value::as_u64).filter(|lost| *lost > 0) {
        outln!("ledger: {lost} events could not be written");
    }
    for remark in list("/last_refit/report/remarks") {
        outln!("remark: {}", remark.as_str().unwrap_or_default());
    }
}
