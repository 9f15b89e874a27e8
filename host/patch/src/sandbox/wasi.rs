//! WASI by grant: what stands behind `wasi:*` imports of one store. Built on wasmtime-wasi; what is decided here is what it
//! gets to see, that nothing waits without end, and that output ends in the host's bounded log.

mod folders;
mod log;

use super::store::State;
use crate::base::{DirMode, Grants, Wasi};
use folders::Folders;
use log::Log;
use std::time::{Duration, Instant};
use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wasmtime_wasi::cli::WasiCli;
use wasmtime_wasi::cli::WasiCliView as _;
use wasmtime_wasi::clocks::{WasiClocks, WasiClocksView as _};
use wasmtime_wasi::filesystem::{WasiFilesystem, WasiFilesystemView as _};
use wasmtime_wasi::p2::DynPollable;
use wasmtime_wasi::p2::bindings::sync::io::poll;
use wasmtime_wasi::p2::bindings::{cli, clocks, filesystem, io as async_io, random, sync};
use wasmtime_wasi::random::WasiRandom;
use wasmtime_wasi::runtime::in_tokio;
use wasmtime_wasi::{
    Deterministic, FsPerms, HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView,
};

/// Handles (streams, pollables, descriptors) that one store may hold. Stops a guest that collects them: each is memory of
/// the host that no limit of linear memory sees.
const HANDLES: usize = 1_024;
/// Bytes of random numbers in one call.
const RANDOM_BYTES: u64 = 64 << 10;

/// What a patch was granted, opened once: every store of the patch sees the same folders, whatever their paths lead to later.
#[derive(Debug, Default)]
pub(crate) struct Granted {
    wasi: Option<(Wasi, Folders)>,
}

impl Granted {
    /// Opens what is granted.
    pub(crate) fn open(grants: &Grants) -> std::io::Result<Self> {
        let Some(wasi) = &grants.wasi else { return Ok(Self::default()) };
        Ok(Self { wasi: Some((wasi.clone(), Folders::open(&wasi.dirs)?)) })
    }

    /// What a new store begins with.
    pub(super) fn context(&self) -> wasmtime::Result<Option<Box<Context>>> {
        let Some((wasi, folders)) = &self.wasi else { return Ok(None) };
        let mut builder = base(wasi);
        for (dir, path) in wasi.dirs.iter().zip(folders.paths()) {
            let perms = if dir.mode == DirMode::Rw { FsPerms::ReadWrite } else { FsPerms::ReadOnly };
            builder.preopened_dir(path, &dir.guest, perms)?;
        }
        Ok(Some(Context::new(builder.build())))
    }
}

/// What the grant gives, but for its folders.
fn base(wasi: &Wasi) -> WasiCtxBuilder {
    let mut builder = WasiCtxBuilder::new();
    for name in &wasi.env {
        if let Ok(value) = std::env::var(name) {
            builder.env(name, value);
        }
    }
    if !wasi.clocks {
        // Answers must not differ between ranks, and a clock tells a guest what the host is busy with.
        builder.wall_clock(Still).monotonic_clock(Still);
    }
    if !wasi.random {
        // A `HashMap` of Rust asks for random bytes: it gets the same ones on every rank.
        let cycle = || Deterministic::new((1..=251).collect());
        builder.secure_random(cycle()).insecure_random(cycle()).insecure_random_seed(0);
    }
    let log = Log::default();
    builder.stdout(log.clone()).stderr(log);
    builder.max_random_size(RANDOM_BYTES).allow_tcp(false).allow_udp(false);
    builder
}

/// A clock that stands still.
struct Still;

impl HostWallClock for Still {
    fn resolution(&self) -> Duration {
        Duration::from_secs(1)
    }

    fn now(&self) -> Duration {
        Duration::ZERO
    }
}

impl HostMonotonicClock for Still {
    fn resolution(&self) -> u64 {
        1_000_000_000
    }

    fn now(&self) -> u64 {
        0
    }
}

/// WASI of one store.
pub(crate) struct Context {
    wasi: WasiCtx,
    table: ResourceTable,
    /// When the running call must be over. A guest that waits uses no fuel and passes no epoch check, so waiting ends
    /// by this.
    pub(super) until: Instant,
}

