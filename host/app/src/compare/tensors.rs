//! What two sides make of one tensor: bits, values, and their sums.

use patchhost_kernels::cast::dequantize;
use patchhost_kernels::source::Source;
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::{BlockQuant, Decision, Scheme};
use patchhost_runtime::quantize::{Input, Measure, Quantized, quantize};
use rayon::prelude::*;
use serde::Serialize;

use super::bits::{CodeDiff, ScaleDiff, Signal};
use super::class::Class;
use super::error::{Result, refused};
use super::units::{Piece, Unit};

/// Rows of a matrix that one thread takes; the sums of chunks are added in order, whatever the threads do.
const CHUNK_ROWS: usize = 64;

/// What the two sides did with a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Both quantize it, in blocks of one size: everything is compared.
    Both,
    /// Both quantize it, in blocks of different sizes: only values can be compared.
    DifferentBlocks,
    /// Only A quantizes it.
    OnlyA,
    /// Only B quantizes it.
    OnlyB,
}

/// What one side made of a tensor.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SideRow {
    /// The arithmetic.
    pub profile: String,
    /// Rows and columns of a block.
    pub block: [usize; 2],
    /// Signal-to-noise ratio against the source weights, in dB; none where nothing was lost.
    pub snr_db: Option<f64>,
    /// Relative root mean square error against the source weights.
    pub relative_rmse: Option<f64>,
    /// Values that were clipped to ±448 times the scale.
    pub saturated: u64,
    /// Values other than zero that became zero.
    pub flushed: u64,
    #[serde(skip)]
    signal: Signal,
}

#[cfg(test)]
impl SideRow {
    /// A row of which only these sums matter.
    pub(super) fn of(signal: Signal) -> Self {
        Self {
            profile: "deepseek".to_owned(),
            block: [128, 128],
            snr_db: signal.snr_db(),
            relative_rmse: signal.relative_rmse(),
            saturated: 0,
            flushed: 0,
            signal,
        }
    }
}

/// One tensor that a side quantizes.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorRow {
    /// Checkpoint name.
    pub name: String,
    pub class: Class,
    /// Dimensions.
    pub shape: Vec<u64>,
    pub elements: u64,
    /// Who quantizes it.
    pub state: State,
    /// Scales, where both sides have the same blocks.
    pub scales: Option<ScaleDiff>,
    /// Weight bytes, where both sides have the same blocks.
    pub weight_bytes: Option<CodeDiff>,
    /// Greatest difference of the values that the two sides compute with; the source's own where a side does not quantize.
    /// Differences that are not finite are left out: only edges other than strict let them through.
    pub max_abs_difference: f64,
    /// Side A.
    pub a: Option<SideRow>,
    /// Side B.
    pub b: Option<SideRow>,
}

impl TensorRow {
    /// Whether the two sides made other bits, scales or blocks of it, or only one of them quantizes it.
    pub fn differs(&self) -> bool {
        let bits = self.weight_bytes.is_some_and(|bytes| bytes.differing > 0);
        self.state != State::Both || bits || self.scales.is_some_and(|scales| scales.differing > 0)
    }
}

/// Sums over tensors.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct Totals {
    /// Tensors that a side quantizes.
    pub tensors: usize,
    /// Of these, tensors that only A quantizes.
    pub only_a: usize,
    /// Tensors that only B quantizes.
    pub only_b: usize,
    /// Tensors with different blocks.
    pub different_blocks: usize,
    pub elements: u64,
    /// Scales of the tensors that both quantize in the same blocks.
    pub scales: ScaleDiff,
    /// Weight bytes of the same tensors.
    pub weight_bytes: CodeDiff,
    /// Greatest difference of values.
    pub max_abs_difference: f64,
    /// Side A, over the tensors that it quantizes.
    pub a: Option<SideTotals>,
    /// Side B.
    pub b: Option<SideTotals>,
}

/// Sums of one side.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
pub struct SideTotals {
    /// Signal-to-noise ratio of all values together, in dB.
    pub snr_db: Option<f64>,
    /// Relative root mean square error of all values together.
    pub relative_rmse: Option<f64>,
    /// Values that were clipped.
    pub saturated: u64,
    /// Values other than zero that became zero.
    pub flushed: u64,
    #[serde(skip)]
    signal: Signal,
}

