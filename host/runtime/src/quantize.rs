//! One matrix into block FP8: native statistics, the patch's scales, and the native cast that proves them. Panels (rows
//! of blocks) run in parallel; each is read, asked about and cast while it is still in cache.

use std::sync::atomic::{AtomicUsize, Ordering};

use patchhost_kernels::cast::{CastReport, ContractViolation, cast_panel};
use patchhost_kernels::source::Source;
use patchhost_kernels::stats::{StatsOptions, panel_stats};
use rayon::prelude::*;

use crate::bytes::TensorBytes;
use crate::error::{Refusal, Result, RuntimeError};
use crate::hooks::{BlockQuant, Blocks, Edges, Elem, Needs, RowPanel, Scheme};
use crate::pace::piece;

/// A matrix to quantize.
pub struct Input<'a> {
    /// Name for messages and for the patch.
    pub name: &'a str,
    /// Row-major elements.
    pub data: TensorBytes,
    /// Element type.
    pub elem: Elem,
    /// Rows.
    pub rows: usize,
    /// Columns.
    pub cols: usize,
}

/// The result.
pub struct Quantized {
    /// e4m3fn codes [rows, cols].
    pub q: Vec<u8>,
    /// Stored scales [ceil(rows / block_rows), ceil(cols / block_cols)].
    pub scales: Vec<f32>,
    /// What the cast counted.
    pub report: CastReport,
}

/// Rows and columns of the block grid.
pub fn grid(rows: usize, cols: usize, scheme: &Scheme) -> (usize, usize) {
    (rows.div_ceil(scheme.block_rows), cols.div_ceil(scheme.block_cols))
}

/// Quantizes a matrix with the scales that `patch` gives.
pub fn quantize(input: &Input<'_>, scheme: &Scheme, patch: &dyn BlockQuant, measure_error: bool) -> Result<Quantized> {
    let (rows, cols) = (input.rows, input.cols);
    let source = Source::new(&input.data, input.elem, rows, cols).map_err(|e| {
        RuntimeError::Checkpoint(Refusal::new(
            format!("tensor `{}`", input.name),
            e.to_string(),
            "check the checkpoint",
        ))
    })?;
    let (grid_rows, grid_cols) = grid(rows, cols, scheme);
    // 0xFF is NaN in both types: what nobody writes cannot pass for a weight or a scale.
    let mut q = vec![0xFF; rows * cols];
    let mut scales = vec![f32::from_bits(u32::MAX); grid_rows * grid_cols];
    if rows == 0 || cols == 0 {
        return Ok(Quantized { q, scales, report: CastReport::default() });
    }
    // The first panel that failed. Later ones are skipped, earlier ones are not: the error must not depend on timing.
    let failed = AtomicUsize::new(usize::MAX);
    let results: Vec<Option<Result<CastReport>>> = q
        .par_chunks_mut(scheme.block_rows * cols)
        .zip(scales.par_chunks_mut(grid_cols))
        .enumerate()
        .map(|(panel, (q, scales))| {
            if panel > failed.load(Ordering::Relaxed) {
                return None;
            }
            let result = piece(|| one_panel(input, &source, scheme, patch, panel, measure_error, q, scales));
            if result.is_err() {
                failed.fetch_min(panel, Ordering::Relaxed);
            }
            Some(result)
        })
        .collect();
    let mut report = CastReport::default();
    for result in results.into_iter().flatten() {
        report += result?;
    }
    Ok(Quantized { q, scales, report })
}

fn one_panel(
    input: &Input<'_>,
    source: &Source<'_>,
    scheme: &Scheme,
    patch: &dyn BlockQuant,
    panel: usize,
    measure_error: bool,
    q: &mut [u8],
    scales: &mut [f32],
) -> Result<CastReport> {
    let first_row = panel * scheme.block_rows;
    let panel_rows = q.len() / input.cols;
    let options = StatsOptions {
        moments: scheme.needs == Needs::Moments,
        round_bf16: scheme.cast.round_bf16,
        ignore_nan: scheme.cast.edges == Edges::IgnoreNan,
    };
    let stats = panel_stats(source, first_row, panel_rows, scheme.block_cols, &options);
    if let Some((row, col)) = stats.first_nonfinite.filter(|_| scheme.cast.edges == Edges::Strict) {
        return Err(not_finite(input, source, scheme, row, col));
    }
    let blocks = Blocks {
        tensor: input.name,
        rows: input.rows,
        cols: input.cols,
        block_rows: scheme.block_rows,
        block_cols: scheme.block_cols,
        first_block: panel * scales.len(),
    };
    let given = match scheme.needs {
        Needs::Amax => patch.scales(&blocks, &stats.amax)?,
        Needs::Moments => patch.scales_with_moments(&blocks, &stats.amax, &stats.sum_squares)?,
        Needs::Rows => {
            let rows =
                RowPanel { data: input.data.clone(), elem: input.elem, cols: input.cols, first_row, rows: panel_rows };
            patch.panel_scales(&blocks, &rows, &stats.amax)?
        }
    };
    cast_panel(
        source,
        first_row,
        panel_rows,
        scheme.block_cols,
        &given,
        &stats.amax,
        &scheme.cast,
        measure_error,
        q,
        scales,
    )
    .map_err(|v| broken(input, patch, panel, &v))
}

fn not_finite(input: &Input<'_>, source: &Source<'_>, scheme: &Scheme, row: usize, col: usize) -> RuntimeError {
    let mut values = vec![0.0; input.cols];
    source.row_f32(row, false, &mut values);
    let value = values.get(col).copied().unwrap_or(f32::NAN);
    RuntimeError::NonFinite(Refusal::new(
        format!("tensor `{}`", input.name),
        format!(
            "the value at index [{row}, {col}] is {value} (block [{}, {}] of {}x{}); the edge policy is `strict`",
            row / scheme.block_rows,
            col / scheme.block_cols,
            scheme.block_rows,
            scheme.block_cols
        ),
        "repair the weight; to reproduce verl's behaviour instead, use --set edges=seed-torch (or seed-triton)",
    ))
}

fn broken(input: &Input<'_>, patch: &dyn BlockQuant, panel: usize, v: &ContractViolation) -> RuntimeError {
    RuntimeError::Contract(Refusal::new(
        format!(
            "the scale that patch `{}` gave for tensor `{}`, block [{panel}, {}]",
            patch.name(),
            input.name,
            v.block_col
        ),
        v.to_string(),
        "the patch is wrong or hostile: do not use it; `--component fp8_block` is a good one",
    ))
}
