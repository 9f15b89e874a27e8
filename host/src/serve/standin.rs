//! A live model whose patches do not change: stands in until `crate::live` is there.

use std::sync::Arc;

use patchhost_runtime::engine::Engine;
use patchhost_runtime::error::Result;
use patchhost_runtime::tokenizer::Tokenizer;
use patchhost_runtime::weights::WeightSet;

use crate::patch::PatchSet;

/// A model and its patches.
pub struct LiveModel {
    engine: Arc<Engine>,
    tokenizer: Arc<Tokenizer>,
    set: PatchSet,
}

impl LiveModel {
    /// Of an engine whose weights are live.
    pub fn new(engine: Arc<Engine>, tokenizer: Arc<Tokenizer>, set: PatchSet) -> Self {
        Self { engine, tokenizer, set }
    }

    /// The engine.
    pub fn engine(&self) -> &Arc<Engine> {
        &self.engine
    }

    /// The tokenizer.
    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// The weights that a request gets.
    pub fn weights_for(&self, _request: &str) -> Result<Arc<WeightSet>> {
        self.engine.live()
    }

    /// The active set.
    pub fn patch_set(&self) -> PatchSet {
        self.set.clone()
    }

    /// What is shown of it.
    pub fn status(&self) -> serde_json::Value {
        let patches: Vec<_> = self
            .set
            .patches()
            .iter()
            .map(|p| {
                serde_json::json!({
                    "name": p.info().name,
                    "version": p.info().version,
                    "sha256": p.digest().hex(),
                    "generation": p.generation().hex(),
                    "hooks": p.hooks(),
                    "calls": p.stats().hook_calls(),
                })
            })
            .collect();
        serde_json::json!({ "patch_set": self.set.digest(), "patches": patches, "weights": self.engine.version() })
    }
}
