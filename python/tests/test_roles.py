"""Roles are those of the program's registry for the names of its families."""

import pytest

from patchhost.roles import ROLES, role_of

L = "model.layers.3."


@pytest.mark.parametrize(
    ("role", "names"),
    [
        (
            "embedding",
            ["model.embed_tokens.weight", "language_model.model.embed_tokens.weight", "transformer.wte.weight"],
        ),
        ("lm-head", ["lm_head.weight", "language_model.lm_head.weight"]),
        (
            "norm",
            ["model.norm.weight", L + "input_layernorm.weight", L + "post_attention_layernorm.weight"]
            + [L + f"self_attn.{n}.weight" for n in ("q_norm", "k_norm", "q_a_layernorm", "kv_a_layernorm")]
            + [L + "linear_attn.norm.weight", "transformer.h.0.ln_1.bias", "model.norm"],
        ),
        (
            "attention",
            [L + f"self_attn.{p}_proj.{leaf}" for p in ("q", "k", "v", "o", "qkv") for leaf in ("weight", "bias")]
            + [L + f"self_attn.{p}.weight" for p in ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj")]
            + [L + f"linear_attn.{p}.weight" for p in ("in_proj_qkvz", "in_proj_ba", "out_proj")]
            + [L + "self_attn.q_proj.weight_scale_inv"],
        ),
        (
            "mlp",
            [L + f"mlp.{p}_proj.{leaf}" for p in ("gate", "up", "down", "gate_up") for leaf in ("weight", "bias")]
            + ["transformer.h.0.mlp.c_proj.weight"],
        ),
        (
            "expert",
            [L + f"mlp.experts.7.{p}_proj.weight" for p in ("gate", "up", "down")]
            + [L + f"block_sparse_moe.experts.0.{p}.weight" for p in ("w1", "w2", "w3")]
            + [L + f"mlp.experts.{p}" for p in ("gate_up_proj", "down_proj", "w13_weight", "w2_weight")],
        ),
        ("shared-expert", [L + "mlp.shared_expert.up_proj.weight", L + "mlp.shared_experts.gate_up_proj.weight"]),
        ("router", [L + "mlp.gate.weight", L + "block_sparse_moe.gate.weight", L + "mlp.shared_expert_gate.weight"]),
        (
            "buffer",
            [L + "mlp.gate.e_score_correction_bias", L + "self_attn.rotary_emb.inv_freq", "model.rotary_emb.inv_freq"],
        ),
        (
            "other",
            [L + "linear_attn.conv1d.weight", L + "linear_attn.A_log", L + "linear_attn.dt_bias", "", "weight", "x.y.z"]
            + [
                "model.visual.blocks.0.attn.qkv.weight",
                "vision_tower.encoder.blocks.0.mlp.fc0.weight",
                "mtp.fc.weight",
            ],
        ),
    ],
)
def test_roles(role, names):
    assert role in ROLES
    assert {name: role_of(name) for name in names} == dict.fromkeys(names, role)


def test_a_stack_in_a_feed_forward_block_is_of_experts():
    assert role_of(L + "mlp.w13_weight", (8, 64, 32)) == "expert"
    assert role_of(L + "mlp.gate_proj.weight", (64, 32)) == "mlp"
