"""Makes the oracle checkpoints of the families and rope scalings that make_oracle.py does not cover (tests/data/oracle).

    python make_more_families.py OUT [SEED]         # SEED defaults to 9; versions as in make_oracle.py

Same files, same ids, same golden logits, same randomness as make_oracle.py: every parameter and the router's correction
bias is drawn, so a runtime that drops a mechanism misses the golden by far; `ABLATIONS` measures that for the mechanisms
that are new here. Sizes are no multiples of 128. Kimi-VL has no class in transformers: its text model is DeepSeek-V3's,
so that one is made and saved under Kimi-VL's names, with tensors of a vision tower that a text runtime must not load.
"""
import copy, json, os, shutil, sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from make_oracle import BF16, COMMON, F32, FLOOR, VOCAB, input_ids, logits, randomise, rope

V3 = dict(family="deepseek_v3", hidden_size=72, num_attention_heads=3, num_key_value_heads=3, intermediate_size=40,
          moe_intermediate_size=12, n_routed_experts=8, n_shared_experts=2, num_experts_per_tok=3, n_group=4, topk_group=2,
          topk_method="noaux_tc", scoring_func="sigmoid", norm_topk_prob=True, routed_scaling_factor=1.7,
          first_k_dense_replace=1, q_lora_rank=20, kv_lora_rank=28, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10,
          **rope(10000.0))
V2 = dict(family="deepseek_v2", hidden_size=72, num_attention_heads=3, num_key_value_heads=3, intermediate_size=40,
          moe_intermediate_size=12, n_routed_experts=6, n_shared_experts=1, num_experts_per_tok=2, n_group=3, topk_group=2,
          topk_method="greedy", routed_scaling_factor=1.3, first_k_dense_replace=1, q_lora_rank=None, kv_lora_rank=28,
          qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=14, **rope(10000.0))
# original_max_position_embeddings 8: most of the 24 positions lie beyond it.
YARN = dict(rope_type="yarn", factor=4.0, original_max_position_embeddings=8, beta_fast=4.0, beta_slow=1.0)
NEXT = dict(family="qwen3_next", hidden_size=72, num_attention_heads=3, num_key_value_heads=1, head_dim=16,
            intermediate_size=40, moe_intermediate_size=12, shared_expert_intermediate_size=20, num_experts=4,
            num_experts_per_tok=2, decoder_sparse_step=1, mlp_only_layers=[], linear_num_key_heads=2,
            linear_num_value_heads=4, linear_key_head_dim=12, linear_value_head_dim=10, linear_conv_kernel_dim=4,
            full_attention_interval=2, norm_topk_prob=True, **rope(10000.0, partial_rotary_factor=0.25))
LLAMA = dict(family="llama", hidden_size=80, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
             intermediate_size=40, tie_word_embeddings=True)
VARIANTS = {
    "olmoe": dict(family="olmoe", hidden_size=72, num_attention_heads=4, num_key_value_heads=2, intermediate_size=20,
                  num_experts=4, num_experts_per_tok=2, norm_topk_prob=False, **rope(10000.0)),
    "olmoe_clip": dict(family="olmoe", hidden_size=64, num_attention_heads=4, num_key_value_heads=4, intermediate_size=12,
                       num_experts=3, num_experts_per_tok=2, norm_topk_prob=True, clip_qkv=0.7, **rope(10000.0)),
    "deepseek_v3": V3,
    "deepseek_v3_direct": {**V3, "q_lora_rank": None, "n_group": 1, "topk_group": 1, "v_head_dim": 24,
                           "attention_bias": True, "norm_topk_prob": False},
    "deepseek_v3_yarn": {**V3, **rope(10000.0, **YARN, mscale=1.0, mscale_all_dim=1.0)},
    "deepseek_v2": V2,
    "deepseek_v2_groups": {**V2, "topk_method": "group_limited_greedy", "q_lora_rank": 20},
    "deepseek_v2_yarn": {**V2, **rope(10000.0, **YARN, mscale=0.707, mscale_all_dim=0.5)},
    "llama_yarn": {**LLAMA, **rope(10000.0, **YARN)},
    "qwen3_yarn": dict(family="qwen3", hidden_size=80, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                       intermediate_size=40, tie_word_embeddings=True,
                       **rope(5000.0, **{**YARN, "truncate": False, "attention_factor": 1.2})),
    "llama_dynamic": {**LLAMA, "max_position_embeddings": 16, **rope(10000.0, rope_type="dynamic", factor=3.0)},
    "qwen2_some_windows": dict(family="qwen2", hidden_size=80, num_attention_heads=4, num_key_value_heads=2,
                               intermediate_size=52, tie_word_embeddings=True, num_hidden_layers=3, use_sliding_window=True,
                               sliding_window=6, max_window_layers=2, **rope(2000.0)),
    "qwen3_next": NEXT,
    "qwen3_next_wide": {**NEXT, "num_hidden_layers": 3, "linear_num_key_heads": 3, "linear_num_value_heads": 3,
                        "mlp_only_layers": [1], "norm_topk_prob": False, "linear_conv_kernel_dim": 3},
}
VISION = dict(depth=1, hidden_size=16, intermediate_size=8, num_heads=2, patch_size=4, spatial_merge_size=1,
              temporal_patch_size=1, out_hidden_size=72, num_position_embeddings=4, deepstack_visual_indexes=[])
