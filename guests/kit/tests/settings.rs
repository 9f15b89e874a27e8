//! What `--set` accepts, and what it says when it does not.

use kit::numeric::{EdgeRule, Profile};
use kit::settings::{BlockSettings, MseSettings, Policy};
use kit::types::{Cast, Contract, Edges, Needs, ScaleFormat};

fn refused(pairs: &[(&str, &str)]) -> String {
    BlockSettings::parse(pairs.iter().copied()).expect_err("refused")
}

#[test]
fn defaults() {
    let s = BlockSettings::parse([]).expect("no settings");
    let scheme = s.scheme();
    assert_eq!((scheme.block_rows, scheme.block_cols), (128, 128));
    assert_eq!((scheme.cast, scheme.edges, scheme.needs), (Cast::Multiply, Edges::Strict, Needs::Amax));
    assert_eq!((scheme.format, scheme.contract), (ScaleFormat::F32, Contract::Amax));
    assert!(!scheme.round_bf16 && s.common.activation_rule);
    assert_eq!(s.activation().eps, 1e-10);
}

#[test]
fn everything_set() {
    let pairs = [
        ("profile", "deepgemm"),
        ("scale_format", "ue8m0"),
        ("block", "64x32"),
        ("edges", "seed-triton"),
        ("activation", "call"),
        ("keep", "*.o_proj.weight, model.layers.0.*"),
        ("quantize", "lm_head.weight"),
        ("round", "bf16"),
        ("stats", "moments"),
        ("policy", "verl-sglang"),
    ];
    let s = BlockSettings::parse(pairs).expect("valid");
    assert_eq!(
        (s.profile, s.edges, s.common.selection.policy),
        (Profile::DeepGemm, EdgeRule::SeedTriton, Policy::VerlSglang)
    );
    assert_eq!(s.common.selection.keep, ["*.o_proj.weight", "model.layers.0.*"]);
    let scheme = s.scheme();
    assert_eq!((scheme.block_rows, scheme.block_cols, scheme.needs), (64, 32, Needs::Moments));
    assert_eq!((scheme.cast, scheme.contract, scheme.edges), (Cast::Reciprocal, Contract::Pow2, Edges::IgnoreNan));
    assert!(scheme.round_bf16 && !s.common.activation_rule && s.activation().pow2_up);
}

#[test]
fn errors_name_what_is_known() {
    assert!(refused(&[("profil", "hf")]).contains("unknown setting `profil`; known are: profile, edges"));
    assert!(refused(&[("profile", "nemo")]).contains("one of verl-torch, verl-triton, deepseek"));
    for block in ["128", "0x128", "128x4097", "128x128x1", "x", "-1x1", ""] {
        assert!(refused(&[("block", block)]).contains("ROWSxCOLS"), "{block}");
    }
    assert!(refused(&[("keep", "a,,b")]).contains("no empty entry"));
    assert!(refused(&[("stats", "amax"), ("stats", "amax")]).contains("given twice"));
    assert!(refused(&[("profile", "hf"), ("edges", "seed-torch")]).contains("profile=verl-torch"));
    assert!(refused(&[("edges", "seed-triton")]).contains("edges=strict"));
}

#[test]
fn least_error() {
    let s = MseSettings::parse([("candidates", "8"), ("range", "0.9..1.5"), ("clip", "0.001")]).expect("valid");
    assert_eq!((s.candidates, s.range, s.clip), (8, (0.9, 1.5), 0.001));
    let scheme = s.scheme();
    assert_eq!((scheme.needs, scheme.cast, scheme.contract), (Needs::Rows, Cast::Reciprocal, Contract::Clip(0.001)));
    let bad = [
        ("candidates", "0"),
        ("candidates", "65"),
        ("range", "1.5..1.0"),
        ("range", "0.4..1"),
        ("range", "1..2"),
        ("range", "nan..1"),
        ("clip", "0.06"),
        ("clip", "NaN"),
        ("profile", "hf"),
        ("edges", "strict"),
    ];
    for (key, value) in bad {
        assert!(MseSettings::parse([(key, value)]).is_err(), "{key}={value}");
    }
}
