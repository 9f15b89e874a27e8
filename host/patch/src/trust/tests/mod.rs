//! Gate, lock and signatures together, without a command line.
#![allow(clippy::unwrap_used)]

mod gate;
mod locks;
mod signatures;

use super::*;
use crate::base::Day;
use crate::patch::{Admitted, Candidate, Sandbox, Terms, bundled::BUNDLED};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

fn then() -> SystemTime {
    humantime::parse_rfc3339("2026-11-28T12:00:00Z").unwrap()
}

/// A folder with two components as files of a user.
struct Rig {
    folder: tempfile::TempDir,
    policy: Policy,
}

impl Rig {
    fn new(policy: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        for name in ["fp8_block", "gpu_layout", "fp8_block_mse"] {
            let (_, bytes) = BUNDLED.iter().find(|(bundled, _)| *bundled == name).unwrap();
            std::fs::write(folder.path().join(format!("{name}.wasm")), bytes).unwrap();
        }
        Self { folder, policy: Policy::parse(policy).unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn places(&self) -> Places {
        Places::of(&self.policy.trust, Some(&self.path("patchhost.toml")), None)
    }

    fn gate(&self) -> Gate {
        Gate::new(&self.policy, self.places()).at(then)
    }

    fn candidate(&self, name: &str) -> Candidate {
        Candidate::from_file(&self.path(&format!("{name}.wasm"))).unwrap()
    }

    fn lock(&self, name: &str, decision: &Decision) -> Result<Recorded, RecordError> {
        let gate = Gate::for_writing(&self.policy, self.places()).at(then);
        gate.record(&|| Candidate::from_file(&self.path(&format!("{name}.wasm"))), decision, &Sandbox::new(1).unwrap())
    }

    /// The generation that would run, or why nothing would.
    fn admit(&self, name: &str, set: &[(&str, &str)]) -> Result<crate::base::Digest, String> {
        let admitted = self.candidate(name).admit(&self.gate(), &Terms::settings(set.iter().copied()));
        let audited = admitted.and_then(Admitted::audit).map_err(|error| error.to_string())?;
        Ok(audited.generation())
    }

    fn sign(&self, name: &str, key: &SecretKey, not_after: Option<Day>) {
        let path = self.path(&format!("{name}.wasm"));
        let signature = Signature::make(&std::fs::read(&path).unwrap(), key, not_after, None, then());
        Signatures::update(&Signatures::path_of(&path), signature).unwrap();
    }

    fn edit(&self, file: &str, from: &str, to: &str) {
        let text = std::fs::read_to_string(self.path(file)).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(self.path(file), text.replacen(from, to, 1)).unwrap();
    }
}

fn settings(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}

fn with(pairs: &[(&str, &str)]) -> Decision {
    Decision { settings: Some(settings(pairs)), ..Decision::default() }
}

fn error(result: Result<crate::base::Digest, String>) -> String {
    result.err().unwrap_or_else(|| panic!("it was admitted"))
}

fn exists(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}
