//! A refit against the native quantization of the same bytes: what planning, the sandbox, staging and publishing cost.
//! Interleaved pairs of one run. `cargo bench -p patchhost --bench refit`; `-- table` prints the table alone.

#[path = "../kernels/benches/timing/mod.rs"]
mod timing;

use criterion::{Criterion, Throughput};
use patchhost::patch::{Patch, Reviewing, Sandbox, Terms, bundled};
use patchhost_kernels::cast::{ContractViolation, Measure};
use patchhost_kernels::panel::{PanelSpec, StripAt, quantize_panels};
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{Edges, Elem, ScaleFormat};
use patchhost_kernels::stats::PanelStats;
use patchhost_runtime::checkpoint::{Checkpoint, CheckpointTensor};
use patchhost_runtime::engine::{Engine, EngineOptions};
use patchhost_runtime::refit::RefitHooks;
use rayon::prelude::*;
use std::fs::File;
use std::hint::black_box;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use timing::{median, seconds};

const BLOCK: usize = 128;
const HIDDEN: usize = 2048;
const INTERMEDIATE: usize = 5632;
const LAYERS: usize = 6;
const VOCAB: usize = 4096;

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let folder = Folder::new();
    let checkpoint = Checkpoint::open(&folder.0).expect("the checkpoint");
    let body = std::fs::read(folder.0.join("model.safetensors")).expect("the file");
    let body = Checkpoint::from_shared("body", Arc::new(body)).expect("the body");
    let sandbox = Sandbox::new(2).expect("an engine");
    let (_patch, quant) = ready(&sandbox, "fp8_block");
    let hooks = RefitHooks { quant: Some(quant), ..RefitHooks::default() };
    let engine = Engine::new(&config(), EngineOptions::default()).expect("the model");
    let refit = |checkpoint: &Checkpoint| {
        black_box(engine.refit(checkpoint, &hooks, &|_, _, _| {}).unwrap_or_else(|error| panic!("{error}")));
    };
    let mut native = Native::new(&checkpoint);
    let bytes = checkpoint.tensors().map(|t| t.data.len()).sum::<usize>();
    let pools = [1, 2].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"));

    let memory = peak(&pools[1], || refit(&checkpoint));
    let weights = engine.live().expect("weights").bytes() as f64;

    if !std::env::args().any(|arg| arg == "table") {
        let mut criterion = Criterion::default().configure_from_args();
        let mut group = criterion.benchmark_group(format!("{} MB of bf16, 2 threads", bytes / 1_000_000));
        group.sample_size(10).throughput(Throughput::Bytes(bytes as u64));
        group.bench_function("native quantization", |b| pools[1].install(|| b.iter(|| native.run(&checkpoint))));
        group.bench_function("refit, file", |b| pools[1].install(|| b.iter(|| refit(&checkpoint))));
        group.bench_function("refit, body", |b| pools[1].install(|| b.iter(|| refit(&body))));
        group.finish();
        criterion.final_summary();
    }

    println!("{} MB of bf16; medians of interleaved pairs; 1T: CPU time, 2T: wall time\n", bytes / 1_000_000);
    println!("| {:<44} | {:>6} | {:<7} | detail", "figure", "ratio", "goal");
    println!("|{}|{}|{}|---", "-".repeat(46), "-".repeat(8), "-".repeat(9));
    for (i, pool) in pools.iter().enumerate() {
        for (name, checkpoint) in [("file", &checkpoint), ("body", &body)] {
            pool.install(|| {
                let mut times = Vec::new();
                for pair in 0..10 {
                    let own = seconds(|| refit(checkpoint));
                    let base = seconds(|| native.run(checkpoint));
                    // The first pair only touches the memory.
                    if pair > 0 {
                        times.push((own, base));
                    }
                }
                let of = |f: fn(&(f64, f64)) -> f64| median(times.iter().map(f).collect());
                let rate = |t: f64| bytes as f64 / t * 1e-9;
                let (own, base) = (of(|t| t.0), of(|t| t.1));
                let detail = format!(
                    "{:.0} ms ({:.1} GB/s), natively {:.0} ms ({:.1})",
                    own * 1e3,
                    rate(own),
                    base * 1e3,
                    rate(base)
                );
                let figure = format!("refit from a {name} / native rate, {}T", i + 1);
                println!("| {figure:<44} | {:>6.2} | {:<7} | {detail}", of(|(own, base)| base / own), ">= 0.8");
            });
        }
    }
    // A first refit, with nothing live beside it.
    let detail = format!("{:.0} MB at the peak, the weights take {:.0} MB", memory * 1e-6, weights * 1e-6);
    println!("| {:<44} | {:>6.2} | {:<7} | {detail}", "memory of a refit / its weights", memory / weights, "<= 1.1");
}

/// How much the anonymous memory of this process grows at most.
fn peak(pool: &rayon::ThreadPool, work: impl Fn() + Sync) -> f64 {
    let before = resident();
    let (peak, done) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                peak.fetch_max(resident(), Ordering::Relaxed);
                std::thread::sleep(Duration::from_micros(500));
            }
        });
        pool.install(&work);
        done.store(true, Ordering::Relaxed);
    });
    peak.into_inner().saturating_sub(before) as f64
}

/// Anonymous memory of this process; 0 where the system does not say.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap_or_default();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
}

