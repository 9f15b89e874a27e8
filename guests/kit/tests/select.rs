//! Which tensors become FP8, and the reasons that `explain` shows.

use kit::select::decide;
use kit::settings::{Policy, Selection};
use kit::types::{Decision, Dtype, Role, Tensor};

fn selection(keep: &[&str], quantize: &[&str]) -> Selection {
    let own = |list: &[&str]| list.iter().map(ToString::to_string).collect();
    Selection { policy: Policy::Registry, keep: own(keep), quantize: own(quantize) }
}

fn with(s: &Selection, listed: &[&str], name: &str, dtype: Dtype, shape: &[u64], role: Role) -> Result<String, String> {
    let listed: Vec<String> = listed.iter().map(ToString::to_string).collect();
    match decide(s, &listed, &Tensor { name, dtype, shape, role }) {
        Decision::Quantize(rule) => Ok(rule),
        Decision::Keep(reason) => Err(reason),
    }
}

fn plain(name: &str, shape: &[u64], role: Role) -> Result<String, String> {
    with(&selection(&[], &[]), &[], name, Dtype::Bf16, shape, role)
}

fn ok(rule: &str) -> Result<String, String> {
    Ok(rule.into())
}

fn kept(reason: &str) -> Result<String, String> {
    Err(reason.into())
}

#[test]
fn by_role() {
    let l = |rest: &str| format!("model.layers.0.{rest}");
    assert_eq!(plain(&l("self_attn.q_proj.weight"), &[64, 64], Role::Attention), ok("role attention, 2-D bf16"));
    assert_eq!(plain(&l("mlp.gate_up_proj.weight"), &[64, 64], Role::Mlp), ok("role mlp, 2-D bf16"));
    assert_eq!(plain(&l("mlp.experts.0.w1.weight"), &[64, 64], Role::Expert), ok("role expert, 2-D bf16"));
    assert_eq!(plain(&l("mlp.experts.gate_up_proj"), &[8, 64, 64], Role::Expert), ok("role expert, 3-D bf16"));
    assert_eq!(plain(&l("mlp.experts.w13_weight"), &[8, 64, 64], Role::Expert), ok("role expert, 3-D bf16"));
    assert_eq!(
        plain(&l("mlp.shared_expert.up_proj.weight"), &[64, 64], Role::SharedExpert),
        ok("role shared-expert, 2-D bf16")
    );
    assert_eq!(plain(&l("self_attn.q_proj.bias"), &[64], Role::Attention), kept("1-D (bias or vector)"));
    assert_eq!(plain(&l("mlp.gate.weight"), &[8, 64], Role::Router), kept("router (never quantized unless listed)"));
    for (name, role) in [("model.embed_tokens.weight", Role::Embedding), ("lm_head.weight", Role::LmHead)] {
        assert!(plain(name, &[64, 64], role).is_err_and(|r| r.contains("never quantized unless listed")), "{name}");
    }
    assert!(plain(&l("linear_attn.conv1d.weight"), &[64, 1, 4], Role::Attention).is_err());
    assert!(
        plain(&l("linear_attn.in_proj_ba.weight"), &[8, 64], Role::Attention)
            .is_err_and(|r| r.contains("`in_proj_ba`"))
    );
    assert!(plain(&l("self_attn.rope"), &[64, 64], Role::Attention).is_err_and(|r| r.contains("does not end in")));
    // A matrix without rows has a grid without rows: nothing to do, and nothing wrong.
    assert!(plain(&l("self_attn.q_proj.weight"), &[0, 64], Role::Attention).is_ok());
}

#[test]
fn by_dtype() {
    let s = selection(&[], &["*"]);
    let one = |dtype| with(&s, &[], "a.weight", dtype, &[64, 64], Role::Mlp);
    assert_eq!(one(Dtype::F8E4m3), kept("already f8-e4m3"));
    assert!(one(Dtype::I64).is_err() && one(Dtype::U8).is_err() && one(Dtype::F16).is_ok() && one(Dtype::F32).is_ok());
}

#[test]
fn plain_files_by_whole_component() {
    for name in ["w", "blk.0.ffn", "layers.0.gate_up_proj.weight", "normal.weight", "conv1d_like.weight", "my_gate"] {
        assert!(plain(name, &[64, 64], Role::Other).is_ok(), "{name}");
    }
    for name in [
        "layers.0.mlp.gate.weight",
        "x.shared_expert_gate.weight",
        "x.q_norm.weight",
        "x.LayerNorm.weight",
        "x.norm",
        "model.embed_tokens.weight",
        "lm_head.weight",
        "x.conv1d.weight",
        "x.A_log",
        "visual.blocks.0.mlp.fc1.weight",
    ] {
        assert!(plain(name, &[64, 64], Role::Other).is_err_and(|r| r.contains("in its name")), "{name}");
    }
    assert!(plain("convs.w", &[8, 64, 64], Role::Other).is_err());
    assert!(plain("mlp.experts.gate_up_proj", &[8, 64, 64], Role::Other).is_ok());
}

#[test]
fn lists_of_the_user_and_of_the_model() {
    let s = selection(&["*.q_proj.weight"], &["lm_head.weight", "*.gate.weight", "*.q_proj.weight"]);
    let one = |name: &str, role| with(&s, &["model.layers.1.mlp", "lm_head"], name, Dtype::Bf16, &[64, 64], role);
    assert_eq!(one("a.q_proj.weight", Role::Attention), kept("glob `*.q_proj.weight` in setting keep"));
    assert_eq!(one("lm_head.weight", Role::LmHead), ok("glob `lm_head.weight` in setting quantize, 2-D bf16"));
    assert_eq!(one("a.gate.weight", Role::Router), ok("glob `*.gate.weight` in setting quantize, 2-D bf16"));
    let listed = kept("`model.layers.1.mlp` in quantization_config of config.json");
    assert_eq!(one("model.layers.1.mlp.up_proj.weight", Role::Mlp), listed);
    assert!(one("model.layers.11.mlp.up_proj.weight", Role::Mlp).is_ok());
    assert!(one("model.layers.1.mlp2.up_proj.weight", Role::Mlp).is_ok());
}

#[test]
fn the_name_rule_of_verl_sglang() {
    let s = Selection { policy: Policy::VerlSglang, ..selection(&[], &[]) };
    let one = |name: &str| with(&s, &[], name, Dtype::Bf16, &[64, 64], Role::Other).is_ok();
    for name in [
        "q_proj.weight",
        "qkv_proj.weight",
        "mlp.gate.weight",
        "block_sparse_moe.gate.weight",
        "mlp.shared_expert_gate.weight",
        "mlp.experts.3.gate_proj.weight",
        "mlp.shared_experts.up_proj.weight",
        "visual.blocks.0.mlp.fc1.weight",
    ] {
        // `qkv_proj` holds `v_proj`: substrings, as in the original.
        assert!(one(name), "{name}");
    }
    for name in [
        "block_sparse_moe.experts.0.w1.weight",
        "self_attn.q_a_proj.weight",
        "self_attn.kv_b_proj.weight",
        "linear_attn.in_proj_qkvz.weight",
        "mlp.experts.gate_up_proj",
        "eh_proj.weight",
    ] {
        assert!(!one(name), "{name}");
    }
}

#[test]
fn reasons_fit_the_interface() {
    let glob = format!("{}*", "ä".repeat(300));
    let name = format!("{}.weight", "ä".repeat(300));
    let reason = with(&selection(&[&glob], &[]), &[], &name, Dtype::Bf16, &[64, 64], Role::Mlp).expect_err("kept");
    assert!(reason.len() <= 256 && reason.ends_with('…'));
}
