//! What changing a patch costs, and what those who are decoding see of it. All rows of a table come from one run, phases
//! taken in turns, so that a noisy machine spoils all alike. Run with `cargo bench -p patchhost --bench swap`;
//! `-- table` prints the tables alone.

use criterion::Criterion;
use patchhost::checkpoint::bundled as model;
use patchhost::live::{LiveModel, LiveOptions};
use patchhost::patch::{
    Actor, Attachments, Cache, Candidate, Description, Digest, HookOptions, Ledger, Patch, Phase, Reviewing, Rules,
    Sandbox, SwapRequest, Terms, When, bundled,
};
use patchhost_runtime::activation::ActivationMode;
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::refit::Begin;
use patchhost_runtime::scheduler::{Event, Job, SampleParams, Scheduler, SchedulerOptions};
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

/// Texts that are generated at once while patches change.
const CLIENTS: usize = 4;
/// How long a phase of the decoding table lasts, and how often each comes.
const PHASE: Duration = Duration::from_secs(2);
const ROUNDS: usize = 3;

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let cache = Cache::open(&folder.path().join("aot")).expect("a cache");
    let sandbox = Sandbox::new(rayon::current_num_threads()).expect("an engine").with_cache(Some(cache));
    let cold = sandbox.clone().with_cache(None);
    let candidate = || bundled::bundled("fp8_block").expect("bundled");
    let (live, compiling) = (model_in(&sandbox), model_in(&cold));

    if !std::env::args().any(|arg| arg == "table") {
        let mut criterion = Criterion::default().configure_from_args();
        let mut group = criterion.benchmark_group("a candidate, fp8_block");
        group.sample_size(20);
        group.bench_function("machine code from the cache, started", |b| b.iter(|| started(&candidate(), &sandbox)));
        group.bench_function("compiled, started", |b| b.iter(|| started(&candidate(), &cold)));
        group.finish();
        criterion.final_summary();
    }

    println!("{:<66} {:>10} {:>10} {:>10}", "", "median", "p90", "most");
    let audit = |candidate: Candidate| {
        black_box(audited(candidate));
    };
    row("verify and audit", &mut times(200, || audit(candidate())));
    let (mut code, mut start) = (Vec::new(), Vec::new());
    for _ in 0..200 {
        let audited = audited(candidate());
        let began = Instant::now();
        let compiled = audited.compile(&sandbox).unwrap_or_else(|e| panic!("{e}"));
        code.push(began.elapsed());
        let patch = compiled.ready().unwrap_or_else(|e| panic!("{e}"));
        start.push(began.elapsed());
        black_box(patch);
    }
    row("machine code from the cache", &mut code);
    row("machine code from the cache, and started (goal 0.5 ms)", &mut start);
    row("machine code compiled, and started", &mut times(8, || drop(started(&candidate(), &cold))));
    let mut number = 0;
    row(
        "stage: verify, audit, machine code from the cache, start, probe",
        &mut times(50, || {
            number += 1;
            stage(&live, number);
        }),
    );
    let refit = || drop(live.refit(model::checkpoint().expect("bundled"), Begin::default(), &me(), &|_, _, _| {}));
    row("a refit of the bundled model (8.9 MB)", &mut times(50, refit));
    row("a swap `now`, with the weights loaded again", &mut times(50, || swap(&live)));
    pause(&live);

    decoding(&live, &compiling);
}

fn me() -> Actor {
    Actor::new("bench")
}

fn audited(candidate: Candidate) -> patchhost::patch::Audited {
    let admitted = candidate.admit(&Reviewing::default(), &Terms::default());
    admitted.and_then(|admitted| admitted.audit()).unwrap_or_else(|error| panic!("{error}"))
}

fn started(candidate: &Candidate, sandbox: &Sandbox) -> Arc<Patch> {
    let compiled = audited(candidate.clone()).compile(sandbox).unwrap_or_else(|error| panic!("{error}"));
    compiled.ready().unwrap_or_else(|error| panic!("{error}"))
}

