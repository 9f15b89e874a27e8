//! The engines that the kit can drive over HTTP: how each takes weights, and how it is asked.

mod ask;
mod detect;
mod patchhost;
mod sglang;
mod vllm;

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::error::KitError;
use super::http::Client;
use super::stream::Stream;
pub use ask::{Answered, Question};
pub use detect::{Api, Found, connect};

/// What an engine is, as far as it says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Identity {
    /// `vllm`, `sglang`, `patchhost`, …
    pub name: String,
    /// Its version.
    pub version: String,
    /// How weights were brought to it.
    pub backend: String,
    /// Where it was.
    pub url: String,
    /// The element type and the quantization that it holds weights in, where it says so.
    pub holds: Option<String>,
}

/// What an engine answered to an update.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// It took it.
    Accepted,
    /// It refused it, with this reason.
    Refused(String),
    /// The sender died, as the case wants: nobody waited for an answer.
    LeftOpen,
    /// It no longer answers.
    Gone(String),
}

/// An engine that weights are sent to.
pub trait Engine {
    /// What it is.
    fn identity(&self) -> &Identity;

    /// Sends an update. `version` is what the new weights are called where an engine takes names. Errors are those of the
    /// kit; what the engine did stands in the outcome.
    fn update(&mut self, stream: &Stream, version: &str) -> Result<Outcome, KitError>;

    /// Completes a prompt.
    fn ask(&self, question: &Question<'_>) -> Result<Answered, KitError>;

    /// Forgets what earlier prompts computed. Whether there was such a call.
    fn reset_cache(&self) -> bool;

    /// Whether the engine says that it is well, as load balancers ask for it.
    fn alive(&self) -> bool;

    /// What the engine says that the live weights are called, where it says it.
    fn version(&self) -> Option<String>;

    /// Who clears the cache of prefixes after an update, for the certificate.
    fn caches(&self) -> &'static str;
}

/// What every engine is driven with.
pub struct Link {
    /// The server.
    pub client: Client,
    /// The name of the model in requests.
    pub model: String,
    /// The files of the model that are no weights, for engines that load checkpoints from disk.
    pub files: PathBuf,
    /// A folder for checkpoints that such an engine is told to load.
    pub scratch: PathBuf,
}

impl Link {
    fn alive(&self) -> bool {
        self.client.get("/health").is_ok_and(|answer| answer.good())
    }
}

/// An update through a session that is begun, sent in parts and ended. Any refusal refuses all of it.
fn session(stream: &Stream, calls: Calls<'_>) -> Result<Outcome, KitError> {
    if let Some(refused) = (calls.begin)()? {
        return Ok(Outcome::Refused(refused));
    }
    let parts = stream.parts();
    for (number, part) in parts.iter().enumerate() {
        let bytes = super::stream::bytes(part)?;
        if stream.stopped && number + 1 == parts.len() {
            (calls.hang_up)(&bytes)?;
            return Ok(Outcome::LeftOpen);
        }
        if let Some(refused) = (calls.send)(&bytes)? {
            (calls.give_up)();
            return Ok(Outcome::Refused(refused));
        }
    }
    Ok(match (calls.end)()? {
        Some(refused) => Outcome::Refused(refused),
        None => Outcome::Accepted,
    })
}

/// The calls of a session. Each gives the reason where the engine refused.
struct Calls<'c> {
    begin: Call<'c>,
    send: &'c mut dyn FnMut(&[u8]) -> Said,
    hang_up: &'c dyn Fn(&[u8]) -> Result<(), KitError>,
    give_up: &'c dyn Fn(),
    end: Call<'c>,
}

/// The reason where the engine refused.
type Said = Result<Option<String>, KitError>;
type Call<'c> = &'c mut dyn FnMut() -> Said;

/// The reason, where an answer is no good one.
fn refusal(answer: &super::http::Answer) -> Option<String> {
    (!answer.good()).then(|| answer.said())
}

/// A case as a folder that an engine loads: the parts as files without an index, so that an engine reads all of them. A
/// sender that died leaves its last file cut.
fn materialize(link: &Link, stream: &Stream) -> Result<PathBuf, KitError> {
    let io = |path: &Path, e: std::io::Error| {
        let next = "make room, or name another folder with TMPDIR";
        KitError::host(format!("`{}` was not written", path.display()), e.to_string(), next)
    };
    let folder = link.scratch.join("update");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).map_err(|e| io(&folder, e))?;
    }
    std::fs::create_dir_all(&folder).map_err(|e| io(&folder, e))?;
    super::copy_beside(&link.files, &folder)?;
    let parts = stream.parts();
    for (number, part) in parts.iter().enumerate() {
        let mut bytes = super::stream::bytes(part)?;
        if stream.stopped && number + 1 == parts.len() {
            bytes.truncate(bytes.len() / 2);
        }
        let path = folder.join(format!("model-{:05}-of-{:05}.safetensors", number + 1, parts.len()));
        std::fs::write(&path, bytes).map_err(|e| io(&path, e))?;
    }
    Ok(folder)
}

/// A text at a place of a JSON.
fn text(json: &Value, place: &str) -> Option<String> {
    match json.pointer(place)? {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}
