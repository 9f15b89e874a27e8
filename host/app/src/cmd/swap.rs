//! `patchhost swap`: bring a patch into a running server.

use std::path::Path;

use serde_json::{Value, json};

use super::Call;
use super::admin_client::{Sent, ServerArgs};
use super::args::Format;
use super::failure::Result;
use super::output::json as print_json;
use super::session::parse_setting;
use super::staging::shown;
use crate::base::Digest;
use crate::patch::{Mode, When, bundled::bundled};

/// Stage a patch in a running server and swap to it, or end or move a swap that has not landed
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The patch: a component's file, the name of a bundled one, or the digest of one that the server has
    #[arg(value_name = "X.wasm|NAME|DIGEST", required_unless_present_any = ["cancel", "promote"])]
    patch: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
    /// A setting of the patch: KEY=VALUE; can be repeated
    #[arg(long = "set", value_name = "KEY=VALUE")]
    settings: Vec<String>,
    /// The digest that the component's bytes must have
    #[arg(long, value_name = "HEX")]
    sha256: Option<Digest>,
    /// Only if this is active: the digest of the set, or of the patch that is replaced
    #[arg(long, value_name = "DIGEST")]
    expect: Option<Digest>,
    /// When it lands: refit (the next one), now (the weights are loaded again) or step:N
    #[arg(long, value_name = "WHEN", default_value = "refit")]
    when: When,
    /// live, shadow (compared, not used) or canary=N% (used for some requests)
    #[arg(long, value_name = "MODE", default_value = "live")]
    mode: Mode,
    /// Also against a swap that is under way; needs --reason
    #[arg(long, requires = "reason")]
    force: bool,
    /// Why, for the ledger
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// Stage it only
    #[arg(long)]
    stage_only: bool,
    /// End the swap that has not landed
    #[arg(long, conflicts_with_all = ["patch", "promote"])]
    cancel: bool,
    /// Move the candidate that is under way to --mode
    #[arg(long, conflicts_with = "patch")]
    promote: bool,
}

pub fn run(args: Args, call: &Call) -> Result {
    let format = call.format;
    let answer = if args.cancel {
        args.server.ask("POST", "/admin/v1/cancel", Sent::Json(json!({ "reason": args.reason })))?
    } else if args.promote {
        let body = json!({ "mode": args.mode, "when": args.when });
        args.server.ask("POST", "/admin/v1/mode", Sent::Json(body))?
    } else {
        swap(&args, format)?
    };
    if format == Format::Json {
        return print_json(&answer);
    }
    print(&answer);
    Ok(())
}

fn swap(args: &Args, format: Format) -> Result<Value> {
    let given = args.patch.as_deref().unwrap_or_default();
    let to = match given.parse::<Digest>() {
        Ok(digest) => digest.to_string(),
        Err(_) => {
            let staged = stage(args, given)?;
            if format == Format::Text {
                let text = |key: &str| staged.get(key).and_then(Value::as_str).unwrap_or("?").to_string();
                outln!("staged {} {}: generation {}", text("name"), text("version"), text("generation"));
            }
            if args.stage_only {
                return Ok(staged);
            }
            staged.get("generation").and_then(Value::as_str).unwrap_or_default().to_string()
        }
    };
    let body = json!({
        "to": to, "expect": args.expect, "when": args.when, "mode": args.mode,
        "force": args.force, "reason": args.reason,
    });
    args.server.ask("POST", "/admin/v1/swap", Sent::Json(body))
}

fn stage(args: &Args, given: &str) -> Result<Value> {
    let mut settings = serde_json::Map::new();
    let mut query = String::new();
    for setting in &args.settings {
        let (key, value) = parse_setting(setting)?;
        settings.insert(key, value.into());
        query.push_str(&format!("&set={}", escape(setting)));
    }
    let path = Path::new(given);
    if path.is_file() {
        // The same bound and message as everywhere: the file is read once.
        let candidate = crate::patch::Candidate::from_file(path)?;
        if let Some(sha256) = &args.sha256 {
            query.push_str(&format!("&sha256={}", sha256.hex()));
        }
        let name = path.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        let path = format!("/admin/v1/stage?name={}{query}", escape(&name));
        let send = || args.server.ask("POST", &path, Sent::Wasm(candidate.bytes().to_vec()));
        return shown(&args.server, candidate.digest(), send);
    }
    // Where there is none, the error names the bundled ones.
    let candidate = bundled(given).map_or_else(|| crate::patch::resolve(given), Ok)?;
    let body = json!({ "bundled": given, "settings": settings, "sha256": args.sha256 });
    shown(&args.server, candidate.digest(), || args.server.ask("POST", "/admin/v1/stage", Sent::Json(body)))
}

/// Percent-encoding of everything that is not plain.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for b in text.bytes() {
        match b {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => out.push(char::from(b)),
            b => out.push_str(&format!("%{b:02X}")),
        }
    }
    out
}

/// What became of a request, in words.
pub fn print(answer: &Value) {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).unwrap_or_default().to_string();
    if let Some(done) = answer.get("done").and_then(Value::as_bool) {
        outln!("{}", if done { "done" } else { "there was nothing to do" });
        return;
    }
    if let Some(landed) = answer.get("landed").filter(|l| !l.is_null()) {
        outln!("landed: {} -> {}", text(landed.get("from")), text(landed.get("to")));
        return;
    }
    if let Some(why) = answer.get("reversed").and_then(Value::as_str) {
        outln!("reversed: {why}");
        return;
    }
    match answer.get("state").and_then(Value::as_str) {
        Some("pending") => outln!("pending: {} -> {}", text(answer.get("from")), text(answer.get("to"))),
        Some("already-pending") => outln!("already pending: {}", text(answer.get("to"))),
        Some("already-active") => outln!("already active: {}", text(answer.get("active"))),
        _ => outln!("{answer}"),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn escapes() {
        assert_eq!(super::escape("a b=c&d/é"), "a%20b%3Dc%26d%2F%C3%A9");
    }
}
