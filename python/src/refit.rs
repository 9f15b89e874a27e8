//! One refit from Python. The weights are proved on a thread of their own, which then waits: what it holds (the board's turn)
//! cannot go from thread to thread, and Python may be interrupted at any time.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::refit::{Arrivals, Source};
use pyo3::prelude::*;
use serde_json::{Value, json};

use crate::board::{Shared, tensor};
use crate::errors::{Raised, Result, caught, off, raise};
use crate::make::{Output, Outputs};
use crate::place::same_process;

use crate::tensors::{Raw, RawTuple};
use crate::words::{self, name_of};

/// How long Python waits before it looks for a signal.
const LOOK: Duration = Duration::from_millis(50);

/// What the thread says.
enum Said {
    Progress(String, usize, usize),
    Proved(Result<(Value, Outputs)>),
    Committed(Result<Value>),
}

/// What the thread is told once it has proved.
enum Told {
    Commit,
    Abandon(String),
}

enum State {
    Arriving(Box<Arrivals>),
    /// Proved, and waiting to be told.
    Proved {
        report: String,
        outputs: Outputs,
        order: Vec<String>,
        tell: Sender<Told>,
        hear: Mutex<Receiver<Said>>,
    },
    /// Committed, abandoned or refused.
    Over(&'static str),
}

/// Names in the order in which they came first.
#[derive(Default)]
struct Order {
    names: Vec<String>,
    known: HashSet<String>,
}

/// One refit.
#[pyclass(frozen, module = "patchhost._native")]
pub struct NativeRefit {
    shared: Arc<Shared>,
    inner: Mutex<(State, Order)>,
}

impl NativeRefit {
    pub fn new(shared: Arc<Shared>, arrivals: Arrivals) -> Self {
        Self { shared, inner: Mutex::new((State::Arriving(Box::new(arrivals)), Order::default())) }
    }

    fn state(&self) -> std::sync::MutexGuard<'_, (State, Order)> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn here(&self) -> Result<()> {
        same_process("this refit", self.shared.pid)
    }

    fn ends(&self, how: &'static str) {
        self.state().0 = State::Over(how);
        self.shared.open.store(false, Ordering::Release);
    }
}

fn wrong(what: &str, is: &str, next: &str) -> Raised {
    Raised::usage(what, format!("the refit {is}"), next)
}

#[pymethods]
impl NativeRefit {
    fn add(&self, py: Python<'_>, name: String, tensor_of: RawTuple, role: &str) -> PyResult<()> {
        let added = Raw::new(&name, tensor_of).and_then(|raw| {
            self.here()?;
            let role = words::role(&name, role)?;
            let whole = tensor(&name, &raw)?;
            let mut state = self.state();
            let (State::Arriving(arrivals), order) = &mut *state else {
                return Err(wrong(&format!("tensor `{name}`"), "is proved or over", "begin another refit"));
            };
            arrivals.tensor(&whole)?;
            self.shared.live.target().role(&name, role);
            if order.known.insert(name.clone()) {
                order.names.push(name);
            }
            Ok(())
        });
        added.map_err(|e| raise(py, e))
    }