QWEN3_VL = dict(vocab_size=VOCAB, hidden_size=72, num_hidden_layers=2, num_attention_heads=3, num_key_value_heads=1,
                head_dim=16, intermediate_size=40, moe_intermediate_size=20, num_experts=4, num_experts_per_tok=2,
                decoder_sparse_step=1, mlp_only_layers=[], max_position_embeddings=256, rms_norm_eps=1e-3,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [4, 2, 2]})


def draw(model, seed, key):
    """As make_oracle's, and what it does not know: norms of 1 + w, correction biases, recurrent parameters."""
    randomise(model, BF16, seed, key)
    g = torch.Generator().manual_seed(seed * 31 + len(key))
    plus_one = model.config.model_type == "qwen3_next"
    named = list(model.named_parameters()) + [(n, b) for n, b in model.named_buffers() if "e_score" in n]
    for name, p in named:
        scale, mean, store = None, 0.0, BF16
        if "e_score_correction_bias" in name: scale, store = 0.3, F32
        elif name.endswith(("A_log", "dt_bias", "conv1d.weight")): scale = 0.5
        elif plus_one and name.endswith("norm.weight") and "linear_attn.norm" not in name: scale = 0.2
        elif p.dim() == 3: scale = 1.3 / p.shape[1 if "visual" not in name and "VL" in key else 2] ** 0.5
        if scale is not None:
            value = torch.randn(p.shape, generator=g) * scale + mean
            with torch.no_grad(): p.data.copy_(value.to(store).to(p.dtype))


def build(name, spec, seed):
    spec = {**COMMON, **spec}
    config = AutoConfig.for_model(spec.pop("family"), **spec)
    model = AutoModelForCausalLM.from_config(config, dtype=F32, attn_implementation="eager").eval()
    draw(model, seed, name)
    return model


def save(model, path):
    """In bf16; the correction bias stays in float32, as DeepSeek publishes it."""
    exact = {n: b.clone() for n, b in model.named_buffers() if "e_score" in n}
    stored = copy.deepcopy(model).to(BF16)
    for n, b in exact.items():
        module, leaf = n.rsplit(".", 1)
        stored.get_submodule(module)._buffers[leaf] = b
    stored.save_pretrained(path)
    golden = {"input_ids": input_ids(), "logits": logits(model)}
    save_file(golden, os.path.join(path, "golden.safetensors"))
    again = AutoModelForCausalLM if "VL" not in type(model).__name__ else type(model)
    loaded = again.from_pretrained(path, dtype=F32, attn_implementation="eager").eval()
    for n, b in exact.items(): loaded.get_buffer(n).copy_(b)
    assert torch.equal(logits(loaded), golden["logits"]), path
    return golden["logits"]


