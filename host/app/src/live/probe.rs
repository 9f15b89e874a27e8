//! The probe of a candidate with the model that runs. The candidate is asked everything that the next refit would ask, about
//! the tensors of the last one; then for scales of made-up values on which recipes often go wrong (zeros, outliers, subnormal
//! numbers). Its answers are checked as in a refit, and thrown away. Observers are not asked, since what they see may change
//! what they remember.

use std::collections::BTreeMap;
use std::sync::Arc;

use half::bf16;
use patchhost_runtime::activation::{Activation, ActivationMode};
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::error::{Refusal, RuntimeError};
use patchhost_runtime::hooks::{BlockQuant, Decision, Elem, Scheme};
use patchhost_runtime::quantize::{Input, Measure, quantize};
use patchhost_runtime::refit::Source;

use super::embedded::Embedded;
use crate::compare::{Unit, decide, of_model};
use crate::patch::{Generation, Patch, TargetError};

/// Different ways to quantize that are tried; a patch has one or two.
const SCHEMES: usize = 8;
/// Elements of the largest matrix that is tried: a probe must stay small beside a refit.
const MOST_ELEMENTS: usize = 1 << 22;

impl Embedded {
    /// Refuses a patch whose answers a refit of this model would refuse; gives what that refit would remark.
    pub(super) fn probe_on_model(
        &self,
        source: &Source,
        trial: &Generation,
        patch: &Arc<Patch>,
    ) -> Result<Vec<String>, TargetError> {
        let hooks = trial.hooks(self.hooks);
        // Placements, decisions, layout passes and masks, for the real tensors.
        let (_, remarks) = self.engine.explain_with_remarks(source.checkpoint(), &hooks)?;
        let (Some(quant), Some(_)) = (&hooks.quant, patch.block_quant()) else { return Ok(remarks) };
        let readable = self.engine.readable(source.checkpoint())?;
        let units = of_model(&self.engine.setup(), &readable, hooks.loader.as_deref())?;
        self.probe_scales(&units, &**quant)?;
        self.probe_activation(quant)?;
        Ok(remarks)
    }

    fn probe_scales(&self, units: &[Unit], quant: &dyn BlockQuant) -> Result<(), TargetError> {
        let decisions = decide(units, self.engine.info(), quant)?;
        let mut smallest: BTreeMap<String, (&Unit, &Scheme)> = BTreeMap::new();
        for (unit, decision) in units.iter().zip(&decisions) {
            let (Decision::Quantize(scheme), Some(piece)) = (decision, unit.pieces.first()) else { continue };
            let key = format!("{:?} {} {}", scheme.cast, scheme.block_rows, scheme.block_cols);
            let size = |u: &Unit| u.pieces.first().map_or(0, |p| p.rows * p.cols);
            let known = smallest.get(&key).is_some_and(|(other, _)| size(other) <= piece.rows * piece.cols);
            if !known && piece.rows * piece.cols <= MOST_ELEMENTS {
                smallest.insert(key, (unit, scheme));
            }
        }
        for (unit, scheme) in smallest.values().take(SCHEMES) {
            let Some(piece) = unit.pieces.first() else { continue };
            let (data, elem) = unit.load(piece)?;
            let input = |data, elem| Input { name: &unit.info.name, data, elem, rows: piece.rows, cols: piece.cols };
            let real = || input(data.clone(), elem);
            let (first, second) = (
                quantize(&real(), scheme, quant, Measure::Nothing)?,
                quantize(&real(), scheme, quant, Measure::Nothing)?,
            );
            if first.q != second.q || bits(&first.scales) != bits(&second.scales) {
                return Err(TargetError::Refused(Refusal::new(
                    format!("patch `{}` at stage probe", quant.name()),
                    format!("it gave other scales for `{}` when it was asked again", unit.info.name),
                    "make its answers depend on their input alone: every rank must come to the same bits",
                )));
            }
            for values in tempting(piece.rows, piece.cols) {
                let len = values.len();
                let Some(data) = TensorBytes::new(Arc::new(values), 0..len) else { continue };
                quantize(&input(data, Elem::Bf16), scheme, quant, Measure::Nothing)?;
            }
        }
        Ok(())
    }

    /// Activation scales, where they are a call: as the first forward pass would ask for them.
    fn probe_activation(&self, quant: &Arc<dyn BlockQuant>) -> Result<(), TargetError> {
        if self.hooks.activation == ActivationMode::None {
            return Ok(());
        }
        match quant.activation(self.engine.info()).map_err(RuntimeError::from)? {
            Some(rule) => Activation::from_rule(quant.name(), rule).map(|_| ())?,
            None => {
                let x: Vec<f32> = (0..4 * 256).map(|i| (i as f32 * 0.37).sin() * f32::from(1u16 << (i % 12))).collect();
                let zeros = vec![0.0; 256];
                let activation = Activation::Call(quant.clone());
                activation.quantized(&x, 4, 256).map_err(RuntimeError::from)?;
                activation.quantized(&zeros, 1, 256).map_err(RuntimeError::from)?;
            }
        }
        Ok(())
    }
}

fn bits(scales: &[f32]) -> Vec<u32> {
    scales.iter().map(|s| s.to_bits()).collect()
}

/// bf16 matrices with what makes recipes go wrong: blocks of zeros, values of very different size, subnormal values,
/// outliers in the last row and column, one sign only.
fn tempting(rows: usize, cols: usize) -> [Vec<u8>; 3] {
    let bytes = |value: &dyn Fn(usize, usize) -> f32| {
        let values = (0..rows * cols).map(|i| bf16::from_f32(value(i / cols.max(1), i % cols.max(1))));
        values.flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>()
    };
    // A cheap hash to a value in [-1, 1): the same on every machine.
    let noise = |r: usize, c: usize| {
        let mixed = (r as u32).wrapping_mul(0x9E37_79B1) ^ (c as u32).wrapping_mul(0x85EB_CA77);
        let mixed = (mixed ^ (mixed >> 15)).wrapping_mul(0x2C1B_3C6D);
        (mixed >> 8) as f32 / (1u32 << 23) as f32 - 1.0
    };
    [
        bytes(&|r, c| if (r / 128 + c / 128).is_multiple_of(2) { 0.0 } else { noise(r, c) }),
        bytes(&|r, c| {
            let large = r + 1 == rows || c + 1 == cols;
            noise(r, c) * if large { 3e4 } else { 1e-3 }
        }),
        bytes(&|r, c| noise(r, c).abs() * if r.is_multiple_of(3) { 1e-39 } else { 1e-12 }),
    ]
}
