//! The arrows of ARCHITECTURE.md, held by the code itself: which room may import which, and that there are no circles.
//!
//! Read are `use crate::…` and `crate::…` in expressions, of every file that is not a test.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use crate::support::repo;

/// What a room may import. A room that is not named here fails the test: give it a line, here and in ARCHITECTURE.md.
const MAY: &[(&str, &[&str])] = &[
    ("base", &[]),
    ("sandbox", &["base"]),
    ("abi", &["sandbox", "base"]),
    ("audit", &["base"]),
    ("call", &["abi", "base"]),
    ("isolate", &["call", "abi", "sandbox", "base"]),
    ("native", &["base"]),
    ("patch", &["isolate", "call", "abi", "audit", "native", "sandbox", "base"]),
    ("record", &["patch", "call", "base"]),
    ("checkpoint", &["base"]),
    ("probe", &["patch", "native", "audit", "checkpoint", "base"]),
    ("trust", &["patch", "audit", "sandbox", "base"]),
    ("compare", &["patch", "native", "checkpoint", "base"]),
    ("live", &["trust", "probe", "compare", "patch", "native", "base"]),
    ("certify", &["trust", "checkpoint", "base"]),
    ("train", &["live", "compare", "checkpoint", "base"]),
    ("text", &["base"]),
    ("serve", &["live", "trust", "patch", "audit", "checkpoint", "base"]),
    ("cmd", &["*"]),
];

/// What must never be, said once more where a change of the table above would be tempting.
const NEVER: &[(&str, &str, &str)] = &[
    ("sandbox", "abi", "the sandbox knows no tenant"),
    ("audit", "sandbox", "an audit needs no engine"),
    ("abi", "audit", "what a guest says is checked in abi, what it is in audit"),
    ("patch", "trust", "a patch's life does not know who vouches for it"),
    ("patch", "record", "a patch is told to a witness, whoever that is"),
    ("live", "serve", "a model that changes while it runs needs no server"),
    ("serve", "cmd", "a server is started by somebody"),
];

/// The server's rooms of its own: a dialect imports what asks and what brings weights, never another dialect.
const DIALECTS: &[&str] = &["openai", "vllm", "sglang", "trl"];
/// What dialects share.
const SHARED: &[&str] = &["ask", "weights"];

/// A file and the paths that it names behind `crate::`, as room and the rest.
struct Source {
    file: PathBuf,
    room: String,
    inner: String,
    paths: Vec<(String, String)>,
}

fn sources() -> Vec<Source> {
    let mut all = Vec::new();
    for root in roots() {
        let mut files = Vec::new();
        walk(&root, &mut files);
        for file in files {
            let below = file.strip_prefix(&root).unwrap().to_path_buf();
            let mut parts = below.iter().map(|part| part.to_string_lossy().trim_end_matches(".rs").to_owned());
            let (room, inner) = (parts.next().unwrap(), parts.next().unwrap_or_default());
            if ["lib", "main"].contains(&room.as_str()) {
                continue;
            }
            let paths = paths(&code(&std::fs::read_to_string(&file).unwrap()));
            all.push(Source { file: below, room, inner, paths });
        }
    }
    assert!(all.len() > 300, "only {} files were found", all.len());
    all
}

/// Where rooms lie: the package `patchhost` and those that were taken out of it.
fn roots() -> Vec<PathBuf> {
    let host = repo().join("host");
    ["app/src", "patch/src"].iter().map(|below| host.join(below)).filter(|root| root.is_dir()).collect()
}

fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let stem = path.file_stem().unwrap().to_string_lossy().into_owned();
        // Files of tests may import what they test with.
        if stem == "tests" {
            continue;
        }
        if path.is_dir() {
            walk(&path, files);
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
}

/// Without comments, and without the tests at the end.
fn code(text: &str) -> String {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// Every path behind `crate::`: its first part and the rest. `use crate::{a::b, c}` are two.
fn paths(code: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        // `$crate::`, or a name that ends so.
        if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &code[at + "crate::".len()..];
        match rest.strip_prefix('{') {
            None => found.push(split(rest)),
            Some(group) => {
                let (mut depth, mut start) = (0, 0);
                for (i, c) in group.char_indices() {
                    match c {
                        '{' => depth += 1,
                        '}' if depth > 0 => depth -= 1,
                        ',' | '}' if depth == 0 => {
                            found.push(split(group[start..i].trim()));
                            start = i + 1;
                            if c == '}' {
                                break;
                            }
                        }
                        _ => {}
                    }
                }
            }
        }
    }
    found.retain(|(room, _)| !room.is_empty());
    found
}

