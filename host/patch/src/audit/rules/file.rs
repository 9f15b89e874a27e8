//! PH0xx: what kind of file it is, and whether all of it is one.

use super::Rule;
use crate::audit::Caps;
use crate::audit::input::Input;
use crate::audit::report::{Finding, Kind};
use wasmparser::{BinaryReaderError, Parser};

const NOT_A_COMPONENT: Rule =
    Rule::error("PH001", "not-a-component", "A core module or another kind of file: patches are components.");
const INVALID: Rule = Rule::error("PH002", "invalid", "It does not parse or validate.");
const TOO_LARGE: Rule = Rule::error("PH003", "too-large", "More bytes than a patch may have.");
const TRAILING: Rule = Rule::error(
    "PH004",
    "trailing-or-odd",
    "Bytes after the last section or overlong section sizes: two readers could see two different files.",
);
const PRECOMPILED: Rule =
    Rule::error("PH005", "precompiled", "Native code (ELF, `.cwasm`): loading it would skip the sandbox.");

const UNKNOWN_CUSTOM: Rule = Rule::warn(
    "PH006",
    "custom-unknown",
    "A custom section whose content is not read here, whatever it is called: a place to hide things.",
);
const ODD_NAMES: Rule = Rule::warn(
    "PH007",
    "odd-names",
    "Names with anything but printable ASCII: a reader may see another name than the linker does.",
);

pub(super) const RULES: [Rule; 7] =
    [NOT_A_COMPONENT, INVALID, TOO_LARGE, TRAILING, PRECOMPILED, UNKNOWN_CUSTOM, ODD_NAMES];

/// What custom sections of this name usually hold, for people: the name is the author's word, and decides nothing.
fn usually(name: &str) -> Option<&'static str> {
    let begins = |all: &[&str]| all.iter().any(|begins| name.starts_with(begins));
    if begins(&[".debug_", "external_debug_info", "sourceMappingURL", "build_id"]) {
        Some("debug information")
    } else if name == ".dep-v0" {
        Some("the list of crates that cargo auditable writes")
    } else if begins(&["component-type", "package-docs", "wit-component:"]) {
        Some("what wit-component writes")
    } else if begins(&["reloc.", "linking", "dylink.0", "target_features"]) {
        Some("what a linker writes")
    } else if ["name", "component-name", "producers", "metadata.code.branch_hint", "version"].contains(&name) {
        Some("what a compiler writes")
    } else {
        None
    }
}

/// Findings that are named one by one.
const NAMED: usize = 4;

/// Custom sections and names.
pub(super) fn inside(input: &Input<'_>, out: &mut Vec<Finding>) {
    let unread = &input.facts.unread_customs;
    for (name, bytes) in unread.iter().take(NAMED) {
        let hint = usually(name).map(|what| format!(", named like {what} (the name is the author's word)"));
        let message = format!("custom section `{name}`, {bytes} bytes{}", hint.unwrap_or_default());
        let fix = if name == ".dep-v0" { "look at it with `cargo audit bin`, or strip it" } else { "strip it" };
        out.push(UNKNOWN_CUSTOM.finding(message, fix));
    }
    if let Some(more @ [_, ..]) = unread.get(NAMED..) {
        let bytes = more.iter().fold(0usize, |sum, (_, bytes)| sum.saturating_add(*bytes));
        let message = format!("{} more custom sections, {bytes} bytes", more.len());
        out.push(UNKNOWN_CUSTOM.finding(message, "strip them"));
    }
    for (what, name, offset) in input.facts.odd_names.iter().take(NAMED) {
        out.push(ODD_NAMES.found_at(format!("offset {offset:#x}"), format!("{what} `{name}`"), "rename it in ASCII"));
    }
}

/// By the first bytes.
pub(in crate::audit) fn kind(bytes: &[u8]) -> Kind {
    if bytes.starts_with(b"\x7fELF") {
        Kind::Native
    } else if Parser::is_component(bytes) {
        Kind::Component
    } else if Parser::is_core_wasm(bytes) {
        Kind::CoreModule
    } else {
        Kind::Unknown
    }
}

/// Everything about the file as a whole.
pub(in crate::audit) fn check(bytes: &[u8], kind: Kind, caps: &Caps, out: &mut Vec<Finding>) {
    if bytes.len() > caps.bytes {
        let message = format!("{} bytes; a component has at most {}", bytes.len(), caps.bytes);
        out.push(TOO_LARGE.finding(message, "strip it, or build it with opt-level = \"s\""));
    }
    match kind {
        Kind::Component => sections(bytes, out),
        Kind::CoreModule => out.push(NOT_A_COMPONENT.finding(
            "a core module; patches are components",
            "build for wasm32-unknown-unknown and run `wasm-tools component new`",
        )),
        Kind::Native => out.push(PRECOMPILED.finding(
            "native code; it is never loaded, wherever it comes from",
            "give the component that it was compiled from",
        )),
        Kind::Unknown => out.push(NOT_A_COMPONENT.finding(
            format!("neither WebAssembly nor anything known: it begins with {}", beginning(bytes)),
            "give a component: a `.wasm` file that begins with 00 61 73 6d 0d 00 01 00",
        )),
    }
}

/// It made a reader of components panic.
pub(in crate::audit) fn gave_up(panic: &str) -> Finding {
    let why = crate::base::text::clean(panic, 200);
    INVALID.finding(format!("the reader of components gave up on it: {why}"), "build it with a current toolchain")
}

/// An error of the parser or validator.
pub(in crate::audit) fn invalid(error: &BinaryReaderError) -> Finding {
    let message = crate::base::text::clean(error.message(), 300);
    INVALID.found_at(format!("offset {:#x}", error.offset()), message, "rebuild it with a current toolchain")
}

/// Walks the sections of the root: sizes in their shortest form, the last one ending with the file.
fn sections(bytes: &[u8], out: &mut Vec<Finding>) {
    /// Sections that a component can have: 0 to 11.
    const LAST_ID: u8 = 11;
    let mut at = 8;
    while at < bytes.len() {
        let rest = &bytes[at + 1..];
        let length = leb_u32(rest);
        let problem = match length {
            _ if bytes[at] > LAST_ID => Some(format!("{} bytes after the last section", bytes.len() - at)),
            None => Some("a section size that is not a number".to_owned()),
            Some((_, _, false)) => Some("a section size that is longer than it needs to be".to_owned()),
            Some((size, digits, true)) if size > rest.len() - digits => {
                Some(format!("a section of {size} bytes where {} are left", rest.len() - digits))
            }
            Some((size, digits, true)) => {
                at += 1 + digits + size;
                None
            }
        };
        if let Some(problem) = problem {
            out.push(TRAILING.found_at(format!("offset {at:#x}"), problem, "rebuild it; do not append to it"));
            return;
        }
    }
}

/// Value, bytes used, and whether there is no shorter way to write it.
fn leb_u32(bytes: &[u8]) -> Option<(usize, usize, bool)> {
    let mut value = 0u64;
    for (index, byte) in bytes.iter().take(5).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let shortest = *byte != 0 || index == 0;
            return Some((usize::try_from(value).ok()?, index + 1, shortest));
        }
    }
    None
}

fn beginning(bytes: &[u8]) -> String {
    let shown: Vec<String> = bytes.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    if shown.is_empty() { "nothing".to_owned() } else { shown.join(" ") }
}
