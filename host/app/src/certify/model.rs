//! Somebody's own model as what updates are made of: its tensors, with what each is for.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::hooks::Role;
use safetensors::tensor::Dtype;

use super::error::KitError;
use super::weights::Tensor;
use crate::base::{Digest, Exit};
use crate::checkpoint::bundled;

/// A model whose weights are known.
pub struct OwnModel {
    /// Its folder; none for the one inside of this program.
    pub folder: Option<PathBuf>,
    /// Its tensors.
    pub tensors: Vec<Tensor>,
    /// The text of its config.json.
    pub config: String,
    /// `architectures[0]` of it.
    pub architecture: String,
    /// `model_type` of it.
    pub family: String,
    /// Its token ids are below this.
    pub vocabulary: usize,
    /// SHA-256 of its tensors: of each name with the digest of its bytes, in the order of the names.
    pub digest: Digest,
}

/// Why a model cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// It cannot be used for this.
    #[error(transparent)]
    Kit(#[from] KitError),
    /// It cannot be read.
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

impl Exit for ModelError {
    fn exit(&self) -> crate::base::Code {
        match self {
            Self::Kit(error) => error.exit(),
            Self::Runtime(error) => error.exit(),
        }
    }

    fn parts(&self) -> patchhost_runtime::error::Refusal {
        match self {
            Self::Kit(error) => error.parts(),
            Self::Runtime(error) => error.parts(),
        }
    }
}

impl OwnModel {
    /// The model that a server names, or that the user did: a folder, or the model inside of this program.
    pub fn named(name: &str) -> Result<Self, ModelError> {
        if Path::new(name).is_dir() {
            return Self::open(Path::new(name));
        }
        if name == bundled::NAME {
            let engine = Engine::new(bundled::CONFIG, EngineOptions::default())?;
            return Self::new(None, bundled::CONFIG.to_owned(), &engine, &bundled::checkpoint()?);
        }
        let why = "the server says that this is its model, and it is no folder on this machine";
        let next = "give the folder of the server's model with --model DIR";
        Err(KitError::usage(format!("model `{}`", crate::base::text::clean(name, 200)), why, next).into())
    }

    /// A Hugging Face model folder.
    pub fn open(folder: &Path) -> Result<Self, ModelError> {
        let engine = Engine::open(folder, EngineOptions::default())?;
        let config = engine.info().config.clone();
        Self::new(Some(folder.to_owned()), config, &engine, &Checkpoint::open(folder)?)
    }

    fn new(
        folder: Option<PathBuf>,
        config: String,
        engine: &Engine,
        checkpoint: &Checkpoint,
    ) -> Result<Self, ModelError> {
        let registry = engine.registry();
        let mut tensors = Vec::new();
        for tensor in checkpoint.tensors() {
            // What the model has no need of can be left out of an update.
            if registry.spare(&tensor.name).is_some() {
                continue;
            }
            if ![Dtype::BF16, Dtype::F16, Dtype::F32].contains(&tensor.stored) {
                let what = format!("tensor `{}` of the model", tensor.name);
                let why = format!("it is {:?}; the kit changes bf16, f16 and f32 weights only", tensor.stored);
                return Err(KitError::usage(what, why, "give the model as it is before quantization").into());
            }
            let place = registry.native(&tensor.name).or_else(|| registry.expert_names(&tensor.name));
            let stacked = if tensor.name.contains(".experts.") { Role::Expert } else { Role::Other };
            let class = place.and_then(|p| registry.params().get(p.param)).map_or(stacked, |param| param.role);
            let data = Arc::new(tensor.data.load()?.to_vec());
            let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
            tensors.push(Tensor { name, class, dtype: tensor.stored, shape, data });
        }
        tensors.sort_by(|a, b| a.name.cmp(&b.name));
        let lines: Vec<String> = tensors.iter().map(|t| format!("{} {}\n", t.name, t.digest().hex())).collect();
        let info = engine.info();
        Ok(Self {
            folder,
            config,
            architecture: info.architecture.clone(),
            family: info.model_type.clone(),
            vocabulary: engine.model().vocab(),
            digest: Digest::of(lines.concat().as_bytes()),
            tensors,
        })
    }
}