/// Sums over rows.
pub fn totals<'a>(rows: impl IntoIterator<Item = &'a TensorRow>) -> Totals {
    let mut t = Totals::default();
    for row in rows {
        t.tensors += 1;
        match row.state {
            State::Both => {}
            State::DifferentBlocks => t.different_blocks += 1,
            State::OnlyA => t.only_a += 1,
            State::OnlyB => t.only_b += 1,
        }
        t.elements += row.elements;
        row.scales.iter().for_each(|s| t.scales.add(s));
        row.weight_bytes.iter().for_each(|w| t.weight_bytes.add(w));
        t.max_abs_difference = t.max_abs_difference.max(row.max_abs_difference);
        add_side(&mut t.a, row.a.as_ref());
        add_side(&mut t.b, row.b.as_ref());
    }
    t
}

fn add_side(total: &mut Option<SideTotals>, row: Option<&SideRow>) {
    let Some(row) = row else { return };
    let t = total.get_or_insert_default();
    t.saturated += row.saturated;
    t.flushed += row.flushed;
    t.signal.add(&row.signal);
    t.snr_db = t.signal.snr_db();
    t.relative_rmse = t.signal.relative_rmse();
}

/// Quantizes a tensor on both sides and compares; none where neither side quantizes it. A side without a quantizer
/// (`--against bf16`) has the source's own values.
pub fn compare_unit(
    unit: &Unit,
    a: Option<(&Decision, &dyn BlockQuant)>,
    b: Option<(&Decision, &dyn BlockQuant)>,
) -> Result<Option<TensorRow>> {
    let (a, b) = (scheme_of(a), scheme_of(b));
    let state = match (a, b) {
        (None, None) => return Ok(None),
        (Some(_), None) => State::OnlyA,
        (None, Some(_)) => State::OnlyB,
        (Some((a, _)), Some((b, _))) if (a.block_rows, a.block_cols) == (b.block_rows, b.block_cols) => State::Both,
        _ => State::DifferentBlocks,
    };
    if unit.elem.is_none() || (unit.pieces.is_empty() && !unit.info.shape.contains(&0)) {
        return Err(refused(
            format!("tensor `{}`", unit.info.name),
            format!(
                "a patch wants it in FP8, but it is {:?} {:?}; blocks are of matrices of F32, F16 or BF16",
                unit.info.dtype, unit.info.shape
            ),
            "take it out of the patch's settings (quantize=…), or add it to keep=…",
        ));
    }
    let mut row = TensorRow {
        name: unit.info.name.clone(),
        class: unit.class,
        shape: unit.info.shape.clone(),
        elements: 0,
        state,
        scales: (state == State::Both).then(ScaleDiff::default),
        weight_bytes: (state == State::Both).then(CodeDiff::default),
        max_abs_difference: 0.0,
        a: a.map(|(scheme, _)| side_row(scheme)),
        b: b.map(|(scheme, _)| side_row(scheme)),
    };
    for piece in &unit.pieces {
        compare_piece(unit, piece, a, b, &mut row)?;
    }
    for side in [&mut row.a, &mut row.b].into_iter().flatten() {
        side.snr_db = side.signal.snr_db();
        side.relative_rmse = side.signal.relative_rmse();
    }
    Ok(Some(row))
}

type Side<'a> = Option<(&'a Scheme, &'a dyn BlockQuant)>;

fn scheme_of<'a>(side: Option<(&'a Decision, &'a dyn BlockQuant)>) -> Side<'a> {
    match side {
        Some((Decision::Quantize(scheme), quant)) => Some((scheme, quant)),
        _ => None,
    }
}

fn side_row(scheme: &Scheme) -> SideRow {
    SideRow {
        profile: scheme.profile.clone(),
        block: [scheme.block_rows, scheme.block_cols],
        snr_db: None,
        relative_rmse: None,
        saturated: 0,
        flushed: 0,
        signal: Signal::default(),
    }
}

/// One side's result for one piece.
struct Made<'a> {
    scheme: &'a Scheme,
    quantized: Quantized,
}

