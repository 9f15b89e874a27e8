//! PH1xx: what it asks for. Nothing is granted by itself but `row-source`, whose cost is bounded.

use super::Rule;
use crate::audit::input::Input;
use crate::audit::report::{Finding, Severity};
use crate::base::Wasi;
use crate::base::{PACKAGE, ROW_SOURCE, VERSION, interface, text};

const NOT_ALLOWED: Rule = Rule::error("PH101", "import-not-allowed", "An import that was not granted.");
const FILESYSTEM: Rule = Rule::error("PH102", "filesystem", "Asks for files.");
const NETWORK: Rule = Rule::error("PH103", "network", "Asks for sockets or HTTP.");
const CLOCK_RANDOM: Rule =
    Rule::error("PH104", "clock-random", "Asks for clocks or randomness: answers would differ between ranks.");
const ENVIRONMENT: Rule =
    Rule::error("PH105", "env-args-stdio", "Asks for environment, arguments or standard streams.");

const GRANT_UNUSED: Rule = Rule::warn("PH107", "grant-unused", "A grant for something that it does not import.");
const ADAPTER: Rule = Rule::warn(
    "PH109",
    "wasi-adapter",
    "The adapter of WASI preview 1 is inside: std was built with I/O that a patch does not need.",
);

pub(super) const RULES: [Rule; 7] =
    [NOT_ALLOWED, FILESYSTEM, NETWORK, CLOCK_RANDOM, ENVIRONMENT, GRANT_UNUSED, ADAPTER];

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    let granted = input.grants.wasi.as_ref();
    for import in input.imports.iter().filter(|import| import.name != ROW_SOURCE) {
        let name = text::clean(&import.name, 120);
        let place = format!("offset {:#x}", import.offset);
        let rule = wasi(&import.name);
        if let (Some(wasi), true) = (granted, grantable(&import.name)) {
            let finding =
                rule.found_at(place, format!("imports `{name}`: {}", behind(wasi, &import.name)), "nothing: granted");
            out.push(Finding { severity: Severity::Info, ..finding });
            continue;
        }
        let fix = if import.name == interface("types") {
            "a hook `use`s the shared `types`: repeat the types inside it, as the released interface does".to_owned()
        } else if grantable(&import.name) {
            "build for wasm32-unknown-unknown, where nothing pulls in WASI; or, after a review, `patchhost grant X.wasm --wasi inert`"
                .to_owned()
        } else if import.name.starts_with("wasi:") {
            "remove the import: sockets and HTTP are never granted".to_owned()
        } else if import.name.starts_with(PACKAGE) {
            format!("only `{}` can be imported, at version {VERSION}", ROW_SOURCE)
        } else {
            "remove the import".to_owned()
        };
        out.push(rule.found_at(place, format!("imports `{name}`; granted: {}", lines(input)), fix));
    }
    if granted.is_some() && !input.imports.iter().any(|import| grantable(&import.name)) {
        let message = format!("granted: {}; it imports no WASI", lines(input));
        out.push(GRANT_UNUSED.finding(message, "take the grant back"));
    }
    let adapter = |module: &crate::audit::ModuleFacts| {
        module.imports.iter().any(|import| import.module.starts_with("wasi_snapshot_preview1"))
            || module.names.values().any(|name| name.contains("wasi_snapshot_preview1"))
    };
    if input.facts.modules.iter().any(adapter) {
        out.push(ADAPTER.finding("a module speaks wasi_snapshot_preview1", "build for wasm32-unknown-unknown"));
    }
}

fn lines(input: &Input<'_>) -> String {
    let lines = input.grants.lines();
    if lines.is_empty() { format!("`{}`", ROW_SOURCE) } else { text::clean(&lines.join(", "), 400) }
}

/// What a grant can link: never sockets, never HTTP, and only the WASI that the engine has.
fn grantable(name: &str) -> bool {
    let packages = ["wasi:cli/", "wasi:io/", "wasi:clocks/", "wasi:random/", "wasi:filesystem/"];
    packages.iter().any(|package| name.starts_with(package)) && name.contains("@0.2.")
}

/// What stands behind an interface.
fn behind(wasi: &Wasi, name: &str) -> String {
    let nothing = || "nothing behind it".to_owned();
    let part = name.split('/').next().unwrap_or_default();
    match part {
        "wasi:filesystem" if !wasi.dirs.is_empty() => format!("{} folders", wasi.dirs.len()),
        "wasi:clocks" if wasi.clocks => "the host's clocks: answers may differ between ranks".to_owned(),
        "wasi:clocks" => "a clock that stands still".to_owned(),
        "wasi:random" if wasi.random => "the host's random numbers: answers may differ between ranks".to_owned(),
        "wasi:random" => "the same bytes always".to_owned(),
        "wasi:cli" if name.contains("/environment") && !wasi.env.is_empty() => format!("{} variables", wasi.env.len()),
        "wasi:cli" if name.contains("/stdout") || name.contains("/stderr") => "the host's bounded log".to_owned(),
        _ => nothing(),
    }
}

fn wasi(name: &str) -> &'static Rule {
    let within = |packages: &[&str]| packages.iter().any(|package| name.starts_with(package));
    if within(&["wasi:filesystem/"]) {
        &FILESYSTEM
    } else if within(&["wasi:sockets/", "wasi:http/"]) {
        &NETWORK
    } else if within(&["wasi:clocks/", "wasi:random/"]) {
        &CLOCK_RANDOM
    } else if within(&["wasi:cli/", "wasi:io/"]) {
        &ENVIRONMENT
    } else {
        &NOT_ALLOWED
    }
}
