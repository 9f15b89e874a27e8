//! Speed of the kernels: criterion groups, then a plain table of ratios against what the machine can do.
//!
//! The table is what to read: each figure is the median over interleaved pairs of runs (candidate, baseline,
//! candidate, ...), so that a noisy machine disturbs both alike.
//!
//! `cargo bench -p patchhost-kernels -- table` prints the table alone, `-- table 2048x6144` for another weight (N x K).
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use criterion::{Criterion, Throughput};
use patchhost_kernels::Isa;
use patchhost_kernels::cast::{Measure, cast_panel};
use patchhost_kernels::linear::{MatrixView, PackedMatrix, Product, ScaleOrder, multiply};
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{Edges, Elem, ScaleFormat};
use patchhost_kernels::stats::{StatsOptions, panel_stats};
use patchhost_kernels::team::Team;
use rayon::ThreadPool;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Duration;
use timing::{median, seconds};

const N: usize = 4096;

/// Bytes that no cache holds: matrices are taken in turn from copies of at least so much.
const BEYOND_CACHE: usize = 512 << 20;

/// The data of all benches: one 4096x4096 weight in every form.
struct Data {
    bf16: Vec<u8>,
    u16s: Vec<u16>,
    f32s: Vec<f32>,
    q: Vec<u8>,
    scales: Vec<f32>,
    x: Vec<f32>,
    /// To be read, for the bandwidth.
    big: Vec<u64>,
}

impl Data {
    fn new() -> Self {
        // A cheap generator; the sum of four uniforms is normal enough.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let sum: u32 = (0..4).map(|i| (state >> (16 * i)) as u32 & 0xffff).sum();
            (sum as f32 / 65536.0 - 2.0) * 0.035
        };
        let f32s: Vec<f32> = (0..N * N).map(|_| next()).collect();
        let u16s: Vec<u16> = f32s.iter().map(|x| half::bf16::from_f32(*x).to_bits()).collect();
        let bf16 = u16s.iter().flat_map(|b| b.to_le_bytes()).collect();
        let x = (0..128 * N).map(|_| next()).collect();
        let mut data = Data { bf16, u16s, f32s, q: vec![], scales: vec![], x, big: vec![1; 1 << 23] };
        let (mut q, mut scales) = (vec![0; N * N], vec![0.0; 1024]);
        data.quantize(&mut q, &mut scales);
        (data.q, data.scales) = (q, scales);
        data
    }

    /// The native reference of a refit: statistics, verl's scales, checked cast, panel by panel.
    fn quantize(&self, q: &mut [u8], scales: &mut [f32]) {
        let src = Source::new(&self.bf16, Elem::Bf16, N, N).unwrap();
        let spec = Profile::VerlTorch.cast_spec(ScaleFormat::F32, Edges::Strict);
        q.par_chunks_mut(128 * N).zip(scales.par_chunks_mut(32)).enumerate().for_each(|(panel, (q, scales))| {
            let amax = panel_stats(&src, panel * 128, 128, 128, &StatsOptions::default()).amax;
            let given: Vec<f32> =
                amax.iter().map(|a| Profile::VerlTorch.given(ScaleFormat::F32, Edges::Strict, *a)).collect();
            cast_panel(&src, panel * 128, 128, 128, &given, &amax, &spec, Measure::Nothing, q, scales).unwrap();
        });
    }

    /// Reads `bytes` (at most 64 MiB) once.
    fn read(&self, bytes: usize) -> u64 {
        self.big[..bytes / 8].par_chunks(1 << 16).map(sum).sum()
    }

    /// The weight in every form.
    fn views(&self) -> impl Iterator<Item = (&'static str, MatrixView<'_>)> {
        [
            (
                "fp8",
                MatrixView::Fp8Block {
                    q: &self.q,
                    scales: &self.scales,
                    order: ScaleOrder::RowMajor,
                    block_rows: 128,
                    block_cols: 128,
                },
            ),
            ("bf16", MatrixView::Bf16 { data: &self.u16s }),
            ("f32", MatrixView::F32 { data: &self.f32s }),
        ]
        .into_iter()
    }
}

