//! The cast of one strip (a panel, or some of its blocks) row by row, its scales proved first.

use crate::cast::{CastReport, Measure};
use crate::contract::{Checked, ContractViolation, SATURATED_BITS, Violation, check};
use crate::e4m3;
use crate::isa::Isa;
use crate::simd::{Kernel, Simd, dispatch};
use crate::source::{Bf16, Element, F16, F32, Source};
use crate::spec::{CastRule, CastSpec, Contract, Edges, Elem};
use crate::steps::Steps;
use std::mem::MaybeUninit;

/// Rows of a strip for one that [`Measure::Sample`] measures.
const SAMPLED: usize = 32;

/// Values of a block from which on the steps of its factor are worth making: they cost about as much as casting 200.
const WORTH_STEPS: usize = 1024;

/// A strip in the making.
pub(crate) struct Strip<'a> {
    isa: Isa,
    src: Source<'a>,
    first_row: usize,
    panel_rows: usize,
    block_cols: usize,
    spec: &'a CastSpec,
    measure: Measure,
    blocks: Vec<Block>,
    /// Of every block, or none at all.
    steps: Vec<Steps>,
    /// Which blocks of the row that is being cast need the general path.
    general: Vec<bool>,
    report: CastReport,
}

/// What all rows of one block share, and what they counted.
struct Block {
    good: Checked,
    nan: u8,
    saturated: u64,
}

impl<'a> Strip<'a> {
    /// Proves the scales and writes them to `scales`. `given` and `amax` have one number for each block.
    pub fn new(
        isa: Isa,
        src: Source<'a>,
        first_row: usize,
        panel_rows: usize,
        block_cols: usize,
        given: &[f32],
        amax: &[f32],
        spec: &'a CastSpec,
        measure: Measure,
        scales: &mut [f32],
    ) -> Result<Self, ContractViolation> {
        let blocks = src.cols.div_ceil(block_cols);
        assert!(given.len() == blocks && amax.len() == blocks && scales.len() == blocks, "one number per block");
        let block_cols = block_cols.min(src.cols.max(1));
        // verl's Triton path clamps a NaN to -448: max and min of NaN and a number give the number.
        let nan = if spec.edges == Edges::IgnoreNan { 0xfe } else { e4m3::NAN };
        let mut strip = Self {
            isa,
            src,
            first_row,
            panel_rows,
            block_cols,
            spec,
            measure,
            blocks: Vec::with_capacity(blocks),
            steps: vec![],
            general: vec![true; blocks],
            report: CastReport::default(),
        };
        for (block_col, ((amax, given), scale)) in amax.iter().zip(given).zip(scales).enumerate() {
            let (amax, given) = (*amax, *given);
            let good = check(spec, amax, given).map_err(|(scale, what)| ContractViolation {
                block_col,
                amax,
                given,
                scale,
                what,
            })?;
            *scale = good.scale;
            // 0 times infinity: the NaN that x86 makes of it is negative, and torch keeps the sign.
            let nan = if good.factor == f32::INFINITY && nan == e4m3::NAN { nan | 0x80 } else { nan };
            strip.blocks.push(Block { good, nan, saturated: 0 });
        }
        let chunks = src.cols.is_multiple_of(32) && (block_cols.is_multiple_of(32) || blocks == 1);
        if src.elem == Elem::Bf16 && chunks && panel_rows * block_cols >= WORTH_STEPS {
            strip.steps = match spec.cast {
                CastRule::Divide => dispatch(isa, MakeSteps::<true>(&strip.blocks)),
                _ => dispatch(isa, MakeSteps::<false>(&strip.blocks)),
            };
        }
        Ok(strip)
    }

    /// Casts all rows and writes every code; row `r` of the strip goes to `q[r * stride..]`. Meanwhile asks for what lies `ahead` bytes behind
    /// each row, unless that is 0: it is read next.
    pub fn cast(&mut self, q: &mut [MaybeUninit<u8>], stride: usize, ahead: usize) {
        match (self.src.elem, self.spec.round_bf16) {
            (Elem::F32, false) => self.run::<F32, false>(F32, q, stride, ahead),
            (Elem::F32, true) => self.run::<F32, true>(F32, q, stride, ahead),
            (Elem::F16, false) => self.run::<F16, false>(F16, q, stride, ahead),
            (Elem::F16, true) => self.run::<F16, true>(F16, q, stride, ahead),
            (Elem::Bf16, _) => self.run::<Bf16, false>(Bf16, q, stride, ahead),
        }
    }

    fn run<E: Element, const ROUND: bool>(&mut self, elem: E, q: &mut [MaybeUninit<u8>], stride: usize, ahead: usize) {
        let (isa, divide) = (self.isa, self.spec.cast == CastRule::Divide);
        match divide {
            true => dispatch(isa, Cast::<E, ROUND, true> { strip: self, elem, q, stride, ahead }),
            false => dispatch(isa, Cast::<E, ROUND, false> { strip: self, elem, q, stride, ahead }),
        }
    }

    /// All rows are cast: what they counted, and whether each block clipped no more than it may.
    pub fn finish(mut self, given: &[f32], amax: &[f32]) -> Result<CastReport, ContractViolation> {
        if let Contract::Clip(limit) = self.spec.contract {
            for (block_col, block) in self.blocks.iter().enumerate() {
                let width = self.block_cols.min(self.src.cols - block_col * self.block_cols);
                let share = block.saturated as f64 / (width * self.panel_rows).max(1) as f64;
                // "Not at most", so that a NaN limit allows nothing.
                if !(block.good.exempt || share <= f64::from(limit)) {
                    let (amax, given) = (amax[block_col], given[block_col]);
                    let what = Violation::ClipShare { share, limit };
                    return Err(ContractViolation { block_col, amax, given, scale: block.good.scale, what });
                }
            }
        }
        self.report.saturated = self.blocks.iter().map(|block| block.saturated).sum();
        self.report.proved = self.blocks.iter().filter(|block| !block.good.exempt).count() as u64;
        Ok(self.report)
    }
}

