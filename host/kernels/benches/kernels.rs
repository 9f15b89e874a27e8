//! Speed of the kernels: criterion groups, then a plain table of ratios against what the machine can do.
//!
//! The table is what to read: each figure is the median over interleaved pairs of runs (candidate, baseline,
//! candidate, ...), so that a noisy machine disturbs both alike.
#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{Criterion, Throughput};
use patchhost_kernels::Isa;
use patchhost_kernels::cast::{Measure, cast_panel};
use patchhost_kernels::linear::{MatrixView, ScaleOrder, linear};
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{Edges, Elem, ScaleFormat};
use patchhost_kernels::stats::{StatsOptions, panel_stats};
use rayon::ThreadPool;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::{Duration, Instant};

const N: usize = 4096;

/// Copies of an FP8 matrix (16 MiB each) that no cache holds together.
const COPIES: usize = 32;

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

    fn fp8(&self) -> MatrixView<'_> {
        MatrixView::Fp8Block {
            q: &self.q,
            scales: &self.scales,
            order: ScaleOrder::RowMajor,
            block_rows: 128,
            block_cols: 128,
        }
    }
}

/// Sums with the widest vectors there are; the additions cost nothing next to the memory.
fn sum(x: &[u64]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if Isa::detect() == Isa::Avx512 {
        // SAFETY: detected just now; all loads lie inside the slice.
        return unsafe { sum_avx512(x) };
    }
    x.iter().fold(0, |a, b| a.wrapping_add(*b))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(x: &[u64]) -> u64 {
    use std::arch::x86_64::*;
    let mut acc = [_mm512_setzero_si512(); 4];
    for chunk in x.chunks_exact(32) {
        for (i, acc) in acc.iter_mut().enumerate() {
            // SAFETY: 8 words from 8 * i lie inside the chunk of 32.
            let (line, ahead) = unsafe { (_mm512_loadu_si512(chunk.as_ptr().add(8 * i).cast()), chunk.as_ptr()) };
            _mm_prefetch::<_MM_HINT_T0>(ahead.wrapping_add(512 + 8 * i).cast());
            *acc = _mm512_add_epi64(*acc, line);
        }
    }
    acc.into_iter().map(|acc| _mm512_reduce_add_epi64(acc) as u64).fold(0, u64::wrapping_add)
}

/// `out = x * w^T` by the gemm crate.
fn gemm_crate(x: &[f32], m: usize, w: &[f32], out: &mut [f32], threads: usize) {
    let parallelism = if threads == 1 { gemm::Parallelism::None } else { gemm::Parallelism::Rayon(threads) };
    let n = N as isize;
    // SAFETY: x is m x N, w is N x N, out is m x N, all row-major with the strides given.
    unsafe {
        gemm::gemm(
            m,
            N,
            N,
            out.as_mut_ptr(),
            1,
            n,
            false,
            x.as_ptr(),
            1,
            n,
            w.as_ptr(),
            n,
            1,
            0.0,
            1.0,
            false,
            false,
            false,
            parallelism,
        );
    }
}

fn pool(threads: usize) -> ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
}

fn criterion_groups(c: &mut Criterion, data: &Data) {
    let (mut q, mut scales) = (vec![0; N * N], vec![0.0; 1024]);
    let mut out = vec![0.0; 128 * N];
    for threads in [1, 2] {
        let pool = pool(threads);
        let mut group = c.benchmark_group(format!("{threads} thread"));
        group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500));
        group.throughput(Throughput::Bytes((N * N * 2) as u64));
        group.bench_function("read 32 MiB", |b| b.iter(|| pool.install(|| black_box(data.read(N * N * 2)))));
        group.bench_function("quantize bf16 4096x4096", |b| {
            b.iter(|| pool.install(|| data.quantize(&mut q, &mut scales)));
        });
        for (name, bytes, w) in [
            ("fp8", 1, data.fp8()),
            ("bf16", 2, MatrixView::Bf16 { data: &data.u16s }),
            ("f32", 4, MatrixView::F32 { data: &data.f32s }),
        ] {
            group.throughput(Throughput::Bytes((N * N * bytes) as u64));
            group.bench_function(format!("gemv {name} 4096x4096"), |b| {
                b.iter(|| pool.install(|| linear(&data.x[..N], 1, N, w, N, None, &mut out, N)));
            });
        }
        for m in [8, 64, 128] {
            let x = &data.x[..m * N];
            group.throughput(Throughput::Elements((2 * m * N * N) as u64));
            group.bench_function(format!("gemm fp8 m={m}"), |b| {
                b.iter(|| pool.install(|| linear(x, m, N, data.fp8(), N, None, &mut out, N)));
            });
            group.bench_function(format!("gemm crate f32 m={m}"), |b| {
                b.iter(|| pool.install(|| gemm_crate(x, m, &data.f32s, &mut out, threads)));
            });
        }
        group.finish();
    }
}

fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// Seconds that `f` takes. On one thread, CPU time of this thread: other work on the machine then disturbs less.
fn seconds(f: &mut impl FnMut()) -> f64 {
    let clock = if rayon::current_num_threads() == 1 { cpu_seconds } else { wall_seconds };
    let start = clock();
    f();
    clock() - start
}

fn wall_seconds() -> f64 {
    static START: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn cpu_seconds() -> f64 {
    // std has no thread clock, and the crate needs no other part of libc.
    unsafe extern "C" {
        fn clock_gettime(clock: i32, time: *mut [i64; 2]) -> i32;
    }
    const THREAD_CPUTIME: i32 = 3;
    let mut time = [0i64; 2];
    // SAFETY: a timespec of a 64-bit Linux is two 64-bit integers.
    unsafe { clock_gettime(THREAD_CPUTIME, &mut time) };
    time[0] as f64 + time[1] as f64 * 1e-9
}

#[cfg(not(all(target_os = "linux", target_pointer_width = "64")))]
fn cpu_seconds() -> f64 {
    wall_seconds()
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

fn table(data: &Data) {
    let (mut q, mut scales) = (vec![0; N * N], vec![0.0; 1024]);
    let mut out = vec![0.0; 128 * N];
    let mut out2 = vec![0.0; 128 * N];
    let copies: Vec<u8> = (0..COPIES).flat_map(|_| data.q.iter().copied()).collect();
    let memory = vec![3u64; COPIES * N * N / 8];
    println!("\n{} lanes, medians of interleaved pairs; 1T: CPU time, 2T: wall time\n", Isa::detect().name());
    println!("| {:<52} | {:>6} | {:<7} | detail", "figure", "ratio", "goal");
    println!("|{}|{}|{}|---", "-".repeat(54), "-".repeat(8), "-".repeat(9));
    for threads in [1, 2] {
        let t = format!("{threads}T");
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
            if threads == 1 {
                row("quantize 4096x4096 bf16 / 8 ms, 1T", 8e-3 / own, ">= 1", "per core, as the design asks");
            }
            for (name, bytes, w) in [
                ("fp8", 1, data.fp8()),
                ("bf16", 2, MatrixView::Bf16 { data: &data.u16s }),
                ("f32", 4, MatrixView::F32 { data: &data.f32s }),
            ] {
                let (ratio, own, base) = pairs(
                    41,
                    || linear(&data.x[..N], 1, N, w, N, None, &mut out, N),
                    || {
                        black_box(data.read(N * N * bytes));
                    },
                );
                let rate = |t: f64| (N * N * bytes) as f64 / t / 1e9;
                let detail = format!("{:.2} ms, {:.1} of {:.1} GB/s", own * 1e3, rate(own), rate(base));
                row(&format!("gemv {name} 4096x4096 / reading as many bytes, {t}"), ratio, ">= 0.9", &detail);
            }
            // Models are larger than any cache: many copies in turn, so that each comes from memory.
            let (mut at, mut at2) = (0, 0);
            let (ratio, own, base) = pairs(
                4 * COPIES,
                || {
                    at = (at + 1) % COPIES;
                    let q = &copies[at * N * N..(at + 1) * N * N];
                    let w = MatrixView::Fp8Block {
                        q,
                        scales: &data.scales,
                        order: ScaleOrder::RowMajor,
                        block_rows: 128,
                        block_cols: 128,
                    };
                    linear(&data.x[..N], 1, N, w, N, None, &mut out, N);
                },
                || {
                    at2 += 1;
                    let words = &memory[at2 % COPIES * N * N / 8..][..N * N / 8];
                    black_box(words.par_chunks(1 << 16).map(sum).sum::<u64>());
                },
            );
            let rate = |t: f64| (N * N) as f64 / t / 1e9;
            let detail = format!("{:.2} ms, {:.1} of {:.1} GB/s", own * 1e3, rate(own), rate(base));
            row(&format!("gemv fp8, {COPIES} matrices in turn / reading as many, {t}"), ratio, ">= 0.9", &detail);
            for m in [8, 64, 128] {
                let x = &data.x[..m * N];
                let goal = if m >= 64 { ">= 0.85" } else { "-" };
                for (name, w) in [("fp8", data.fp8()), ("f32", MatrixView::F32 { data: &data.f32s })] {
                    let (ratio, own, base) = pairs(
                        9,
                        || linear(x, m, N, w, N, None, &mut out, N),
                        || gemm_crate(x, m, &data.f32s, &mut out2, threads),
                    );
                    let rate = (2 * m * N * N) as f64 / 1e9;
                    let detail = format!("{:.0} and {:.0} GFLOP/s", rate / own, rate / base);
                    row(&format!("gemm {name} m={m} / gemm crate f32, {t}"), ratio, goal, &detail);
                }
            }
        });
    }
}

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    let data = Data::new();
    // `cargo bench -- table` prints the table alone.
    if !std::env::args().any(|arg| arg == "table") {
        let mut criterion = Criterion::default().configure_from_args();
        criterion_groups(&mut criterion, &data);
        criterion.final_summary();
    }
    table(&data);
}