/// The kernels alone, into memory that is there: every matrix that the refit quantizes.
struct Native {
    codes: Vec<(String, Vec<u8>, Vec<f32>)>,
}

impl Native {
    fn new(checkpoint: &Checkpoint) -> Self {
        let matrices = checkpoint.tensors().filter(|t| quantized(t));
        let codes = matrices.map(|t| {
            let elements = t.shape.iter().product::<usize>();
            (t.name.clone(), vec![0; elements], vec![0.0; elements / BLOCK / BLOCK])
        });
        Self { codes: codes.collect() }
    }

    fn run(&mut self, checkpoint: &Checkpoint) {
        let cast = Profile::VerlTorch.cast_spec(ScaleFormat::F32, Edges::Strict);
        let measure = Measure::Nothing;
        let spec =
            PanelSpec { block_rows: BLOCK, block_cols: BLOCK, moments: false, cast: &cast, measure, whole: false };
        for (name, q, scales) in &mut self.codes {
            let tensor = checkpoint.get(name).expect("it was there");
            let (rows, cols) = (tensor.shape[0], tensor.shape[1]);
            let data = tensor.data.load().expect("the checkpoint is still there");
            let source = Source::new(&data, Elem::Bf16, rows, cols).expect("a matrix");
            let run = (rows / BLOCK / rayon::current_num_threads()).clamp(1, 8);
            let panels = q.par_chunks_mut(run * BLOCK * cols).zip(scales.par_chunks_mut(run * cols / BLOCK));
            panels.enumerate().for_each(|(i, (q, scales))| {
                let ask = |_: StripAt, stats: &PanelStats| -> Result<_, ContractViolation> {
                    let given = |a: &f32| Profile::VerlTorch.given(ScaleFormat::F32, Edges::Strict, *a);
                    Ok(stats.amax.iter().map(given).collect())
                };
                quantize_panels(&source, i * run, &spec, ask, |_, v| v, q, scales).unwrap_or_else(|v| panic!("{v}"));
            });
        }
        black_box(&self.codes);
    }
}

fn quantized(tensor: &CheckpointTensor) -> bool {
    tensor.name.contains("proj")
}

fn ready(sandbox: &Sandbox, name: &str) -> (Arc<Patch>, Arc<dyn patchhost_runtime::hooks::BlockQuant>) {
    let candidate = bundled::bundled(name).expect("bundled");
    let started = Reviewing::default().start(candidate, &Terms::default(), sandbox);
    let patch = started.unwrap_or_else(|error| panic!("{error}"));
    let quant = patch.block_quant().expect("a block quantizer");
    (patch, quant)
}

fn config() -> String {
    format!(
        r#"{{"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": {VOCAB}, "hidden_size": {HIDDEN},
        "num_hidden_layers": {LAYERS}, "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 128,
        "intermediate_size": {INTERMEDIATE}, "hidden_act": "silu", "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "max_position_embeddings": 2048, "tie_word_embeddings": true, "attention_bias": false}}"#
    )
}

/// A model of random weights in a folder that goes with it.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("patchhost-bench-refit-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("a folder");
        write(&folder.join("model.safetensors")).expect("written");
        Self(folder)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn write(path: &Path) -> std::io::Result<()> {
    let mut tensors: Vec<(String, Vec<usize>)> =
        vec![("model.embed_tokens.weight".into(), vec![VOCAB, HIDDEN]), ("model.norm.weight".into(), vec![HIDDEN])];
    for layer in 0..LAYERS {
        for (name, shape) in [
            ("self_attn.q_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.k_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.v_proj", vec![HIDDEN, HIDDEN]),
            ("self_attn.o_proj", vec![HIDDEN, HIDDEN]),
            ("mlp.gate_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.up_proj", vec![INTERMEDIATE, HIDDEN]),
            ("mlp.down_proj", vec![HIDDEN, INTERMEDIATE]),
            ("input_layernorm", vec![HIDDEN]),
            ("post_attention_layernorm", vec![HIDDEN]),
        ] {
            tensors.push((format!("model.layers.{layer}.{name}.weight"), shape));
        }
    }
    let (mut header, mut at) = (Vec::new(), 0);
    for (name, shape) in &tensors {
        let end = at + 2 * shape.iter().product::<usize>();
        header.push(format!(r#""{name}": {{"dtype": "BF16", "shape": {shape:?}, "data_offsets": [{at}, {end}]}}"#));
        at = end;
    }
    let mut header = format!("{{{}}}", header.join(", "));
    while !header.len().is_multiple_of(8) {
        header.push(' ');
    }
    let mut out = BufWriter::new(File::create(path)?);
    out.write_all(&(header.len() as u64).to_le_bytes())?;
    out.write_all(header.as_bytes())?;
    // Normal enough: the sum of four uniforms. One piece of it again and again.
    let mut state = 7u64;
    let piece: Vec<u8> = (0..1 << 20)
        .flat_map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let sum: u32 = (0..4).map(|i| (state >> (16 * i)) as u32 & 0xffff).sum();
            half::bf16::from_f32((sum as f32 / 65536.0 - 2.0) * 0.035).to_le_bytes()
        })
        .collect();
    let mut left = at;
    while left > 0 {
        let n = left.min(piece.len());
        out.write_all(&piece[..n])?;
        left -= n;
    }
    out.flush()
}
