//! `guests/provenance.json`: what the bundled guests were made from and with, as an in-toto statement with a SLSA
//! provenance predicate. Nothing in it depends on the machine or the time: a rebuild gives the same file.

use crate::lock::Lock;
use crate::source::sha256;
use crate::toolchain::{FLAGS, TARGET};
use anyhow::{Context, Result};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

fn path(root: &Path) -> PathBuf {
    root.join("guests/provenance.json")
}

/// Writes the statement about the guests of a lock.
pub fn write(root: &Path, lock: &Lock) -> Result<()> {
    let path = path(root);
    std::fs::write(&path, text(root, lock)?).with_context(|| format!("cannot write {}", path.display()))
}

/// What is wrong with the committed statement.
pub fn compare(root: &Path, lock: &Lock) -> Result<Option<String>> {
    let wrong = || "guests/provenance.json is not about the locked guests".to_owned();
    let committed = std::fs::read_to_string(path(root)).unwrap_or_default();
    Ok((committed != text(root, lock)?).then(wrong))
}

fn text(root: &Path, lock: &Lock) -> Result<String> {
    let crates = root.join("guests/Cargo.lock");
    let crates = std::fs::read(&crates).with_context(|| format!("cannot read {}", crates.display()))?;
    let resource = |name: &str, sha256: &str| json!({ "name": name, "digest": { "sha256": sha256 } });
    let subject: Vec<Value> = lock.guest.iter().map(|guest| resource(&guest.file, &guest.sha256)).collect();
    let statement = json!({
        "_type": "https://in-toto.io/Statement/v1",
        "subject": subject,
        "predicateType": "https://slsa.dev/provenance/v1",
        "predicate": {
            "buildDefinition": {
                "buildType": "patchhost:guests/v1",
                "externalParameters": { "task": "cargo xtask guests", "target": TARGET, "profile": "release" },
                "internalParameters": { "flags": FLAGS, "remapped": ["repository", "crates", "standard library"] },
                "resolvedDependencies": [
                    resource("source", &lock.source),
                    resource("guests/Cargo.lock", &sha256(&crates)),
                ],
            },
            "runDetails": {
                "builder": { "id": "patchhost:xtask", "version": { "toolchain": lock.toolchain } },
            },
        },
    });
    Ok(serde_json::to_string_pretty(&statement)? + "\n")
}