/// Sums in four streams, as the products read: one stream alone does not reach what the memory gives. The additions cost
/// nothing next to it.
fn sum(x: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if Isa::detect() >= Isa::Avx2 {
        // SAFETY: detected just now.
        return unsafe { sum_avx2(x) };
    }
    x.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(x: &[u64]) -> u64 {
    use std::arch::x86_64::*;
    let quarter = x.len() / 4;
    let mut acc = [[_mm256_setzero_si256(); 2]; 4];
    for at in (0..quarter / 8 * 8).step_by(8) {
        for (stream, acc) in acc.iter_mut().enumerate() {
            let here = x[stream * quarter + at..][..8].as_ptr();
            _mm_prefetch::<_MM_HINT_T0>(here.wrapping_add(128).cast());
            for (i, acc) in acc.iter_mut().enumerate() {
                // SAFETY: 4 words from 4 * i lie inside the 8.
                *acc = _mm256_add_epi64(*acc, unsafe { _mm256_loadu_si256(here.add(4 * i).cast()) });
            }
        }
    }
    let mut words = [0u64; 4];
    let sum = acc.into_iter().flatten().fold(_mm256_setzero_si256(), |a, b| _mm256_add_epi64(a, b));
    // SAFETY: both are 32 bytes.
    unsafe { _mm256_storeu_si256(words.as_mut_ptr().cast(), sum) };
    words.into_iter().fold(0, u64::wrapping_add)
}

/// `out = x * w^T` of one packed matrix.
fn linear(team: &Team, x: &[f32], m: usize, w: &PackedMatrix, out: &mut [f32]) {
    let (n, k) = (w.n(), w.k());
    let (x, parts) = (&x[..m * k], std::slice::from_ref(w));
    multiply(team, &mut [Product { x, x_fp8: None, m, parts, bias: None, out: &mut out[..m * n], ldo: n }]);
}

/// `out = x * w^T` by the gemm crate.
fn gemm_crate(x: &[f32], m: usize, w: &[f32], n: usize, k: usize, out: &mut [f32], threads: usize) {
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    let (ni, ki) = (n as isize, k as isize);
    assert!(x.len() >= m * k && w.len() >= n * k && out.len() >= m * n, "matrices of these sizes");
    // SAFETY: x is m x k, w is n x k, out is m x n, all row-major with the strides given.
    unsafe {
        let (o, x, w) = (out.as_mut_ptr(), x.as_ptr(), w.as_ptr());
        gemm::gemm(m, n, k, o, 1, ni, false, x, 1, ki, w, ki, 1, 0.0, 1.0, false, false, false, parallelism);
    }
}

fn pool(threads: usize) -> ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

fn criterion_groups(c: &mut Criterion, data: &Data) {
    let (mut q, mut scales) = (vec![0; N * N], vec![0.0; 1024]);
    let mut out = vec![0.0; 128 * N];
    let packed: Vec<(&str, PackedMatrix)> =
        data.views().map(|(name, view)| (name, PackedMatrix::new(view, N, N))).collect();
    for threads in [1, 2] {
        let (pool, team) = (pool(threads), Team::new(threads));
        let mut group = c.benchmark_group(format!("{threads} thread"));
        group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500));
        group.throughput(Throughput::Bytes((N * N * 2) as u64));
        group.bench_function("read 32 MiB", |b| b.iter(|| pool.install(|| black_box(data.read(N * N * 2)))));
        group.bench_function("quantize bf16 4096x4096", |b| {
            b.iter(|| pool.install(|| data.quantize(&mut q, &mut scales)));
        });
        for (name, w) in &packed {
            group.throughput(Throughput::Bytes(w.bytes() as u64));
            group.bench_function(format!("gemv {name} 4096x4096"), |b| {
                b.iter(|| linear(&team, &data.x, 1, w, &mut out))
            });
        }
        for m in [8, 64, 128] {
            group.throughput(Throughput::Elements((2 * m * N * N) as u64));
            group.bench_function(format!("gemm fp8 m={m}"), |b| {
                b.iter(|| linear(&team, &data.x, m, &packed[0].1, &mut out));
            });
            group.bench_function(format!("gemm crate f32 m={m}"), |b| {
                b.iter(|| pool.install(|| gemm_crate(&data.x, m, &data.f32s, N, N, &mut out, threads)));
            });
        }
        group.finish();
    }
}

