//! Where patches run in this process: the sandbox, the threads, and the program that children are made of. Threads do not
//! survive a fork, so a forked child gets a place of its own when it loads something, and what its parent loaded says so.

use std::path::PathBuf;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicPtr, Ordering};

use patchhost::isolate::Isolation;
use patchhost::patch::{AddressSpaceError, Cache, Sandbox, Site, Trial, bundled as patches};
use pyo3::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

use crate::errors::{Raised, Result, on};

/// What was asked for before the first load.
#[derive(Clone, PartialEq, Eq)]
struct Wanted {
    program: Option<PathBuf>,
    threads: Option<usize>,
}

static WANTED: OnceLock<Wanted> = OnceLock::new();

/// The place of this process; never freed, since what runs in it may outlive everything.
static HERE: AtomicPtr<Place> = AtomicPtr::new(std::ptr::null_mut());

/// Sandbox, threads and program of one process.
pub struct Place {
    pid: u32,
    pub program: Option<PathBuf>,
    /// Everything that uses more than one thread runs in here: rayon's global threads belong to the process that started
    /// them, and a forked child would wait for them for good.
    pub pool: ThreadPool,
    sandbox: Sandbox,
}

impl Place {
    /// That of this process.
    pub fn here() -> Result<&'static Self> {
        let known = HERE.load(Ordering::Acquire);
        // SAFETY: what the pointer was ever set to was leaked by `Box::into_raw` below, and is never changed.
        if let Some(place) = unsafe { known.as_ref() }.filter(|place| place.pid == std::process::id()) {
            return Ok(place);
        }
        let made = Box::into_raw(Box::new(Self::new()?));
        match HERE.compare_exchange(known, made, Ordering::AcqRel, Ordering::Acquire) {
            // SAFETY: it was leaked just above.
            Ok(_) => Ok(unsafe { &*made }),
            // SAFETY: another thread was faster; what was made here was seen by nobody.
            Err(_) => {
                drop(unsafe { Box::from_raw(made) });
                Self::here()
            }
        }
    }

    fn new() -> Result<Self> {
        let Wanted { program, threads } = WANTED.get_or_init(|| Wanted { program: None, threads: None }).clone();
        let threads = threads.unwrap_or_else(cores);
        let pool = ThreadPoolBuilder::new().num_threads(threads).thread_name(|i| format!("patchhost-{i}")).build();
        let pool = pool.map_err(|e| system("its threads cannot be started", &e.to_string()))?;
        let sandbox =
            pool.install(|| Sandbox::new(threads)).map_err(|e| match e.downcast_ref::<AddressSpaceError>() {
                Some(small) => Raised::from(*small),
                None => system("the sandbox cannot start", &format!("{e:#}")),
            })?;
        let trial = program.clone().map(Trial::with_program);
        let sandbox = sandbox.with_cache(Cache::from_env()).with_trial(trial);
        Ok(Self { pid: std::process::id(), program, pool, sandbox })
    }

    /// Where patches are started.
    pub fn site(&self, isolate: bool) -> Result<Site> {
        let isolation = match (isolate, &self.program) {
            (false, _) => None,
            (true, Some(program)) => Some(Isolation::with_program(program.clone(), self.pool.current_num_threads())),
            (true, None) => return Err(no_program("isolate=True")),
        };
        Ok(Site::from(&self.sandbox).with_isolation(isolation))
    }
}

/// Without the program a component of somebody else cannot be compiled on trial.
pub fn no_program(what: &str) -> Raised {
    Raised::new(
        "host",
        what,
        "it needs a child process, and the program `patchhost` of this package was not found",
        "install the wheel anew (it brings the program), or name it in PATCHHOST_PROGRAM",
    )
}

fn system(what: &str, why: &str) -> Raised {
    Raised::new(
        "host",
        what,
        why,
        "look at the limits of this machine (processes, memory, address space), then try again",
    )
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// That the object was made in this process.
pub fn same_process(what: &str, pid: u32) -> Result<()> {
    if pid == std::process::id() { Ok(()) } else { Err(Raised::forked(what, pid)) }
}

/// Which file the program is, and how many threads are used.
#[pyfunction]
#[pyo3(signature = (program, threads))]
pub fn start(py: Python<'_>, program: Option<PathBuf>, threads: Option<usize>) -> PyResult<()> {
    on(py, || {
        if threads == Some(0) {
            return Err(Raised::usage(
                "threads=0",
                "there must be at least one",
                "leave it out, or give a number from 1",
            ));
        }
        let wanted = Wanted { program, threads };
        let is = WANTED.get_or_init(|| wanted.clone());
        let other = wanted.threads.is_some() && wanted.threads != is.threads;
        match other {
            true => Err(Raised::usage(
                format!("threads={}", wanted.threads.unwrap_or_default()),
                format!("the threads of this process were chosen before: {}", is.threads.unwrap_or_else(cores)),
                "choose them with the first load, or by PATCHHOST_THREADS",
            )),
            false => Ok(()),
        }
    })
}

/// How many threads are used here.
#[pyfunction]
pub fn threads() -> usize {
    WANTED.get().and_then(|wanted| wanted.threads).unwrap_or_else(cores)
}

/// Names and digests of the patches that this build carries.
#[pyfunction]
pub fn bundled() -> Vec<(String, String)> {
    let digest = |bytes: &[u8]| patchhost::base::Digest::of(bytes).to_string();
    patches::BUNDLED.iter().map(|(name, bytes)| ((*name).to_owned(), digest(bytes))).collect()
}
