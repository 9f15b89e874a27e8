//! A panel (one row of blocks) from statistics to codes, strip by strip.
//!
//! The statistics read the weights from memory, the cast reads them again. A panel of a wide matrix does not stay in L2
//! between the two, so it is cut into strips of whole blocks that do.

use crate::cast::{CastReport, ContractViolation, Layout, Measure, cast_strip};
use crate::isa::Isa;
use crate::source::Source;
use crate::spec::{CastSpec, Edges};
use crate::stats::{PanelStats, StatsOptions, panel_stats_with};

/// Most bytes of a strip of more than one block: half of the smallest L2 among today's servers.
const STRIP_BYTES: usize = 1 << 20;

/// How a panel is cut and what is asked about it.
#[derive(Debug, Clone, Copy)]
pub struct PanelSpec<'a> {
    /// Columns of a block.
    pub block_cols: usize,
    /// Also the sum of squares of each block.
    pub moments: bool,
    /// Contract and arithmetic of the cast.
    pub cast: &'a CastSpec,
    /// Of which values the error is measured.
    pub measure: Measure,
    /// Ask once for the whole panel, not for each strip.
    pub whole: bool,
}

/// Statistics, scales and cast of the rows `first_row .. first_row + panel_rows`: `ask` gets the index of the first
/// block of each strip in the panel and the strip's statistics (its columns counted from its left edge), and gives one
/// number per block. Writes `panel_rows * cols` codes, row-major, to `q`, and one scale per block to `scales`. Uses
/// [`Isa::detect`].
///
/// # Errors
/// The first that `ask` gives, or the first block that breaks its contract. `q` and `scales` are then undefined and must
/// not be published.
///
/// # Panics
/// If `block_cols` is 0, the rows are outside of the matrix, or a slice has another length than said above.
pub fn quantize_panel<E: From<ContractViolation>>(
    src: &Source<'_>,
    first_row: usize,
    panel_rows: usize,
    spec: &PanelSpec<'_>,
    ask: impl FnMut(usize, &PanelStats) -> Result<Vec<f32>, E>,
    q: &mut [u8],
    scales: &mut [f32],
) -> Result<CastReport, E> {
    quantize_panel_with(Isa::detect(), src, first_row, panel_rows, spec, ask, q, scales)
}

/// [`quantize_panel`] with the instructions of `isa`.
///
/// # Errors
/// As [`quantize_panel`].
///
/// # Panics
/// As [`quantize_panel`].
pub fn quantize_panel_with<E: From<ContractViolation>>(
    isa: Isa,
    src: &Source<'_>,
    first_row: usize,
    panel_rows: usize,
    spec: &PanelSpec<'_>,
    mut ask: impl FnMut(usize, &PanelStats) -> Result<Vec<f32>, E>,
    q: &mut [u8],
    scales: &mut [f32],
) -> Result<CastReport, E> {
    let PanelSpec { block_cols, moments, cast, measure, whole } = *spec;
    assert!(block_cols > 0, "blocks have at least one column");
    assert_eq!(q.len(), panel_rows * src.cols, "one code per value");
    assert_eq!(scales.len(), src.cols.div_ceil(block_cols), "one scale per block");
    let opts =
        StatsOptions { moments, round_bf16: cast.round_bf16, ignore_nan: cast.edges == Edges::IgnoreNan };
    let per_strip = match whole {
        true => scales.len().max(1),
        false => strip_blocks(panel_rows, block_cols, src.elem.size()),
    };
    let mut report = CastReport::default();
    for (strip, scales) in scales.chunks_mut(per_strip).enumerate() {
        let first_block = strip * per_strip;
        let left = first_block * block_cols;
        let columns = src.columns(left, (scales.len() * block_cols).min(src.cols - left));
        let stats = panel_stats_with(isa, &columns, first_row, panel_rows, block_cols, &opts);
        let given = ask(first_block, &stats)?;
        // The next strip lies beside this one, or begins the next panel.
        let beside = left + columns.cols < src.cols;
        let ahead = match first_row + panel_rows < src.rows {
            _ if beside => columns.cols,
            true => panel_rows * src.cols - left,
            false => 0,
        };
        report += cast_strip(
            isa,
            &columns,
            first_row,
            panel_rows,
            block_cols,
            &given,
            &stats.amax,
            cast,
            measure,
            &mut q[left..],
            Layout { stride: src.cols, ahead: ahead * src.elem.size() },
            scales,
        )
        .map_err(|violation| ContractViolation { block_col: first_block + violation.block_col, ..violation })?;
    }
    Ok(report)
}

/// Blocks of a strip; at least one.
fn strip_blocks(panel_rows: usize, block_cols: usize, elem_size: usize) -> usize {
    let block = panel_rows.saturating_mul(block_cols).saturating_mul(elem_size);
    STRIP_BYTES.checked_div(block).unwrap_or(1).max(1)
}
