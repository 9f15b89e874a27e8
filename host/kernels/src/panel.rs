//! Panels (rows of blocks) from statistics to codes, each read from memory once.
//!
//! The statistics wait for memory; the cast of what they have read finds it in a cache and waits for arithmetic. So the
//! cast of one panel asks for the next one, line by line, and its statistics find it in a cache too.

use crate::cast::{CastReport, ContractViolation, Measure};
use crate::isa::Isa;
use crate::pages::Buffer;
use crate::source::Source;
use crate::spec::{CastSpec, Edges};
use crate::stats::{PanelStats, StatsOptions, panel_stats_with};
use crate::strip::{Strip, as_unwritten};
use rayon::prelude::*;
use std::mem::MaybeUninit;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Most bytes of a strip of more than one block. Wide panels are cut into such strips, so that any L3 holds two; but
/// not into narrow ones: each row of a strip is a page of its own, and its translation is missed once more for each
/// strip (measured: strips that fit L2 cost 1.5 times as much as whole panels of 1 MiB).
const STRIP_BYTES: usize = 2 << 20;

/// How panels are cut and what is done with them.
#[derive(Debug, Clone, Copy)]
pub struct PanelSpec<'a> {
    /// Rows of a block.
    pub block_rows: usize,
    /// Columns of a block.
    pub block_cols: usize,
    /// Also the sum of squares of each block.
    pub moments: bool,
    /// Contract and arithmetic of the cast.
    pub cast: &'a CastSpec,
    /// Of which values the error is measured.
    pub measure: Measure,
    /// Ask once for each panel, however wide.
    pub whole: bool,
}

/// A strip that scales are asked for: some blocks of one panel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StripAt {
    /// The panel in the matrix.
    pub panel: usize,
    /// The strip's first block in its panel.
    pub first_block: usize,
}

/// Statistics, scales and cast of the panels from `first_panel` whose codes `q` holds (`cols` codes for each row, only
/// the last panel of the matrix may have fewer rows than a block). `ask` gets every strip, in order, and its statistics
/// (columns counted from the left edge of the strip), and gives one number per block. `scales` takes one scale per
/// block. Uses [`Isa::detect`].
///
/// # Errors
/// The first that `ask` gives, or the first block that breaks its contract, with the panel. `q` and `scales` are then
/// undefined and must not be published.
///
/// # Panics
/// If a block size is 0, the rows are outside of the matrix, or a slice has another length than said above.
pub fn quantize_panels<E>(
    src: &Source<'_>,
    first_panel: usize,
    spec: &PanelSpec<'_>,
    ask: impl FnMut(StripAt, &PanelStats) -> Result<Vec<f32>, E>,
    broken: impl Fn(usize, ContractViolation) -> E,
    q: &mut [u8],
    scales: &mut [f32],
) -> Result<CastReport, E> {
    quantize_panels_with(Isa::detect(), src, first_panel, spec, ask, broken, q, scales)
}

/// [`quantize_panels`] with the instructions of `isa`.
///
/// # Errors
/// As [`quantize_panels`].
///
/// # Panics
/// As [`quantize_panels`].
pub fn quantize_panels_with<E>(
    isa: Isa,
    src: &Source<'_>,
    first_panel: usize,
    spec: &PanelSpec<'_>,
    mut ask: impl FnMut(StripAt, &PanelStats) -> Result<Vec<f32>, E>,
    broken: impl Fn(usize, ContractViolation) -> E,
    q: &mut [u8],
    scales: &mut [f32],
) -> Result<CastReport, E> {
    quantize_unwritten(isa, src, first_panel, spec, &mut ask, &broken, as_unwritten(q), scales)
}

/// A matrix that was quantized.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct QuantizedMatrix {
    /// One code per value, row-major.
    pub q: Buffer<u8>,
    /// One scale per block, row-major.
    pub scales: Vec<f32>,
    /// What the casts counted.
    pub report: CastReport,
}

/// Most panels that one thread takes in a row: each asks for the next one's bytes in time.
const RUN: usize = 8;

