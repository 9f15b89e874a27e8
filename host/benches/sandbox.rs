//! What the sandbox costs: every row is measured against its native counterpart in interleaved pairs of one run, so that
//! a noisy machine spoils both alike. Run with `cargo bench -p patchhost --bench sandbox`.

use criterion::{Criterion, Throughput};
use half::bf16;
use patchhost::patch::{Limits, Patch, Sandbox, bundled};
use patchhost_kernels::activation::{group_amax, rule_scales};
use patchhost_kernels::cast::cast_panel;
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{ActivationRule, CastSpec, Edges, Elem, ScaleFormat};
use patchhost_kernels::stats::{StatsOptions, panel_stats};
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{BlockQuant, Blocks, Consumer, Decision, Dtype, ModelInfo, Role, RowPanel, TensorInfo};
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

const N: usize = 4096;
const BLOCK: usize = 128;
const NAME: &str = "model.layers.0.mlp.down_proj.weight";

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let sandbox = Sandbox::new(1).expect("an engine");
    let torch = [("profile".to_owned(), "verl-triton".to_owned())];
    let (_, amax_guest) = ready(&sandbox, "fp8_block", &torch);
    let (_, rows_guest) = ready(&sandbox, "fp8_block_mse", &[]);
    let matrix = Matrix::new();
    let native = Profile::VerlTriton.cast_spec(ScaleFormat::F32, Edges::Strict);
    let (stats_spec, rows_spec) = (matrix.spec(&*amax_guest), matrix.spec(&*rows_guest));

    let natively = || matrix.quantize(&native, |_, _, amax| native_scales(amax));
    let from_stats =
        || matrix.quantize(&stats_spec, |blocks, _, amax| amax_guest.scales(blocks, amax).expect("scales"));
    let search = kit::mse::Search::new(&kit::settings::MseSettings::default());
    let mse_natively = || matrix.quantize(&rows_spec, |blocks, panel, amax| native_mse(&search, blocks, panel, amax));
    let from_rows = || {
        matrix.quantize(&rows_spec, |blocks, panel, amax| rows_guest.panel_scales(blocks, panel, amax).expect("scales"))
    };

    // `cargo bench -- table` prints the table alone.
    if !std::env::args().any(|arg| arg == "table") {
        let mut criterion = Criterion::default().configure_from_args();
        let mut group = criterion.benchmark_group("quantize 4096x4096 bf16, one thread");
        group.sample_size(10).throughput(Throughput::Bytes(2 * (N * N) as u64));
        group.bench_function("amax, native", |b| b.iter(natively));
        group.bench_function("amax, guest", |b| b.iter(from_stats));
        group.bench_function("mse, native", |b| b.iter(mse_natively));
        group.bench_function("mse, guest", |b| b.iter(from_rows));
        group.finish();
        let amax: Vec<f32> = (0..32).map(|i| 0.5 + i as f32 / 7.0).collect();
        let mut group = criterion.benchmark_group("32 amax -> 32 scales");
        group.bench_function("native", |b| b.iter(|| native_scales(black_box(&amax))));
        group
            .bench_function("guest", |b| b.iter(|| amax_guest.scales(&FIRST_PANEL, black_box(&amax)).expect("scales")));
        group.finish();
        criterion.final_summary();
    }

    println!("{:<58} {:>12} {:>12}  ratio (quartiles)", "", "native", "guest");
    call(&*amax_guest, 1);
    call(&*amax_guest, 32);
    activation(&*amax_guest);
    row("quantize 4096x4096 bf16, one thread: scales from amax", 25, natively, from_stats);
    row("quantize 4096x4096 bf16, one thread: MSE from the rows", 5, mse_natively, from_rows);
    row("the same guest against native scales from amax", 5, natively, from_rows);
}

const FIRST_PANEL: Blocks<'_> =
    Blocks { tensor: NAME, rows: N, cols: N, block_rows: BLOCK, block_cols: BLOCK, first_block: 0 };

fn native_scales(amax: &[f32]) -> Vec<f32> {
    amax.iter().map(|amax| Profile::VerlTriton.given(ScaleFormat::F32, Edges::Strict, *amax)).collect()
}

/// The search of `fp8_block_mse` itself, compiled natively: the same source, four lanes of plain Rust.
fn native_mse(search: &kit::mse::Search, blocks: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Vec<f32> {
    let lent = kit::mse::Panel {
        tensor: NAME,
        first_block: blocks.first_block as u32,
        rows: panel.rows as u32,
        cols: N as u32,
        block_cols: BLOCK as u32,
        max_rows: 16,
    };
    let read = |first: u32, n: u32| -> Vec<u16> {
        let start = (panel.first_row + first as usize) * N * 2;
        let bytes = &panel.data[start..start + n as usize * N * 2];
        bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b)).collect()
    };
    kit::mse::panel_scales(search, &lent, amax, read).expect("scales")
}

/// As many scales out as amax in: 32 are one panel of 4096 columns, 1 shows the cost of the call itself.
fn call(guest: &dyn BlockQuant, count: usize) {
    let amax: Vec<f32> = (0..count).map(|i| 0.5 + i as f32 / 7.0).collect();
    let native = || {
        for _ in 0..1_000 {
            black_box(native_scales(black_box(&amax)));
        }
    };
    let asked = || {
        for _ in 0..1_000 {
            black_box(guest.scales(&FIRST_PANEL, black_box(&amax)).expect("scales"));
        }
    };
    row(&format!("1000 calls, {count} amax -> {count} scales"), 200, native, asked);
}

