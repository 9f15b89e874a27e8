//! Version skew in words: a guest's interfaces against the host's, function by function and type by type.

use super::types;
use crate::base::{Hook, IDENTITY, PACKAGE, ROW_SOURCE, VERSION, WIT, interface, text};
use patchhost_runtime::caught::caught;
use std::fmt;
use std::sync::LazyLock;
use wit_parser::decoding::{DecodedWasm, decode};
use wit_parser::{Function, InterfaceId, Resolve, SourceMap, WorldId, WorldItem, WorldKey};

/// The interface that this host was built with.
static HOST: LazyLock<Result<Resolve, String>> = LazyLock::new(parse_host);

/// One way in which a guest does not fit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Skew {
    /// It is not a patch: what it exports, what is wanted.
    NotAPatch(String),
    /// It exports `interface` in another version.
    Version {
        /// As the guest has it.
        guest: String,
        /// As the host has it.
        host: String,
    },
    /// A function is missing, or has other types.
    Function {
        /// Full name of the interface.
        interface: String,
        /// Name of the function.
        function: String,
        /// How its types differ from those of the host, in words.
        difference: String,
    },
}

impl fmt::Display for Skew {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Skew::NotAPatch(why) => f.write_str(why),
            Skew::Version { guest, host } => write!(f, "it has `{guest}`, the host has `{host}`"),
            Skew::Function { interface, function, difference } => {
                write!(f, "function `{function}` of {interface}: {difference}")
            }
        }
    }
}

/// Compares a valid component with the host's interface. Empty if it fits.
pub fn compare(bytes: &[u8]) -> Vec<Skew> {
    let host = match &*HOST {
        Ok(host) => host,
        Err(error) => return vec![Skew::NotAPatch(format!("the host's own interface does not parse: {error}"))],
    };
    // The decoder is written for components that tools make; others may make it panic.
    match caught(|| decode(bytes)) {
        Ok(Ok(DecodedWasm::Component(guest, world))) => compare_world(&guest, world, host),
        Ok(Ok(DecodedWasm::WitPackage(..))) => vec![Skew::NotAPatch("it is a WIT package, without code".into())],
        Ok(Err(error)) => {
            let error = text::clean(&format!("{error:#}"), 300);
            vec![Skew::NotAPatch(format!("its world cannot be read: {error}"))]
        }
        Err(_) => vec![Skew::NotAPatch("its world cannot be read: the decoder panicked".into())],
    }
}

fn compare_world(guest: &Resolve, world: WorldId, host: &Resolve) -> Vec<Skew> {
    let world = &guest.worlds[world];
    let exports = interfaces(guest, world.exports.iter());
    let mut skews = Vec::new();
    let hooks: Vec<String> = Hook::ALL.iter().map(|hook| interface(hook.name())).collect();
    let state = interface("state");
    for name in [IDENTITY, &state].into_iter().chain(hooks.iter().map(String::as_str)) {
        if let Some((_, id)) = exports.iter().find(|(export, _)| export == name) {
            compare_interface(guest, *id, host, name, &mut skews);
        } else if let Some((other, _)) = exports.iter().find(|(export, _)| same_but_version(export, name)) {
            skews.push(Skew::Version { guest: text::clean(other, 120), host: name.to_owned() });
        }
    }
    if skews.is_empty() {
        let has = |name: &str| exports.iter().any(|(export, _)| export == name);
        if !has(IDENTITY) || !hooks.iter().any(|hook| has(hook)) {
            skews.push(Skew::NotAPatch(not_a_patch(guest, world.exports.keys())));
        }
        let rows = interface(Hook::BlockQuantRows.name());
        if has(&rows) && !has(&interface(Hook::BlockQuant.name())) {
            skews.push(Skew::NotAPatch(format!("it exports {rows} without block-quant, which decides when to ask it")));
        }
    }
    for (name, id) in interfaces(guest, world.imports.iter()) {
        if name == ROW_SOURCE {
            compare_interface(guest, id, host, &name, &mut skews);
        }
    }
    skews
}

