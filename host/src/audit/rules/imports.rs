//! PH1xx: what it asks for. Nothing is granted but `row-source`, whose cost is bounded.

use super::Rule;
use crate::abi::{PACKAGE, VERSION, interface, row_source, text};
use crate::audit::input::Input;
use crate::audit::report::Finding;

const NOT_ALLOWED: Rule = Rule::error("PH101", "import-not-allowed", "An import that was not granted.");
const FILESYSTEM: Rule = Rule::error("PH102", "filesystem", "Asks for files.");
const NETWORK: Rule = Rule::error("PH103", "network", "Asks for sockets or HTTP.");
const CLOCK_RANDOM: Rule =
    Rule::error("PH104", "clock-random", "Asks for clocks or randomness: answers would differ between ranks.");
const ENVIRONMENT: Rule =
    Rule::error("PH105", "env-args-stdio", "Asks for environment, arguments or standard streams.");

pub(super) const RULES: [Rule; 5] = [NOT_ALLOWED, FILESYSTEM, NETWORK, CLOCK_RANDOM, ENVIRONMENT];

const WASI_FIX: &str = "build for wasm32-unknown-unknown, where nothing pulls in WASI, and pass data as arguments";

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    for import in input.imports.iter().filter(|import| import.name != row_source::NAME) {
        let name = text::clean(&import.name, 120);
        let place = format!("offset {:#x}", import.offset);
        let rule = wasi(&import.name);
        let fix = if import.name == interface("types") {
            "a hook `use`s the shared `types`: repeat the types inside it, as the released interface does".to_owned()
        } else if import.name.starts_with("wasi:") {
            WASI_FIX.to_owned()
        } else if import.name.starts_with(PACKAGE) {
            format!("only `{}` can be imported, at version {VERSION}", row_source::NAME)
        } else {
            "remove the import".to_owned()
        };
        out.push(rule.found_at(place, format!("imports `{name}`; granted: `{}`", row_source::NAME), fix));
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
