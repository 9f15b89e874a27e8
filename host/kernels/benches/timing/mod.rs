//! How the benches measure; those of the package `patchhost` include this file too.
#![allow(dead_code)]

use std::sync::LazyLock;
use std::time::Instant;

/// The middle one.
pub fn median(mut x: Vec<f64>) -> f64 {
    x.sort_by(f64::total_cmp);
    x[x.len() / 2]
}

/// Seconds that `work` takes. On one thread, CPU time of this thread: other work on the machine then disturbs less.
pub fn seconds(mut work: impl FnMut()) -> f64 {
    let clock = if rayon::current_num_threads() == 1 { cpu_seconds } else { wall_seconds };
    let start = clock();
    work();
    clock() - start
}

fn wall_seconds() -> f64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_secs_f64()
}

#[cfg(all(target_os = "linux", target_pointer_width = "64"))]
fn cpu_seconds() -> f64 {
    // std has no thread clock, and the benches need no other part of libc.
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
