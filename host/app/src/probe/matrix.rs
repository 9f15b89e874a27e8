//! Whole matrices through the native cast: what a refit does with a patch's scales, and what it proves about them.

use super::ask::{TENSOR, all, differ};
use super::hidden::prove;
use super::run::{Found, ProbeOptions};
use super::vectors;
use crate::native::Reference;
use half::bf16;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::hooks::{BlockQuant, Contract, Elem, Needs, Scheme};
use patchhost_runtime::quantize::{Input, Measure, quantize};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;

/// Result of a cast: the FP8 bytes, and the scales as they are stored.
pub(super) type Cast = Result<(Vec<u8>, Vec<f32>), String>;

/// How many rows a matrix of [`matrix_of`] has. Blocks may be higher: the last row of blocks of a tensor is often cut.
const ROWS: usize = 16;

/// A matrix of f32 whose blocks have these largest magnitudes: its bytes, rows and columns.
fn matrix_of(scheme: &Scheme, amax: &[f32], seed: u64) -> (Vec<u8>, usize, usize) {
    let (rows, block_cols) = (scheme.block_rows.min(ROWS), scheme.block_cols);
    let cols = block_cols * amax.len();
    let mut rng = StdRng::seed_from_u64(seed);
    // One pattern for all blocks: what a patch sees of a block is its amax.
    let pattern: Vec<f32> = (0..rows * block_cols).map(|_| rng.random_range(-0.9f32..0.9)).collect();
    let mut values = vec![0f32; rows * cols];
    for (block, amax) in amax.iter().enumerate() {
        for (row, pattern) in pattern.chunks(block_cols).enumerate() {
            let at = row * cols + block * block_cols;
            let row = values[at..at + block_cols].iter_mut();
            row.zip(pattern).for_each(|(value, factor)| *value = amax * factor);
        }
        let largest = rng.random_range(0..rows * block_cols);
        let at = largest / block_cols * cols + block * block_cols + largest % block_cols;
        values[at] = if rng.random() { *amax } else { -amax };
    }
    (values.iter().flat_map(|x| x.to_le_bytes()).collect(), rows, cols)
}

/// Asks for the scales of a matrix and casts it, as a refit does.
pub(super) fn cast(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    bytes: Vec<u8>,
    elem: Elem,
    rows: usize,
    cols: usize,
) -> Cast {
    cast_named(TENSOR, quant, scheme, bytes, elem, rows, cols)
}

/// As [`cast`], for a tensor of this name.
pub(super) fn cast_named(
    name: &str,
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    bytes: Vec<u8>,
    elem: Elem,
    rows: usize,
    cols: usize,
) -> Cast {
    let length = bytes.len();
    let data = TensorBytes::new(Arc::new(bytes), 0..length).ok_or("no bytes")?;
    let input = Input { name, data, elem, rows, cols };
    let done = quantize(&input, scheme, quant, Measure::Nothing).map_err(|e| e.to_string())?;
    Ok((done.q.to_vec(), done.scales))
}

/// bf16 as weights have them.
pub(super) fn weights(rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut normal = || (0..4).map(|_| rng.random_range(-1.0f32..1.0)).sum::<f32>() * 0.02;
    (0..rows * cols).flat_map(|_| bf16::from_f32(normal()).to_le_bytes()).collect()
}

/// The contract that the scheme declares, on every class of edges: block by block where a block's amax decides, and
/// else on matrices.
pub(super) fn contract(quant: &dyn BlockQuant, scheme: &Scheme, options: &ProbeOptions) -> Result<Found, String> {
    let (seed, random) = (options.seed, options.random);
    let by_amax = scheme.needs != Needs::Rows && !matches!(scheme.cast.contract, Contract::Clip(_));
    // What is not finite is refused before any patch is asked; rounding up to bf16 must not make it so.
    let most = f32::from_bits(0x7f7f_0000);
    let finite = |amax: &f32| amax.is_finite() && *amax <= most;
    let some = |amax: Vec<f32>| {
        let few = if by_amax { amax.len() } else { options.edges };
        let step = amax.len().div_ceil(few.max(1)).max(1);
        amax.into_iter().step_by(step)
    };
    let mut amax: Vec<f32> =
        vectors::edges(scheme).into_iter().flat_map(|(_, amax)| some(amax)).filter(finite).collect();
    amax.extend(vectors::random(seed ^ 0xc0de, random.min(256)).into_iter().filter(finite));
    let asked = amax.len();
    if by_amax {
        for amax in amax.chunks(64) {
            prove(scheme, amax, &all(quant, scheme, amax)?)?;
        }
        // The way of a refit once: the same proof, of blocks of many values.
        amax.truncate(16);
    }
    for (i, amax) in amax.chunks(64).enumerate() {
        let (bytes, rows, cols) = matrix_of(scheme, amax, seed.wrapping_add(i as u64));
        cast(quant, scheme, bytes, Elem::F32, rows, cols)?;
    }
    Ok(Found::asked(asked))
}

/// Whether the same matrix gets the same scales when it is asked about again.
pub(super) fn again(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    (rows, cols): (usize, usize),
    seed: u64,
) -> Result<Found, String> {
    let make = || cast(quant, scheme, weights(rows, cols, seed), Elem::Bf16, rows, cols);
    let (first, second) = (make()?, make()?);
    differ("asked again", &[], &first.1, &second.1)?;
    Ok(Found::asked(2 * first.1.len()))
}

/// Matrices of odd shapes, and a large one, against native code: scales and FP8 bytes.
pub(super) fn differential(
    quant: &dyn BlockQuant,
    scheme: &Scheme,
    reference: &Reference,
    options: &ProbeOptions,
) -> Result<Found, String> {
    let (rows, cols) = options.matrix;
    // Not whole blocks, so that the last ones of each row and column are cut.
    let shapes = [(1, 1), (1, 257), (257, 1), (129, 257), (128, 256), (rows + 1, cols + 3)];
    let (mut scales, mut values) = (0, 0);
    for (rows, cols) in shapes {
        let bytes = weights(rows, cols, options.seed);
        let patch = cast(quant, scheme, bytes.clone(), Elem::Bf16, rows, cols)?;
        let native = cast(reference, scheme, bytes, Elem::Bf16, rows, cols)?;
        differ(&format!("{rows}x{cols}, native code and the patch"), &[], &native.1, &patch.1)?;
        if let Some(at) = native.0.iter().zip(&patch.0).position(|(a, b)| a != b) {
            let (native, patch) = (native.0[at], patch.0[at]);
            return Err(format!("{rows}x{cols}: FP8 byte {at} is {native:#04x} natively, and {patch:#04x}"));
        }
        scales += patch.1.len();
        values += patch.0.len();
    }
    Ok(Found { worst: Some(format!("{values} FP8 bytes equal")), ..Found::asked(scales) })
}
