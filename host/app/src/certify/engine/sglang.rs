//! SGLang: each update is a folder on a disk that both can read.

use serde_json::json;

use super::ask::{Answered, Question, generate};
use super::{Engine, Identity, Link, Outcome, materialize, text};
use crate::certify::error::KitError;
use crate::certify::stream::Stream;

/// An SGLang server.
pub struct Sglang {
    pub link: Link,
    pub identity: Identity,
}

impl Engine for Sglang {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn update(&mut self, stream: &Stream, version: &str) -> Result<Outcome, KitError> {
        let folder = materialize(&self.link, stream)?;
        let body = json!({ "model_path": folder, "weight_version": version });
        let answer = self.link.client.post("/update_weights_from_disk", &body)?;
        let taken = answer.good() && answer.json.get("success").and_then(serde_json::Value::as_bool) != Some(false);
        Ok(if taken { Outcome::Accepted } else { Outcome::Refused(answer.said()) })
    }

    fn ask(&self, question: &Question<'_>) -> Result<Answered, KitError> {
        generate(&self.link, question)
    }

    fn reset_cache(&self) -> bool {
        self.link.client.post("/flush_cache", &json!({})).is_ok_and(|answer| answer.good())
    }

    fn alive(&self) -> bool {
        self.link.alive()
    }

    fn version(&self) -> Option<String> {
        text(&self.link.client.get("/get_model_info").ok()?.json, "/weight_version")
    }

    fn caches(&self) -> &'static str {
        "left to the engine, which flushes them with each update unless it is told not to"
    }
}
