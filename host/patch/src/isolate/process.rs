//! One child process: made, asked, and gone when it does not answer.

use super::protocol::{Counters, Reply, Request, Said, Start, read, write};
use crate::base::child::{Patient, this_program, wait_a_little};
use std::io;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// First argument of a child.
pub(super) const ARGUMENT: &str = "__guest";

/// Time for a child to start, compile and describe its patch. Below the ten seconds that no input may hang this host.
const START: Duration = Duration::from_secs(9);

/// How children are made.
#[derive(Debug, Clone)]
pub struct Isolation {
    pub(super) program: PathBuf,
    /// Most processes of one patch.
    pub(super) processes: usize,
}

impl Isolation {
    /// Children are this very program, which must call [`super::child`] first thing in `main`. `processes`: how many each
    /// patch may have, one per worker that calls at once.
    pub fn this_program(processes: usize) -> io::Result<Self> {
        Ok(Self::with_program(this_program()?, processes))
    }

    /// Children are `program`, the `patchhost` binary: for tests and for hosts that are another program.
    pub fn with_program(program: PathBuf, processes: usize) -> Self {
        Self { program, processes: processes.clamp(1, 64) }
    }
}

/// A child is gone.
#[derive(Debug)]
pub(super) struct Lost {
    pub(super) why: String,
    /// It did not answer in time, rather than die.
    pub(super) late: bool,
}

/// A child with one patch in it.
pub(super) struct Process {
    child: Child,
    socket: UnixStream,
    pub(super) counters: Counters,
}

impl Process {
    /// Starts one, and gives its first answer.
    pub(super) fn start(isolation: &Isolation, start: &Start) -> io::Result<(Self, Result<Said, Lost>)> {
        let (ours, theirs) = UnixStream::pair()?;
        let mut command = Command::new(&isolation.program);
        command.arg(ARGUMENT).env_clear().stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs))).stdout(Stdio::null());
        let granted = start.grants().ok().and_then(|grants| grants.wasi).map(|wasi| wasi.env).unwrap_or_default();
        for name in granted.iter().map(String::as_str).chain(["PATCHHOST_LOG", "RUST_BACKTRACE"]) {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        let child = command.spawn()?;
        let mut process = Self { child, socket: ours, counters: Counters::default() };
        let first = process.ask(&Request::Start(Box::new(start.clone())), START);
        Ok((process, first))
    }

    /// How it ended, if it has: nobody asked it anything then, and no call need fail for it.
    pub(super) fn ended(&mut self) -> Option<String> {
        self.child.try_wait().ok().flatten().map(said)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Asks, and waits no longer than `wall`. After [`Lost`] the process is gone.
    pub(super) fn ask(&mut self, request: &Request, wall: Duration) -> Result<Said, Lost> {
        let until = Instant::now() + wall;
        let asked = self
            .socket
            .set_write_timeout(Some(wall))
            .and_then(|()| write(&mut self.socket, request))
            .and_then(|()| read::<Reply>(&mut Patient::new(&self.socket, until)));
        match asked {
            Ok(Reply { said, counters }) => {
                self.counters = counters;
                Ok(said)
            }
            Err(error) => Err(self.end(&error, wall)),
        }
    }

    fn end(&mut self, error: &io::Error, wall: Duration) -> Lost {
        let late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        // If it ended by itself, its own end says more than the broken socket.
        let by_itself = if late { None } else { wait_a_little(&mut self.child) };
        let why = match by_itself {
            Some(status) => format!("the process that it runs in ended: {}", said(status)),
            None if late => {
                format!("the process that it runs in did not answer within {} ms and was killed", wall.as_millis())
            }
            None => format!("the process that it runs in spoke nonsense and was killed: {error}"),
        };
        self.kill();
        Lost { why, late }
    }

    fn kill(&mut self) {
        // It may be gone already; either way it is waited for, so that it leaves no zombie.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}

fn said(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt;
    match status.signal() {
        Some(6) => "aborted (signal 6): out of memory, or a bug of the host".to_owned(),
        Some(signal) => format!("killed by signal {signal}"),
        None => status.to_string(),
    }
}
