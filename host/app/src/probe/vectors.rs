//! Inputs that make recipes go wrong: the edges of f32, of the floors and of the formats, and random values of any size.

use patchhost_runtime::hooks::{Edges, Scheme};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

/// The classes of edges, and their values of amax.
pub(super) fn edges(scheme: &Scheme) -> Vec<(&'static str, Vec<f32>)> {
    let around = |x: f32| vec![x.next_down(), x, x.next_up()];
    let floor = scheme.cast.floor;
    let powers = |from: i32, to: i32| (from..=to).map(|e| 2f32.powi(e)).collect::<Vec<_>>();
    let mut classes = vec![
        ("zero", vec![0.0]),
        ("smallest subnormal", vec![f32::from_bits(1), f32::from_bits(2)]),
        ("subnormal", vec![1e-44, 1e-41, 1e-40, 1e-39, f32::MIN_POSITIVE.next_down()]),
        ("smallest normal", around(f32::MIN_POSITIVE)),
        ("below every eps", vec![1e-30, 1e-20, 1e-15, 1e-13]),
        ("around 1e-12", around(1e-12)),
        ("around 1e-10", around(1e-10)),
        ("around 1e-4", around(1e-4)),
        ("the scheme's eps", around(floor.eps.max(f32::MIN_POSITIVE))),
        ("the scheme's zero", around(floor.zero_below.max(f32::MIN_POSITIVE))),
        ("no usable scale", around(f32::from_bits(0x03e0_0000))),
        ("no usable power of two", around(f32::from_bits(0x0460_0000))),
        ("one", around(1.0)),
        ("448", around(448.0)),
        ("224", around(224.0)),
        ("powers of two", powers(-120, 120)),
        ("just above powers of two", powers(-60, 60).into_iter().map(f32::next_up).collect()),
        ("just below powers of two", powers(-60, 60).into_iter().map(f32::next_down).collect()),
        ("448 times powers of two", powers(-100, 100).into_iter().map(|p| 448.0 * p).collect()),
        ("small whole numbers", (1..=64u8).map(f32::from).collect()),
        ("thirds", (1..=64u8).map(|i| f32::from(i) / 3.0).collect()),
        ("largest bf16", vec![f32::from_bits(0x7f7f_0000), f32::from_bits(0x7f7e_0000)]),
        ("largest", vec![f32::MAX, f32::MAX.next_down(), f32::MAX / 448.0]),
    ];
    if scheme.cast.edges != Edges::Strict {
        // Under strict edges the host never asks about blocks that hold these.
        classes.push(("infinity", vec![f32::INFINITY]));
        classes.push(("NaN", vec![f32::NAN]));
    }
    classes
}

/// Values of amax as weights have them, of very different size, and any bits at all that are finite and positive.
pub(super) fn random(seed: u64, count: usize) -> Vec<f32> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut values = Vec::with_capacity(count);
    while values.len() < count {
        let value = match values.len() % 4 {
            0 => rng.random_range(0.001f32..2.0),
            1 => rng.random_range(1.0f32..2.0) * 2f32.powi(rng.random_range(-100..100)),
            2 => f32::from_bits(rng.random_range(1..0x7f80_0000)),
            // bf16, as the host's own statistics give.
            _ => f32::from_bits(u32::from(rng.random_range(1u16..0x7f80)) << 16),
        };
        if value.is_finite() && value > 0.0 {
            values.push(value);
        }
    }
    values
}
