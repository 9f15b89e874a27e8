//! Which engine a server is, by what it answers.

use std::path::Path;

use serde_json::Value;

use super::patchhost::Patchhost;
use super::sglang::Sglang;
use super::vllm::{Stock, Transfer};
use super::{Engine, Identity, Link, text};
use crate::certify::error::KitError;
use crate::certify::http::Client;

/// The words that a server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// vLLM's OpenAI server.
    Vllm,
    /// SGLang's server.
    Sglang,
    /// `patchhost serve`.
    Patchhost,
}

/// A server that was recognized.
pub struct Found {
    /// The words that it speaks.
    pub api: Api,
    /// The folder of its model, or its name, as the server says.
    pub root: Option<String>,
    identity: Identity,
    /// The name of the model in requests.
    model: String,
    client: Client,
}

impl Found {
    /// What it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The engine, ready for updates. `files` is the model's folder, `scratch` a folder for checkpoints.
    pub fn engine(self, files: &Path, scratch: &Path) -> Box<dyn Engine> {
        let Self { api, identity, model, client, .. } = self;
        let link = Link { client, model, files: files.to_owned(), scratch: scratch.to_owned() };
        match api {
            Api::Patchhost => Box::new(Patchhost { link, identity }),
            Api::Sglang => Box::new(Sglang { link, identity }),
            Api::Vllm if identity.backend == TRANSFER => Box::new(Transfer { link, identity, initialized: false }),
            Api::Vllm => Box::new(Stock { link, identity }),
        }
    }
}

const TRANSFER: &str = "weight transfer engine `patchhost`";

/// Asks a server what it is. `wanted` is what the user says that it is.
pub fn connect(url: &str, token: Option<String>, wanted: Option<Api>) -> Result<Found, KitError> {
    let client = Client::new(url, token)?;
    // The one request that tells a server that is not there from one that has other words.
    let version = client.get("/version")?;
    let models = client.get("/v1/models")?.json;
    let info = client.get("/server_info?config_format=json")?.json;
    let sglang = || client.get("/get_model_info").ok().filter(super::super::http::Answer::good);
    let is_patchhost = text(&info, "/engine").as_deref() == Some("patchhost");
    let api = match wanted {
        Some(api) => api,
        None if is_patchhost => Api::Patchhost,
        None if version.good() && text(&version.json, "/version").is_some() => Api::Vllm,
        None if sglang().is_some_and(|answer| answer.json.get("model_path").is_some()) => Api::Sglang,
        None => {
            return Err(KitError::usage(
                format!("the server at {}", client.url()),
                "it answers neither as vLLM, nor as SGLang, nor as patchhost",
                "say what it is with --api vllm, sglang or patchhost, and check the address",
            ));
        }
    };
    let said = |place: &str| text(&models, place);
    let unknown = || "unknown".to_owned();
    let mut root = said("/data/0/root").or_else(|| said("/data/0/id"));
    let (name, mut number, backend) = match api {
        Api::Patchhost => ("patchhost", text(&info, "/version"), "safetensors in requests".to_owned()),
        Api::Vllm => ("vllm", text(&version.json, "/version"), backend(&info)),
        Api::Sglang => ("sglang", text(&info, "/version"), "update_weights_from_disk".to_owned()),
    };
    if api == Api::Sglang {
        root = sglang().and_then(|answer| text(&answer.json, "/model_path")).or(root);
    }
    number = number.or_else(|| text(&version.json, "/version"));
    let version = number.unwrap_or_else(unknown);
    let identity =
        Identity { name: name.to_owned(), version, backend, url: client.url().to_owned(), holds: holds(api, &info) };
    Ok(Found { api, root, identity, model: said("/data/0/id").unwrap_or_default(), client })
}

/// The element type and the quantization that an engine holds weights in, as it says.
fn holds(api: Api, info: &Value) -> Option<String> {
    let of = |dtype: &str, quantization: &str| {
        let dtype = text(info, dtype)?;
        Some(format!("{dtype}, quantization {}", text(info, quantization).unwrap_or_else(|| "none".to_owned())))
    };
    match api {
        Api::Vllm => of("/vllm_config/model_config/dtype", "/vllm_config/model_config/quantization"),
        Api::Sglang => of("/dtype", "/quantization"),
        Api::Patchhost => text(info, "/patch_set").map(|set| format!("as patch set {set} makes them")),
    }
}

/// How vLLM takes weights: through the weight transfer engine of the name `patchhost`, where it was started with it.
fn backend(info: &Value) -> String {
    let backend = text(info, "/vllm_config/weight_transfer_config/backend");
    match backend.as_deref() {
        Some("patchhost") => TRANSFER.to_owned(),
        _ => "collective_rpc reload_weights".to_owned(),
    }
}