def write_qwen3_vl_moe(path, seed):
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
    config = Qwen3VLMoeConfig(text_config=QWEN3_VL, vision_config=VISION, tie_word_embeddings=False, image_token_id=150,
                              video_token_id=151, vision_start_token_id=152, vision_end_token_id=153)
    config._attn_implementation = "eager"
    model = Qwen3VLMoeForConditionalGeneration(config).float().eval()
    draw(model, seed, "qwen3_VL_moe")
    save(model, path)
    names = set(load_file(os.path.join(path, "model.safetensors")))
    assert "model.language_model.layers.0.mlp.experts.gate_up_proj" in names, sorted(names)[:20]
    assert any(n.startswith("model.visual.") for n in names)


def write_kimi_vl(source, path):
    """The files of deepseek_v3 under the names of Kimi-VL."""
    os.makedirs(path)
    tensors = {f"language_model.{n}": t for n, t in load_file(os.path.join(source, "model.safetensors")).items()}
    g = torch.Generator().manual_seed(5)
    for n in ["vision_tower.encoder.blocks.0.wqkv.weight", "multi_modal_projector.linear_1.weight"]:
        tensors[n] = torch.randn(6, 4, generator=g).to(BF16)
    save_file(tensors, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
    text = json.load(open(os.path.join(source, "config.json")))
    text.pop("architectures")
    config = dict(architectures=["KimiVLForConditionalGeneration"], model_type="kimi_vl", text_config=text,
                  vision_config=dict(model_type="moonvit", hidden_size=4), torch_dtype="bfloat16")
    json.dump(config, open(os.path.join(path, "config.json"), "w"), indent=2, sort_keys=True)
    shutil.copy(os.path.join(source, "golden.safetensors"), path)


def changed(model, edit):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for n, t in list(other.named_parameters()) + list(other.named_buffers()): edit(n, t)
    return logits(other)


def ablate(name, model, golden):
    """max |dlogit| when a mechanism is taken away."""
    zero = lambda part: changed(model, lambda n, t: t.zero_() if part in n else None)
    parts = {"deepseek": ["kv_a_layernorm", "kv_a_proj", "shared_experts", "e_score"], "qwen3_next": ["A_log", "dt_bias",
             "conv1d", "linear_attn.norm", "shared_expert_gate", "q_norm"], "olmoe": ["q_norm", "k_norm"]}
    rows = [(p, zero(p)) for key, ps in parts.items() if name.startswith(key) for p in ps if p in str(model.state_dict().keys())]
    rows = [(p, float((l - golden).abs().max())) for p, l in rows]
    theta = model.config.rope_parameters
    if theta["rope_type"] != "default":
        plain = copy.deepcopy(model.config)
        plain.rope_parameters = {"rope_type": "default", "rope_theta": theta["rope_theta"]}
        other = AutoModelForCausalLM.from_config(plain, dtype=F32, attn_implementation="eager").eval()
        other.load_state_dict(model.state_dict())
        rows.append(("rope scaling", float((logits(other) - golden).abs().max())))
    return rows


def main(out, seed):
    torch.set_num_threads(1)
    bad = []
    for name in [*VARIANTS, "qwen3_vl_moe", "kimi_vl"]: shutil.rmtree(os.path.join(out, name), ignore_errors=True)
    for name, spec in VARIANTS.items():
        model = build(name, spec, seed)
        golden = save(model, os.path.join(out, name))
        rows = ablate(name, model, golden)
        bad += [f"{name}: {label} moves only {effect:.1e}" for label, effect in rows if effect < FLOOR]
        print(f"{name}: logit std {float(golden.std()):.2f}; " + ", ".join(f"{l} {e:.2g}" for l, e in rows), flush=True)
    write_qwen3_vl_moe(os.path.join(out, "qwen3_vl_moe"), seed)
    write_kimi_vl(os.path.join(out, "deepseek_v3"), os.path.join(out, "kimi_vl"))
    for name in [*VARIANTS, "qwen3_vl_moe", "kimi_vl"]:
        for file in os.listdir(os.path.join(out, name)): os.chmod(os.path.join(out, name, file), 0o644)
    if bad: sys.exit("\n".join(["FAILED"] + bad))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 9)
