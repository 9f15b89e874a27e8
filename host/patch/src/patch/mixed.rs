//! A candidate that is used a little: who gets it is decided by a hash of a name, so that every rank decides alike.

use std::sync::Arc;

use patchhost_runtime::hooks::{
    ActivationRule, BlockQuant, Blocks, Consumer, Decision, HookError, ModelInfo, RowPanel, TensorInfo,
};

use crate::base::Digest;

/// Whether `name` is among the `percent` of names that a candidate gets. The first 8 bytes of SHA-256 of candidate and
/// name, modulo 100.
pub fn chosen(to: &Digest, name: &str, percent: u8) -> bool {
    let hash = Digest::of_parts([to.as_bytes().as_slice(), name.as_bytes()]);
    let first = hash.as_bytes().first_chunk::<8>().map_or(0, |bytes| u64::from_be_bytes(*bytes));
    first % 100 < u64::from(percent)
}

/// Two quantizers for one refit.
pub(crate) struct Mixed {
    pub(crate) live: Arc<dyn BlockQuant>,
    pub(crate) candidate: Arc<dyn BlockQuant>,
    pub(crate) to: Digest,
    pub(crate) percent: u8,
}

impl Mixed {
    /// Identity of weights that both made.
    pub(crate) fn digest(active: &Digest, to: &Digest, percent: u8) -> Digest {
        Digest::of_parts([b"canary".as_slice(), &[percent], active.as_bytes(), to.as_bytes()])
    }

    fn of(&self, tensor: &str) -> &dyn BlockQuant {
        if chosen(&self.to, tensor, self.percent) { &*self.candidate } else { &*self.live }
    }
}

impl BlockQuant for Mixed {
    fn name(&self) -> &str {
        self.candidate.name()
    }

    fn decide(&self, model: &ModelInfo, reader: &Consumer, tensors: &[TensorInfo]) -> Result<Vec<Decision>, HookError> {
        let live = self.live.decide(model, reader, tensors)?;
        let candidate = self.candidate.decide(model, reader, tensors)?;
        let pick = |((tensor, live), candidate): ((&TensorInfo, Decision), Decision)| {
            if chosen(&self.to, &tensor.name, self.percent) { candidate } else { live }
        };
        Ok(tensors.iter().zip(live).zip(candidate).map(pick).collect())
    }

    /// Activations belong to no tensor: the live patch scales them.
    fn activation(&self, model: &ModelInfo) -> Result<Option<ActivationRule>, HookError> {
        self.live.activation(model)
    }

    fn scales(&self, blocks: &Blocks<'_>, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.of(blocks.tensor).scales(blocks, amax)
    }

    fn scales_with_moments(&self, blocks: &Blocks<'_>, amax: &[f32], squares: &[f32]) -> Result<Vec<f32>, HookError> {
        self.of(blocks.tensor).scales_with_moments(blocks, amax, squares)
    }

    fn panel_scales(&self, blocks: &Blocks<'_>, panel: &RowPanel, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.of(blocks.tensor).panel_scales(blocks, panel, amax)
    }

    fn activation_scales(&self, amax: &[f32]) -> Result<Vec<f32>, HookError> {
        self.live.activation_scales(amax)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_about_right_and_stable() {
        let to = Digest::of(b"candidate");
        let count = |percent| (0..10_000).filter(|i| chosen(&to, &format!("request-{i}"), percent)).count();
        assert!((800..1200).contains(&count(10)), "{}", count(10));
        assert!((4700..5300).contains(&count(50)), "{}", count(50));
        // Who is in at 10 % is in at 50 %: growing a canary takes nobody back.
        let stays = |i: &u32| !chosen(&to, &i.to_string(), 10) || chosen(&to, &i.to_string(), 50);
        assert!((0..1000).all(|i| stays(&i)));
    }
}
