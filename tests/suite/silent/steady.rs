//! A patch's second word is held against its first: another answer under the same digest is refused, the old weights serve.

use patchhost::patch::{Candidate, SwapRequest, When};
use patchhost_runtime::refit::Begin;

use super::{Row, experts, llama_loader, loader, quantizer, rig};
use crate::hostile::wat;
use crate::live::{Rig, me};

/// k for v and v for k in both layers, from so many questions on.
fn k_for_v(after: u32) -> Vec<u8> {
    let rows: Vec<Row> = (0..2)
        .flat_map(|layer| {
            [("k_proj", "v"), ("v_proj", "k")].map(|(leaf, slot)| {
                let attention = format!("model.layers.{layer}.self_attn");
                Row::new(&format!("{attention}.{leaf}.weight"), &format!("{attention}.qkv_proj.weight"), slot)
                    .after(after)
            })
        })
        .collect();
    llama_loader(&rows)
}

fn refit(rig: &Rig) -> Result<(), String> {
    let done = rig.live.refit(rig.checkpoint.clone(), Begin::default(), &me(), &|_, _, _| {});
    done.map(drop).map_err(|e| e.to_string())
}

/// The refits that are honest succeed, the one that is not is refused, and so is every later one.
#[track_caller]
fn turns(rig: &Rig, honest: usize, said: &[&str]) {
    turns_by(rig, honest, honest, said);
}

/// The same where the patch turns after one of several numbers of refits.
#[track_caller]
fn turns_by(rig: &Rig, honest: usize, most: usize, said: &[&str]) {
    let bits = rig.bits();
    let mut first = None;
    for i in 0..=most {
        match refit(rig) {
            Ok(()) => assert!(i < most, "refit {i} is not honest and succeeds"),
            Err(e) => {
                assert!(i >= honest, "refit {i}: {e}");
                first = Some(e);
                break;
            }
        }
        assert_eq!(rig.bits(), bits);
    }
    for error in [first.expect("the loop ends with a refusal"), refit(rig).unwrap_err()] {
        assert!(error.contains("\n  why: ") && error.contains("\n  next: "), "{error}");
        for said in said {
            assert!(error.contains(said), "{said}: {error}");
        }
        assert_eq!(rig.bits(), bits, "the old weights serve");
    }
    let refused = rig.last("refit.refused");
    assert!(refused["why"].as_str().unwrap().contains("first answer"), "{refused}");
}

#[test]
fn a_loader_map_that_turns() {
    // The load asks once, so this is honest in the load and three refits.
    let rig = rig("llama", &[("turns", &k_for_v(4))], "");
    let said =
        ["`resolve`", "`model.layers.0.self_attn.k_proj.weight` was \"Native\"", "\"slot\":\"v\"", "more changed"];
    turns(&rig, 3, &said);
    // Who stages another patch beside it asks it too.
    let error = rig.live.stage(crate::live::candidate("fp8_block"), None, &[], &me()).unwrap_err().to_string();
    assert!(error.contains("first answer"), "{error}");
}

#[test]
fn a_loader_map_that_moves_an_expert_later() {
    let mut rows = experts();
    let first = |name: &str| experts().into_iter().find(|row| row.name.contains(name)).unwrap();
    rows.push(Row { expert: Some(1), ..first("layers.1.mlp.experts.0.up_proj") }.after(2));
    rows.push(Row { expert: Some(0), ..first("layers.1.mlp.experts.1.up_proj") }.after(2));
    turns(&rig("qwen3_moe", &[("turns", &loader(&rows))], ""), 1, &["\"expert\":0", "\"expert\":1"]);
}

