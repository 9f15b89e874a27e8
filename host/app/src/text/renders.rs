//! Children that render chat templates. A template that brings one down costs that child, and the next rendering starts
//! another.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use patchhost_runtime::error::{Refusal, Result, RuntimeError};
use patchhost_runtime::tokenizer::{Renderer, Rendering, refused};

use super::child::{ARGUMENT, MOST_QUESTION, RENDERS, memory};
use super::not_started;
use crate::base::child::Confined;

/// Most children at once: a rendering takes a millisecond.
const MOST: usize = 4;
/// Most bytes of what a template writes, as JSON.
const MOST_ANSWER: usize = 64 << 20;
/// Wall time of a rendering: the child ends itself after less than a second of CPU time, of which it may get little.
const WALL: Duration = Duration::from_secs(10);

/// Children that are started when they are needed, and kept.
pub struct Renders {
    program: PathBuf,
    children: Mutex<Children>,
    given_back: Condvar,
}

#[derive(Default)]
struct Children {
    idle: Vec<Confined>,
    busy: usize,
}

impl Renders {
    /// Children are `program`: the `patchhost` binary.
    pub fn new(program: &Path) -> Arc<Self> {
        Arc::new(Self { program: program.to_path_buf(), children: Mutex::default(), given_back: Condvar::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Children> {
        self.children.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a child, and the child if there is one that nobody uses.
    fn take(&self) -> Option<Confined> {
        let mut children = self.lock();
        while children.busy >= MOST {
            children = self.given_back.wait(children).unwrap_or_else(PoisonError::into_inner);
        }
        children.busy += 1;
        children.idle.pop()
    }

    fn give_back(&self, child: Option<Confined>) {
        let mut children = self.lock();
        children.busy -= 1;
        children.idle.extend(child);
        self.given_back.notify_one();
    }

    fn ask(&self, child: &mut Option<Confined>, question: &[u8]) -> Result<String> {
        // One that ended while nobody used it (a person, or the system out of memory) is no fault of the template.
        if child.as_mut().is_some_and(|child| !child.is_alive()) {
            *child = None;
        }
        let process = match child {
            Some(process) => process,
            None => {
                let started = Confined::start(&self.program, &[ARGUMENT, RENDERS]).map_err(|e| not_started(&e))?;
                child.insert(started)
            }
        };
        let answer = process.ask(question, MOST_ANSWER, WALL).map_err(|lost| {
            *child = None;
            refused(format!("rendering it {}", lost.why(memory(question.len()), 1)))
        })?;
        let answer: std::result::Result<String, String> =
            serde_json::from_slice(&answer).map_err(|e| refused(format!("its text is not one: {e}")))?;
        answer.map_err(refused)
    }
}

impl Renderer for Renders {
    fn render(&self, what: &Rendering) -> Result<String> {
        let question = serde_json::to_vec(what).map_err(|e| refused(e.to_string()))?;
        if question.len() > MOST_QUESTION {
            let why = format!("{} bytes, more than the limit of {MOST_QUESTION}", question.len());
            return Err(RuntimeError::Request(Refusal::new("a conversation", why, "send less at once")));
        }
        let mut child = self.take();
        let answer = self.ask(&mut child, &question);
        self.give_back(child);
        answer
    }
}
