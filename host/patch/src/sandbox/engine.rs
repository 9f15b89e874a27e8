//! The one wasmtime engine of the process, and the clock that guards it.

use super::limits::{KEEP_RESIDENT, SLOT_MEMORY_BYTES, SLOT_TABLE_ELEMENTS, STACK_BYTES};
use super::{Cache, Trial, space};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wasmtime::component::Component;
use wasmtime::{Config, Engine, InstanceAllocationStrategy, OptLevel, PoolingAllocationConfig};

/// How often the epoch advances. Deadlines are counted in these.
pub const TICK: Duration = Duration::from_millis(10);

/// The engine and its clock. Cheap to clone; the clock stops when the last clone is dropped.
#[derive(Clone)]
pub struct Sandbox {
    engine: Engine,
    cache: Option<Cache>,
    trial: Option<Trial>,
    _ticker: Arc<Ticker>,
}

impl Sandbox {
    /// Makes the engine. `threads` is how many workers call patches at once.
    pub fn new(threads: usize) -> wasmtime::Result<Self> {
        space::check(memories(threads))?;
        let engine = Engine::new(&config(threads))?;
        let ticker = Arc::new(Ticker::start(engine.clone())?);
        Ok(Self { engine, cache: None, trial: None, _ticker: ticker })
    }

    /// A second engine that compiles without optimization, for one caller (the probe). A patch that answers differently
    /// there shows an error of the compiler or of the patch. It has no cache: what it compiles is used once.
    pub fn unoptimized(&self) -> wasmtime::Result<Self> {
        space::check(memories(1))?;
        let mut config = config(1);
        config.cranelift_opt_level(OptLevel::None);
        let engine = Engine::new(&config)?;
        let ticker = Arc::new(Ticker::start(engine.clone())?);
        Ok(Self { engine, cache: None, trial: self.trial.clone(), _ticker: ticker })
    }

    /// The same with a cache of compiled components, or with none.
    pub fn with_cache(self, cache: Option<Cache>) -> Self {
        Self { cache, ..self }
    }

    /// The same, but each component that is not bundled is first compiled in a child process: see [`super::trial`].
    pub fn with_trial(self, trial: Option<Trial>) -> Self {
        Self { trial, ..self }
    }

    /// The same for a host that does other work while it compiles: a trial compile may take longer.
    pub fn beside_decoding(self) -> Self {
        Self { trial: self.trial.map(Trial::patient), ..self }
    }

    /// Its cache of compiled components.
    pub fn cache(&self) -> Option<&Cache> {
        self.cache.as_ref()
    }

    /// Compiles a component, or finds it compiled. `digest` is the SHA-256 of `bytes`; `trusted` bytes, those inside this
    /// binary, need no trial, and neither do those that were compiled before.
    pub(crate) fn component(&self, bytes: &[u8], digest: &[u8; 32], trusted: bool) -> wasmtime::Result<Component> {
        let compile = || {
            if let Some(trial) = self.trial.as_ref().filter(|_| !trusted) {
                trial.compile(bytes)?;
            }
            Component::from_binary(&self.engine, bytes)
        };
        match &self.cache {
            Some(cache) => cache.component(&self.engine, digest, compile),
            None => compile(),
        }
    }

    /// The engine that compiles: everything of one sandbox must be of the same one.
    pub(crate) fn engine(&self) -> &Engine {
        &self.engine
    }
}

/// An engine that compiles as [`Sandbox`]'s does, and can do nothing else: no slots, no threads.
pub(super) fn compile_only() -> wasmtime::Result<Engine> {
    let mut config = code();
    config.parallel_compilation(false); // its memory and time are bounded for the whole process
    Engine::new(&config)
}

fn config(threads: usize) -> Config {
    let mut config = code();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pooling(threads)));
    // memory_reservation, guard size and signal-based traps stay at their defaults: anything else costs 1.5 to 1.7.
    config
}

