//! Chat templates: programs out of a model's folder. They are bounded by fuel, which does not count memory or depth; so who
//! has a program to start again has them rendered elsewhere ([`Renderer`]).

use std::collections::BTreeMap;

use minijinja::syntax::SyntaxConfig;
use minijinja::value::Serde;
use minijinja::{Environment, Error as TemplateError, ErrorKind, context};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Message, refuse};
use crate::caught::caught;
use crate::error::{Result, RuntimeError};
use crate::files;

/// Work a chat template may do before it is stopped.
const FUEL: u64 = 1_000_000;
/// Stack of a thread that renders: a template of [`files::TEMPLATE`] bytes can nest deep.
const STACK: usize = 256 << 20;
/// Most bytes of further variables, as JSON.
const MOST_VARIABLES: usize = 256 << 10;
/// How deep further variables may be nested.
const MOST_DEPTH: usize = 32;

/// A conversation to be written by a template.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Rendering {
    /// The template.
    pub template: String,
    /// The turns.
    pub messages: Vec<Message>,
    /// `bos_token` and the like.
    pub specials: BTreeMap<String, String>,
    /// Whether the text ends where the model's answer begins.
    pub add_generation_prompt: bool,
    /// Further variables (vLLM's `chat_template_kwargs`, for example `enable_thinking`).
    pub more: Map<String, Value>,
}

/// Renders chat templates where they can do no harm: in another process.
pub trait Renderer: Send + Sync {
    /// The text that [`Rendering::render`] would make, or why it was stopped.
    fn render(&self, what: &Rendering) -> Result<String>;
}

impl Rendering {
    /// Refuses variables that are larger or deeper than any template needs.
    pub(super) fn check(&self) -> Result<()> {
        let variables = |why: String| {
            let next = "send less, or write it into the messages";
            RuntimeError::Request(crate::error::Refusal::new("`chat_template_kwargs`", why, next))
        };
        if self.more.values().any(|value| depth(value) > MOST_DEPTH) {
            return Err(variables(format!("values are nested deeper than the limit of {MOST_DEPTH}")));
        }
        let bytes = serde_json::to_string(&self.more).map_or(0, |text| text.len());
        if bytes > MOST_VARIABLES {
            return Err(variables(format!("{bytes} bytes, more than the limit of {MOST_VARIABLES}")));
        }
        Ok(())
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
        match caught(|| self.run()) {
            Ok(done) => done.map_err(|e| e.to_string()),
            Err(panic) => Err(format!("the template engine gave up: {panic}")),
        }
    }

    fn run(&self) -> std::result::Result<String, TemplateError> {
        let mut env = Environment::new();
        // As transformers renders templates.
        env.set_syntax(SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build()?);
        env.set_fuel(Some(FUEL));
        env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
        env.add_function("raise_exception", |message: String| -> std::result::Result<String, TemplateError> {
            Err(TemplateError::new(ErrorKind::InvalidOperation, message))
        });
        // A fixed date: templates that print today's would make prompts differ from day to day.
        env.add_function("strftime_now", |_: String| "26 Jul 2024".to_string());
        env.add_template("chat", &self.template)?;
        // What the host sets wins over what a request adds.
        let context = context! {
            messages => Serde(&self.messages),
            add_generation_prompt => self.add_generation_prompt,
            ..context! { ..minijinja::Value::from(self.specials.clone()), ..minijinja::Value::from(Serde(&self.more)) }
        };
        env.get_template("chat")?.render(context)
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