/// [`quantize_panels`] of a whole matrix, on all threads of the pool, into memory that nobody wrote before.
///
/// # Errors
/// The first in the order of the panels, whatever the threads do.
///
/// # Panics
/// If a block size is 0.
pub fn quantize_matrix<E: Send>(
    src: &Source<'_>,
    spec: &PanelSpec<'_>,
    ask: impl Fn(StripAt, &PanelStats) -> Result<Vec<f32>, E> + Sync,
    broken: impl Fn(usize, ContractViolation) -> E + Sync,
) -> Result<QuantizedMatrix, E> {
    assert!(spec.block_rows > 0 && spec.block_cols > 0, "blocks have at least one row and column");
    let codes = src.rows * src.cols;
    let mut q = Buffer::unwritten(codes);
    // NaN: what nobody writes cannot pass for a scale.
    let blocks = src.rows.div_ceil(spec.block_rows) * src.cols.div_ceil(spec.block_cols);
    let mut scales = vec![f32::from_bits(u32::MAX); blocks];
    let report = on_all_threads(src, spec, &ask, &broken, q.room(), &mut scales)?;
    // SAFETY: without an error each of the codes was written.
    let q = unsafe { q.written() };
    Ok(QuantizedMatrix { q, scales, report })
}

/// The same into memory of the caller: `q` takes `rows * cols` codes, `scales` one number for each block.
///
/// # Errors
/// As [`quantize_matrix`]; `q` and `scales` are then undefined and must not be used.
///
/// # Panics
/// If a block size is 0, or a slice has another length than said above.
pub fn quantize_matrix_into<E: Send>(
    src: &Source<'_>,
    spec: &PanelSpec<'_>,
    ask: impl Fn(StripAt, &PanelStats) -> Result<Vec<f32>, E> + Sync,
    broken: impl Fn(usize, ContractViolation) -> E + Sync,
    q: &mut [u8],
    scales: &mut [f32],
) -> Result<CastReport, E> {
    on_all_threads(src, spec, &ask, &broken, as_unwritten(q), scales)
}

/// Without an error, every code and every scale was written: every chunk of them went through `quantize_unwritten`, which
/// has cast every row of every strip of the chunk's panels, and these tile it (`Cut`).
fn on_all_threads<E: Send>(
    src: &Source<'_>,
    spec: &PanelSpec<'_>,
    ask: &(impl Fn(StripAt, &PanelStats) -> Result<Vec<f32>, E> + Sync),
    broken: &(impl Fn(usize, ContractViolation) -> E + Sync),
    q: &mut [MaybeUninit<u8>],
    scales: &mut [f32],
) -> Result<CastReport, E> {
    assert!(spec.block_rows > 0 && spec.block_cols > 0, "blocks have at least one row and column");
    let (isa, codes) = (Isa::detect(), src.rows * src.cols);
    let (grid_rows, grid_cols) = (src.rows.div_ceil(spec.block_rows), src.cols.div_ceil(spec.block_cols));
    assert!(q.len() == codes && scales.len() == grid_rows * grid_cols, "one code per value, one scale per block");
    let mut report = CastReport::default();
    if codes == 0 {
        return Ok(report);
    }
    let run = (grid_rows / rayon::current_num_threads()).clamp(1, RUN);
    // The first run of panels that failed. Later ones are skipped, earlier ones are not: the error must not depend
    // on timing.
    let failed = AtomicUsize::new(usize::MAX);
    let results: Vec<Option<Result<CastReport, E>>> = q
        .par_chunks_mut(run.saturating_mul(spec.block_rows).saturating_mul(src.cols))
        .zip(scales.par_chunks_mut(run * grid_cols))
        .enumerate()
        .map(|(i, (q, scales))| {
            if i > failed.load(Ordering::Relaxed) {
                return None;
            }
            let result =
                quantize_unwritten(isa, src, i * run, spec, &mut |at, stats| ask(at, stats), broken, q, scales);
            if result.is_err() {
                failed.fetch_min(i, Ordering::Relaxed);
            }
            Some(result)
        })
        .collect();
    let mut runs = 0;
    for result in results.into_iter().flatten() {
        report += result?;
        runs += 1;
    }
    assert_eq!(runs, grid_rows.div_ceil(run), "every run of panels was cast");
    Ok(report)
}

