//! Child processes of this same program, for work on what others wrote: at worst the child dies. A child is started with
//! one argument that says what it is for, has its standard input as a socket in both directions, no files, no ports, and
//! limits. `main` looks for that argument before anything else.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

/// Address space that the child's program needs for itself, in bytes, on top of the memory that it may write.
#[cfg(target_os = "linux")]
const ADDRESS_SPACE: u64 = 1 << 30;

/// The program that runs, even if its file was replaced since.
pub fn this_program() -> io::Result<PathBuf> {
    let itself = PathBuf::from("/proc/self/exe");
    if itself.exists() { Ok(itself) } else { std::env::current_exe() }
}

/// A child that answers frames with frames.
pub struct Confined {
    child: Child,
    socket: UnixStream,
}

impl Lost {
    /// What it did that ended it, after the name of what it was busy with: "took more than 64 MiB of memory".
    pub fn why(&self, memory_bytes: u64, cpu_seconds: u64) -> String {
        use std::os::unix::process::ExitStatusExt;
        const KILLED: i32 = 9;
        const CPU_TIME: i32 = 24;
        let signal = self.status.and_then(|status| status.signal());
        match self.status {
            _ if self.said.contains("overflowed its stack") => "nests deeper than a stack holds".to_owned(),
            _ if self.said.contains("memory allocation of") => {
                format!("takes more than {} MiB of memory", memory_bytes >> 20)
            }
            _ if self.late => "takes too long, and was stopped".to_owned(),
            Some(status) if status.code() == Some(LATE) => format!("takes more than {cpu_seconds} s of CPU time"),
            Some(_) if matches!(signal, Some(KILLED | CPU_TIME)) => {
                format!("takes more than {cpu_seconds} s of CPU time")
            }
            Some(status) => format!("ended the process that it was done in ({status})"),
            None => "made the process that it was done in speak nonsense".to_owned(),
        }
    }
}

/// Exit code of a child that found itself out of time.
pub const LATE: i32 = 75;

/// A child did not answer, and is gone.
#[derive(Debug)]
pub struct Lost {
    /// It was late, and killed.
    pub late: bool,
    /// How it ended, if it did by itself.
    pub status: Option<ExitStatus>,
    /// The end of what it wrote to standard error.
    pub said: String,
}

impl Confined {
    /// Starts `program` with `arguments`, the first of which says what the child is for.
    pub fn start(program: &Path, arguments: &[&str]) -> io::Result<Self> {
        let (socket, theirs) = UnixStream::pair()?;
        let child = Command::new(program)
            .args(arguments)
            .env_clear()
            .stdin(Stdio::from(std::os::fd::OwnedFd::from(theirs)))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        Ok(Self { child, socket })
    }

    /// Whether it runs still.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Asks, and waits no longer than `wall` for an answer of at most `most` bytes. After [`Lost`] the process is gone.
    pub fn ask(&mut self, question: &[u8], most: usize, wall: Duration) -> Result<Vec<u8>, Lost> {
        let until = Instant::now() + wall;
        let asked = self
            .socket
            .set_write_timeout(Some(wall))
            .and_then(|()| write_frame(&mut self.socket, question, u32::MAX as usize))
            .and_then(|()| read_frame(&mut Patient::new(&self.socket, until), most));
        asked.map_err(|error| self.end(&error))
    }

    fn end(&mut self, error: &io::Error) -> Lost {
        let late = matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut);
        // If it ended by itself, its own end says more than the broken socket.
        let status = if late { None } else { wait_a_little(&mut self.child) };
        self.kill();
        let mut said = Vec::new();
        if let Some(stderr) = self.child.stderr.take() {
            // It is gone: there is an end, and what it said fits into a pipe.
            let _ = stderr.take(1 << 16).read_to_end(&mut said);
        }
        Lost { late, status, said: String::from_utf8_lossy(&said).into_owned() }
    }

    fn kill(&mut self) {
        // It may be gone already; either way it is waited for, so that it leaves no zombie.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Confined {
    fn drop(&mut self) {
        self.kill();
    }
}

/// The exit status of a child whose socket broke; none where it still runs.
pub(crate) fn wait_a_little(child: &mut Child) -> Option<ExitStatus> {
    for _ in 0..100 {
        match child.try_wait() {
            Ok(None) => std::thread::sleep(Duration::from_millis(2)),
            Ok(status) => return status,
            Err(_) => return None,
        }
    }
    None
}