/// What the code that is compiled depends on. One line and one reason per setting.
fn code() -> Config {
    let mut config = Config::new();

    // The language. Off is what no Rust guest needs and what has had most of the engine's bugs.
    config.wasm_memory64(false); // removes the guard-page argument for bounds checks
    config.wasm_tail_call(false); // not needed
    config.wasm_relaxed_simd(false); // results differ between CPUs; ranks must agree
    config.wasm_wide_arithmetic(false); // not needed
    config.wasm_custom_page_sizes(false); // not needed
    config.wasm_simd(true); // the rows kernel of `fp8_block_mse` lives from it
    // multi_memory, reference_types and multi_value stay ON here: with one of them off, wasmtime 48.0.8 panics on
    // composed components ("invalid adapter module generated"). The audit forbids multi-memory instead.
    // Compiled in (an advisory is about builds without it), and off: no guest needs a collector.
    config.wasm_gc(false).wasm_function_references(false).wasm_exceptions(false).gc_support(false);
    // Threads and stack switching are not compiled in at all (see the features in Cargo.toml).

    // Same bits on every rank.
    config.cranelift_nan_canonicalization(true); // NaN payloads otherwise depend on the CPU

    // Ending what does not end by itself.
    config.consume_fuel(true); // the contract: deterministic
    config.epoch_interruption(true); // the guard: wall time
    config.max_wasm_stack(STACK_BYTES); // recursion ends before the worker's own stack does

    // Cost of a call.
    config.concurrency_support(false); // synchronous only: async bookkeeping costs 3 to 8 times on a 0.5 us call
    config.cranelift_opt_level(OptLevel::Speed); // the quantize loop is the product

    // What a message can say.
    config.generate_address_map(true); // function names in trap messages
    config.native_unwind_info(false); // nobody unwinds through guests
    config
}

/// Instances at once: per worker the patches of the active set and of those that are retained, and some for what is staged.
fn slots(threads: usize) -> u32 {
    u32::try_from(threads.clamp(1, 256)).unwrap_or(256) * 16 + 64
}

/// Linear memories at once.
fn memories(threads: usize) -> u32 {
    slots(threads) * 2
}

fn pooling(threads: usize) -> PoolingAllocationConfig {
    let slots = slots(threads);
    let mut pooling = PoolingAllocationConfig::new();
    pooling.total_component_instances(slots);
    pooling.total_core_instances(slots * 4); // a component with an import holds a shim and a fixup module too
    pooling.total_memories(memories(threads));
    pooling.total_tables(slots * 4);
    pooling.total_stacks(1); // no call is async; the default reserves 2 GiB for a thousand
    pooling.max_memory_size(SLOT_MEMORY_BYTES);
    pooling.table_elements(SLOT_TABLE_ELEMENTS);
    pooling.linear_memory_keep_resident(KEEP_RESIDENT);
    pooling
}

/// Advances the engine's epoch until it is dropped.
struct Ticker {
    stop: Arc<(Mutex<bool>, Condvar)>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(engine: Engine) -> std::io::Result<Self> {
        let stop = Arc::new((Mutex::new(false), Condvar::new()));
        let seen = Arc::clone(&stop);
        let thread = std::thread::Builder::new().name("patchhost-epoch".into()).spawn(move || {
            let (flag, wake) = &*seen;
            let mut stopped = flag.lock().unwrap_or_else(PoisonError::into_inner);
            let (started, mut ticks) = (Instant::now(), 0);
            while !*stopped {
                stopped = wake.wait_timeout(stopped, TICK).unwrap_or_else(PoisonError::into_inner).0;
                // As many as are due: on a busy machine this thread wakes late, and counting its wakes would stretch every
                // deadline (eight seconds took 29 at a load of 16).
                let due = started.elapsed().as_millis() / TICK.as_millis();
                while ticks < due {
                    engine.increment_epoch();
                    ticks += 1;
                }
            }
        })?;
        Ok(Self { stop, thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        let (flag, wake) = &*self.stop;
        *flag.lock().unwrap_or_else(PoisonError::into_inner) = true;
        wake.notify_all();
        if let Some(thread) = self.thread.take() {
            // The thread holds no lock that this one holds, and a panic in it has nothing to report.
            let _ = thread.join();
        }
    }
}