/// Activation scales of one token, K = 4096: the rule, or a call.
fn activation(guest: &dyn BlockQuant) {
    let x: Vec<f32> = (0..N).map(|i| (i as f32 * 0.37).sin()).collect();
    let rule = ActivationRule { eps: 1e-10, divisor: 448.0, pow2_up: false };
    let native = || {
        let (mut amax, mut scales) = (Vec::new(), vec![0.0; N / BLOCK]);
        for _ in 0..1_000 {
            group_amax(black_box(&x), 1, N, &mut amax);
            rule_scales(&rule, &amax, &mut scales);
            black_box(&scales);
        }
    };
    let asked = || {
        let mut amax = Vec::new();
        for _ in 0..1_000 {
            group_amax(black_box(&x), 1, N, &mut amax);
            black_box(guest.activation_scales(&amax).expect("scales"));
        }
    };
    row("1000 activation scales, M=1 K=4096: rule, call", 200, native, asked);
}

/// One line: medians, and the median and quartiles of the ratios of pairs.
fn row(what: &str, pairs: usize, native: impl Fn(), guest: impl Fn()) {
    native();
    guest();
    let mut times: Vec<(Duration, Duration)> = Vec::with_capacity(pairs);
    for pair in 0..pairs {
        // Which goes first alternates.
        if pair % 2 == 0 {
            let first = time(&native);
            times.push((first, time(&guest)));
        } else {
            let first = time(&guest);
            times.push((time(&native), first));
        }
    }
    let mut ratios: Vec<f64> = times.iter().map(|(n, g)| g.as_secs_f64() / n.as_secs_f64()).collect();
    ratios.sort_by(f64::total_cmp);
    let at = |quarter: usize| ratios[(ratios.len() - 1) * quarter / 4];
    let median = |of: fn(&(Duration, Duration)) -> Duration| {
        let mut all: Vec<Duration> = times.iter().map(of).collect();
        all.sort();
        all[all.len() / 2]
    };
    let (n, g) = (median(|t| t.0), median(|t| t.1));
    println!("{what:<58} {n:>12.1?} {g:>12.1?}  {:.3} ({:.3}-{:.3})", at(2), at(1), at(3));
}

fn time(work: &impl Fn()) -> Duration {
    let started = Instant::now();
    work();
    started.elapsed()
}

fn ready(sandbox: &Sandbox, name: &str, settings: &[(String, String)]) -> (Arc<Patch>, Arc<dyn BlockQuant>) {
    let candidate = bundled::bundled(name).expect("bundled");
    let verification = candidate.default_verification();
    let patch = candidate
        .verify(&verification)
        .and_then(|verified| verified.audit())
        .and_then(|audited| audited.compile(sandbox))
        .and_then(|compiled| compiled.ready(settings, Limits::default()))
        .unwrap_or_else(|error| panic!("{error}"));
    let quant = patch.block_quant().expect("a block quantizer");
    (patch, quant)
}

/// 4096x4096 of normal-ish weights in bf16.
struct Matrix {
    data: TensorBytes,
}

impl Matrix {
    fn new() -> Self {
        let mut state = 1u32;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let values = (0..N * N).map(|_| bf16::from_f32((uniform() + uniform() + uniform() + uniform()) * 0.04));
        let bytes: Vec<u8> = values.flat_map(|x| x.to_le_bytes()).collect();
        let length = bytes.len();
        Self { data: TensorBytes::new(Arc::new(bytes), 0..length).expect("all of it") }
    }

    /// The cast that a patch decides on.
    fn spec(&self, guest: &dyn BlockQuant) -> CastSpec {
        let model = ModelInfo {
            architecture: "LlamaForCausalLM".into(),
            model_type: "llama".into(),
            layers: 1,
            experts: 0,
            config: "{}".into(),
        };
        let reader = Consumer { engine: "patchhost".into(), version: env!("CARGO_PKG_VERSION").into() };
        let shape = vec![N as u64, N as u64];
        let tensor = TensorInfo { name: NAME.into(), dtype: Dtype::Bf16, shape, role: Role::Mlp };
        match guest.decide(&model, &reader, &[tensor]).unwrap_or_else(|error| panic!("{error}")).remove(0) {
            Decision::Quantize(scheme) => scheme.cast,
            Decision::Keep(why) => panic!("kept: {why}"),
        }
    }

    fn quantize(&self, spec: &CastSpec, scales: impl Fn(&Blocks<'_>, &RowPanel, &[f32]) -> Vec<f32>) {
        let source = Source::new(&self.data, Elem::Bf16, N, N).expect("4096x4096");
        let mut q = vec![0; N * N];
        let mut stored = vec![0.0; N / BLOCK];
        for (panel, q) in q.chunks_mut(BLOCK * N).enumerate() {
            let first_row = panel * BLOCK;
            let stats = panel_stats(&source, first_row, BLOCK, BLOCK, &StatsOptions::default());
            let blocks = Blocks {
                tensor: NAME,
                rows: N,
                cols: N,
                block_rows: BLOCK,
                block_cols: BLOCK,
                first_block: panel * (N / BLOCK),
            };
            let rows = RowPanel { data: self.data.clone(), elem: Elem::Bf16, cols: N, first_row, rows: BLOCK };
            let given = scales(&blocks, &rows, &stats.amax);
            let cast = cast_panel(&source, first_row, BLOCK, BLOCK, &given, &stats.amax, spec, false, q, &mut stored);
            cast.unwrap_or_else(|violation| panic!("{violation}"));
        }
        black_box(&q);
    }
}