/// The bundled model with two sets that were active before, so that a rollback goes from one to the other. Activation
/// scales are a call: each set is asked in every forward pass.
fn model_in(sandbox: &Sandbox) -> Arc<LiveModel> {
    let engine = Engine::new(model::CONFIG, EngineOptions::default()).expect("bundled");
    let mut start = Attachments::new(Description::patchhost(&engine.info().architecture));
    for (name, settings) in [("moe_loader", vec![]), ("fp8_block", vec![("activation".to_owned(), "call".to_owned())])]
    {
        let started =
            Reviewing::default().start(bundled::bundled(name).expect("bundled"), &Terms::settings(settings), sandbox);
        let patch = started.unwrap_or_else(|error| panic!("{error}"));
        start.attach(patch, Phase::EngineUp).expect("attached");
    }
    let vocabulary = u32::try_from(model::tokenizer().expect("bundled").vocabulary()).ok();
    let hooks = HookOptions { activation: ActivationMode::Dynamic128, vocabulary, ..HookOptions::default() };
    let options = LiveOptions { hooks, ..LiveOptions::default() };
    let live = LiveModel::new(engine, &start, sandbox.clone(), Rules::default(), Ledger::in_memory(), options);
    let live = Arc::new(live.expect("threads"));
    live.load(model::checkpoint().expect("bundled"), &me(), &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}"));
    let to = stage(&live, 0);
    live.swap(&SwapRequest { when: When::Now, ..SwapRequest::to(to) }, &me()).unwrap_or_else(|error| panic!("{error}"));
    live
}

/// Stages `fp8_block` as a generation that was never staged before.
fn stage(live: &LiveModel, number: u64) -> Digest {
    let pair = |key: &str, value: String| (key.to_owned(), value);
    let settings = [pair("activation", "call".into()), pair("keep", format!("no_such_tensor_{number}.*"))];
    let candidate = bundled::bundled("fp8_block").expect("bundled");
    live.stage(candidate, None, &settings, &me()).unwrap_or_else(|error| panic!("{error}")).generation
}

/// From the one set to the other and the next time back.
fn swap(live: &LiveModel) {
    let done = live.rollback(When::Now, None, &me()).unwrap_or_else(|error| panic!("{error}"));
    assert!(done.landed.is_some(), "{done:?}");
}

/// What a worker sees that asks for the weights and the activation scales of one token again and again: how much longer
/// the first time after a swap takes than the others.
fn pause(live: &Arc<LiveModel>) {
    let stop = Arc::new(AtomicBool::new(false));
    let worker = {
        let (live, stop) = (live.clone(), stop.clone());
        std::thread::spawn(move || {
            let x: Vec<f32> = (0..256).map(|i| (i as f32 * 0.37).sin()).collect();
            let (mut usual, mut first, mut seen) = (Vec::new(), Vec::new(), 0);
            while !stop.load(Ordering::Relaxed) {
                let began = Instant::now();
                let weights = live.weights_for("bench").expect("weights");
                black_box(weights.activation().quantized(&x, 1, 256).expect("scales"));
                let took = began.elapsed();
                if weights.version() == seen {
                    usual.push(took);
                } else {
                    seen = weights.version();
                    first.push(took);
                }
                std::thread::sleep(Duration::from_micros(100));
            }
            (usual, first)
        })
    };
    for _ in 0..100 {
        swap(live);
        std::thread::sleep(Duration::from_millis(3));
    }
    stop.store(true, Ordering::Relaxed);
    let (mut usual, mut first) = worker.join().expect("a worker");
    row("weights and activation scales of a token, as ever", &mut usual);
    row("the same, the first time after a swap (goal 50 us more)", &mut first);
}

/// What goes on, one turn of it, the gaps between tokens meanwhile, and how many turns there were.
type Going<'a> = (&'a str, &'a mut dyn FnMut(), Vec<Duration>, u64);

