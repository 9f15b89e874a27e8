use std::collections::BTreeMap;

use patchhost_runtime::assembly::ChunkHeader;
use patchhost_runtime::refit::{Begin, Manifest, Promise};

use super::{QUIET, Rig, me};

#[test]
fn chunks_make_the_same_weights_and_one_update_is_open_at_a_time() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", &[])]);
    let before = rig.bits();
    let begin = Begin { version: Some("step-7".into()), ..Begin::default() };
    let mut update = rig.live.open_update(begin.clone(), &me()).unwrap();
    let busy = rig.live.open_update(Begin::default(), &me()).err().unwrap().to_string();
    assert!(busy.contains("another update is open"), "{busy}");
    for t in rig.checkpoint.tensors() {
        for (i, bytes) in t.data.load().unwrap().chunks(1000).enumerate() {
            let header = ChunkHeader { name: &t.name, dtype: t.stored, shape: &t.shape, offset: i * 1000 };
            update.chunk(&header, bytes).unwrap();
        }
    }
    let done = update.finish(QUIET).unwrap();
    assert_eq!((rig.bits(), done.report.label.as_str()), (before.clone(), "step-7"));
    // Half an update, dropped: nothing happened, and the next may come.
    let mut update = rig.live.open_update(begin, &me()).unwrap();
    update.tensor(rig.checkpoint.tensors().next().unwrap()).unwrap();
    drop(update);
    let update = rig.live.open_update(Begin::default(), &me()).unwrap();
    assert!(update.finish(QUIET).is_err(), "nothing came");
    assert_eq!(rig.bits(), before);
    assert!(rig.live.open_update(Begin::default(), &me()).is_ok());
}

#[test]
fn a_manifest_refuses_at_the_first_wrong_chunk() {
    let rig = Rig::new("qwen3_moe", &[("fp8_block", &[])]);
    let tensors: BTreeMap<String, Promise> = rig
        .checkpoint
        .tensors()
        .map(|t| (t.name.clone(), Promise { dtype: Some(t.stored), ..Promise::default() }))
        .collect();
    let begin = Begin { manifest: Some(Manifest { tensors }), ..Begin::default() };
    let mut update = rig.live.open_update(begin, &me()).unwrap();
    let shape = [1];
    let header = ChunkHeader { name: "surprise", dtype: safetensors::Dtype::BF16, shape: &shape, offset: 0 };
    assert!(update.chunk(&header, &[0, 0]).unwrap_err().to_string().contains("the manifest does not name it"));
    for t in rig.checkpoint.tensors() {
        update.tensor(t).unwrap();
    }
    update.finish(QUIET).unwrap();
}
