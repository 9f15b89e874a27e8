//! One matrix into block FP8: native statistics, the patch's scales, and the native cast that proves them. Panels (rows
//! of blocks) run in parallel; each is read, asked about and cast while it is still in cache.

pub use patchhost_kernels::cast::Measure;
use patchhost_kernels::cast::{CastReport, ContractViolation};
use patchhost_kernels::pages::prefer_large;
pub use patchhost_kernels::panel::QuantizedMatrix as Quantized;
use patchhost_kernels::panel::{PanelSpec, StripAt, quantize_matrix, quantize_matrix_into, quantize_panels};
use patchhost_kernels::source::Source;
use patchhost_kernels::stats::{PanelStats, StatsOptions, panel_stats};
use rayon::prelude::*;

use crate::bytes::TensorBytes;
use crate::error::{Refusal, Result, RuntimeError};
use crate::hooks::{BlockQuant, Blocks, Edges, Elem, Needs, RowPanel, Scheme};
use crate::pace::breathe;
use crate::refit::NonFinite;

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

/// Rows and columns of the block grid.
pub fn grid(rows: usize, cols: usize, scheme: &Scheme) -> (usize, usize) {
    (rows.div_ceil(scheme.block_rows), cols.div_ceil(scheme.block_cols))
}

/// Quantizes a matrix with the scales that `patch` gives. What happens to values that are not finite is the scheme's word.
pub fn quantize(input: &Input<'_>, scheme: &Scheme, patch: &dyn BlockQuant, measure: Measure) -> Result<Quantized> {
    quantize_under(NonFinite::Allow, input, scheme, patch, measure)
}

/// The same under the operator's rule for values that are not finite, which comes before the scheme's.
pub fn quantize_under(
    rule: NonFinite,
    input: &Input<'_>,
    scheme: &Scheme,
    patch: &dyn BlockQuant,
    measure: Measure,
) -> Result<Quantized> {
    let source =
        Source::new(&input.data, input.elem, input.rows, input.cols).map_err(|e| unreadable(input, e.to_string()))?;
    let job = Job { input, source, scheme, patch, rule, part: Part::whole(input) };
    quantize_matrix(&source, &spec(scheme, measure), |at, stats| job.ask(at, stats), |panel, v| job.broken(panel, &v))
}

/// How a matrix lies in memory that somebody else owns: elements from one row to the next, and from one column to the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Strides {
    /// From row to row.
    pub row: usize,
    /// From column to column.
    pub col: usize,
}

/// Who does the work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// The calling thread alone: nobody is woken for a small matrix.
    Caller,
    /// The threads of the rayon pool that the caller is in.
    Pool,
}