/// Gaps between the tokens of texts that are generated while other things go on. `compiling` has no cache.
fn decoding(live: &Arc<LiveModel>, compiling: &LiveModel) {
    let gaps: Arc<Mutex<Vec<Duration>>> = Arc::default();
    let weights = live.clone();
    let scheduler = Scheduler::start(
        live.engine().clone(),
        Arc::new(model::tokenizer().expect("bundled")),
        Arc::new(move |id: &str| weights.weights_for(id)),
        SchedulerOptions::default(),
    );
    let scheduler = scheduler.expect("a thread");
    let running = Arc::new(AtomicU64::new(0));
    let stop = Arc::new(AtomicBool::new(false));
    let feeder = {
        let (scheduler, gaps, running, stop) = (scheduler.clone(), gaps.clone(), running.clone(), stop.clone());
        std::thread::spawn(move || {
            while !stop.load(Ordering::Relaxed) {
                while running.load(Ordering::Relaxed) < CLIENTS as u64 {
                    running.fetch_add(1, Ordering::Relaxed);
                    scheduler.submit(job(&gaps, &running)).unwrap_or_else(|error| panic!("{error}"));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        })
    };
    let refit = || drop(live.refit(model::checkpoint().expect("bundled"), Begin::default(), &me(), &|_, _, _| {}));
    let number = AtomicU64::new(1 << 32);
    let staged = |live: &LiveModel| {
        stage(live, number.fetch_add(1, Ordering::Relaxed));
    };
    let mut phases: [Going<'_>; 5] = [
        ("nothing", &mut || std::thread::sleep(Duration::from_millis(50)), Vec::new(), 0),
        ("refits, one after the other", &mut || refit(), Vec::new(), 0),
        ("swaps `now`, one after the other", &mut || swap(live), Vec::new(), 0),
        ("candidates staged, machine code from the cache", &mut || staged(live), Vec::new(), 0),
        ("candidates staged, compiled", &mut || staged(compiling), Vec::new(), 0),
    ];
    std::thread::sleep(Duration::from_millis(300));
    for _ in 0..ROUNDS {
        for (_, work, all, times) in &mut phases {
            gaps.lock().expect("not poisoned").clear();
            let began = Instant::now();
            while began.elapsed() < PHASE {
                work();
                *times += 1;
            }
            all.append(&mut gaps.lock().expect("not poisoned"));
        }
    }
    stop.store(true, Ordering::Relaxed);
    feeder.join().expect("a feeder");
    scheduler.abort_all();
    println!("\n{CLIENTS} texts generated, gaps between their tokens while there are");
    println!("{:<50} {:>6} {:>8} {:>9} {:>9} {:>9} {:>9}", "", "times", "gaps", "p50", "p99", "p99.9", "most");
    let mut usual = None;
    for (what, _, all, times) in &mut phases {
        all.sort();
        let at = |p: f64| all[((all.len() - 1) as f64 * p) as usize];
        let (p50, p99) = (at(0.5), at(0.99));
        let (u50, u99) = *usual.get_or_insert((p50, p99));
        let ratio = |a: Duration, b: Duration| a.as_secs_f64() / b.as_secs_f64();
        println!(
            "{what:<50} {times:>6} {:>8} {p50:>9.2?} {p99:>9.2?} {:>9.2?} {:>9.2?}   p50 {:.2}, p99 {:.2} times the usual",
            all.len(),
            at(0.999),
            at(1.0),
            ratio(p50, u50),
            ratio(p99, u99)
        );
    }
}

fn job(gaps: &Arc<Mutex<Vec<Duration>>>, running: &Arc<AtomicU64>) -> Job {
    let (gaps, running) = (gaps.clone(), running.clone());
    let mut last: Option<Instant> = None;
    let sink = move |event: Event| {
        match event {
            Event::Token(token) => {
                if let Some(before) = last.replace(token.at) {
                    gaps.lock().expect("not poisoned").push(token.at.duration_since(before));
                }
            }
            Event::Done(_) => drop(running.fetch_sub(1, Ordering::Relaxed)),
            Event::Started(_) => {}
        }
        true
    };
    let params = SampleParams { max_tokens: 100, ignore_eos: true, seed: Some(1), ..SampleParams::default() };
    Job { id: "bench".into(), prompt: vec![5, 6, 7], params, adapter: None, index: 0, sink: Box::new(sink) }
}

fn times(count: usize, mut work: impl FnMut()) -> Vec<Duration> {
    work();
    let mut all = Vec::with_capacity(count);
    for _ in 0..count {
        let began = Instant::now();
        work();
        all.push(began.elapsed());
    }
    all
}

fn row(what: &str, all: &mut [Duration]) {
    all.sort();
    let at = |p: f64| all[((all.len() - 1) as f64 * p) as usize];
    println!("{what:<66} {:>10.1?} {:>10.1?} {:>10.1?}", at(0.5), at(0.9), at(1.0));
}