fn not_a_patch<'a>(guest: &Resolve, exports: impl Iterator<Item = &'a WorldKey>) -> String {
    let names: Vec<String> = exports.map(|key| text::clean(&guest.name_world_key(key), 120)).collect();
    let listed = match names.len() {
        0 => "nothing".to_owned(),
        1..=6 => names.join(", "),
        more => format!("{} and {} more", names[..6].join(", "), more - 6),
    };
    let hooks = Hook::ALL.map(Hook::name).join(", ");
    format!("it exports {listed}; a patch exports {IDENTITY} and at least one hook of {PACKAGE}@{VERSION}: {hooks}")
}

fn interfaces<'a>(
    resolve: &Resolve,
    items: impl Iterator<Item = (&'a WorldKey, &'a WorldItem)>,
) -> Vec<(String, InterfaceId)> {
    let interfaces = items.filter_map(|(key, item)| match item {
        WorldItem::Interface { id, .. } => Some((resolve.name_world_key(key), *id)),
        _ => None,
    });
    interfaces.collect()
}

fn same_but_version(a: &str, b: &str) -> bool {
    let name = |full: &str| full.split('@').next().unwrap_or_default().to_owned();
    name(a) == name(b)
}

fn compare_interface(guest: &Resolve, id: InterfaceId, host: &Resolve, name: &str, out: &mut Vec<Skew>) {
    let Some(host_id) = host.interfaces.iter().map(|(id, _)| id).find(|id| host.id_of(*id).as_deref() == Some(name))
    else {
        return;
    };
    let guest_functions = &guest.interfaces[id].functions;
    for (function, wanted) in &host.interfaces[host_id].functions {
        let difference = match guest_functions.get(function) {
            // An import need not use every function of ours.
            None if name == ROW_SOURCE => None,
            None => Some("missing".to_owned()),
            Some(found) => function_difference(guest, found, host, wanted),
        };
        if let Some(difference) = difference {
            out.push(Skew::Function { interface: name.to_owned(), function: function.clone(), difference });
        }
    }
    for extra in guest_functions.keys().filter(|extra| !host.interfaces[host_id].functions.contains_key(*extra)) {
        if name == ROW_SOURCE {
            let difference = "the host does not have it".to_owned();
            let function = text::clean(extra, 80);
            out.push(Skew::Function { interface: name.to_owned(), function, difference });
        }
    }
}

fn function_difference(guest: &Resolve, found: &Function, host: &Resolve, wanted: &Function) -> Option<String> {
    if found.params.len() != wanted.params.len() {
        let (found, wanted) = (found.params.len(), wanted.params.len());
        return Some(format!("{found} parameters, the host has {wanted}"));
    }
    for (index, (found, wanted)) in found.params.iter().zip(&wanted.params).enumerate() {
        let position = index + 1;
        // wasmtime links parameters of other names; here they mean another order.
        if found.name != wanted.name {
            let name = text::clean(&found.name, 80);
            return Some(format!("parameter {position} is called `{name}`, the host calls it `{}`", wanted.name));
        }
        if let Some(difference) = types::difference(guest, &found.ty, host, &wanted.ty) {
            return Some(format!("parameter {position} `{}` {difference}", wanted.name));
        }
    }
    match (&found.result, &wanted.result) {
        (None, None) => None,
        (Some(found), Some(wanted)) => {
            types::difference(guest, found, host, wanted).map(|difference| format!("the result {difference}"))
        }
        (Some(_), None) => Some("it has a result, the host has none".into()),
        (None, Some(_)) => Some("it has no result, the host has one".into()),
    }
}

fn parse_host() -> Result<Resolve, String> {
    let mut map = SourceMap::new();
    WIT.iter().for_each(|(name, text)| map.push_str(name, *text));
    let group = map.parse().map_err(|(_, error)| format!("{error}"))?;
    let mut resolve = Resolve::default();
    resolve.push_group(group).map_err(|error| format!("{error}"))?;
    Ok(resolve)
}