/// Medians over interleaved pairs: the ratio baseline time / candidate time, and both times.
fn pairs(count: usize, mut candidate: impl FnMut(), mut baseline: impl FnMut()) -> (f64, f64, f64) {
    candidate();
    baseline();
    let times: Vec<(f64, f64)> = (0..count).map(|_| (seconds(&mut candidate), seconds(&mut baseline))).collect();
    (
        median(times.iter().map(|(c, b)| b / c).collect()),
        median(times.iter().map(|(c, _)| *c).collect()),
        median(times.iter().map(|(_, b)| *b).collect()),
    )
}

fn row(figure: &str, ratio: f64, goal: &str, detail: &str) {
    println!("| {figure:<52} | {ratio:>6.2} | {goal:<7} | {detail}");
}

fn table(data: &Data, n: usize, k: usize) {
    let (mut q, mut scales) = (vec![0; N * N], vec![0.0; 1024]);
    println!("\n{} lanes, medians of interleaved pairs; 1T: CPU time, 2T: wall time\n", Isa::detect().name());
    println!("| {:<52} | {:>6} | {:<7} | detail", "figure", "ratio", "goal");
    println!("|{}|{}|{}|---", "-".repeat(54), "-".repeat(8), "-".repeat(9));
    let memory = vec![3u64; BEYOND_CACHE / 8];
    // Beside a matrix of NxK random codes, blocks and x as the bench data have them.
    let take = |count: usize| data.f32s.iter().copied().cycle().take(count).collect::<Vec<f32>>();
    let (wide, x) = (take(n * k), take(128 * k));
    let half: Vec<u16> = wide.iter().map(|w| half::bf16::from_f32(*w).to_bits()).collect();
    let codes: Vec<u8> = wide.iter().map(|w| patchhost_kernels::e4m3::encode(*w * 3000.0)).collect();
    let some_scales = vec![0.001; n.div_ceil(128) * k.div_ceil(128)];
    let fp8 = MatrixView::Fp8Block {
        q: &codes,
        scales: &some_scales,
        order: ScaleOrder::RowMajor,
        block_rows: 128,
        block_cols: 128,
    };
    let views = [("fp8", fp8), ("bf16", MatrixView::Bf16 { data: &half }), ("f32", MatrixView::F32 { data: &wide })];
    let (mut out, mut out2) = (vec![0.0; 128 * n], vec![0.0; 128 * n]);
    for threads in [1, 2] {
        let (t, team) = (format!("{threads}T"), Team::new(threads));
        pool(threads).install(|| {
            let (ratio, own, base) = pairs(
                31,
                || data.quantize(&mut q, &mut scales),
                || {
                    black_box(data.read(N * N * 2));
                },
            );
            let detail = format!("{:.2} ms; read bandwidth {:.1} GB/s", own * 1e3, 33.55e-3 / base);
            row(&format!("quantize 4096x4096 bf16 / read it once, {t}"), ratio, "-", &detail);
            for (name, view) in views {
                // Models are larger than any cache: copies in turn, so that each comes from memory.
                let one = PackedMatrix::new(view, n, k);
                let bytes = one.bytes();
                let copies: Vec<PackedMatrix> = (0..BEYOND_CACHE.div_ceil(bytes)).map(|_| one.clone()).collect();
                for beyond in [true, false] {
                    let (mut at, mut at2) = (0, 0);
                    let (ratio, own, base) = pairs(
                        if beyond { 4 * copies.len().clamp(10, 64) } else { 41 },
                        || {
                            at = if beyond { (at + 1) % copies.len() } else { 0 };
                            linear(&team, &x, 1, &copies[at], &mut out);
                        },
                        || {
                            let places = memory.len() / (bytes / 8);
                            at2 = if beyond { (at2 + 1) % places } else { 0 };
                            let words = &memory[at2 * (bytes / 8)..][..bytes / 8];
                            black_box(words.par_chunks((bytes / 8).div_ceil(4 * threads)).map(sum).sum::<u64>());
                        },
                    );
                    let rate = |t: f64| bytes as f64 / t / 1e9;
                    let detail = format!("{:.2} ms, {:.1} of {:.1} GB/s", own * 1e3, rate(own), rate(base));
                    let (place, goal) = if beyond { ("memory", ">= 0.9") } else { ("cache", "-") };
                    let what = format!("gemv {name} {n}x{k} from {place} / reading it, {t}");
                    row(&what, ratio, goal, &detail);
                }
            }
            for m in [2, 4, 8, 16, 64, 128] {
                let goal = if m == 128 { ">= 0.85" } else { "-" };
                for (name, view) in views {
                    let w = PackedMatrix::new(view, n, k);
                    let (ratio, own, base) = pairs(
                        9,
                        || linear(&team, &x, m, &w, &mut out),
                        || gemm_crate(&x, m, &wide, n, k, &mut out2, threads),
                    );
                    let rate = (2 * m * n * k) as f64 / 1e9;
                    let detail = format!("{:.2} ms, {:.0} and {:.0} GFLOP/s", own * 1e3, rate / own, rate / base);
                    row(&format!("gemm {name} {n}x{k} m={m} / gemm crate f32, {t}"), ratio, goal, &detail);
                }
            }
        });
    }
}

