//! What a model folder brings that is text, done in child processes: a tokenizer is tried in one before it is built here,
//! and chat templates are rendered in some. Both can be made to need gigabytes or to overflow a stack, which ends a process.

mod child;
mod renders;

use std::path::Path;
use std::time::Duration;

use patchhost_runtime::error::{Refusal, Result, RuntimeError};
use patchhost_runtime::tokenizer::{Tokenizer, TokenizerFiles};

use crate::base::child::{Confined, Lost};

pub use child::child;
pub use renders::Renders;

/// Memory that building a tokenizer may take, in bytes, besides the file itself. One of 262,000 words and 515,000 merges, as
/// Gemma has, fits into 192 MiB.
const MEMORY: u64 = 224 << 20;
/// Wall time for the same. Beside threads that decode, a child may get little of the CPU.
const WALL: Duration = Duration::from_secs(60);

/// CPU seconds that building a tokenizer may take: for each 16 MiB of it one more than two.
fn cpu_seconds(bytes: usize) -> u64 {
    2 + (bytes as u64 >> 24)
}

/// The tokenizer of a model folder. It is built in a child first, which encodes and decodes some texts; then here. Its chat
/// template is rendered in children. `program` is what they are: the `patchhost` binary.
pub fn open(folder: &Path, program: &Path) -> Result<Tokenizer> {
    let files = TokenizerFiles::read(folder)?;
    attempt(&files.tokenizer, program).map_err(|refusal| match refusal {
        RuntimeError::Tokenizer(r) => {
            let what = folder.join("tokenizer.json").display().to_string();
            RuntimeError::Tokenizer(Refusal::new(what, r.why, r.next))
        }
        other => other,
    })?;
    Ok(Tokenizer::new(&files)?.with_renderer(Renders::new(program)))
}

/// Builds and tries a tokenizer.json in a child.
fn attempt(text: &str, program: &Path) -> Result<()> {
    let refuse = |why: String| {
        let next = "use the tokenizer files that belong to the model";
        RuntimeError::Tokenizer(Refusal::new("tokenizer.json", why, next))
    };
    let memory = MEMORY + text.len() as u64;
    let seconds = cpu_seconds(text.len());
    let arguments = [child::ARGUMENT, child::TOKENIZER, &memory.to_string(), &seconds.to_string()];
    let mut process = Confined::start(program, &arguments).map_err(|e| not_started(&e))?;
    let answer = process.ask(text.as_bytes(), child::MOST_REFUSAL, WALL);
    match answer.map_err(|lost: Lost| refuse(format!("building it {}", lost.why(memory, seconds))))?.as_slice() {
        [] => Ok(()),
        why => Err(refuse(String::from_utf8_lossy(why).into_owned())),
    }
}

fn not_started(error: &std::io::Error) -> RuntimeError {
    RuntimeError::Internal(format!("no child process for the model's texts: {error}"))
}