/// The same for a matrix of any strides, into memory of the caller: `q` takes `rows * cols` codes and `scales` one stored scale
/// for each block, both row-major. A matrix whose columns do not lie side by side is gathered panel by panel (one row of blocks
/// for each thread), never as a whole. On an error what lies in `q` and `scales` is undefined.
pub fn quantize_into(
    rule: NonFinite,
    input: &Input<'_>,
    strides: Strides,
    scheme: &Scheme,
    patch: &dyn BlockQuant,
    measure: Measure,
    on: On,
    q: &mut [u8],
    scales: &mut [f32],
) -> Result<CastReport> {
    let (rows, cols) = (input.rows, input.cols);
    let (grid_rows, grid_cols) = grid(rows, cols, scheme);
    if q.len() != rows * cols || scales.len() != grid_rows * grid_cols {
        return Err(unreadable(
            input,
            format!("room for {} codes and {} scales is not its size", q.len(), scales.len()),
        ));
    }
    prefer_large(q);
    let side_by_side = strides.col == 1 || cols <= 1;
    // Rows are lent as they lie, one behind the other.
    if side_by_side && (strides.row >= cols || rows <= 1) && (scheme.needs != Needs::Rows || strides.row == cols) {
        let source = Source::strided(&input.data, input.elem, rows, cols, strides.row)
            .map_err(|e| unreadable(input, e.to_string()))?;
        let job = Job { input, source, scheme, patch, rule, part: Part::whole(input) };
        let (ask, broken) = (|at, stats: &_| job.ask(at, stats), |panel, v| job.broken(panel, &v));
        return match on {
            On::Pool => quantize_matrix_into(&source, &spec(scheme, measure), ask, broken, q, scales),
            On::Caller if q.is_empty() => Ok(CastReport::default()),
            On::Caller => quantize_panels(&source, 0, &spec(scheme, measure), ask, broken, q, scales),
        };
    }
    if q.is_empty() {
        return Ok(CastReport::default());
    }
    let size = input.elem.size();
    let needed = ((rows - 1) * strides.row + (cols - 1) * strides.col + 1) * size;
    if input.data.len() < needed {
        return Err(unreadable(input, format!("it needs {needed} bytes and has {}", input.data.len())));
    }
    let panel = |(i, (q, scales)): (usize, (&mut [u8], &mut [f32]))| {
        let first_row = i * scheme.block_rows;
        let count = scheme.block_rows.min(rows - first_row);
        let gathered = gather(&input.data, first_row..first_row + count, cols, strides, size);
        let len = gathered.len();
        let data =
            TensorBytes::new(std::sync::Arc::new(gathered), 0..len).ok_or_else(|| unreadable(input, "-".into()))?;
        let own = Input { name: input.name, data, elem: input.elem, rows: count, cols };
        let source = Source::new(&own.data, own.elem, count, cols).map_err(|e| unreadable(input, e.to_string()))?;
        let job = Job { input: &own, source, scheme, patch, rule, part: Part { rows, first_panel: i } };
        let (ask, broken) = (|at, stats: &_| job.ask(at, stats), |panel, v| job.broken(panel, &v));
        quantize_panels(&source, 0, &spec(scheme, measure), ask, broken, q, scales)
    };
    let each = scheme.block_rows.saturating_mul(cols);
    let panels: Vec<Result<CastReport>> = match on {
        On::Pool => q.par_chunks_mut(each).zip(scales.par_chunks_mut(grid_cols)).enumerate().map(panel).collect(),
        On::Caller => q.chunks_mut(each).zip(scales.chunks_mut(grid_cols)).enumerate().map(panel).collect(),
    };
    let mut report = CastReport::default();
    for panel in panels {
        report += panel?;
    }
    Ok(report)
}

/// Some rows of a matrix of any strides, row-major.
fn gather(bytes: &[u8], rows: std::ops::Range<usize>, cols: usize, strides: Strides, size: usize) -> Vec<u8> {
    let mut out = vec![0u8; rows.len() * cols * size];
    // Column by column within a few rows: in a transposed matrix what lies side by side is a column.
    const TILE: usize = 32;
    for tile in (0..rows.len()).step_by(TILE) {
        for col in 0..cols {
            for row in tile..rows.len().min(tile + TILE) {
                let from = ((rows.start + row) * strides.row + col * strides.col) * size;
                let to = (row * cols + col) * size;
                out[to..to + size].copy_from_slice(&bytes[from..from + size]);
            }
        }
    }
    out
}

fn unreadable(input: &Input<'_>, why: String) -> RuntimeError {
    RuntimeError::Checkpoint(Refusal::new(format!("tensor `{}`", input.name), why, "check the checkpoint"))
}

fn spec(scheme: &Scheme, measure: Measure) -> PanelSpec<'_> {
    PanelSpec {
        block_rows: scheme.block_rows,
        block_cols: scheme.block_cols,
        moments: scheme.needs == Needs::Moments,
        cast: &scheme.cast,
        measure,
        // Rows are lent as whole panels.
        whole: scheme.needs == Needs::Rows,
    }
}

/// Which part of a matrix lies in memory.
#[derive(Clone, Copy)]
struct Part {
    /// Rows of all of it.
    rows: usize,
    /// The first of its panels.
    first_panel: usize,
}

impl Part {
    fn whole(input: &Input<'_>) -> Self {
        Self { rows: input.rows, first_panel: 0 }
    }
}

/// One matrix, or some panels of one.
struct Job<'a> {
    input: &'a Input<'a>,
    source: Source<'a>,
    scheme: &'a Scheme,
    patch: &'a dyn BlockQuant,
    rule: NonFinite,
    part: Part,
}

