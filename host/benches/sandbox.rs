//! What the sandbox costs: every row is measured against its native counterpart in interleaved pairs of one run, so that
//! a noisy machine spoils both alike. Run with `cargo bench -p patchhost --bench sandbox`.

#[path = "../kernels/benches/timing/mod.rs"]
mod timing;

use criterion::{Criterion, Throughput};
use half::bf16;
use patchhost::patch::{Patch, Reviewing, Sandbox, Terms, bundled};
use patchhost_kernels::activation::{group_amax, rule_scales};
use patchhost_kernels::cast::{ContractViolation, Measure};
use patchhost_kernels::panel::{PanelSpec, quantize_panels};
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{ActivationRule, CastSpec, Edges, Elem, ScaleFormat};
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{BlockQuant, Blocks, Consumer, Decision, Dtype, ModelInfo, Role, RowPanel, TensorInfo};
use rayon::prelude::*;
use std::hint::black_box;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use timing::seconds;

const N: usize = 4096;
const BLOCK: usize = 128;
const NAME: &str = "model.layers.0.mlp.down_proj.weight";

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let sandbox = Sandbox::new(2).expect("an engine");
    let torch = [("profile".to_owned(), "verl-triton".to_owned())];
    let (_, amax_guest) = ready(&sandbox, "fp8_block", &torch);
    let (_, rows_guest) = ready(&sandbox, "fp8_block_mse", &[]);
    let matrix = Matrix::new();
    let native = Profile::VerlTriton.cast_spec(ScaleFormat::F32, Edges::Strict);
    let (stats_spec, rows_spec) = (matrix.spec(&*amax_guest), matrix.spec(&*rows_guest));

    let natively = || matrix.quantize(&native, false, |_, _, amax| native_scales(amax));
    let from_stats =
        || matrix.quantize(&stats_spec, false, |blocks, _, amax| amax_guest.scales(blocks, amax).expect("scales"));
    let search = kit::mse::Search::new(&kit::settings::MseSettings::default());
    let mse_natively =
        || matrix.quantize(&rows_spec, true, |_, panel, amax| native_mse(&search, &matrix.values, panel, amax));
    let from_rows = || {
        matrix.quantize(&rows_spec, true, |blocks, panel, amax| {
            rows_guest.panel_scales(blocks, panel, amax).expect("scales")
        })
    };
    let pools = [1, 2].map(|threads| rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads"));

    // `cargo bench -- table` prints the table alone.
    if !std::env::args().any(|arg| arg == "table") {
        let mut criterion = Criterion::default().configure_from_args();
        let mut group = criterion.benchmark_group("quantize 4096x4096 bf16, one thread");
        group.sample_size(10).throughput(Throughput::Bytes(2 * (N * N) as u64));
        group.bench_function("amax, native", |b| pools[0].install(|| b.iter(natively)));
        group.bench_function("amax, guest", |b| pools[0].install(|| b.iter(from_stats)));
        group.bench_function("mse, native", |b| pools[0].install(|| b.iter(mse_natively)));
        group.bench_function("mse, guest", |b| pools[0].install(|| b.iter(from_rows)));
        group.finish();
        let amax: Vec<f32> = (0..32).map(|i| 0.5 + i as f32 / 7.0).collect();
        let mut group = criterion.benchmark_group("32 amax -> 32 scales");
        group.bench_function("native", |b| b.iter(|| native_scales(black_box(&amax))));
        group
            .bench_function("guest", |b| b.iter(|| amax_guest.scales(&FIRST_PANEL, black_box(&amax)).expect("scales")));
        group.finish();
        criterion.final_summary();
    }

    println!("1 thread: CPU time; 2 threads: wall time. Medians, and the ratios of interleaved pairs with quartiles\n");
    println!("| {:<54} | {:>10} | {:>10} | {:<21} | goal", "figure", "native", "guest", "ratio");
    println!("|{}|{}|{}|{}|---", "-".repeat(56), "-".repeat(12), "-".repeat(12), "-".repeat(23));
    pools[0].install(|| {
        call(&*amax_guest, 1);
        call(&*amax_guest, 32);
        activation(&*amax_guest);
    });
    for (i, pool) in pools.iter().enumerate() {
        let t = format!("{}T", i + 1);
        pool.install(|| {
            row(&format!("quantize 4096x4096, scales from amax, {t}"), "<= 1.05", 41, natively, from_stats);
            row(&format!("quantize 4096x4096, MSE from rows, {t}"), "<= 1.5", 15, mse_natively, from_rows);
            row(&format!("the same guest / native scales from amax, {t}"), "-", 9, natively, from_rows);
        });
    }
}

const FIRST_PANEL: Blocks<'_> =
    Blocks { tensor: NAME, rows: N, cols: N, block_rows: BLOCK, block_cols: BLOCK, first_block: 0 };

fn native_scales(amax: &[f32]) -> Vec<f32> {
    amax.iter().map(|amax| Profile::VerlTriton.given(ScaleFormat::F32, Edges::Strict, *amax)).collect()
}