/// Another dtype of the same tensors does not make it a new question.
#[test]
fn a_loader_map_that_waits_for_another_dtype() {
    let rig = rig("llama", &[("turns", &k_for_v(1))], "");
    let bits = rig.bits();
    let wider = rig.checkpoint.tensors().map(|t| {
        let bytes = t.data.load().expect("its bytes");
        let values = bytes.as_chunks::<2>().0.iter().map(|b| half::bf16::from_le_bytes(*b).to_f32());
        let bytes: Vec<u8> = values.flat_map(f32::to_le_bytes).collect();
        let len = bytes.len();
        let data = patchhost_runtime::bytes::TensorBytes::new(std::sync::Arc::new(bytes), 0..len).unwrap();
        patchhost_runtime::checkpoint::CheckpointTensor {
            stored: safetensors::Dtype::F32,
            data: data.into(),
            ..t.clone()
        }
    });
    let wider = patchhost_runtime::checkpoint::Checkpoint::from_tensors(wider).unwrap();
    let error = rig.live.refit(wider, Begin::default(), &me(), &|_, _, _| {}).map(drop).unwrap_err().to_string();
    assert!(error.contains("its first answer about"), "{error}");
    assert_eq!(rig.bits(), bits);
}

#[test]
fn a_quantizer_that_turns() {
    // From the fourth question on, everything is kept in bf16.
    let turns_after = 3;
    let fields = format!(
        r#"{}
(global $calls (mut i32) (i32.const 0))
(func $decide
  (param i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32 i32) (param $tensors i32) (param $count i32) (result i32)
  (local $out i32) (local $i i32) (local $from i32)
  (global.set $calls (i32.add (global.get $calls) (i32.const 1)))
  (local.set $out (call $realloc (i32.const 0) (i32.const 0) (i32.const 4) (i32.mul (local.get $count) (i32.const 68))))
  (block $done
    (loop $next
      (br_if $done (i32.ge_u (local.get $i) (local.get $count)))
      (local.set $from (i32.add (local.get $tensors) (i32.mul (local.get $i) (i32.const 24))))
      (memory.copy
        (i32.add (local.get $out) (i32.mul (local.get $i) (i32.const 68)))
        (select (i32.const 400) (i32.const 472)
          (i32.and
            (i32.le_u (global.get $calls) (i32.const {turns_after}))
            (i32.and
              (i32.eq (i32.load offset=16 (local.get $from)) (i32.const 2))
              (i32.eq (i32.load8_u offset=20 (local.get $from)) (i32.const 3)))))
        (i32.const 68))
      (local.set $i (i32.add (local.get $i) (i32.const 1)))
      (br $next)))
  (i32.store (i32.const 548) (local.get $out))
  (i32.store (i32.const 552) (local.get $count))
  (i32.store8 (i32.const 544) (i32.const 0))
  (i32.const 544))"#,
        quantizer([128, 128], 0)
    );
    let rig = rig("llama", &[("turns", &wat::component("quant-patch", &fields))], "");
    // An instance counts its own questions. Which instance the next refit asks is not fixed: one cast may use several, and
    // gives them back in any order. So each may have been honest `turns_after` times before one of them turns.
    let instances = 64;
    turns_by(&rig, 2, turns_after * instances, &["`decide`", "Quantize", "{\"Keep\":\"all\"}"]);
}

/// What a candidate said in its probe counts: it does not land with another answer.
#[test]
fn a_candidate_that_turns_after_its_probe() {
    let honest = llama_loader(&[]);
    let rig = rig("llama", &[("honest", &honest)], "");
    let (bits, active) = (rig.bits(), rig.active());
    // How often staging asks is the host's business: the probe of the model is one question, the examination some more.
    let mut reversed = 0;
    for after in 1..8 {
        let candidate = Candidate::from_bytes("wat-guest", k_for_v(after)).unwrap();
        let Ok(staged) = rig.live.stage(candidate, None, &[], &me()) else { continue };
        let outcome =
            rig.live.swap(&SwapRequest { when: When::Now, ..SwapRequest::to(staged.generation) }, &me()).unwrap();
        match outcome.reversed {
            // It turns later than this.
            None => {
                rig.live.rollback(When::Now, None, &me()).unwrap();
            }
            Some(why) => {
                assert!(why.contains("its first answer about `model.layers.0.self_attn.k_proj.weight`"), "{why}");
                reversed += 1;
            }
        }
        assert_eq!((rig.bits(), rig.active()), (bits.clone(), active), "after {after}");
    }
    assert!(reversed > 0, "no candidate turned between its probe and its landing");
}
