//! One matrix into block FP8: native statistics, the patch's scales, and the native cast that proves them. Panels (rows
//! of blocks) run in parallel; each is read, asked about and cast while it is still in cache.

use patchhost_kernels::cast::ContractViolation;
pub use patchhost_kernels::cast::Measure;
pub use patchhost_kernels::panel::QuantizedMatrix as Quantized;
use patchhost_kernels::panel::{PanelSpec, StripAt, quantize_matrix};
use patchhost_kernels::source::Source;
use patchhost_kernels::stats::{PanelStats, StatsOptions, panel_stats};

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
    let (rows, cols) = (input.rows, input.cols);
    let source = Source::new(&input.data, input.elem, rows, cols).map_err(|e| {
        RuntimeError::Checkpoint(Refusal::new(
            format!("tensor `{}`", input.name),
            e.to_string(),
            "check the checkpoint",
        ))
    })?;
    let job = Job { input, source, scheme, patch, rule, grid_cols: grid(rows, cols, scheme).1 };
    let spec = PanelSpec {
        block_rows: scheme.block_rows,
        block_cols: scheme.block_cols,
        moments: scheme.needs == Needs::Moments,
        cast: &scheme.cast,
        measure,
        // Rows are lent as whole panels.
        whole: scheme.needs == Needs::Rows,
    };
    let broken = |panel, violation| broken(input, patch, panel, &violation);
    quantize_matrix(&source, &spec, |at, stats| job.ask(at, stats), broken)
}

/// One matrix.
struct Job<'a> {
    input: &'a Input<'a>,
    source: Source<'a>,
    scheme: &'a Scheme,
    patch: &'a dyn BlockQuant,
    rule: NonFinite,
    grid_cols: usize,
}

impl Job<'_> {
    /// One number for each block of a strip.
    fn ask(&self, at: StripAt, stats: &PanelStats) -> Result<Vec<f32>> {
        breathe();
        let Self { input, scheme, patch, .. } = *self;
        let first_row = at.panel * scheme.block_rows;
        let rows = scheme.block_rows.min(input.rows - first_row);
        let refused = self.rule == NonFinite::Refuse || scheme.cast.edges == Edges::Strict;
        if stats.first_nonfinite.is_some() && refused {
            return Err(self.not_finite(first_row, rows));
        }
        let blocks = Blocks {
            tensor: input.name,
            rows: input.rows,
            cols: input.cols,
            block_rows: scheme.block_rows,
            block_cols: scheme.block_cols,
            first_block: at.panel * self.grid_cols + at.first_block,
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
        not_finite(input, source, scheme, row, col)
    }
}

fn not_finite(input: &Input<'_>, source: &Source<'_>, scheme: &Scheme, row: usize, col: usize) -> RuntimeError {
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
