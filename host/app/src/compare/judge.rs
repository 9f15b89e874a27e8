//! A candidate beside the live set, tensor by tensor, and what the rules do not allow about it. The program and the Python
//! package judge by this alone.

use patchhost_runtime::hooks::{BlockQuant, Consumer, ModelInfo};

use super::error::Result;
use super::tensors::{State, TensorRow, compare_unit};
use super::units::{Unit, decide_for};
use crate::patch::{Digest, ShadowPolicy, TensorFinding, chosen};

/// The live set and a candidate that quantize the same tensors.
pub struct Pair<'a> {
    /// The model that patches are told about.
    pub model: &'a ModelInfo,
    /// The engine that reads the result.
    pub reader: &'a Consumer,
    /// The quantizer of the live set: side A of each row.
    pub live: Option<&'a dyn BlockQuant>,
    /// The quantizer of the candidate: side B.
    pub candidate: Option<&'a dyn BlockQuant>,
    /// The candidate's set, by which the tensors are chosen where the rules want only a share of them.
    pub to: Digest,
    /// What is allowed.
    pub rules: &'a ShadowPolicy,
}

impl Pair<'_> {
    /// Compares every tensor that either of the two quantizes, and judges it. `each` gets the row of a tensor and its findings;
    /// an error of it ends the comparison.
    pub fn compare(
        &self,
        units: &[Unit],
        mut each: impl FnMut(TensorRow, Vec<TensorFinding>) -> Result<()>,
    ) -> Result<()> {
        let decided = |quant: Option<&dyn BlockQuant>| {
            quant.map(|quant| decide_for(units, self.model, self.reader, quant)).transpose()
        };
        let (a, b) = (decided(self.live)?, decided(self.candidate)?);
        let percent = (self.rules.sample * 100.0).ceil().clamp(0.0, 100.0) as u8;
        for (i, unit) in units.iter().enumerate().filter(|(_, u)| chosen(&self.to, &u.info.name, percent)) {
            let da = a.as_ref().and_then(|decisions| decisions.get(i));
            let db = b.as_ref().and_then(|decisions| decisions.get(i));
            if let Some(row) = compare_unit(unit, da.zip(self.live), db.zip(self.candidate))? {
                let findings = judge(&row, self.rules);
                each(row, findings)?;
            }
        }
        Ok(())
    }
}

/// What the policy does not allow about one tensor.
pub fn judge(row: &TensorRow, policy: &ShadowPolicy) -> Vec<TensorFinding> {
    let mut findings = Vec::new();
    let mut find = |what: String| findings.push(TensorFinding { tensor: row.name.clone(), what });
    if row.state == State::Both {
        if let Some(bytes) = row.weight_bytes.filter(|bytes| bytes.share() > policy.max_bytes_changed) {
            find(format!("{:.6} of its bytes differ, allowed is {}", bytes.share(), policy.max_bytes_changed));
        }
        if let Some(scales) = row.scales {
            let share = scales.differing as f64 / scales.total.max(1) as f64;
            if share > policy.max_scales_changed {
                find(format!("{share:.6} of its scales differ, allowed is {}", policy.max_scales_changed));
            }
            if let Some(most) = policy.max_scale_ulp.filter(|most| u64::from(scales.max_ulp) > *most) {
                find(format!("a scale differs by {} ulp, allowed is {most}", scales.max_ulp));
            }
        }
    }
    if let (Some(a), Some(b)) = (&row.a, &row.b) {
        if let (Some(live), Some(candidate)) = (a.snr_db, b.snr_db)
            && live - candidate > policy.max_snr_loss_db
        {
            let lost = live - candidate;
            find(format!("it loses {lost:.3} dB against the live set, allowed is {}", policy.max_snr_loss_db));
        }
        let more = b.saturated.saturating_sub(a.saturated) as f64 / row.elements.max(1) as f64;
        if more > policy.max_saturated {
            find(format!("{more:.6} more of its values saturate, allowed is {}", policy.max_saturated));
        }
    }
    findings
}