/// [`quantize_panels`]: without an error, every code and every scale was written.
fn quantize_unwritten<E>(
    isa: Isa,
    src: &Source<'_>,
    first_panel: usize,
    spec: &PanelSpec<'_>,
    ask: &mut impl FnMut(StripAt, &PanelStats) -> Result<Vec<f32>, E>,
    broken: &impl Fn(usize, ContractViolation) -> E,
    q: &mut [MaybeUninit<u8>],
    scales: &mut [f32],
) -> Result<CastReport, E> {
    let PanelSpec { block_cols, moments, cast, measure, .. } = *spec;
    let cut = Cut::new(src, first_panel, spec, q.len());
    assert_eq!(scales.len(), cut.panels * cut.grid_cols, "one scale per block");
    let opts = StatsOptions { moments, round_bf16: cast.round_bf16, ignore_nan: cast.edges == Edges::IgnoreNan };
    let mut report = CastReport::default();
    for i in 0..cut.strips() {
        let at = cut.strip(i);
        let columns = src.columns(at.left, at.cols);
        let stats = panel_stats_with(isa, &columns, at.first_row, at.rows, block_cols, &opts);
        let given = ask(StripAt { panel: at.panel, first_block: at.first_block }, &stats)?;

        let fail = |violation: ContractViolation| {
            broken(at.panel, ContractViolation { block_col: at.first_block + violation.block_col, ..violation })
        };
        let own = (at.panel - first_panel) * cut.grid_cols + at.first_block;
        let scales = &mut scales[own..own + stats.amax.len()];
        let mut strip =
            Strip::new(isa, columns, at.first_row, at.rows, block_cols, &given, &stats.amax, cast, measure, scales)
                .map_err(fail)?;
        let q = &mut q[(at.first_row - first_panel * spec.block_rows) * src.cols + at.left..];
        let ahead = match i + 1 < cut.strips() {
            true => {
                let next = cut.strip(i + 1);
                ((next.first_row - at.first_row) * src.cols + next.left - at.left) * src.elem.size()
            }
            false => 0,
        };
        strip.cast(q, src.cols, ahead);
        report += strip.finish(&given, &stats.amax).map_err(fail)?;
        report.non_finite += stats.nonfinite;
    }
    Ok(report)
}

/// The strips of some panels.
struct Cut {
    first_panel: usize,
    panels: usize,
    block_rows: usize,
    block_cols: usize,
    /// Blocks of a panel and of a strip.
    grid_cols: usize,
    per_strip: usize,
    /// One behind the last row.
    end_row: usize,
    cols: usize,
}

/// Where a strip lies.
struct At {
    panel: usize,
    first_row: usize,
    rows: usize,
    first_block: usize,
    left: usize,
    cols: usize,
}

impl Cut {
    fn new(src: &Source<'_>, first_panel: usize, spec: &PanelSpec<'_>, codes: usize) -> Self {
        let PanelSpec { block_rows, block_cols, whole, .. } = *spec;
        assert!(block_rows > 0 && block_cols > 0, "blocks have at least one row and column");
        let (cols, first_row) = (src.cols, first_panel * block_rows);
        let rows = codes.checked_div(cols).unwrap_or(0);
        assert!(first_row + rows <= src.rows && rows * cols == codes, "whole rows of the matrix");
        assert!(rows.is_multiple_of(block_rows) || first_row + rows == src.rows, "only the last panel is short");
        let grid_cols = cols.div_ceil(block_cols);
        let block = block_rows.min(rows.max(1)).saturating_mul(block_cols).saturating_mul(src.elem.size());
        let per_strip = if whole { grid_cols } else { (STRIP_BYTES / block.max(1)).min(grid_cols) };
        let panels = rows.div_ceil(block_rows);
        let per_strip = per_strip.max(1);
        Self { first_panel, panels, block_rows, block_cols, grid_cols, per_strip, end_row: first_row + rows, cols }
    }

    fn strips(&self) -> usize {
        self.panels * self.grid_cols.div_ceil(self.per_strip)
    }

    fn strip(&self, i: usize) -> At {
        let across = self.grid_cols.div_ceil(self.per_strip).max(1);
        let (panel, first_block) = (self.first_panel + i / across, i % across * self.per_strip);
        let (first_row, left) = (panel * self.block_rows, first_block * self.block_cols);
        let cols = self.per_strip.saturating_mul(self.block_cols).min(self.cols - left);
        At { panel, first_row, rows: self.block_rows.min(self.end_row - first_row), first_block, left, cols }
    }
}
