//! vLLM: as it comes (`reload_weights` from a folder), or with a weight transfer engine of the name `patchhost`.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use super::ask::{Answered, Question, completions};
use super::{Calls, Engine, Identity, Link, Outcome, materialize, refusal, session, text};
use crate::certify::error::KitError;
use crate::certify::stream::Stream;

/// vLLM as it comes: each update is a folder on a disk that both can read.
pub struct Stock {
    pub link: Link,
    pub identity: Identity,
}

impl Engine for Stock {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn update(&mut self, stream: &Stream, _: &str) -> Result<Outcome, KitError> {
        let folder = materialize(&self.link, stream)?;
        let body = json!({ "method": "reload_weights", "kwargs": { "weights_path": folder } });
        let answer = self.link.client.post("/collective_rpc", &body)?;
        if answer.status == 404 {
            return Err(KitError::usage(
                format!("vLLM at {}", self.link.client.url()),
                "it has no /collective_rpc, which is how stock vLLM reloads weights",
                "start it with VLLM_SERVER_DEV_MODE=1 in its environment",
            ));
        }
        // Its documentation asks whoever reloads weights to do this.
        self.reset_cache();
        Ok(refusal(&answer).map_or(Outcome::Accepted, Outcome::Refused))
    }

    fn ask(&self, question: &Question<'_>) -> Result<Answered, KitError> {
        completions(&self.link, question)
    }

    fn reset_cache(&self) -> bool {
        reset(&self.link)
    }

    fn alive(&self) -> bool {
        self.link.alive()
    }

    fn version(&self) -> Option<String> {
        // `reload_weights` takes no name, so what is said is not about it.
        None
    }

    fn caches(&self) -> &'static str {
        "cleared by the kit after each update (POST /reset_prefix_cache), as vLLM asks of whoever reloads weights"
    }
}

/// vLLM with a weight transfer engine that takes safetensors in requests.
pub struct Transfer {
    pub link: Link,
    pub identity: Identity,
    /// `/init_weight_transfer_engine` was called.
    pub initialized: bool,
}

impl Engine for Transfer {
    fn identity(&self) -> &Identity {
        &self.identity
    }

    fn update(&mut self, stream: &Stream, version: &str) -> Result<Outcome, KitError> {
        let client = &self.link.client;
        if !self.initialized {
            if let Some(refused) = refusal(&client.post("/init_weight_transfer_engine", &json!({ "init_info": {} }))?) {
                let next =
                    "start vLLM with VLLM_SERVER_DEV_MODE=1 and --weight-transfer-config '{\"backend\":\"patchhost\"}'";
                return Err(KitError::usage(format!("vLLM at {}", client.url()), refused, next));
            }
            self.initialized = true;
        }
        let begin = || client.post("/start_weight_update", &json!({}));
        let part = |bytes: &[u8]| json!({ "update_info": { "safetensors": STANDARD.encode(bytes) } });
        session(
            stream,
            Calls {
                begin: &mut || {
                    if begin()?.good() {
                        return Ok(None);
                    }
                    // What a trainer does that was started again: it ends what its predecessor left, then begins.
                    client.post("/finish_weight_update", &json!({}))?;
                    Ok(refusal(&begin()?))
                },
                send: &mut |bytes| Ok(refusal(&client.post("/update_weights", &part(bytes))?)),
                hang_up: &|bytes| {
                    client.hang_up("/update_weights", "application/json", part(bytes).to_string().as_bytes())
                },
                // A refused part ends the update; vLLM has no word for it.
                give_up: &|| {},
                end: &mut || Ok(refusal(&client.post("/finish_weight_update", &json!({ "weight_version": version }))?)),
            },
        )
    }

    fn ask(&self, question: &Question<'_>) -> Result<Answered, KitError> {
        completions(&self.link, question)
    }

    fn reset_cache(&self) -> bool {
        reset(&self.link)
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

fn reset(link: &Link) -> bool {
    link.client.post("/reset_prefix_cache", &Value::Null).is_ok_and(|answer| answer.good())
}
