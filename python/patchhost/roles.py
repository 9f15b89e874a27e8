"""What a tensor is for, from its name: the same answer as the program's own registry gives for the families it knows.

Patches decide by role (`fp8_block` keeps routers, norms, embeddings and the head), so both sides must call a tensor the
same. Names are read by whole components between dots: `mlp.gate` is a router, `mlp.gate_proj` is not.
"""

from __future__ import annotations

from collections.abc import Sequence

ROLES = (
    "embedding",
    "norm",
    "attention",
    "mlp",
    "expert",
    "shared-expert",
    "router",
    "lm-head",
    "buffer",
    "other",
)

_OUTSIDE = frozenset(
    ("visual", "vision_tower", "vision_model", "vision_embed_tokens", "multi_modal_projector", "audio_tower", "mtp")
)
_BUFFERS = frozenset(("inv_freq", "e_score_correction_bias", "rotary_emb"))
_EMBEDDINGS = frozenset(("embed_tokens", "embed_positions", "word_embeddings", "wte", "wpe"))
_HEADS = frozenset(("lm_head", "embed_out"))
_ROUTERS = frozenset(("gate", "router", "shared_expert_gate"))
_EXPERTS = frozenset(("experts", "local_experts"))
_SHARED = frozenset(("shared_expert", "shared_experts"))
_ATTENTION = frozenset(("self_attn", "linear_attn", "attn", "attention", "self_attention"))
_MLPS = frozenset(("mlp", "feed_forward", "block_sparse_moe"))
_PROJECTIONS = frozenset(
    (
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "qkv_proj",
        "qkv",
        "out_proj",
        "query_key_value",
        "c_attn",
        "c_proj",
        "dense",
        "q_a_proj",
        "q_b_proj",
        "kv_a_proj",
        "kv_a_proj_with_mqa",
        "kv_b_proj",
        "fused_qkv_a_proj",
        "in_proj_qkvz",
        "in_proj_qkv",
        "in_proj_z",
        "in_proj_ba",
        "in_proj_a",
        "in_proj_b",
    )
)
_LEAVES = ("weight", "bias")


def role_of(name: str, shape: Sequence[int] = ()) -> str:
    """The role of a parameter or buffer, as one of `ROLES`.

    name: as in a Hugging Face checkpoint (`model.layers.0.mlp.gate_proj.weight`) or in vLLM
        (`model.layers.0.mlp.experts.w13_weight`).
    shape: its dimensions. They do not change the role of a name that is known; a 3-D tensor that stands directly in a
        feed-forward block (`mlp.w13_weight`) is a stack of experts.

    `other` where the name says nothing, and for what is no part of the text model (vision towers, `mtp.`).
    """
    parts = name.split(".")
    known = set(parts)
    if known & _OUTSIDE:
        return "other"
    if known & _BUFFERS:
        return "buffer"
    # The module that holds it: `weight`, `bias` and `weight_scale_inv` are leaves.
    module = parts[-2] if len(parts) > 1 and parts[-1].startswith(_LEAVES) else parts[-1]
    if _is_norm(module):
        return "norm"
    if module in _ROUTERS:
        return "router"
    if known & _SHARED:
        return "shared-expert"
    if known & _EXPERTS:
        return "expert"
    if module in _EMBEDDINGS:
        return "embedding"
    if module in _HEADS:
        return "lm-head"
    if module in _PROJECTIONS and (known & _ATTENTION or not known & _MLPS):
        return "attention"
    if known & _MLPS:
        return "expert" if len(shape) == 3 else "mlp"
    return "other"


def _is_norm(module: str) -> bool:
    return module.lower().endswith("norm") or module.startswith("ln_") or module == "layer_norm"
