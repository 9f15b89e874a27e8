//! The child: starts one patch, answers until the host is gone.

use super::confine::confine;
use super::process::ARGUMENT;
use super::protocol::{Answer, Counters, Reply, Request, Start, read, write};
use crate::abi::{
    Guest, LayoutAdapter, LoaderAdapter, LoraAdapter, MaskAdapter, ObserverAdapter, QuantAdapter, linker_for,
};
use crate::base::Function;
use crate::base::text;
use crate::sandbox::{Granted, Sandbox};
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{
    BlockQuant, HookError, Layout, LoaderMap, LogitsMask, Lora, RefitObserver, RefitWatch, RowPanel,
};
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::process::ExitCode;
use std::sync::Arc;

/// Watches of refits that never ended: the host forgets them one by one, this many at most are kept.
const WATCHES: usize = 64;

/// What the child does, if this process is one: to be called before anything else.
pub fn child() -> Option<ExitCode> {
    if std::env::args().nth(1)? != ARGUMENT {
        return None;
    }
    // Standard error is the host's. What a guest with WASI prints goes there too, escaped and bounded.
    let filter = tracing_subscriber::EnvFilter::try_from_env("PATCHHOST_LOG");
    let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
    Some(match serve() {
        // The host closed its end: the ordinary way to stop.
        Ok(()) => ExitCode::SUCCESS,
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("patchhost child: {error}");
            ExitCode::FAILURE
        }
    })
}

fn serve() -> io::Result<()> {
    // Standard input is the socket, in both directions.
    let mut socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    let Request::Start(start) = read(&mut socket)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first question is `start`"));
    };
    let mut server = match Server::start(*start) {
        Ok(server) => server,
        Err(answer) => return write(&mut socket, &Reply { answer, counters: Counters::default() }),
    };
    let started = Answer::Started(Box::new(server.guest.info().clone()));
    write(&mut socket, &server.reply(started))?;
    loop {
        let request = read(&mut socket)?;
        let answer = server.answer(request).unwrap_or_else(Answer::Error);
        write(&mut socket, &server.reply(answer))?;
    }
}

struct Server {
    guest: Arc<Guest>,
    quant: QuantAdapter,
    watches: HashMap<u64, Box<dyn RefitWatch>>,
    watched: u64,
}

impl Server {
    fn start(start: Start) -> Result<Self, Answer> {
        let failed = |why: String| Answer::NotCompiled(text::clean(&why, 512));
        let grants = start.grants().map_err(failed)?;
        // Folders are opened first: afterwards no path can be.
        let granted = Granted::open(&grants).map_err(|e| failed(e.to_string()))?;
        confine(&grants, start.limits.memory_bytes);
        let hooks = start.hooks();
        let Start { bytes, digest, state, settings, limits, inherited, .. } = start;
        let pre = || {
            let sandbox = Sandbox::new(1)?;
            let component = sandbox.component(&bytes, &digest, true)?;
            let pre = linker_for(&sandbox, &component, &grants)?.instantiate_pre(&component)?;
            Ok::<_, wasmtime::Error>((sandbox, pre))
        };
        let (sandbox, pre) = pre().map_err(|e| failed(format!("{e:#}")))?;
        let guest = Guest::start(sandbox, pre, &hooks, state, settings, limits, granted).map_err(Answer::NotStarted)?;
        if let Some(snapshot) = inherited {
            guest.import_state(snapshot).map_err(Answer::Error)?;
        }
        let guest = Arc::new(guest);
        let quant = QuantAdapter { guest: guest.clone(), hooks };
        Ok(Self { guest, quant, watches: HashMap::new(), watched: 0 })
    }

    fn reply(&self, answer: Answer) -> Reply {
        let stats = self.guest.stats();
        let functions = stats.functions.iter().filter_map(|(name, stats)| Some((Function::named(name)?, *stats)));
        let counters =
            Counters { functions: functions.collect(), made: stats.instances_made, dropped: stats.instances_dropped };
        Reply { answer, counters }
    }

    fn answer(&mut self, request: Request) -> Result<Answer, HookError> {
        let guest = || Arc::clone(&self.guest);
        Ok(match request {
            Request::Start(_) => Answer::Nonsense("it is started".into()),
            Request::Resolve { model, registry, checkpoint } => {
                Answer::Placements(LoaderAdapter(guest()).resolve(&model, &registry, &checkpoint)?)
            }
            Request::Decide { model, reader, tensors } => {
                Answer::Decisions(self.quant.decide(&model, &reader, &tensors)?)
            }
            Request::Activation(model) => Answer::Activation(self.quant.activation(&model)?),
            Request::Scales(panel, amax) => Answer::Numbers(self.quant.scales(&panel.blocks(), &amax)?),
            Request::ScalesWithMoments(panel, amax, squares) => {
                Answer::Numbers(self.quant.scales_with_moments(&panel.blocks(), &amax, &squares)?)
            }
            Request::PanelScales { panel, elem, cols, rows, bytes, amax } => {
                let length = bytes.len();
                let Some(data) = TensorBytes::new(Arc::new(bytes), 0..length) else {
                    return Ok(Answer::Nonsense("no bytes".into()));
                };
                let lent = RowPanel { data, elem, cols, first_row: 0, rows };
                Answer::Numbers(self.quant.panel_scales(&panel.blocks(), &lent, &amax)?)
            }
            Request::ActivationScales(amax) => Answer::Numbers(self.quant.activation_scales(&amax)?),
            Request::Passes { model, reader, tensors } => {
                Answer::Passes(LayoutAdapter(guest()).passes(&model, &reader, &tensors)?)
            }
            Request::Admit { model, config, registry, adapter } => {
                Answer::Plan(LoraAdapter(guest()).admit(&model, &config, &registry, &adapter)?)
            }
            Request::Masked { model, rows, vocabulary } => {
                let ranges = MaskAdapter(guest()).masked(&model, rows, vocabulary)?;
                Answer::Ranges(ranges.into_iter().map(|range| (range.start, range.end)).collect())
            }
            Request::Begin { version, expected } => {
                let (verdict, watch) = ObserverAdapter(guest()).begin(&version, expected.as_deref())?;
                self.watched += 1;
                let oldest = self.watched.saturating_sub(WATCHES as u64);
                self.watches.retain(|number, _| *number > oldest);
                self.watches.insert(self.watched, watch);
                Answer::Begun(verdict, self.watched)
            }
            Request::Tensors { watch, batch } => match self.watches.get_mut(&watch) {
                Some(watch) => Answer::Verdict(watch.tensors(&batch)?),
                None => Answer::Nonsense("no such refit".into()),
            },
            Request::Finish { watch, total } => match self.watches.get_mut(&watch) {
                Some(watch) => Answer::Verdict(watch.finish(total)?),
                None => Answer::Nonsense("no such refit".into()),
            },
            Request::Forget { watch } => {
                self.watches.remove(&watch);
                Answer::Done
            }
            Request::ExportState => Answer::State(self.guest.export_state()?),
            Request::ImportState(snapshot) => {
                self.guest.import_state(snapshot)?;
                Answer::Done
            }
        })
    }
}