fn split(path: &str) -> (String, String) {
    let word = |text: &str| text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let room = word(path);
    let rest = path[room.len()..].strip_prefix("::").map(str::to_owned).unwrap_or_default();
    (room, rest)
}

/// From room to room, with a file that shows it.
fn arrows(sources: &[Source]) -> BTreeMap<(String, String), String> {
    let rooms: BTreeSet<&str> = sources.iter().map(|s| s.room.as_str()).collect();
    let mut arrows = BTreeMap::new();
    for source in sources {
        for (room, _) in &source.paths {
            if *room != source.room && rooms.contains(room.as_str()) {
                let file = source.file.display().to_string();
                arrows.entry((source.room.clone(), room.clone())).or_insert(file);
            }
        }
    }
    arrows
}

#[test]
fn rooms_import_what_lies_below_them() {
    let sources = sources();
    let arrows = arrows(&sources);
    let mut wrong = Vec::new();
    for ((from, to), file) in &arrows {
        let Some((_, may)) = MAY.iter().find(|(room, _)| room == from) else {
            panic!("room `{from}` has no line in this test and in ARCHITECTURE.md");
        };
        if !may.contains(&"*") && !may.contains(&to.as_str()) {
            wrong.push(format!("{from} imports {to} ({file})"));
        }
    }
    for (from, to, why) in NEVER {
        if let Some(file) = arrows.get(&((*from).to_owned(), (*to).to_owned())) {
            wrong.push(format!("{from} imports {to} ({file}): {why}"));
        }
    }
    assert!(wrong.is_empty(), "arrows that point up:\n{}", wrong.join("\n"));
    let text = std::fs::read_to_string(repo().join("ARCHITECTURE.md")).unwrap();
    for room in sources.iter().map(|source| &source.room).collect::<BTreeSet<_>>() {
        assert!(text.contains(&format!("`{room}`")), "ARCHITECTURE.md says nothing of room `{room}`");
    }
}

#[test]
fn there_are_no_circles_between_rooms() {
    let arrows = arrows(&sources());
    let mut below: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for (from, to) in arrows.keys() {
        below.entry(from).or_default().insert(to);
    }
    for room in below.keys() {
        let (mut seen, mut next) = (BTreeSet::new(), vec![*room]);
        while let Some(at) = next.pop() {
            for to in below.get(at).into_iter().flatten() {
                assert!(to != room, "`{room}` imports itself by way of `{at}`");
                if seen.insert(*to) {
                    next.push(to);
                }
            }
        }
    }
}

#[test]
fn dialects_of_the_server_never_import_each_other() {
    for source in sources().iter().filter(|source| source.room == "serve") {
        // Within `serve`, neighbors are named by `super::` too: only whole files count as rooms, so look for both.
        let text = std::fs::read_to_string(find(&source.file)).unwrap();
        let code = code(&text);
        let names = |dialect: &str| {
            source.paths.iter().any(|(room, rest)| room == "serve" && rest.starts_with(dialect))
                || code.contains(&format!("super::{dialect}::"))
                || code.contains(&format!("super::super::{dialect}::"))
        };
        let own = source.inner.as_str();
        for dialect in DIALECTS.iter().filter(|dialect| **dialect != own) {
            let may = !DIALECTS.contains(&own) && !SHARED.contains(&own);
            assert!(may || !names(dialect), "serve/{own} imports serve/{dialect} ({})", source.file.display());
        }
    }
}

fn find(below: &Path) -> PathBuf {
    roots().into_iter().map(|root| root.join(below)).find(|path| path.is_file()).unwrap()
}

#[test]
fn paths_are_read_as_they_are_written() {
    let text = "use crate::a::b;\nuse crate::{c::{d, e}, f};\nlet x = crate::g::h();\nmycrate::no;\n// crate::i\n\
                #[cfg(test)]\nmod tests {\n use crate::j; }";
    let rooms: Vec<String> = paths(&code(text)).into_iter().map(|(room, _)| room).collect();
    assert_eq!(rooms, ["a", "c", "f", "g"]);
}
