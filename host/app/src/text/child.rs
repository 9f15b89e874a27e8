//! The child: builds one tokenizer and is gone, or renders until the host is.

use std::io;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use patchhost_runtime::error::RuntimeError;
use patchhost_runtime::tokenizer::{Rendering, Tokenizer, TokenizerFiles};

use crate::base::child::{LATE, allow_memory, confine, cpu_time, read_frame, socket, write_frame};

/// First argument of a child.
pub(super) const ARGUMENT: &str = "__text";
/// Second argument of one that builds a tokenizer: the question is a tokenizer.json, the answer a refusal or nothing. Memory
/// in bytes and CPU seconds follow.
pub(super) const TOKENIZER: &str = "tokenizer";
/// Second argument of one that renders: each question is a [`Rendering`], each answer a text or a refusal, as JSON.
pub(super) const RENDERS: &str = "renders";
/// Most bytes of a refusal.
pub(super) const MOST_REFUSAL: usize = 64 << 10;
/// Most bytes of a conversation.
pub(super) const MOST_QUESTION: usize = 64 << 20;
/// Memory that a rendering may take besides eight times what it is made of.
pub(super) const RENDER_MEMORY: u64 = 64 << 20;
/// CPU time that a rendering may take.
const RENDER_TIME: Duration = Duration::from_millis(800);

/// What the child does, if this process is one: to be called before anything else.
pub fn child() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let work = arguments.next();
    let mut number = || arguments.next().and_then(|text| text.parse::<u64>().ok());
    let done = match work.as_deref() {
        Some(TOKENIZER) => build(number(), number()),
        Some(RENDERS) => render(),
        _ => Err(io::ErrorKind::InvalidInput.into()),
    };
    Some(match done {
        Ok(()) => ExitCode::SUCCESS,
        // The host closed its end: the ordinary way to stop.
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    })
}

fn build(memory: Option<u64>, seconds: Option<u64>) -> io::Result<()> {
    let mut socket = socket()?;
    confine(seconds, memory.unwrap_or_default())?;
    let bytes = read_frame(&mut socket, MOST_QUESTION)?;
    let tokenizer = String::from_utf8(bytes).map_err(io::Error::other)?;
    let files = TokenizerFiles { tokenizer, ..TokenizerFiles::default() };
    let built = Tokenizer::new(&files).and_then(|tokenizer| tokenizer.exercise());
    let mut why = match built {
        Ok(()) => String::new(),
        Err(RuntimeError::Tokenizer(refusal)) => refusal.why,
        Err(other) => other.to_string(),
    };
    why.truncate(why.floor_char_boundary(MOST_REFUSAL));
    write_frame(&mut socket, why.as_bytes(), MOST_REFUSAL)
}

fn render() -> io::Result<()> {
    let mut socket = socket()?;
    confine(None, memory(MOST_QUESTION))?;
    let watch = Watch::start()?;
    loop {
        allow_memory(memory(MOST_QUESTION))?;
        let question = read_frame(&mut socket, MOST_QUESTION)?;
        allow_memory(memory(question.len()))?;
        watch.until(cpu_time() + RENDER_TIME);
        let rendering: Rendering = serde_json::from_slice(&question).map_err(io::Error::other)?;
        let answer = serde_json::to_vec(&rendering.render()).map_err(io::Error::other)?;
        watch.rest();
        write_frame(&mut socket, &answer, u32::MAX as usize)?;
    }
}

/// Memory for a question of so many bytes.
pub(super) fn memory(question: usize) -> u64 {
    RENDER_MEMORY + 8 * question as u64
}

/// Ends this process where it has used more CPU time than it was given.
struct Watch {
    thread: std::thread::Thread,
}

/// The CPU time at which this process ends, in nanoseconds; 0: none.
static UNTIL: AtomicU64 = AtomicU64::new(0);

impl Watch {
    fn start() -> io::Result<Self> {
        /// How often the time is looked at.
        const PAUSE: Duration = Duration::from_millis(10);
        let watch = || loop {
            match UNTIL.load(Ordering::Acquire) {
                0 => std::thread::park(),
                until if cpu_time().as_nanos() > u128::from(until) => std::process::exit(LATE),
                _ => std::thread::sleep(PAUSE),
            }
        };
        // It needs next to no stack, and what it has counts as memory of this process.
        let thread = std::thread::Builder::new().stack_size(128 << 10).spawn(watch)?;
        Ok(Self { thread: thread.thread().clone() })
    }

    fn until(&self, time: Duration) {
        UNTIL.store(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
        self.thread.unpark();
    }

    fn rest(&self) {
        UNTIL.store(0, Ordering::Release);
    }
}
