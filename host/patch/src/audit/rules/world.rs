//! PH2xx: whether it is a patch, and one that this host speaks to.

use super::Rule;
use crate::audit::input::Input;
use crate::audit::report::Finding;
use crate::audit::skew::{self, Skew};
use crate::base::{Hook, IDENTITY, is_state, text};

const MISMATCH: Rule = Rule::error("PH201", "world-mismatch", "It does not export what a patch exports.");
const EXTRA: Rule = Rule::warn("PH202", "extra-export", "It exports something that this host does not call.");
const INTERFACE_VERSION: Rule =
    Rule::error("PH203", "interface-version", "It was built for another version of the interface.");
const ENCODING: Rule =
    Rule::error("PH204", "string-encoding", "Strings that are not UTF-8: transcoding has had five advisories.");
const ASYNC: Rule =
    Rule::error("PH205", "async-abi", "Async functions, streams or futures: the host calls synchronously.");
const TYPES: Rule = Rule::error("PH208", "type-complexity", "Types nested deeper than any interface needs.");

const RESOURCES: Rule =
    Rule::warn("PH206", "resources", "Resource types of its own: handles that the host would have to keep.");
const LEAKS: Rule =
    Rule::warn("PH207", "post-return-missing", "Answers on the heap that nothing frees: memory grows with each call.");

pub(super) const RULES: [Rule; 8] = [MISMATCH, EXTRA, INTERFACE_VERSION, ENCODING, ASYNC, RESOURCES, LEAKS, TYPES];

const REBUILD: &str = "rebuild it with `wit/patch/0.1.0` of this host";

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    let (facts, caps) = (input.facts, input.caps);
    if facts.type_depth > caps.type_depth {
        let message = format!("types nested {} deep; the cap is {}", facts.type_depth, caps.type_depth);
        out.push(TYPES.finding(message, "simplify the types"));
        return;
    }
    if facts.odd_encodings > 0 {
        let message = format!("{} functions use UTF-16 or Latin-1", facts.odd_encodings);
        out.push(ENCODING.finding(message, "use UTF-8"));
    }
    if facts.async_functions > 0 {
        let message = format!("{} async functions", facts.async_functions);
        out.push(ASYNC.finding(message, "use a world without async"));
    }
    if facts.resources > 0 {
        out.push(RESOURCES.finding(format!("{} resource types", facts.resources), "use plain lists and records"));
    }
    if let Some(first) = facts.leaks.first() {
        let message =
            format!("{} functions return lists or strings without post-return, first `{first}`", facts.leaks.len());
        out.push(LEAKS.finding(message, "build with wit-bindgen, which exports it"));
    }
    let skews = skew::compare(input.bytes);
    // Another version of an interface of ours is a skew, not an extra; but only where it is found as one.
    let skewed = |name: &str| {
        let name = text::clean(name, 120);
        skews.iter().any(|skew| matches!(skew, Skew::Version { guest, .. } if *guest == name))
    };
    let known = |name: &str| name == IDENTITY || is_state(name) || Hook::of_interface(name).is_some();
    for export in input.exports.iter().filter(|export| !known(&export.name) && !skewed(&export.name)) {
        let (name, place) = (text::clean(&export.name, 120), format!("offset {:#x}", export.offset));
        out.push(EXTRA.found_at(place, format!("exports `{name}`, which nobody calls"), "remove it"));
    }
    for skew in &skews {
        let rule = match skew {
            Skew::Version { .. } => INTERFACE_VERSION,
            _ => MISMATCH,
        };
        out.push(rule.finding(skew.to_string(), REBUILD));
    }
}
