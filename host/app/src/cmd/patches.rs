//! `patchhost patches`: what patches there are, and what they say they are for.

use std::sync::Arc;

use super::Call;
use super::args::{Format, PatchArgs};
use super::failure::Result;
use super::output::json;
use super::session::{Load, Patches};
use crate::base::Hook;
use crate::patch::Patch;
use crate::patch::bundled::BUNDLED;

/// List the bundled patches (or those named): hooks, versions, digests, and why they exist
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(flatten)]
    patches: PatchArgs,
}

#[derive(Debug, serde::Serialize)]
struct Row<'a> {
    name: &'a str,
    version: &'a str,
    sha256: String,
    hooks: Vec<String>,
    summary: &'a str,
    reason: &'a str,
    upstream: Option<&'a str>,
    remove_when: Option<&'a str>,
    targets: &'a [crate::patch::Target],
}

pub fn run(mut args: Args, call: &Call) -> Result {
    let format = call.format;
    let named = !args.patches.components.is_empty();
    args.patches.no_default_patches = true;
    let mut patches: Vec<Arc<Patch>> = Vec::new();
    let components = match named {
        true => std::mem::take(&mut args.patches.components),
        false => BUNDLED.iter().map(|(name, _)| (*name).to_string()).collect(),
    };
    // Each by itself: two that claim one hook can be listed, though not loaded, together.
    for (i, component) in components.into_iter().enumerate() {
        let one = PatchArgs {
            isolate: args.patches.isolate,
            components: vec![component],
            sha256: args.patches.sha256.get(i).cloned().into_iter().collect(),
            settings: args.patches.settings.clone(),
            no_default_patches: true,
            trust: args.patches.trust.clone(),
        };
        let loaded = Patches::load(Load::new(&one, ""))?;
        patches.extend(loaded.all().cloned());
    }
    let rows: Vec<Row<'_>> = patches.iter().map(|p| row(p)).collect();
    if format == Format::Json {
        return json(&serde_json::json!({ "patches": rows }));
    }
    for r in &rows {
        outln!("{} {}  {}  sha256:{}", r.name, r.version, r.hooks.join(", "), &r.sha256[..12]);
        outln!("  {}", r.summary);
        outln!("  why: {}", r.reason);
        if let Some(upstream) = r.upstream {
            outln!("  upstream: {upstream}");
        }
        if let Some(when) = r.remove_when {
            outln!("  remove when: {when}");
        }
        for t in r.targets {
            let models = match &t.architectures[..] {
                [] => "any architecture".to_string(),
                some => some.join(", "),
            };
            outln!("  for {} {}: {models}", t.engine, t.versions);
        }
    }
    let (one, many) = if named { ("patch", "patches") } else { ("bundled patch", "bundled patches") };
    outln!("{} {}", rows.len(), if rows.len() == 1 { one } else { many });
    Ok(())
}

fn row(patch: &Patch) -> Row<'_> {
    let info = patch.info();
    Row {
        name: &info.name,
        version: &info.version,
        sha256: patch.digest().hex(),
        hooks: patch.hooks().iter().map(Hook::to_string).collect(),
        summary: &info.summary,
        reason: &info.reason,
        upstream: info.upstream.as_deref(),
        remove_when: info.remove_when.as_deref(),
        targets: &info.targets,
    }
}