impl Made<'_> {
    /// The values of one row that a matrix product sees.
    fn values(&self, row: usize, cols: usize, out: &mut [f32]) {
        let grid = cols.div_ceil(self.scheme.block_cols);
        let scales = &self.quantized.scales[row / self.scheme.block_rows * grid..][..grid];
        dequantize(&self.quantized.q[row * cols..][..cols], scales, 1, cols, 1, self.scheme.block_cols, out);
    }
}

fn make<'a>(side: Side<'a>, input: &Input<'_>) -> Result<Option<Made<'a>>> {
    let Some((scheme, quant)) = side else { return Ok(None) };
    // The cast could measure its error, but against the weights after rounding; here the source itself counts.
    Ok(Some(Made { scheme, quantized: quantize(input, scheme, quant, Measure::Nothing)? }))
}

fn compare_piece(unit: &Unit, piece: &Piece, a: Side<'_>, b: Side<'_>, row: &mut TensorRow) -> Result<()> {
    let (data, elem) = unit.load(piece)?;
    let input = |name| Input { name, data: data.clone(), elem, rows: piece.rows, cols: piece.cols };
    let (a, b) = (make(a, &input(&unit.info.name))?, make(b, &input(&unit.info.name))?);
    if let (Some(scales), Some(codes), Some(a), Some(b)) = (&mut row.scales, &mut row.weight_bytes, &a, &b) {
        scales.add(&ScaleDiff::of(&a.quantized.scales, &b.quantized.scales));
        codes.add(&CodeDiff::of(&a.quantized.q, &b.quantized.q));
    }
    for (side, made) in [(&mut row.a, &a), (&mut row.b, &b)] {
        if let Some((side, made)) = side.as_mut().zip(made.as_ref()) {
            side.saturated += made.quantized.report.saturated;
            side.flushed += made.quantized.report.flushed;
        }
    }
    row.elements += (piece.rows * piece.cols) as u64;

    let source = Source::new(&data, elem, piece.rows, piece.cols).map_err(|e| {
        RuntimeError::Checkpoint(Refusal::new(
            format!("tensor `{}`", unit.info.name),
            e.to_string(),
            "check the checkpoint",
        ))
    })?;
    let values = compare_values(&source, a.as_ref(), b.as_ref());
    row.max_abs_difference = row.max_abs_difference.max(values.max_abs);
    row.a.iter_mut().for_each(|side| side.signal.add(&values.a));
    row.b.iter_mut().for_each(|side| side.signal.add(&values.b));
    Ok(())
}

#[derive(Default)]
struct Values {
    a: Signal,
    b: Signal,
    max_abs: f64,
}

/// Reads the source and both sides' values once, row by row.
fn compare_values(source: &Source<'_>, a: Option<&Made<'_>>, b: Option<&Made<'_>>) -> Values {
    let cols = source.cols;
    if cols == 0 {
        return Values::default();
    }
    let chunks: Vec<Values> = (0..source.rows.div_ceil(CHUNK_ROWS))
        .into_par_iter()
        .map(|chunk| {
            let mut sum = Values::default();
            let (mut x, mut ya, mut yb) = (vec![0.0f32; cols], vec![0.0f32; cols], vec![0.0f32; cols]);
            for row in chunk * CHUNK_ROWS..((chunk + 1) * CHUNK_ROWS).min(source.rows) {
                source.row_f32(row, false, &mut x);
                for (made, y) in [(a, &mut ya), (b, &mut yb)] {
                    match made {
                        Some(made) => made.values(row, cols, y),
                        None => y.copy_from_slice(&x),
                    }
                }
                for ((x, a), b) in x.iter().zip(&ya).zip(&yb) {
                    sum.a.take(*x, *a);
                    sum.b.take(*x, *b);
                    let distance = (f64::from(*a) - f64::from(*b)).abs();
                    if distance.is_finite() {
                        sum.max_abs = sum.max_abs.max(distance);
                    }
                }
            }
            sum
        })
        .collect();
    let mut all = Values::default();
    for chunk in &chunks {
        all.a.add(&chunk.a);
        all.b.add(&chunk.b);
        all.max_abs = all.max_abs.max(chunk.max_abs);
    }
    all
}
