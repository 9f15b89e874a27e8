//! `patchhost serve`: an update is begun, sent as safetensors bytes, and ended.

use serde_json::json;

use super::ask::{Answered, Question, completions};
use super::{Calls, Engine, Identity, Link, Outcome, refusal, session, text};
use crate::certify::error::KitError;
use crate::certify::stream::Stream;

/// A `patchhost serve`.
pub struct Patchhost {
    pub link: Link,
    pub identity: Identity,
}

impl Engine for Patchhost {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn update(&mut self, stream: &Stream, version: &str) -> Result<Outcome, KitError> {
        let client = &self.link.client;
        let begin = || client.post("/start_weight_update", &json!({ "weight_version": version }));
        session(
            stream,
            Calls {
                begin: &mut || {
                    let begun = begin()?;
                    if begun.status != 409 {
                        return Ok(refusal(&begun));
                    }
                    // What a trainer does that was started again: it ends what its predecessor left, then begins.
                    client.post("/finish_weight_update", &json!({}))?;
                    Ok(refusal(&begin()?))
                },
                send: &mut |bytes| Ok(refusal(&client.post_bytes("/update_weights", bytes)?)),
                hang_up: &|bytes| client.hang_up("/update_weights", "application/octet-stream", bytes),
                give_up: &|| {
                    // It may be given up already.
                    let _ = client.post("/abort_weight_update", &json!({}));
                },
                end: &mut || Ok(refusal(&client.post("/finish_weight_update", &json!({ "weight_version": version }))?)),
            },
        )
    }

    fn ask(&self, question: &Question<'_>) -> Result<Answered, KitError> {
        completions(&self.link, question)
    }

    fn reset_cache(&self) -> bool {
        self.link.client.post("/reset_prefix_cache", &json!({})).is_ok_and(|answer| answer.good())
    }

    fn alive(&self) -> bool {
        self.link.alive()
    }

    fn version(&self) -> Option<String> {
        text(&self.link.client.get("/weight_info").ok()?.json, "/weight_version")
    }

    fn caches(&self) -> &'static str {
        "left to the engine: the same prompts were asked before and after each update"
    }
}
