//! What a server says on its terminal.

use std::net::SocketAddr;

use super::super::args::Format;
use super::super::output::plural;
use super::Args;
use crate::checkpoint::bundled;
use crate::serve::{Address, App, Drained, Endpoint, RlMode};

/// What is served, where, with which patches, who may change it, and how to try it; or one line of JSON.
pub fn announce(
    args: &Args,
    app: &App,
    addresses: &[(String, Option<SocketAddr>)],
    collector: Option<&Endpoint>,
    format: Format,
) {
    if app.keys.guessable() > 0 {
        let (keys, short) = (app.keys.count(), app.keys.guessable());
        errln!("note: {short} of {} can be guessed: give 16 characters or more", plural(keys, "API key"));
    }
    let tcp = addresses.iter().find_map(|(_, tcp)| *tcp);
    let active = app.live.board().active();
    let set = active.set();
    if format == Format::Json {
        let patches: Vec<_> = set
            .patches()
            .iter()
            .map(|p| serde_json::json!({ "name": p.info().name, "sha256": p.digest(), "generation": p.generation() }))
            .collect();
        let line = serde_json::json!({
            "ready": true,
            "model": app.served_name,
            "listen": addresses.iter().map(|(text, _)| text).collect::<Vec<_>>(),
            "port": tcp.map(|a| a.port()),
            "patch_set": set.digest(),
            "patches": patches,
        });
        outln!("{line}");
        return;
    }
    outln!("patch set {}", set.digest());
    for p in set.patches() {
        let hooks: Vec<String> = p.hooks().iter().map(ToString::to_string).collect();
        outln!("  {} {}  sha256:{}  {}", p.info().name, p.info().version, p.digest().short(), hooks.join(", "));
    }
    for path in &args.live.watch {
        outln!("watching {} (--watch-when {})", path.display(), args.live.watch_when);
    }
    match &args.admin {
        Some(path) => outln!("admin: unix:{} (only this user)", path.display()),
        None if args.admin_token_file.is_some() => outln!("admin: with the token of --admin-token-file"),
        None => outln!("admin: off (--admin unix:PATH or --admin-token-file FILE switches it on)"),
    }
    let asked = app.keys.are_asked_for();
    if asked {
        outln!("requests: with an API key ({})", plural(app.keys.count(), "key"));
    }
    match args.rl {
        RlMode::On if asked && args.listen.iter().all(Address::is_local) => {
            outln!("weights, adapters, pauses: with an API key, or a trainer's token");
        }
        RlMode::On if args.listen.iter().all(Address::is_local) => {
            outln!("weights, adapters, pauses: whoever reaches this server (--rl token or off changes that)");
        }
        RlMode::On | RlMode::Token => outln!("weights, adapters, pauses: with a token"),
        RlMode::Off => outln!("weights, adapters, pauses: nobody (--rl off)"),
    }
    if let Some(collector) = collector {
        outln!("traces: to {}", collector.url);
    }
    if args.live.ledger.is_none() {
        outln!("ledger: in memory only (--ledger FILE keeps it)");
    }
    for (address, _) in addresses {
        outln!("serving `{}` on {address}", app.served_name);
    }
    if let Some(address) = tcp {
        let key = if asked { " -H 'Authorization: Bearer KEY'" } else { "" };
        outln!(
            "try it: curl http://{address}/v1/completions{key} -H 'Content-Type: application/json' -d '{}'",
            serde_json::json!({ "model": app.served_name, "prompt": bundled::PROMPT, "max_tokens": 32 })
        );
    }
    outln!("{} at once, {} waiting; stop with Ctrl-C", plural(args.max_num_seqs, "sequence"), args.max_waiting);
}

/// How it ended.
pub fn farewell(drained: &Drained, format: Format) {
    match (format, drained.aborted) {
        (Format::Json, aborted) => outln!("{}", serde_json::json!({ "stopped": true, "aborted": aborted })),
        (Format::Text, 0) => outln!("stopped; every request was answered"),
        (Format::Text, n) => outln!("stopped; {} aborted after --drain-timeout", plural(n, "sequence")),
    }
}
