use patchhost::live::LiveOptions;
use patchhost::patch::Receipt;
use patchhost::trust::Policy;
use patchhost_runtime::refit::Begin;

use super::{QUIET, Rig, me};

fn hashed() -> Rig {
    let options = LiveOptions { hash_weights: true, ..LiveOptions::default() };
    Rig::with("qwen3_moe", &[("fp8_block", &[])], Policy::default(), options)
}

#[test]
fn two_engines_with_the_same_weights_have_one_root() {
    let (one, other) = (hashed(), hashed());
    let begin = Begin { version: Some("seven".into()), step: Some(7), ..Begin::default() };
    let a = one.live.refit(one.checkpoint.clone(), begin, &me(), QUIET).unwrap().receipt;
    let b = other.refit().receipt;
    assert_eq!((a.refit, a.step, a.version.as_str()), (2, Some(7), "seven"));
    assert!(a.root_before.is_some() && a.root_after.is_some() && a.tensors.is_none());
    assert_eq!((a.root_before, a.root_after), (b.root_before, b.root_after));
    assert_eq!(a.difference(&b), Vec::<String>::new());
    assert!(a.counts.quantized > 0 && a.counts.blocks_proved >= a.counts.quantized && a.counts.elements > 0);

    // Other patches make other weights of the same tensors.
    other.swap(other.stage("fp8_block", &[("scale_format", "ue8m0")]), patchhost::patch::When::Refit);
    let c = other.refit().receipt;
    assert_eq!(a.root_before, c.root_before);
    assert!(a.difference(&c).iter().any(|line| line.starts_with("other tensors were handed on")), "{c:?}");

    // The ledger and the status have the same, and it can be read out of them.
    let record = other.last("refit");
    let status = serde_json::to_value(other.live.status()).unwrap();
    for kept in [&record["receipt"], &status["last_refit"]["receipt"]] {
        assert_eq!(Receipt::parse(&kept.to_string(), "it").unwrap(), c);
    }
}

#[test]
fn without_digests_nothing_is_hashed() {
    let receipt = Rig::new("qwen3_moe", &[("fp8_block", &[])]).refit().receipt;
    assert_eq!((receipt.root_before, receipt.root_after), (None, None));
    assert!(receipt.counts.blocks_proved > 0);
}
