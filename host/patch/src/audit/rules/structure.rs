//! PH8xx: how it is put together. Instances multiply along the tree of components: 587 bytes can ask for 10^8.

use super::Rule;
use crate::audit::input::Input;
use crate::audit::report::Finding;

const MODULES: Rule =
    Rule::error("PH801", "core-modules", "More core modules than wit-component makes (1, and 2 more for imports).");
const NESTED: Rule = Rule::error(
    "PH802",
    "nested-components",
    "A nested component with code, instances or components in it. wit-component wraps each exported interface in a \
     nested component that only re-exports functions and types; those are allowed, up to a number.",
);
const INSTANCES: Rule =
    Rule::error("PH803", "expanded-instances", "More instances, multiplied along the tree, than a patch can need.");

const DEAD: Rule =
    Rule::warn("PH804", "dead-module", "A core module that nothing instantiates: code that rides along.");

pub(super) const RULES: [Rule; 4] = [MODULES, NESTED, INSTANCES, DEAD];

const LINK: &str = "link it statically into one module";

pub(super) fn check(input: &Input<'_>, out: &mut Vec<Finding>) {
    let (facts, caps) = (input.facts, input.caps);
    if facts.modules.len() > caps.core_modules {
        let message = format!("{} core modules; the cap is {}", facts.modules.len(), caps.core_modules);
        out.push(MODULES.finding(message, LINK));
    }
    let instances = match facts.expanded_instances {
        u64::MAX => "an unknown number of".to_owned(),
        count => count.to_string(),
    };
    if facts.nested_components > 0 || facts.component_depth > 1 {
        let message = format!(
            "{} nested components that are not mere re-exports, {} deep; they expand to {instances} instances",
            facts.nested_components, facts.component_depth
        );
        out.push(NESTED.finding(message, LINK));
    }
    if facts.shims > caps.shims {
        let message = format!("{} nested components that re-export; the cap is {}", facts.shims, caps.shims);
        out.push(NESTED.finding(message, "export fewer interfaces"));
    }
    if let Some(first) = facts.dead_modules.first() {
        let place = facts.modules.get(*first).map(|module| format!("module {first} at {:#x}", module.offset));
        let message = format!("{} core modules are never instantiated", facts.dead_modules.len());
        out.push(DEAD.found_at(place.unwrap_or_default(), message, LINK));
    }
    if facts.expanded_instances > caps.expanded_instances {
        let message = format!("{instances} instances; the cap is {}", caps.expanded_instances);
        out.push(INSTANCES.finding(message, LINK));
    }
}
