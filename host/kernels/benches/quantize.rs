//! Block quantization natively, against what the memory allows: a plain table of ratios, each the median over
//! interleaved pairs of runs, so that a noisy machine disturbs both alike. The sandbox is measured against the same
//! function in `benches/sandbox.rs` of the host.
#![allow(missing_docs, clippy::unwrap_used)]

mod timing;

use criterion::{Criterion, Throughput};
use patchhost_kernels::Isa;
use patchhost_kernels::cast::{ContractViolation, Measure};
use patchhost_kernels::panel::{PanelSpec, StripAt, quantize_panels};
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{Edges, Elem, ScaleFormat};
use patchhost_kernels::stats::PanelStats;
use rayon::prelude::*;
use std::hint::black_box;
use std::time::Duration;
use timing::{median, seconds};

const COLS: usize = 4096;
const BLOCK: usize = 128;
/// Matrices in turn, 32 MiB each in bf16: no cache holds them, as none holds a checkpoint.
const COPIES: usize = 8;

struct Data {
    rows: usize,
    elem: Elem,
    bytes: Vec<u8>,
    q: Vec<u8>,
    scales: Vec<f32>,
    at: usize,
}

impl Data {
    fn new(rows: usize, elem: Elem) -> Self {
        // A cheap generator; the sum of four uniforms is normal enough.
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            let sum: u32 = (0..4).map(|i| (state >> (16 * i)) as u32 & 0xffff).sum();
            (sum as f32 / 65536.0 - 2.0) * 0.035
        };
        let mut one: Vec<u8> = Vec::with_capacity(rows * COLS * elem.size());
        for _ in 0..rows * COLS {
            match elem {
                Elem::F32 => one.extend(next().to_le_bytes()),
                _ => one.extend(half::bf16::from_f32(next()).to_le_bytes()),
            }
        }
        let bytes = one.repeat(COPIES);
        let (q, scales) = (vec![0; COPIES * rows * COLS], vec![0.0; rows / BLOCK * COLS / BLOCK]);
        Self { rows, elem, bytes, q, scales, at: 0 }
    }

    fn next(&mut self) -> usize {
        self.at = (self.at + 1) % COPIES;
        self.at
    }

    /// Statistics, verl's scales, checked cast.
    fn quantize(&mut self, profile: Profile, measure: Measure) {
        let at = self.next();
        let (size, panel) = (self.rows * COLS, BLOCK * COLS);
        let bytes = &self.bytes[at * size * self.elem.size()..][..size * self.elem.size()];
        let src = Source::new(bytes, self.elem, self.rows, COLS).unwrap();
        let cast = profile.cast_spec(ScaleFormat::F32, Edges::Strict);
        let spec =
            PanelSpec { block_rows: BLOCK, block_cols: BLOCK, moments: false, cast: &cast, measure, whole: false };
        let q = &mut self.q[at * size..][..size];
        // Runs of panels: only the first of each waits for its statistics.
        let run = 8.min(self.rows / BLOCK / rayon::current_num_threads()).max(1);
        let scales = self.scales.par_chunks_mut(run * COLS / BLOCK);
        q.par_chunks_mut(run * panel).zip(scales).enumerate().for_each(|(i, (q, scales))| {
            let ask = |_: StripAt, stats: &PanelStats| -> Result<_, ContractViolation> {
                Ok(stats.amax.iter().map(|a| profile.given(ScaleFormat::F32, Edges::Strict, *a)).collect())
            };
            quantize_panels(&src, i * run, &spec, ask, |_, violation| violation, q, scales).unwrap();
        });
    }

    /// Reads what a quantization reads and writes what it writes, as plain copies: of each pair (quadruple) of bytes, one
    /// is copied and the others are read.
    fn copy(&mut self) {
        let at = self.next();
        let size = self.rows * COLS;
        let bytes = &self.bytes[at * size * self.elem.size()..][..size * self.elem.size()];
        let q = &mut self.q[at * size..][..size];
        let chunk = 128 << 10;
        let read = bytes.par_chunks(chunk * self.elem.size());
        q.par_chunks_mut(chunk).zip(read).for_each(|(q, bytes)| {
            let (copied, read) = bytes.split_at(q.len());
            q.copy_from_slice(copied);
            black_box(sum(read));
        });
    }

    /// Reads what a quantization reads.
    fn read(&mut self) {
        let at = self.next();
        let size = self.rows * COLS * self.elem.size();
        black_box(self.bytes[at * size..][..size].par_chunks(1 << 18).map(sum).sum::<u64>());
    }
}

