//! The whole answer of an elementwise patch: the amax of a bf16 block is a bf16, so there are 32,640 different questions.

use patchhost_kernels::cast::prove;
use patchhost_runtime::hooks::{BlockQuant, Blocks, Contract, Needs, Scheme};

use crate::errors::{Raised, Result};

/// Finite bf16 values from 0: their bits are 0 to 0x7f7f.
const ENTRIES: usize = 0x7f80;

/// Under which names and in which matrices it is asked: an elementwise patch answers the same. That it is elementwise is
/// checked by this, not proved; in a refit a sample of blocks is asked directly.
const ASKED_AS: [(&str, usize, usize); 2] =
    [("model.layers.0.mlp.down_proj.weight", 1, ENTRIES), ("model.layers.41.self_attn.q_proj.weight", 255, 128)];

/// One number for each entry, f32 little endian. Each is proved against the contract of the scheme.
pub fn make(quant: &dyn BlockQuant, scheme: &Scheme) -> Result<Vec<u8>> {
    let refuse = |why: String, next: &str| {
        Raised::new("refused", format!("a scale table of patch `{}`", quant.name()), why, next)
    };
    let by_bucket = "ask for the scales of a bucket of tensors instead (`PatchSet.scales`)";
    if scheme.needs != Needs::Amax {
        return Err(refuse(
            "it must see more of the values than their amax".to_owned(),
            "quantize on the CPU (`PatchSet.quantize`)",
        ));
    }
    if let Contract::Clip(share) = scheme.cast.contract {
        let why = format!("up to {share} of a block may saturate, which only a cast can count");
        return Err(refuse(why, "quantize on the CPU (`PatchSet.quantize`)"));
    }
    let amax: Vec<f32> = (0..ENTRIES as u32).map(|bits| f32::from_bits(bits << 16)).collect();
    let mut answers = Vec::new();
    for (tensor, grid_rows, grid_cols) in ASKED_AS {
        let (block_rows, block_cols) = (scheme.block_rows, scheme.block_cols);
        let blocks = Blocks {
            tensor,
            rows: grid_rows * block_rows,
            cols: grid_cols * block_cols,
            block_rows,
            block_cols,
            first_block: 0,
        };
        answers.push(quant.scales(&blocks, &amax)?);
    }
    let [first, second] = &answers[..] else { return Err(refuse("it was not asked".to_owned(), by_bucket)) };
    if let Some(at) = (0..ENTRIES).find(|i| first.get(*i).map(|v| v.to_bits()) != second.get(*i).map(|v| v.to_bits())) {
        let why = format!(
            "its answer for amax {:e} depends on the tensor's name or place: {:?}, and then {:?}",
            amax[at],
            first.get(at),
            second.get(at)
        );
        return Err(refuse(why, by_bucket));
    }
    for (amax, given) in amax.iter().zip(first) {
        prove(&scheme.cast, *amax, *given).map_err(|violation| {
            let next = "the patch is wrong or hostile: do not use it; `fp8_block` is a good one";
            let what = format!("the scale that patch `{}` gave for amax {amax:e}", quant.name());
            Raised::new("contract", what, violation.to_string(), next)
        })?;
    }
    Ok(first.iter().flat_map(|value| value.to_le_bytes()).collect())
}