/// Attention of one token, as often as a batch of 8 with 8 layers asks for it: each with keys and values of its own.
fn attention_table(data: &Data) {
    use patchhost_kernels::attention::{AttentionShape, Context, attend_rows};
    println!("\n| {:<52} | {:>8} | {:>8} |", "attention, 8 heads of 64 on 4", "us", "GFLOP/s");
    let shape = AttentionShape::grouped(8, 4, 64);
    for (what, caches) in [("in cache", 1), ("64 caches in turn", 64)] {
        for len in [32, 128, 512] {
            let size = len * 256;
            let at = |i: usize| &data.f32s[i % caches * size % (data.f32s.len() - size)..][..size];
            let mut out = vec![0.0; 512];
            let team = Team::new(1);
            let mut turn = 0;
            let mut once = || {
                turn += 2;
                let context = |_| Context { keys: at(turn), values: at(turn + 1), first: 0, len };
                attend_rows(&team, &shape, &data.x[..512], 512, &context, 0.125, &mut out);
            };
            let mut times: Vec<f64> = (0..300).map(|_| seconds(&mut once)).collect();
            times.drain(..100);
            let time = median(times);
            let rate = (4 * 512 * len) as f64 / time / 1e9;
            println!("| {:<52} | {:>8.1} | {rate:>8.1} |", format!("{len} positions, {what}"), time * 1e6);
        }
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    // `cargo test --benches` only wants to know that it runs.
    if args.iter().any(|arg| arg == "--test") {
        return;
    }
    let data = Data::new();
    let size = args.iter().find_map(|arg| {
        let (n, k) = arg.split_once('x')?;
        Some((n.parse().ok()?, k.parse().ok()?))
    });
    if !args.iter().any(|arg| arg == "table") {
        let mut criterion = Criterion::default().configure_from_args();
        criterion_groups(&mut criterion, &data);
        criterion.final_summary();
    }
    attention_table(&data);
    if args.iter().any(|arg| arg == "attention") {
        return;
    }
    let (n, k) = size.unwrap_or((N, N));
    table(&data, n, k);
}