fn sum(x: &[u8]) -> u64 {
    #[cfg(target_arch = "x86_64")]
    if Isa::detect() >= Isa::Avx2 {
        // SAFETY: detected just now.
        return unsafe { sum_avx2(x) };
    }
    x.as_chunks::<8>().0.iter().fold(0, |a, b| a.wrapping_add(u64::from_le_bytes(*b)))
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(x: &[u8]) -> u64 {
    let mut sums = [0u64; 16];
    for x in x.as_chunks::<128>().0 {
        for (sum, x) in sums.iter_mut().zip(x.as_chunks::<8>().0) {
            *sum = sum.wrapping_add(u64::from_le_bytes(*x));
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

fn row(figure: &str, ratio: f64, goal: &str, detail: &str) {
    println!("| {figure:<58} | {ratio:>6.2} | {goal:<7} | {detail}");
}

/// Medians of interleaved runs of three things on the same data.
fn three(data: &mut Data, runs: usize, own: impl Fn(&mut Data)) -> (f64, f64, f64, f64) {
    let mut times = Vec::with_capacity(runs);
    for run in 0..runs + 1 {
        let own = seconds(&mut || own(data));
        let copy = seconds(&mut || data.copy());
        let read = seconds(&mut || data.read());
        // The first run only touches the memory.
        if run > 0 {
            times.push((own, copy, read));
        }
    }
    let of = |f: fn(&(f64, f64, f64)) -> f64| median(times.iter().map(f).collect());
    (of(|(own, copy, _)| copy / own), of(|t| t.0), of(|t| t.1), of(|t| t.2))
}

fn table() {
    println!("\n{} lanes, medians of interleaved runs; 1T: CPU time, 2T: wall time\n", Isa::detect().name());
    println!("| {:<58} | {:>6} | {:<7} | detail", "figure", "ratio", "goal");
    println!("|{}|{}|{}|---", "-".repeat(60), "-".repeat(8), "-".repeat(9));
    let torch = Profile::VerlTorch;
    let few = std::env::args().any(|arg| arg == "few");
    for (rows, elem, name) in [(4096, Elem::Bf16, "bf16"), (14336, Elem::Bf16, "bf16"), (4096, Elem::F32, "f32")] {
        if few && (rows, elem) != (4096, Elem::Bf16) {
            continue;
        }
        let mut data = Data::new(rows, elem);
        let cases: [(&str, Profile, Measure); 4] = [
            ("", torch, Measure::Nothing),
            (", sampled error", torch, Measure::Sample),
            (", all errors", torch, Measure::All),
            (", deepseek", Profile::Deepseek, Measure::Nothing),
        ];
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            for (what, profile, measure) in cases.iter().take(if few { 1 } else { cases.len() }) {
                let (ratio, own, copy, read) =
                    pool.install(|| three(&mut data, 25, |data| data.quantize(*profile, *measure)));
                let bytes = (rows * COLS * elem.size()) as f64 * 1e-9;
                let detail = format!(
                    "{:.2} ms ({:.1} GB/s read); copies {:.2} ms; reading alone {:.1} GB/s",
                    own * 1e3,
                    bytes / own,
                    copy * 1e3,
                    bytes / read
                );
                let goal = if what.is_empty() && elem == Elem::Bf16 { ">= 0.9" } else { "-" };
                row(&format!("{rows}x{COLS} {name}{what} / copying as much, {threads}T"), ratio, goal, &detail);
            }
        }
    }
}

fn main() {
    // `cargo test --benches` only wants to know that it runs.
    if std::env::args().any(|arg| arg == "--test") {
        return;
    }
    // `cargo bench -- table` prints the table alone.
    if !std::env::args().any(|arg| arg == "table") {
        let mut criterion = Criterion::default().configure_from_args();
        let mut group = criterion.benchmark_group("quantize 4096x4096 bf16");
        group.sample_size(10).warm_up_time(Duration::from_millis(200)).measurement_time(Duration::from_millis(500));
        let mut data = Data::new(4096, Elem::Bf16);
        group.throughput(Throughput::Bytes((4096 * COLS * 2) as u64));
        for threads in [1, 2] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            group.bench_function(format!("{threads} threads"), |b| {
                b.iter(|| pool.install(|| data.quantize(Profile::VerlTorch, Measure::Nothing)));
            });
        }
        group.finish();
        criterion.final_summary();
    }
    table();
}
