//! Chat templates: programs out of a model's folder. They are bounded by fuel, which does not count memory or depth; so who
//! has a program to start again has them rendered elsewhere ([`Renderer`]). What they write is what transformers writes.
//!
//! | file | what |
//! |---|---|
//! | [`engine`] | the engine, with what transformers adds to Jinja |
//! | [`filters`] | filters and tests that the engine lacks |
//! | [`source`] | tags and operators that the engine lacks, in its words |
//! | [`json`] | `tojson` |
//! | [`python`], [`words`], [`methods`] | Python's texts of values, and the methods of its types |
//! | [`turns`] | messages as transformers hands them over, and a last one that goes on |
//! | [`date`] | `strftime_now` |

mod date;
mod engine;
mod filters;
mod json;
mod methods;
mod python;
mod source;
mod turns;
mod words;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Message, refuse};
use crate::caught::caught;
use crate::error::{Refusal, Result, RuntimeError};
use crate::files;

pub use date::now;

/// Stack of a thread that renders: a template of [`files::TEMPLATE`] bytes can nest deep.
const STACK: usize = 256 << 20;
/// Most bytes of further variables, as JSON.
const MOST_VARIABLES: usize = 256 << 10;
/// How deep further variables may be nested.
const MOST_DEPTH: usize = 32;
/// How deep messages, tools and documents may be nested.
const MOST_DEPTH_OF_TURNS: usize = 96;

/// A conversation to be written by a template.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Rendering {
    /// The template.
    pub template: String,
    /// The turns.
    pub messages: Vec<Message>,
    /// The tools that the model may call, as JSON schemas.
    pub tools: Option<Vec<Value>>,
    /// The documents that the model may quote.
    pub documents: Option<Vec<Value>>,
    /// `bos_token` and the like.
    pub specials: BTreeMap<String, String>,
    /// Whether the text ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// Whether the text ends within the last turn, which the model goes on with.
    pub continue_final_message: bool,
    /// Further variables (vLLM's `chat_template_kwargs`, for example `enable_thinking`).
    pub more: Map<String, Value>,
    /// The local time that `strftime_now` writes, as [`now`] says it: a child cannot know the time zone.
    pub now: Option<String>,
}

/// Renders chat templates where they can do no harm: in another process.
pub trait Renderer: Send + Sync {
    /// The text that [`Rendering::render`] would make, or why it was stopped.
    fn render(&self, what: &Rendering) -> Result<String>;
}

impl Rendering {
    /// Refuses variables that are larger or deeper than any template needs.
    pub(super) fn check(&self) -> Result<()> {
        let refused = |what: &str, why: String| {
            let next = "send less, or write it into the messages";
            RuntimeError::Request(Refusal::new(format!("`{what}`"), why, next))
        };
        let deeper = |most: usize| format!("values are nested deeper than the limit of {most}");
        if self.more.values().any(|value| depth(value) > MOST_DEPTH) {
            return Err(refused("chat_template_kwargs", deeper(MOST_DEPTH)));
        }
        let bytes = serde_json::to_string(&self.more).map_or(0, |text| text.len());
        if bytes > MOST_VARIABLES {
            let why = format!("{bytes} bytes, more than the limit of {MOST_VARIABLES}");
            return Err(refused("chat_template_kwargs", why));
        }
        let lists = [("tools", &self.tools), ("documents", &self.documents)];
        let deep = lists.into_iter().find(|(_, list)| list.iter().flatten().any(|v| depth(v) > MOST_DEPTH_OF_TURNS));
        let deep = deep.map(|(name, _)| name);
        let turns = || self.messages.iter().any(|m| m.fields().values().any(|v| depth(v) > MOST_DEPTH_OF_TURNS));
        match deep.or_else(|| turns().then_some("messages")) {
            Some(name) => Err(refused(name, deeper(MOST_DEPTH_OF_TURNS))),
            None => Ok(()),
        }
    }

    /// Renders it on a thread of its own, with a stack for deep templates. Against what fuel does not count, which is memory
    /// and values that hold themselves, only a [`Renderer`] helps.
    pub(super) fn apart(&self) -> Result<String> {
        std::thread::scope(|scope| {
            let started = std::thread::Builder::new().stack_size(STACK).spawn_scoped(scope, || self.render());
            let thread = started.map_err(|e| RuntimeError::Internal(format!("no thread to render on: {e}")))?;
            // It catches what panics.
            thread.join().unwrap_or_else(|_| Err("the thread that renders it ended".to_owned())).map_err(refused)
        })
    }

    /// The text that the template makes, or why it makes none. It may need much memory or stack: call it where that ends
    /// nothing else.
    pub fn render(&self) -> std::result::Result<String, String> {
        let size = self.template.len() as u64;
        if size > files::TEMPLATE {
            return Err(format!("it has {size} bytes, and at most {} are read", files::TEMPLATE));
        }
        match caught(|| engine::render(self)) {
            Ok(done) => done,
            Err(panic) => Err(format!("the template engine gave up: {panic}")),
        }
    }
}

/// The refusal of a conversation by its template.
pub fn refused(why: String) -> RuntimeError {
    refuse("the chat template", why)
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(list) => 1 + list.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