    fn prove(&self, py: Python<'_>, progress: Option<Py<PyAny>>) -> PyResult<String> {
        self.here().map_err(|e| raise(py, e))?;
        let taken = {
            let mut state = self.state();
            match std::mem::replace(&mut state.0, State::Over("is being proved")) {
                State::Arriving(arrivals) => Ok((arrivals, std::mem::take(&mut state.1.names))),
                State::Proved { report, outputs, order, tell, hear } => {
                    let again = report.clone();
                    state.0 = State::Proved { report, outputs, order, tell, hear };
                    return Ok(again);
                }
                State::Over(how) => {
                    state.0 = State::Over(how);
                    Err(wrong("prove", how, "begin another refit"))
                }
            }
        };
        let (arrivals, order) = taken.map_err(|e| raise(py, e))?;
        let started = off(py, || self.start(*arrivals));
        let (tell, hear) = match started {
            Ok(started) => started,
            Err(error) => {
                self.ends("was refused");
                return Err(error);
            }
        };
        let hear = Mutex::new(hear);
        let mut raised: Option<PyErr> = None;
        let stop = &self.shared.live.target().stop;
        let proved = loop {
            let said = py.detach(|| hear.lock().unwrap_or_else(PoisonError::into_inner).recv_timeout(LOOK));
            match said {
                Ok(Said::Progress(name, done, all)) => {
                    if let Some(call) = progress.as_ref().filter(|_| raised.is_none()) {
                        raised = call.call1(py, (name, done, all)).err();
                    }
                }
                Ok(Said::Proved(proved)) => break proved,
                Ok(Said::Committed(_)) | Err(RecvTimeoutError::Disconnected) => {
                    break Err(Raised::new(
                        "internal",
                        "internal: the refit's thread is gone",
                        "a bug of this program",
                        "please report this",
                    ));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
            if raised.is_none() {
                raised = py.check_signals().err();
            }
            if raised.is_some() {
                stop.store(true, Ordering::Relaxed);
            }
        };
        stop.store(false, Ordering::Relaxed);
        match (proved, raised) {
            (Ok((report, outputs)), None) => {
                let report = report.to_string();
                self.state().0 = State::Proved { report: report.clone(), outputs, order, tell, hear };
                Ok(report)
            }
            (_, Some(error)) => {
                let _ = tell.send(Told::Abandon("it was interrupted".to_owned()));
                self.ends("was interrupted");
                Err(error)
            }
            (Err(raised), None) => {
                self.ends("was refused");
                Err(raise(py, raised))
            }
        }
    }

    fn blocks(&self, py: Python<'_>) -> PyResult<Vec<(String, String, usize, usize)>> {
        let made = self.here().and_then(|()| match &self.state().0 {
            State::Proved { outputs, .. } => Ok(Arc::clone(outputs)),
            State::Arriving(_) => Err(wrong("blocks", "is not proved yet", "call prove() first")),
            State::Over(how) => Err(wrong("blocks", how, "begin another refit")),
        });
        let outputs = made.map_err(|e| raise(py, e))?;
        let scales = outputs.iter().flat_map(|made| made.outputs.iter().map(move |output| (&made.name, output)));
        Ok(scales
            .filter_map(|(tensor, output)| {
                output.block.map(|(rows, cols)| (output.name.clone(), tensor.clone(), rows, cols))
            })
            .collect())
    }

    fn outputs(&self, py: Python<'_>) -> PyResult<Vec<(String, &'static str, Vec<usize>, usize, Held)>> {
        let made = self.here().and_then(|()| match &self.state().0 {
            State::Proved { outputs, order, .. } => Ok((Arc::clone(outputs), order.clone())),
            State::Arriving(_) => Err(wrong("outputs", "is not proved yet", "call prove() first")),
            State::Over(how) => Err(wrong("outputs", how, "begin another refit")),
        });
        let (outputs, order) = made.map_err(|e| raise(py, e))?;
        let by_name: HashMap<&str, &Vec<Output>> =
            outputs.iter().map(|made| (made.name.as_str(), &made.outputs)).collect();
        let in_order = order.iter().filter_map(|name| by_name.get(name.as_str())).flat_map(|made| made.iter());
        Ok(in_order
            .map(|output| {
                let held = Held { bytes: output.bytes.clone() };
                let at = held.bytes.as_ptr() as usize;
                (output.name.clone(), name_of(output.stored), output.shape.clone(), at, held)
            })
            .collect())
    }

    fn commit(&self, py: Python<'_>) -> PyResult<String> {
        self.here().map_err(|e| raise(py, e))?;
        let taken = {
            let mut state = self.state();
            match std::mem::replace(&mut state.0, State::Over("is being committed")) {
                State::Proved { tell, hear, .. } => Ok((tell, hear)),
                State::Arriving(arrivals) => {
                    state.0 = State::Arriving(arrivals);
                    Err(wrong("commit", "is not proved yet", "call prove() first"))
                }
                State::Over(how) => {
                    state.0 = State::Over(how);
                    Err(wrong("commit", how, "begin another refit"))
                }
            }
        };
        let (tell, hear) = taken.map_err(|e| raise(py, e))?;
        let committed = off(py, || {
            let gone = || {
                Raised::new(
                    "internal",
                    "internal: the refit's thread is gone",
                    "a bug of this program",
                    "please report this",
                )
            };
            tell.send(Told::Commit).map_err(|_| gone())?;
            loop {
                match hear.lock().unwrap_or_else(PoisonError::into_inner).recv() {
                    Ok(Said::Committed(done)) => return done,
                    Ok(_) => {}
                    Err(_) => return Err(gone()),
                }
            }
        });
        self.ends(if committed.is_ok() { "is committed" } else { "was refused" });
        committed.map(|done| done.to_string())
    }

    fn abandon(&self, py: Python<'_>, why: &str) -> PyResult<()> {
        self.here().map_err(|e| raise(py, e))?;
        let was = std::mem::replace(&mut self.state().0, State::Over("was abandoned"));
        match was {
            State::Proved { tell, hear, .. } => {
                // The thread ends before another refit begins.
                py.detach(|| {
                    let _ = tell.send(Told::Abandon(why.to_owned()));
                    while hear.lock().unwrap_or_else(PoisonError::into_inner).recv().is_ok() {}
                });
                self.shared.open.store(false, Ordering::Release);
            }
            State::Arriving(arrivals) => {
                drop(arrivals);
                self.shared.open.store(false, Ordering::Release);
            }
            State::Over(how) => self.state().0 = State::Over(how),
        }
        Ok(())
    }
}

impl NativeRefit {
    fn start(&self, arrivals: Arrivals) -> Result<(Sender<Told>, Receiver<Said>)> {
        let source = arrivals.finish()?;
        let (tell, told) = channel();
        let (say, hear) = channel();
        let shared = Arc::clone(&self.shared);
        shared.live.target().stop.store(false, Ordering::Relaxed);
        let work = move || run(&shared, source, &say, &told);
        std::thread::Builder::new().name("patchhost-refit".to_owned()).spawn(work).map_err(|e| {
            Raised::new("host", "the refit's thread", e.to_string(), "look at the limits of this machine (processes)")
        })?;
        Ok((tell, hear))
    }
}

impl Drop for NativeRefit {
    fn drop(&mut self) {
        let over = matches!(self.state().0, State::Over(_));
        // The thread sees that nobody tells it anything any more, and gives up.
        if !over && self.shared.pid == std::process::id() {
            self.shared.open.store(false, Ordering::Release);
        }
    }
}

/// Proves, says so, waits to be told, and does it.
fn run(shared: &Shared, source: Source, say: &Sender<Said>, told: &Receiver<Told>) {
    // Nobody listens any more where a send fails: then nothing is committed.
    let say_progress = Mutex::new(say.clone());
    let progress = |done: usize, all: usize, name: &str| {
        let say = say_progress.lock().unwrap_or_else(PoisonError::into_inner);
        let _ = say.send(Said::Progress(name.to_owned(), done, all));
    };
    let prepared = caught(|| Ok(shared.live.prepare(source, &shared.actor, &progress)?));
    let prepared = match prepared {
        Ok(prepared) => prepared,
        Err(raised) => {
            let _ = say.send(Said::Proved(Err(raised)));
            return;
        }
    };
    let (patch_set, swap) = prepared.patches();
    let mut report = serde_json::to_value(prepared.report()).unwrap_or_default();
    (report["patch_set"], report["swap"]) = (json!(patch_set), json!(swap));
    let outputs = Arc::clone(&prepared.staged().outputs);
    if say.send(Said::Proved(Ok((report, outputs)))).is_err() {
        prepared.abandon("nobody waits for it any more");
        return;
    }
    match told.recv() {
        Ok(Told::Commit) => {
            let done = caught(|| {
                let refitted = prepared.commit()?;
                Ok(json!({
                    "refit": refitted.refit, "step": refitted.step, "version": refitted.report.label,
                    "patch_set": refitted.patch_set, "swap": refitted.swap, "reversed": refitted.reversed,
                    "degraded": refitted.degraded, "report": refitted.report, "receipt": refitted.receipt,
                }))
            });
            let _ = say.send(Said::Committed(done));
        }
        Ok(Told::Abandon(why)) => prepared.abandon(&why),
        Err(_) => prepared.abandon("it was dropped"),
    }
}

/// Keeps the memory of an output for as long as Python's tensor lives.
#[pyclass(frozen, module = "patchhost._native")]
pub struct Held {
    bytes: TensorBytes,
}

#[pymethods]
impl Held {
    fn __len__(&self) -> usize {
        self.bytes.len()
    }
}
