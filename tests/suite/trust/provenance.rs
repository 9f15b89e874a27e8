//! `rebuild --check`, with a cargo of our own in the place of minutes of compiling.

use std::os::unix::fs::PermissionsExt;

use super::{Desk, guest, ran};
use crate::support::{Ran, repo};

/// A folder of sources, and a cargo that says what it is told to and "builds" one file.
struct Sources {
    desk: Desk,
}

impl Sources {
    fn new() -> Self {
        let desk = Desk::new(&["fp8_block"]);
        std::fs::create_dir_all(desk.path("src/guests")).unwrap();
        std::fs::create_dir_all(desk.path("src/tools/xtask")).unwrap();
        desk.write("src/guests/Cargo.toml", "");
        Self { desk }
    }

    fn check(&self, describe: &str, built: &str) -> Ran {
        let script = format!(
            "#!/bin/sh\nif [ \"$3\" = --describe ]; then printf '%s' '{describe}'; exit 0; fi\n\
             [ \"$1 $2 $3\" = 'xtask guests --into' ] || exit 9\ncp {built} \"$4/fp8_block.wasm\"\n"
        );
        self.desk.write("cargo", &script);
        std::fs::set_permissions(self.desk.path("cargo"), std::fs::Permissions::from_mode(0o755)).unwrap();
        let args = ["rebuild", "fp8_block.wasm", "--check", "--source", "src"];
        ran(self.desk.command().args(args).env("CARGO", self.desk.path("cargo")))
    }
}

fn statement() -> (String, String) {
    let text = std::fs::read_to_string(repo().join("guests/provenance.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let at = |path: &str| json.pointer(path).unwrap().as_str().unwrap().to_owned();
    (
        at("/predicate/runDetails/builder/version/toolchain"),
        at("/predicate/buildDefinition/resolvedDependencies/0/digest/sha256"),
    )
}

#[test]
fn the_same_bytes_other_bytes_and_nothing_to_compare() {
    let sources = Sources::new();
    let (toolchain, source) = statement();
    let here = |toolchain: &str, source: &str| format!("toolchain = \"{toolchain}\"\nsource = \"{source}\"\n");
    let (same, other) = (guest("fp8_block").display().to_string(), guest("gpu_layout").display().to_string());
    let good = sources.check(&here(&toolchain, &source), &same).good();
    assert!(good.stdout.contains("rebuilt: identical"), "{}", good.stdout);
    let folder = sources.desk.folder();
    let differs = sources.check(&here(&toolchain, &source), &other).refused(1, folder);
    assert!(differs.contains("PH713 not-reproducible"), "{differs}");
    // What cannot be compared is no finding.
    for (describe, built, why) in [
        (here("rustc 9.99.0", &source), &same, "not compared: the tools here are rustc 9.99.0"),
        (here(&toolchain, &"0".repeat(64)), &same, "the sources here are sha256:"),
        (String::new(), &same, "missing field"),
        (here(&toolchain, &source), &"/nowhere".to_owned(), "not compared"),
    ] {
        let text = sources.check(&describe, built).refused(2, folder);
        assert!(text.contains(why) && !text.contains("PH713"), "{text}");
    }
    let json =
        ran(sources.desk.command().args(["--format", "json", "rebuild", "fp8_block.wasm", "--check", "--source", "."]));
    assert_eq!(json.code, 2);
    std::fs::remove_file(sources.desk.path("cargo")).unwrap();
}

#[test]
fn a_component_without_a_statement_or_with_anothers() {
    let desk = Desk::new(&["fp8_block", "gpu_layout"]);
    std::fs::copy(crate::support::evil("spin"), desk.path("spin.wasm")).unwrap();
    let refused = desk.run("rebuild spin.wasm --check").refused(2, desk.folder());
    assert!(refused.contains("no statement says"), "{refused}");
    let text = std::fs::read_to_string(repo().join("guests/provenance.json")).unwrap();
    desk.write("spin.wasm.intoto.json", &text);
    let refused = desk.run("rebuild spin.wasm --check").refused(1, desk.folder());
    assert!(refused.contains("about other bytes"), "{refused}");
    for text in ["", "{}", "[1]", &text[..text.len() / 2]] {
        desk.write("spin.wasm.intoto.json", text);
        desk.run("rebuild spin.wasm --check").refused(2, desk.folder());
    }
    let refused = desk.run("rebuild fp8_block.wasm --check").refused(2, desk.folder());
    assert!(refused.contains("--source"), "{refused}");
}

/// The committed statement is about the committed components, and names nothing of a machine.
#[test]
fn the_statement_is_about_the_bundled_patches() {
    let text = std::fs::read_to_string(repo().join("guests/provenance.json")).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    let lock = std::fs::read_to_string(repo().join("guests/guests.lock")).unwrap();
    for subject in json["subject"].as_array().unwrap() {
        let digest = subject["digest"]["sha256"].as_str().unwrap();
        assert!(lock.contains(digest), "{subject}");
        let file = std::fs::read(repo().join("guests").join(subject["name"].as_str().unwrap())).unwrap();
        assert_eq!(patchhost::patch::Digest::of(&file).hex(), digest);
    }
    assert!(!text.contains("/home/") && !text.contains("/work") && !text.contains("/root"), "{text}");
}