impl Job<'_> {
    /// One number for each block of a strip.
    fn ask(&self, at: StripAt, stats: &PanelStats) -> Result<Vec<f32>> {
        breathe();
        let Self { input, scheme, patch, part, .. } = *self;
        let first_row = at.panel * scheme.block_rows;
        let rows = scheme.block_rows.min(input.rows - first_row);
        let refused = self.rule == NonFinite::Refuse || scheme.cast.edges == Edges::Strict;
        if stats.first_nonfinite.is_some() && refused {
            return Err(self.not_finite(first_row, rows));
        }
        let grid_cols = input.cols.div_ceil(scheme.block_cols);
        let blocks = Blocks {
            tensor: input.name,
            rows: part.rows,
            cols: input.cols,
            block_rows: scheme.block_rows,
            block_cols: scheme.block_cols,
            first_block: (part.first_panel + at.panel) * grid_cols + at.first_block,
        };
        Ok(match scheme.needs {
            Needs::Amax => patch.scales(&blocks, &stats.amax)?,
            Needs::Moments => patch.scales_with_moments(&blocks, &stats.amax, &stats.sum_squares)?,
            Needs::Rows => {
                let rows = RowPanel { data: input.data.clone(), elem: input.elem, cols: input.cols, first_row, rows };
                patch.panel_scales(&blocks, &rows, &stats.amax)?
            }
        })
    }

    /// Names the first value of a panel that is not finite, in the order of rows: a strip knows only its own.
    fn not_finite(&self, first_row: usize, rows: usize) -> RuntimeError {
        let Self { input, ref source, scheme, .. } = *self;
        let options = StatsOptions { moments: false, round_bf16: scheme.cast.round_bf16, ignore_nan: false };
        let whole = panel_stats(source, first_row, rows, scheme.block_cols, &options);
        let (row, col) = whole.first_nonfinite.unwrap_or((first_row, 0));
        not_finite(input, source, scheme, self.part, row, col)
    }

    fn broken(&self, panel: usize, violation: &ContractViolation) -> RuntimeError {
        broken(self.input, self.patch, self.part.first_panel + panel, violation)
    }
}

fn not_finite(
    input: &Input<'_>,
    source: &Source<'_>,
    scheme: &Scheme,
    part: Part,
    row: usize,
    col: usize,
) -> RuntimeError {
    let mut values = vec![0.0f32; input.cols];
    source.row_f32(row, false, &mut values);
    let value = values.get(col).copied().unwrap_or(f32::NAN);
    let mut count = 0;
    for row in 0..input.rows {
        source.row_f32(row, scheme.cast.round_bf16, &mut values);
        count += values.iter().filter(|x| !x.is_finite()).count();
    }
    let (edges, next) = match scheme.cast.edges {
        Edges::Strict => (
            "the edge policy is `strict`".to_string(),
            "repair the weight; to reproduce verl's behaviour instead, use --set edges=seed-torch (or seed-triton), and for a \
             refit `[quant] non_finite = \"allow\"` in the policy file",
        ),
        other => (
            format!("the scheme's edges are `{}`, and the operator's policy refuses such weights", edges_name(other)),
            "repair the weight, or allow it in the policy file: `[quant] non_finite = \"allow\"`; the old weights, if any, keep \
             serving",
        ),
    };
    let (block_rows, block_cols) = (scheme.block_rows, scheme.block_cols);
    let row = part.first_panel * block_rows + row;
    let (down, across) = (row / block_rows, col / block_cols);
    let more = if count > 1 { format!("; {count} of its values are not finite") } else { String::new() };
    RuntimeError::NonFinite(Refusal::new(
        format!("tensor `{}`", input.name),
        format!(
            "the value at index [{row}, {col}] is {value} (block [{down}, {across}] of {block_rows}x{block_cols}){more}; {edges}"
        ),
        next,
    ))
}

/// What a scheme's edges are called in settings and reports.
pub fn edges_name(edges: Edges) -> &'static str {
    match edges {
        Edges::Strict => "strict",
        Edges::PropagateNan => "propagate-nan",
        Edges::IgnoreNan => "ignore-nan",
    }
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
