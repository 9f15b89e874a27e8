#![allow(missing_docs, clippy::unwrap_used)]
use patchhost_kernels::cast::{cast_panel, Measure};
use patchhost_kernels::profile::Profile;
use patchhost_kernels::source::Source;
use patchhost_kernels::spec::{Edges, Elem, ScaleFormat};
use patchhost_kernels::stats::{StatsOptions, panel_stats};
use std::time::Instant;
fn main() {
    for cols in [2048usize, 3072, 3968, 4096, 4224, 5120, 8192] {
        let n = 128 * cols;
        let mut s = 1u64;
        let bytes: Vec<u8> = (0..n).flat_map(|_| { let mut t = 0f32; for _ in 0..4 { s = s.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407); t += (s >> 40) as f32 / 16777216.0 - 0.5; } half::bf16::from_f32(t * 0.035).to_le_bytes() }).collect();
        let src = Source::new(&bytes, Elem::Bf16, 128, cols).unwrap();
        let spec = Profile::VerlTorch.cast_spec(ScaleFormat::F32, Edges::Strict);
        let amax = panel_stats(&src, 0, 128, 128, &StatsOptions::default()).amax;
        let given: Vec<f32> = amax.iter().map(|a| Profile::VerlTorch.given(ScaleFormat::F32, Edges::Strict, *a)).collect();
        let (mut q, mut sc) = (vec![0u8; n], vec![0f32; cols / 128]);
        let reps = (16777216 * 4 / n).max(1);
        let mut best = [f64::MAX; 3];
        for _ in 0..12 {
            let t = Instant::now();
            for _ in 0..reps { std::hint::black_box(panel_stats(&src, 0, 128, 128, &StatsOptions::default())); }
            best[0] = best[0].min(t.elapsed().as_secs_f64());
            let t = Instant::now();
            for _ in 0..reps { cast_panel(&src, 0, 128, 128, &given, &amax, &spec, Measure::Nothing, &mut q, &mut sc).unwrap(); }
            best[1] = best[1].min(t.elapsed().as_secs_f64());
            let t = Instant::now();
            for _ in 0..reps { q.copy_from_slice(&bytes[..n]); std::hint::black_box(&mut q); }
            best[2] = best[2].min(t.elapsed().as_secs_f64());
        }
        let per = |t: f64| t / (reps * n) as f64 * 16777216e3;
        println!("{cols:6} cols: stats {:.2} cast {:.2} memcpy(q bytes) {:.2} ms per 4096x4096", per(best[0]), per(best[1]), per(best[2]));
    }
}
