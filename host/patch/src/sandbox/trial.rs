//! A trial compile in a child process. A hostile component can make the compiler need minutes or gigabytes, and
//! wasmtime does not count that as a vulnerability. So each component is first compiled in a child that has little
//! memory, little time and no files: at worst the child dies, and not this process.

use super::engine::compile_only;
use crate::base::child::{confine, this_program};
use crate::base::text;
use std::io::{self, Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// First argument of the child.
pub(crate) const ARGUMENT: &str = "__trial-compile";

/// CPU seconds that a compile may take. An honest patch takes a tenth of one.
const CPU_SECONDS: u64 = 5;
/// Memory that a compile may use, in bytes: this process would need as much when it compiles the component itself. The
/// costliest component that the audit lets through takes 60 MiB, an honest patch 10.
const MEMORY_BYTES: u64 = 128 << 20;
/// Wall time after which the child is killed, whatever it does. No input may make this host wait for ten seconds, so
/// this is less.
const WALL: Duration = Duration::from_secs(9);
/// Wall time where no request waits for the compile. Beside threads that decode, the child may get only a hundredth of
/// a core, so five seconds of CPU time take long; [`CPU_SECONDS`] still ends it.
const PATIENT_WALL: Duration = Duration::from_secs(60);
/// Exit code of the child where the compiler said no.
const REFUSED: i32 = 1;

/// How trial compiles are made: which program is the child, and what it may use.
#[derive(Debug, Clone)]
pub struct Trial {
    program: PathBuf,
    cpu_seconds: u64,
    memory_bytes: u64,
    wall: Duration,
}

/// A component did not pass its trial compile.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// The compiler refused it.
    #[error("{0}")]
    Refused(String),
    /// It reached a limit, or brought the compiler down.
    #[error("the trial compile in a child process {0}")]
    Ended(String),
    /// The child could not be made.
    #[error("the trial compile cannot start: {0}")]
    Start(#[from] io::Error),
}

impl Trial {
    /// The child is this same program, started again. Its `main` must call [`child`] before anything else.
    pub fn this_program() -> io::Result<Self> {
        Ok(Self::with_program(this_program()?))
    }

    /// The child is `program`, which must be the `patchhost` binary. For tests, and for hosts that are another program.
    pub fn with_program(program: PathBuf) -> Self {
        Self { program, cpu_seconds: CPU_SECONDS, memory_bytes: MEMORY_BYTES, wall: WALL }
    }

    /// The same with other limits.
    pub fn limited(self, cpu_seconds: u64, memory_bytes: u64) -> Self {
        Self { cpu_seconds, memory_bytes, ..self }
    }

    /// The same with more wall time: for a server that decodes while it compiles, where the child gets little of the
    /// CPU.
    pub fn patient(self) -> Self {
        Self { wall: PATIENT_WALL, ..self }
    }

    /// Compiles `bytes` in a child and throws the result away: code that another process made is never loaded.
    pub fn compile(&self, bytes: &[u8]) -> Result<(), TrialError> {
        let (mut child, mut ours) = self.start()?;
        // A child that died early does not read: how it ended says why.
        let _ = ours.write_all(bytes).and_then(|()| ours.shutdown(std::net::Shutdown::Write));
        let status = wait(&mut child, Instant::now() + self.wall)?;
        let Some(status) = status else {
            let why = format!("took longer than {} s of wall time and was killed", self.wall.as_secs());
            return Err(TrialError::Ended(why));
        };
        if status.success() {
            return Ok(());
        }
        let mut said = String::new();
        if let Some(stdout) = child.stdout.take() {
            // Invalid UTF-8 or a broken pipe: then it said nothing.
            let _ = stdout.take(4096).read_to_string(&mut said);
        }
        Err(match status.code() {
            Some(REFUSED) => TrialError::Refused(text::clean(said.trim_end(), 512)),
            _ => TrialError::Ended(self.explain(status)),
        })
    }

    fn start(&self) -> io::Result<(Child, std::os::unix::net::UnixStream)> {
        // A socket and not a pipe: writing to a pipe that nobody reads ends a program that lets `head` end it.
        let (ours, theirs) = std::os::unix::net::UnixStream::pair()?;
        let child = Command::new(&self.program)
            .args([ARGUMENT, &self.cpu_seconds.to_string(), &self.memory_bytes.to_string()])
            .env_clear()
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        Ok((child, ours))
    }

    fn explain(&self, status: ExitStatus) -> String {
        use std::os::unix::process::ExitStatusExt;
        const ABORTED: i32 = 6;
        const KILLED: i32 = 9;
        const CPU_TIME: i32 = 24;
        let cpu = || format!("took more than {} s of CPU time (`compile_cpu_s`)", self.cpu_seconds);
        match status.signal() {
            Some(CPU_TIME | KILLED) => cpu(),
            Some(ABORTED) => {
                format!("took more than {} MiB of memory (`compile_memory_bytes`)", self.memory_bytes >> 20)
            }
            Some(signal) => format!("ended by signal {signal}"),
            None => format!("ended with {status}: the compiler panicked"),
        }
    }
}

/// The exit status, or none where the deadline came first; then the child is gone too.
fn wait(child: &mut Child, deadline: Instant) -> io::Result<Option<ExitStatus>> {
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= deadline {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(20));
    }
}

/// What the child does, if this process is one: to be called before anything else.
pub fn child() -> Option<ExitCode> {
    let mut arguments = std::env::args().skip(1);
    if arguments.next()? != ARGUMENT {
        return None;
    }
    let mut number = || arguments.next().and_then(|text| text.parse().ok());
    let (Some(cpu_seconds), Some(memory_bytes)) = (number(), number()) else { return Some(ExitCode::from(2)) };
    Some(match confine(Some(cpu_seconds), memory_bytes).map_err(|e| e.to_string()).and_then(|()| compile()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            // Nobody to tell if nobody listens.
            let _ = io::stdout().write_all(why.as_bytes());
            ExitCode::from(REFUSED as u8)
        }
    })
}

fn compile() -> Result<(), String> {
    let mut bytes = Vec::new();
    io::stdin().lock().read_to_end(&mut bytes).map_err(|e| e.to_string())?;
    let engine = compile_only().map_err(|e| format!("{e:#}"))?;
    engine.precompile_component(&bytes).map(|_| ()).map_err(|e| format!("{e:#}"))
}
