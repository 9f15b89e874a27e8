//! PH6xx: what is in the data.

use super::Rule;
use crate::audit::facts::{DataFacts, MarkKind};
use crate::audit::input::Input;
use crate::audit::report::Finding;

const ENTROPY: Rule =
    Rule::warn("PH601", "high-entropy", "Data that looks compressed or encrypted: nobody can review it.");
const URL: Rule = Rule::warn("PH602", "url-host", "Addresses of other machines. A patch cannot reach any.");
const SECRET: Rule = Rule::error("PH603", "secret-like", "Something that looks like a key or a token.");
const BINARY: Rule = Rule::warn("PH604", "embedded-binary", "Another kind of file inside the data.");
const BUILD_PATH: Rule =
    Rule::warn("PH605", "build-path", "Paths of the machine that it was built on: they leak, and builds differ.");
const HEAVY: Rule = Rule::info("PH606", "data-heavy", "Much more data than code.");

pub(super) const RULES: [Rule; 6] = [ENTROPY, URL, SECRET, BINARY, BUILD_PATH, HEAVY];

/// Bits per byte; text has 4 to 5, code 6, compressed data 7.9.
const BITS: f64 = 7.2;
/// Smaller segments say nothing.
const LEAST: usize = 1024;
/// Findings that are named one by one.
const NAMED: usize = 4;

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    let facts = input.facts;
    let segments = facts.modules.iter().enumerate().flat_map(|(m, module)| {
        module.data.iter().enumerate().map(move |(d, segment)| (format!("module {m} data {d}"), segment))
    });
    let mut named = [0; 4];
    for (place, segment) in segments {
        let DataFacts { offset, size, entropy, .. } = segment;
        if *size >= LEAST && *entropy > BITS {
            let message = format!("{entropy:.1} bits per byte in {size} bytes");
            out.push(ENTROPY.found_at(
                format!("{place} at {offset:#x}"),
                message,
                "say in the review what the data is",
            ));
        }
        for mark in &segment.marks {
            let (rule, fix) = match mark.kind {
                MarkKind::Url => (&URL, "remove it"),
                MarkKind::Secret => (&SECRET, "remove it, and treat the secret as known to everybody"),
                MarkKind::Binary => (&BINARY, "remove it, or say in the review what it is"),
                MarkKind::BuildPath => (&BUILD_PATH, "build with `--remap-path-prefix=$HOME=~`"),
            };
            let count = &mut named[mark.kind as usize];
            *count += 1;
            if *count <= NAMED {
                out.push(rule.found_at(format!("{place} at {:#x}", mark.offset), format!("`{}`", mark.text), fix));
            }
        }
    }
    let (code, data) = (facts.code_bytes(), facts.data_bytes());
    if data > 4 * code && data > LEAST {
        out.push(
            HEAVY.finding(format!("{data} bytes of data and {code} of code"), "say in the review what the data is"),
        );
    }
}