/// Reads until a moment, not for a time after each byte: a child that sends a byte now and then gains nothing.
pub(crate) struct Patient<'a> {
    socket: &'a UnixStream,
    until: Instant,
}

impl<'a> Patient<'a> {
    pub(crate) fn new(socket: &'a UnixStream, until: Instant) -> Self {
        Self { socket, until }
    }
}

impl Read for Patient<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        self.socket.set_read_timeout(Some(left))?;
        (&mut &*self.socket).read(into)
    }
}

/// Bytes behind their length, of which there may be `most`.
pub fn write_frame(to: &mut impl Write, bytes: &[u8], most: usize) -> io::Result<()> {
    let length = u32::try_from(bytes.len()).ok().filter(|_| bytes.len() <= most);
    let length = length.ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("a frame of {} bytes; at most {most}", bytes.len()))
    })?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(bytes)?;
    to.flush()
}

/// Bytes behind their length, if it is at most `most`. Memory grows as they come: a length alone allocates nothing.
pub fn read_frame(from: &mut impl Read, most: usize) -> io::Result<Vec<u8>> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = u32::from_le_bytes(length) as usize;
    if length > most {
        let why = format!("a frame of {length} bytes; at most {most} are read");
        return Err(io::Error::new(io::ErrorKind::InvalidData, why));
    }
    let mut bytes = Vec::new();
    from.take(length as u64).read_to_end(&mut bytes)?;
    if bytes.len() < length {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(bytes)
}

/// The socket of a process that is a child.
pub fn socket() -> io::Result<UnixStream> {
    use std::os::fd::AsFd;
    Ok(UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?))
}

/// Takes away what work on bytes does not need: files, ports, more than `memory_bytes` of memory, and more than
/// `cpu_seconds` of CPU time where there is such a limit. Whether the kernel knows Landlock does not matter: limits come
/// first.
#[cfg(target_os = "linux")]
pub fn confine(cpu_seconds: Option<u64>, memory_bytes: u64) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    let limit = |resource, most: u64| setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) });
    limit(Resource::Core, 0)?;
    limit(Resource::Fsize, 0)?;
    limit(Resource::Data, memory_bytes)?;
    limit(Resource::As, memory_bytes.saturating_add(ADDRESS_SPACE))?;
    if let Some(seconds) = cpu_seconds {
        // The soft limit is a signal that says why; the hard one, a second later, cannot be ignored.
        setrlimit(Resource::Cpu, Rlimit { current: Some(seconds), maximum: Some(seconds + 1) })?;
    }
    no_files();
    Ok(())
}

#[cfg(not(target_os = "linux"))]
pub fn confine(_: Option<u64>, _: u64) -> io::Result<()> {
    Ok(())
}

/// Lowers or raises how much memory this process may have, below what [`confine`] said.
#[cfg(target_os = "linux")]
pub fn allow_memory(bytes: u64) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Data).maximum;
    let current = Some(maximum.map_or(bytes, |maximum| bytes.min(maximum)));
    Ok(setrlimit(Resource::Data, Rlimit { current, maximum })?)
}

#[cfg(not(target_os = "linux"))]
pub fn allow_memory(_: u64) -> io::Result<()> {
    Ok(())
}

/// CPU time that this process has used.
#[cfg(target_os = "linux")]
pub fn cpu_time() -> Duration {
    let used = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    Duration::new(used.tv_sec.max(0).unsigned_abs(), used.tv_nsec.clamp(0, 999_999_999) as u32)
}

/// Time since the first call, where CPU time cannot be had.
#[cfg(not(target_os = "linux"))]
pub fn cpu_time() -> Duration {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed()
}

/// No path can be opened any more, nor any port, where the kernel can see to that (Linux 5.13, 6.7).
#[cfg(target_os = "linux")]
pub(crate) fn no_files() -> bool {
    use landlock::{ABI, Access, AccessFs, AccessNet, Ruleset, RulesetAttr, RulesetStatus};
    let abi = ABI::V4;
    let restricted = Ruleset::default()
        .handle_access(AccessFs::from_all(abi))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(abi)))
        .and_then(|rules| rules.create())
        .and_then(|rules| rules.restrict_self());
    restricted.is_ok_and(|status| status.ruleset != RulesetStatus::NotEnforced)
}