impl Context {
    fn new(wasi: WasiCtx) -> Box<Self> {
        let mut table = ResourceTable::new();
        table.set_max_capacity(HANDLES);
        Box::new(Self { wasi, table, until: Instant::now() })
    }
}

impl WasiView for State {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        // Where WASI is linked there is a context; if that were ever wrong, it is one with nothing behind it.
        let context = self.wasi.get_or_insert_with(|| Context::new(base(&Wasi::default()).build()));
        WasiCtxView { ctx: &mut context.wasi, table: &mut context.table }
    }
}

/// Links WASI, an interface a line. Sockets and HTTP are not there: the audit refuses them, and so does the link.
pub(crate) fn add_to_linker(linker: &mut Linker<State>) -> wasmtime::Result<()> {
    let l = linker;
    async_io::error::add_to_linker::<State, HasTable>(l, |state| state.ctx().table)?;
    sync::io::streams::add_to_linker::<State, HasTable>(l, |state| state.ctx().table)?;
    poll::add_to_linker::<State, HasWaiting>(l, Waiting::of)?;
    clocks::wall_clock::add_to_linker::<State, WasiClocks>(l, State::clocks)?;
    clocks::monotonic_clock::add_to_linker::<State, WasiClocks>(l, State::clocks)?;
    filesystem::preopens::add_to_linker::<State, WasiFilesystem>(l, State::filesystem)?;
    sync::filesystem::types::add_to_linker::<State, WasiFilesystem>(l, State::filesystem)?;
    random::random::add_to_linker::<State, WasiRandom>(l, |state| state.ctx().ctx.random())?;
    random::insecure::add_to_linker::<State, WasiRandom>(l, |state| state.ctx().ctx.random())?;
    random::insecure_seed::add_to_linker::<State, WasiRandom>(l, |state| state.ctx().ctx.random())?;
    cli::exit::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::environment::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::stdin::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::stdout::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::stderr::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_input::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_output::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stdin::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stdout::add_to_linker::<State, WasiCli>(l, State::cli)?;
    cli::terminal_stderr::add_to_linker::<State, WasiCli>(l, State::cli)?;
    Ok(())
}

struct HasTable;

impl HasData for HasTable {
    type Data<'a> = &'a mut ResourceTable;
}

/// `wasi:io/poll` that does not wait beyond the end of the call: wasmtime-wasi's own waits as long as the guest says.
struct Waiting<'a> {
    table: &'a mut ResourceTable,
    until: Instant,
}

struct HasWaiting;

impl HasData for HasWaiting {
    type Data<'a> = Waiting<'a>;
}

impl Waiting<'_> {
    fn of(state: &mut State) -> Waiting<'_> {
        let until = state.wasi.as_ref().map_or_else(Instant::now, |context| context.until);
        Waiting { table: state.ctx().table, until }
    }

    fn wait<R>(until: Instant, future: impl Future<Output = wasmtime::Result<R>>) -> wasmtime::Result<R> {
        let waited = in_tokio(async { tokio::time::timeout_at(until.into(), future).await });
        waited.unwrap_or_else(|_| Err(wasmtime::Error::new(WaitedTooLong)))
    }
}

/// A guest waited for something until its time was over.
#[derive(Debug, thiserror::Error)]
#[error("it waited in `wasi:io/poll` until the wall time of the call was over")]
pub(super) struct WaitedTooLong;

impl poll::Host for Waiting<'_> {
    fn poll(&mut self, pollables: Vec<Resource<DynPollable>>) -> wasmtime::Result<Vec<u32>> {
        Self::wait(self.until, async_io::poll::Host::poll(self.table, pollables))
    }
}

impl poll::HostPollable for Waiting<'_> {
    fn ready(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<bool> {
        Self::wait(self.until, async_io::poll::HostPollable::ready(self.table, pollable))
    }

    fn block(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        Self::wait(self.until, async_io::poll::HostPollable::block(self.table, pollable))
    }

    fn drop(&mut self, pollable: Resource<DynPollable>) -> wasmtime::Result<()> {
        async_io::poll::HostPollable::drop(self.table, pollable)
    }
}
