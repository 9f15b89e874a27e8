//! The child: starts one patch, answers until the host is gone.

use super::confine::confine;
use super::process::ARGUMENT;
use super::protocol::{Counters, Reply, Request, Said, Start, read, write};
use crate::abi::{Guest, Hooks, Memory, linker_for};
use crate::base::child::socket;
use crate::base::{Function, text};
use crate::call::Put;
use crate::sandbox::{Granted, Sandbox};
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

/// What the child does, if this process is one: to be called before anything else.
pub fn child() -> Option<ExitCode> {
    if std::env::args().nth(1)? != ARGUMENT {
        return None;
    }
    // Standard error is the host's. What a guest with WASI prints goes there too, escaped and bounded.
    #[cfg(feature = "log")]
    {
        let filter = tracing_subscriber::EnvFilter::try_from_env("PATCHHOST_LOG");
        let filter = filter.unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(io::stderr).with_ansi(false).init();
    }
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
    let mut socket = socket()?;
    let Request::Start(start) = read(&mut socket)? else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the first question is `start`"));
    };
    let server = match Server::start(*start) {
        Ok(server) => server,
        Err(said) => return write(&mut socket, &Reply { said, counters: Counters::default() }),
    };
    let started = Said::Started(Box::new(server.guest.info().clone()));
    write(&mut socket, &server.reply(started))?;
    loop {
        let request = read(&mut socket)?;
        write(&mut socket, &server.reply(server.answer(request)))?;
    }
}

/// The patch, and what it is asked through.
struct Server {
    guest: Arc<Guest>,
    put: Put,
}

impl Server {
    fn start(start: Start) -> Result<Self, Said> {
        let failed = |why: String| Said::NotCompiled(text::clean(&why, 512));
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
        let guest = Guest::start(sandbox, pre, &hooks, state, settings, limits, granted).map_err(Said::NotStarted)?;
        if let Some(snapshot) = inherited {
            guest.import_state(snapshot).map_err(|error| Said::Outcome(Err(error)))?;
        }
        let guest = Arc::new(guest);
        let put = Put::new(Hooks::of_guest(&guest, &hooks));
        Ok(Self { guest, put })
    }

    fn reply(&self, said: Said) -> Reply {
        let stats = self.guest.stats();
        let functions = stats.functions.iter().filter_map(|(name, stats)| Some((Function::named(name)?, *stats)));
        let counters =
            Counters { functions: functions.collect(), made: stats.instances_made, dropped: stats.instances_dropped };
        Reply { said, counters }
    }

    fn answer(&self, request: Request) -> Said {
        match request {
            Request::Start(_) => Said::Nonsense("it is started".into()),
            Request::Ask(question) => self.put.put(&question).map_or_else(Said::Nonsense, Said::Outcome),
        }
    }
}