/// The search of `fp8_block_mse` itself, compiled natively for this machine's vectors. It borrows the rows, as native
/// code can.
fn native_mse(search: &kit::mse::Search, values: &[u16], panel: &RowPanel, amax: &[f32]) -> Vec<f32> {
    let lent = kit::mse::Panel {
        tensor: NAME,
        first_block: 0,
        rows: panel.rows as u32,
        cols: N as u32,
        block_cols: BLOCK as u32,
        max_rows: panel.rows as u32,
    };
    let rows = &values[panel.first_row * N..][..panel.rows * N];
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx2") && std::arch::is_x86_feature_detected!("bmi2") {
        // SAFETY: both features were detected just now.
        return unsafe { with_avx2(search, &lent, amax, rows) };
    }
    panel_scales(search, &lent, amax, rows)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,bmi1,bmi2")]
fn with_avx2(search: &kit::mse::Search, lent: &kit::mse::Panel<'_>, amax: &[f32], rows: &[u16]) -> Vec<f32> {
    panel_scales(search, lent, amax, rows)
}

#[inline(always)]
fn panel_scales(search: &kit::mse::Search, lent: &kit::mse::Panel<'_>, amax: &[f32], rows: &[u16]) -> Vec<f32> {
    let read = |first: u32, n: u32| &rows[first as usize * N..][..n as usize * N];
    kit::mse::panel_scales(search, lent, amax, read).expect("scales")
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
    let goal = if count == 32 { "0.6 ms" } else { "-" };
    row(&format!("1000 calls, {count} amax -> {count} scales"), goal, 200, native, asked);
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
    row("1000 activation scales, M=1 K=4096: rule, call", "-", 200, native, asked);
}

/// One line: medians, and the median and quartiles of the ratios of pairs.
fn row(what: &str, goal: &str, pairs: usize, native: impl Fn(), guest: impl Fn()) {
    native();
    guest();
    let mut times: Vec<(f64, f64)> = Vec::with_capacity(pairs);
    for pair in 0..pairs {
        // Which goes first alternates.
        if pair % 2 == 0 {
            let first = seconds(&native);
            times.push((first, seconds(&guest)));
        } else {
            let first = seconds(&guest);
            times.push((seconds(&native), first));
        }
    }
    let sorted = |of: fn(&(f64, f64)) -> f64| {
        let mut all: Vec<f64> = times.iter().map(of).collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let ratios = sorted(|(n, g)| g / n);
    let at = |quarter: usize| ratios[(ratios.len() - 1) * quarter / 4];
    let median = |all: Vec<f64>| Duration::from_secs_f64(all[all.len() / 2]);
    let (n, g) = (median(sorted(|t| t.0)), median(sorted(|t| t.1)));
    let ratio = format!("{:.3} ({:.3}-{:.3})", at(2), at(1), at(3));
    println!("| {what:<54} | {n:>10.2?} | {g:>10.2?} | {ratio:<21} | {goal}");
}

fn ready(sandbox: &Sandbox, name: &str, settings: &[(String, String)]) -> (Arc<Patch>, Arc<dyn BlockQuant>) {
    let candidate = bundled::bundled(name).expect("bundled");
    let started = Reviewing::default().start(candidate, &Terms::settings(settings.to_vec()), sandbox);
    let patch = started.unwrap_or_else(|error| panic!("{error}"));
    let quant = patch.block_quant().expect("a block quantizer");
    (patch, quant)
}

/// 4096x4096 of normal-ish weights in bf16, and where their codes go.
struct Matrix {
    values: Vec<u16>,
    data: TensorBytes,
    codes: Mutex<(Vec<u8>, Vec<f32>)>,
}

impl Matrix {
    fn new() -> Self {
        let mut state = 1u32;
        let mut uniform = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 24) as f32 - 0.5
        };
        let values: Vec<u16> = (0..N * N)
            .map(|_| bf16::from_f32((uniform() + uniform() + uniform() + uniform()) * 0.04).to_bits())
            .collect();
        let bytes: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let length = bytes.len();
        let data = TensorBytes::new(Arc::new(bytes), 0..length).expect("all of it");
        Self { values, data, codes: Mutex::new((vec![0; N * N], vec![0.0; N / BLOCK * N / BLOCK])) }
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

    fn quantize(
        &self,
        cast: &CastSpec,
        whole: bool,
        scales: impl Fn(&Blocks<'_>, &RowPanel, &[f32]) -> Vec<f32> + Sync,
    ) {
        let source = Source::new(&self.data, Elem::Bf16, N, N).expect("4096x4096");
        let measure = Measure::Nothing;
        let spec = PanelSpec { block_rows: BLOCK, block_cols: BLOCK, moments: false, cast, measure, whole };
        let mut codes = self.codes.lock().expect("nobody else");
        let (q, stored) = &mut *codes;
        let run = 8;
        let panels = q.par_chunks_mut(run * BLOCK * N).zip(stored.par_chunks_mut(run * N / BLOCK)).enumerate();
        panels.for_each(|(i, (q, stored))| {
            let ask = |at: patchhost_kernels::panel::StripAt, stats: &patchhost_kernels::stats::PanelStats| {
                let blocks = Blocks {
                    tensor: NAME,
                    rows: N,
                    cols: N,
                    block_rows: BLOCK,
                    block_cols: BLOCK,
                    first_block: at.panel * (N / BLOCK) + at.first_block,
                };
                let first_row = at.panel * BLOCK;
                let rows = RowPanel { data: self.data.clone(), elem: Elem::Bf16, cols: N, first_row, rows: BLOCK };
                Ok::<_, ContractViolation>(scales(&blocks, &rows, &stats.amax))
            };
            quantize_panels(&source, i * run, &spec, ask, |_, v| v, q, stored).unwrap_or_else(|v| panic!("{v}"));
        });
        black_box(&*codes);
    }
}