/// Bytes as a place to write to. Only for what writes no bytes that are not initialized.
pub(crate) fn as_unwritten(q: &mut [u8]) -> &mut [MaybeUninit<u8>] {
    // SAFETY: both types have one layout. Nobody makes bytes uninitialized through the result: the casts of this crate
    // only write codes.
    unsafe { &mut *(std::ptr::from_mut(q) as *mut [MaybeUninit<u8>]) }
}

/// The steps of every block; nothing where one has none.
struct MakeSteps<'a, const DIVIDE: bool>(&'a [Block]);

impl<const DIVIDE: bool> Kernel for MakeSteps<'_, DIVIDE> {
    type Out = Vec<Steps>;

    #[inline(always)]
    fn run<S: Simd>(self, s: S) -> Vec<Steps> {
        let mut all = Vec::with_capacity(self.0.len());
        for block in self.0 {
            match Steps::new::<S, DIVIDE>(s, block.good.factor) {
                Some(steps) => all.push(steps),
                None => return Vec::new(),
            }
        }
        all
    }
}

/// The cast over all rows; also counts. `DIVIDE`: the factor divides instead of multiplying.
struct Cast<'a, 'b, E, const ROUND: bool, const DIVIDE: bool> {
    strip: &'a mut Strip<'b>,
    elem: E,
    q: &'a mut [MaybeUninit<u8>],
    stride: usize,
    ahead: usize,
}

impl<E: Element, const ROUND: bool, const DIVIDE: bool> Kernel for Cast<'_, '_, E, ROUND, DIVIDE> {
    type Out = ();

    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Cast { strip, elem, q, stride, ahead } = self;
        let Strip { src, blocks, steps, general, report, block_cols, .. } = strip;
        for r in 0..strip.panel_rows {
            let row = src.row_bytes(strip.first_row + r);
            let codes = &mut q[r * stride..][..src.cols];
            let measured = match strip.measure {
                Measure::Nothing => false,
                Measure::Sample => r % SAMPLED == 0,
                Measure::All => true,
            };
            if !measured && !steps.is_empty() {
                let (x, codes) = (row.as_chunks::<64>().0, codes.as_chunks_mut::<32>().0);
                if !s.cast_by_steps(x, *block_cols / 32, steps, ahead, codes, general) {
                    continue;
                }
            }
            for (i, block) in blocks.iter_mut().enumerate() {
                let left = i * *block_cols;
                let right = (left + *block_cols).min(src.cols);
                if !measured && !general[i] {
                    continue;
                }
                let (segment, codes) = (&row[left * E::SIZE..right * E::SIZE], &mut codes[left..right]);
                let mut step = Step::<S, ROUND, DIVIDE> {
                    factor: s.splat(block.good.factor),
                    nan: block.nan,
                    count: block.good.may_saturate,
                    measure: measured && !block.good.exempt,
                    flushed: 0,
                    saturated: 0,
                    error: s.splat(0.0),
                    sum: s.splat(0.0),
                };
                step.row(s, elem, segment, codes);
                report.flushed += u64::from(step.flushed);
                block.saturated += u64::from(step.saturated);
                if step.measure {
                    let (error, sum) = (s.sum(step.error), s.sum(step.sum));
                    if sum.is_finite() && error.is_finite() {
                        let square = f64::from(block.good.scale) * f64::from(block.good.scale);
                        report.squared_error += f64::from(error) * square;
                        report.squared_sum += f64::from(sum) * square;
                    }
                }
            }
        }
    }
}

/// One row of one block: constants and counts. A struct with an inlined method instead of a closure, which might not be
/// inlined into the function that has the target features.
struct Step<S: Simd, const ROUND: bool, const DIVIDE: bool> {
    factor: S::F,
    nan: u8,
    count: bool,
    measure: bool,
    flushed: u32,
    saturated: u32,
    error: S::F,
    sum: S::F,
}

impl<S: Simd, const ROUND: bool, const DIVIDE: bool> Step<S, ROUND, DIVIDE> {
    /// All values of a row.
    #[inline(always)]
    fn row<E: Element>(&mut self, s: S, elem: E, x: &[u8], codes: &mut [MaybeUninit<u8>]) {
        let (x16, x_tail) = x.split_at(codes.len() / 16 * 16 * E::SIZE);
        let (codes16, codes_tail) = codes.as_chunks_mut::<16>();
        for (x, codes) in x16.chunks_exact(16 * E::SIZE).zip(codes16) {
            codes.write_copy_of_slice(&self.cast(s, elem.load(s, x)));
        }
        if !codes_tail.is_empty() {
            let codes = self.cast(s, elem.load_tail(s, x_tail));
            codes_tail.write_copy_of_slice(&codes[..codes_tail.len()]);
        }
    }

    #[inline(always)]
    fn cast(&mut self, s: S, x: S::F) -> [u8; 16] {
        let x = if ROUND { s.round_bf16(x) } else { x };
        let y = if DIVIDE { s.div(x, self.factor) } else { s.mul(x, self.factor) };
        if self.count {
            self.saturated += s.beyond(y, SATURATED_BITS);
        }
        let (codes, flushed) = s.encode_counting(x, y, self.nan);
        self.flushed += flushed;
        if self.measure {
            let error = s.sub(y, s.mul(s.load_e4m3_256th(&codes), s.splat(256.0)));
            self.error = s.fma(error, error, self.error);
            self.sum = s.fma(y, y, self.sum);
        }
        codes
    }
}
