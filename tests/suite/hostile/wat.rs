//! Assembles the text guests of `guests/evil/wat`. A file that begins with `(component` is one as it stands. Any other
//! begins with `;; world: NAME` and holds only the fields in which it differs from the honest base of that world
//! (`guests/evil/wat/base`): a field that it names (`(func $scales …`) takes the base's place.

use std::path::PathBuf;

use wit_component::{ComponentEncoder, StringEncoding, embed_component_metadata};
use wit_parser::{Resolve, WorldId};

use crate::support::repo;

fn folder() -> PathBuf {
    repo().join("guests/evil/wat")
}

/// Names of all text guests.
pub fn names() -> Vec<String> {
    let entries = std::fs::read_dir(folder()).unwrap().map(|e| e.unwrap().path());
    let files = entries.filter(|p| p.extension().is_some_and(|x| x == "wat"));
    let mut names: Vec<String> = files.map(|p| p.file_stem().unwrap().to_str().unwrap().to_string()).collect();
    names.sort();
    names
}

/// The component of a text guest.
pub fn guest(name: &str) -> Vec<u8> {
    let path = folder().join(format!("{name}.wat"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let Some(world) = text.lines().find_map(|line| line.strip_prefix(";; world: ")) else {
        return wat::parse_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"));
    };
    assembled(name, world.trim(), &text)
}

/// The world of a text guest; a whole component is tried as if it quantized.
pub fn world_name(name: &str) -> &'static str {
    let text = std::fs::read_to_string(folder().join(format!("{name}.wat"))).unwrap();
    let world =
        text.lines().find_map(|line| line.strip_prefix(";; world: ")).unwrap_or("quant-patch").trim().to_string();
    WORLDS.into_iter().find(|known| **known == world).unwrap()
}

/// A component of a world from the fields in which it differs from the honest one.
pub fn component(world: &str, fields: &str) -> Vec<u8> {
    assembled("an attack", world, fields)
}

/// The honest component of a world.
pub fn honest(world: &str) -> Vec<u8> {
    component(world, "")
}

fn assembled(name: &str, world: &str, text: &str) -> Vec<u8> {
    let module = wat::parse_str(module(world, text)).unwrap_or_else(|e| panic!("{name}: {e}"));
    let more: String = text.lines().filter_map(|line| line.strip_prefix(";; wit: ")).collect();
    encode(&world_with(world, &more), module).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A core module as a component of a world.
pub fn encode((resolve, world): &(Resolve, WorldId), mut module: Vec<u8>) -> Result<Vec<u8>, String> {
    embed_component_metadata(&mut module, resolve, *world, StringEncoding::UTF8).map_err(|e| format!("{e:#}"))?;
    let encoder = ComponentEncoder::default().validate(true).module(&module);
    encoder.and_then(|mut encoder| encoder.encode()).map_err(|e| format!("{e:#}"))
}

/// A world of `wit/patch/0.1.0`.
pub fn world_of(world: &str) -> (Resolve, WorldId) {
    let mut resolve = Resolve::default();
    let (package, _) = resolve.push_path(repo().join("wit/patch/0.1.0")).unwrap();
    let id = resolve.select_world(&[package], Some(world)).unwrap();
    (resolve, id)
}

/// The same with an interface `things` that no patch exports.
fn world_with(world: &str, things: &str) -> (Resolve, WorldId) {
    let (mut resolve, id) = world_of(world);
    if things.is_empty() {
        return (resolve, id);
    }
    let text =
        format!("package evil:evil; {things} world more {{ include patchhost:patch/{world}@0.1.0; export things; }}");
    let package = resolve.push_str("evil.wit", &text).unwrap();
    let id = resolve.select_world(&[package], Some("more")).unwrap();
    (resolve, id)
}

fn bases(world: &str) -> &'static [&'static str] {
    match world {
        "quant-patch" => &["identity", "block-quant"],
        "quant-rows-patch" => &["identity", "block-quant", "block-quant-rows"],
        "loader-patch" => &["identity", "loader-map"],
        "layout-patch" => &["identity", "layout"],
        "mask-patch" => &["identity", "logits-mask"],
        "observer-patch" => &["identity", "refit-observer"],
        "stateful-observer-patch" => &["identity", "refit-observer", "state"],
        "host-view" => &[
            "identity",
            "block-quant",
            "block-quant-rows",
            "loader-map",
            "layout",
            "lora",
            "logits-mask",
            "refit-observer",
            "state",
        ],
        other => panic!("no base for world `{other}`"),
    }
}

/// The worlds that have an honest base.
pub const WORLDS: [&str; 7] = [
    "quant-patch",
    "quant-rows-patch",
    "loader-patch",
    "layout-patch",
    "mask-patch",
    "observer-patch",
    "stateful-observer-patch",
];

fn module(world: &str, text: &str) -> String {
    let mine = fields(text);
    let taken: Vec<_> = mine.iter().filter_map(|field| key(field)).collect();
    let mut all = Vec::new();
    for base in bases(world) {
        let base = std::fs::read_to_string(folder().join("base").join(format!("{base}.wat"))).unwrap();
        let kept = fields(&base).into_iter().filter(|f| key(f).is_none_or(|k| !taken.contains(&k)));
        all.extend(kept.map(str::to_string).collect::<Vec<_>>());
    }
    all.extend(mine.into_iter().map(str::to_string));
    // Imports come first in a module, and types before what uses them.
    all.sort_by_key(|field| !field.starts_with("(import") && !field.starts_with("(type"));
    format!("(module\n{}\n)", all.join("\n"))
}

/// `func $scales` of `(func $scales …`: what a field defines, if it has a name.
fn key(field: &str) -> Option<(&str, &str)> {
    let mut words = field[1..].split_whitespace();
    let (kind, name) = (words.next()?, words.next()?);
    name.starts_with('$').then(|| (kind, name.trim_end_matches(')')))
}

/// The fields at the top of a module's text.
fn fields(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut fields) = (0, 0, Vec::new());
    let (mut in_string, mut in_comment, mut escaped) = (false, false, false);
    for (at, c) in text.char_indices() {
        if in_comment {
            in_comment = c != '\n';
        } else if in_string {
            in_string = escaped || c != '"';
            escaped = !escaped && c == '\\';
        } else if text[at..].starts_with(";;") {
            in_comment = true;
        } else {
            match c {
                '"' => in_string = true,
                '(' => {
                    if depth == 0 {
                        start = at;
                    }
                    depth += 1;
                }
                ')' => {
                    depth -= 1;
                    if depth == 0 {
                        fields.push(&text[start..=at]);
                    }
                }
                _ => {}
            }
        }
    }
    assert_eq!(depth, 0, "parentheses");
    fields
}
