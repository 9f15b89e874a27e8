use std::sync::Arc;

use patchhost::patch::When;
use patchhost_runtime::bytes::TensorBytes;
use patchhost_runtime::checkpoint::Checkpoint;
use patchhost_runtime::refit::Begin;

use super::{QUIET, Rig, me};
use crate::support::f32_bytes;

/// The checkpoint with one matrix in f32 instead of bf16: the same values, another dtype.
fn widened(rig: &Rig) -> Checkpoint {
    let mut tensors: Vec<_> = rig.checkpoint.tensors().cloned().collect();
    let t = tensors.iter_mut().find(|t| t.name.ends_with("q_proj.weight")).unwrap();
    let values: Vec<f32> =
        t.data.load().unwrap().as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32()).collect();
    let bytes = f32_bytes(&values);
    let len = bytes.len();
    t.stored = safetensors::Dtype::F32;
    t.data = TensorBytes::new(Arc::new(bytes), 0..len).unwrap().into();
    Checkpoint::from_tensors(tensors).unwrap()
}

#[test]
fn what_a_patch_remembers_goes_along_with_the_swap() {
    let same = [("names", "same")];
    let rig = Rig::new("qwen3_moe", &[("fp8_block", &[]), ("refit_guard", &same)]);
    rig.refit();
    let to = rig.stage("refit_guard", &[("names", "same"), ("forbid", "nothing.*")]);
    // Landing at once shows the new generation no refit: what it knows, it was given.
    rig.swap(to, When::Now);
    assert_eq!(rig.live.board().active().members().len(), 3);
    let error = rig.live.refit(widened(&rig), Begin::default(), &me(), QUIET).err().unwrap().to_string();
    assert!(error.contains("vetoes it"), "{error}");
    // A guard that starts anew has nothing to compare with.
    let fresh = Rig::new("qwen3_moe", &[("fp8_block", &[]), ("refit_guard", &same)]);
    fresh.live.refit(widened(&fresh), Begin::default(), &me(), QUIET).unwrap();
}

#[test]
fn a_patch_that_does_not_take_it_does_not_land() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", &[]), ("any_state", &[])]);
    let before = rig.active();
    let to = rig.stage("any_state", &[("fault", "import-trap")]);
    let outcome = rig.swap(to, When::Now);
    assert!(outcome.landed.is_none() && outcome.reversed.is_some(), "{outcome:?}");
    assert_eq!(rig.active(), before);
}

#[test]
fn a_patch_that_gives_nothing_is_replaced_all_the_same() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", &[]), ("any_state", &[("fault", "export-trap")])]);
    let to = rig.stage("any_state", &[]);
    assert!(rig.swap(to, When::Now).landed.is_some());
    assert_eq!(rig.last("state.lost")["name"], "any-state");
}
