"""Writes down what transformers takes for each field that a config.json leaves out (tests/data/defaults).

    python make_defaults.py OUT          # versions: see README.md beside this file; about two minutes on one thread

For every family that patchhost has: OUT/<family>.json with
- `class`: the fields of its config class with their defaults, and `rope_theta` (its `default_theta`);
- `config`: a tiny config.json that gives every field, each with another value than the default where that is possible;
- `cases`: changes to it: each field removed in turn, each set to null in turn, and spellings (EXTRA). A case has the number of
  parameters that transformers makes of it, or `refused`: its error;
and OUT/<family>.safetensors with `<case>.<prompt>`: F32 [64], the first 64 logits of the last token of three prompts of 1, 19 and
48 tokens (float32, eager). A case that changes nothing has the logits of `as it is` and is stored without.

The weights are no files: value i of a tensor is drawn from its checkpoint name and i (`values`), so that the test can make the same
ones, for shapes of any size. Float64 evaluation must agree within a third of the tolerance, or the script fails.
"""
import dataclasses, json, math, os, sys

import numpy as np
import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB, KEPT, TOLERANCE = 96, 64, 1e-4
PROMPTS = [1, 19, 48]
ABSENT = "ABSENT"

BASE = dict(vocab_size=VOCAB, hidden_size=128, intermediate_size=40, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, hidden_act="silu", max_position_embeddings=256, rms_norm_eps=1e-2, tie_word_embeddings=True,
            rope_parameters={"rope_type": "default", "rope_theta": 500.0}, bos_token_id=1, eos_token_id=2)
WINDOWS = dict(use_sliding_window=True, sliding_window=8, max_window_layers=1)
SPARSE = dict(decoder_sparse_step=2, mlp_only_layers=[3])
MOE = dict(moe_intermediate_size=12, num_experts=6, num_experts_per_tok=2)
MLA = dict(attention_bias=True, q_lora_rank=20, kv_lora_rank=28, qk_nope_head_dim=12, qk_rope_head_dim=8, v_head_dim=10,
           num_key_value_heads=4, first_k_dense_replace=1, n_routed_experts=8, n_shared_experts=3, num_experts_per_tok=3,
           moe_intermediate_size=12, n_group=4, topk_group=2, routed_scaling_factor=1.7, moe_layer_freq=1)
FAMILIES = {
    "llama": {**BASE, "head_dim": 16, "attention_bias": True, "mlp_bias": True},
    "mixtral": {**BASE, "num_attention_heads": 8, "head_dim": 12, "sliding_window": 8, "num_local_experts": 6,
                "num_experts_per_tok": 3},
    "olmoe": {**BASE, "attention_bias": True, "clip_qkv": 0.7, "num_experts": 9, "num_experts_per_tok": 3, "norm_topk_prob": True},
    "qwen2": {**BASE, **WINDOWS},
    "qwen2_moe": {**BASE, **WINDOWS, **SPARSE, **MOE, "num_hidden_layers": 4, "max_window_layers": 3, "qkv_bias": False,
                  "shared_expert_intermediate_size": 20, "norm_topk_prob": True},
    "qwen3": {**BASE, **WINDOWS, "head_dim": 16, "attention_bias": True},
    "qwen3_moe": {**BASE, **WINDOWS, **SPARSE, **MOE, "num_hidden_layers": 4, "head_dim": 16, "attention_bias": True,
                  "norm_topk_prob": True},
    "qwen3_next": {**BASE, **SPARSE, **MOE, "num_hidden_layers": 4, "num_key_value_heads": 1, "head_dim": 16, "attention_bias": True,
                   "shared_expert_intermediate_size": 20, "norm_topk_prob": False, "linear_conv_kernel_dim": 3,
                   "linear_key_head_dim": 12, "linear_value_head_dim": 10, "linear_num_key_heads": 2, "linear_num_value_heads": 4,
                   "layer_types": ["full_attention", "linear_attention", "linear_attention", "linear_attention"],
                   "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    "qwen3_vl_moe": {**BASE, **SPARSE, **MOE, "num_hidden_layers": 4, "head_dim": 16, "attention_bias": True,
                     "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "mrope_section": [4, 2, 2]}},
    "deepseek_v2": {**BASE, **MLA, "mlp_bias": False, "topk_method": "group_limited_greedy"},
    "deepseek_v3": {**BASE, **MLA, "rope_interleave": False, "norm_topk_prob": False, "num_nextn_predict_layers": 0,
                    "topk_method": "noaux_tc", "scoring_func": "sigmoid"},
}
LINEAR = {"rope_type": "linear", "factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 8}
SPELLINGS = {
    "theta beside": dict(rope_parameters=ABSENT, rope_theta=70.0),
    "theta in rope_scaling": dict(rope_parameters=ABSENT, rope_scaling={"rope_type": "default", "rope_theta": 70.0}),
    "old linear": dict(rope_parameters=ABSENT, rope_theta=70.0, rope_scaling={"type": "linear", "factor": 4.0}),
    "linear, no theta": dict(rope_parameters=LINEAR),
    "yarn, original length left out": dict(rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 70.0},
                                           max_position_embeddings=64),
    "yarn, original length beside": dict(rope_parameters={"rope_type": "yarn", "factor": 2.0, "rope_theta": 70.0},
                                         original_max_position_embeddings=8),
    "yarn, mscale": dict(rope_parameters={**YARN, "rope_theta": 70.0, "mscale": 0.7, "mscale_all_dim": 0.5}),
    "rope_scaling empty": dict(rope_scaling={}),
    "partial beside": dict(partial_rotary_factor=0.25),
    "no dropout": dict(attention_dropout=0.0),
}
QWEN_WINDOWS = {
    "layer_types": dict(layer_types=["sliding_attention", "full_attention"]),
    "layer_types without a window": dict(layer_types=["sliding_attention", "full_attention"], use_sliding_window=False),
    "32 heads": dict(num_attention_heads=32, num_key_value_heads=ABSENT),
}
EXTRA = {
    "llama": {"multi-head": dict(num_key_value_heads=ABSENT, head_dim=ABSENT, attention_bias=ABSENT)},
    "mixtral": {"other name of the experts": dict(num_local_experts=ABSENT, num_experts=5)},
    "olmoe": {"other name of the experts": dict(num_experts=ABSENT, num_local_experts=5), "head_dim": dict(head_dim=32)},
    "qwen2": {**QWEN_WINDOWS, "head_dim": dict(head_dim=16)},
    "qwen2_moe": {"head_dim": dict(head_dim=16), "16 heads": dict(num_attention_heads=16, num_key_value_heads=ABSENT),
                  "windows of max_window_layers": dict(max_window_layers=2),
                  "layer_types": dict(layer_types=["full_attention", "full_attention", "full_attention", "sliding_attention"])},
    "qwen3": QWEN_WINDOWS,
    "qwen3_moe": {"other name of the experts": dict(num_experts=ABSENT, num_local_experts=5),
                  "layer_types are not read": dict(layer_types=["full_attention"] * 4)},
    "qwen3_next": {"interval": dict(layer_types=ABSENT, full_attention_interval=2),
                   "no rope field": dict(rope_parameters=ABSENT),
                   "use_sliding_window is not read": dict(use_sliding_window=True, sliding_window=4)},
    "qwen3_vl_moe": {"other name of the experts": dict(num_experts=ABSENT, num_local_experts=5),
                     "use_sliding_window is not read": dict(use_sliding_window=True, sliding_window=4),
                     "norm_topk_prob is not read": dict(norm_topk_prob=False),
                     "16 heads": dict(num_attention_heads=16, num_key_value_heads=ABSENT)},
    "deepseek_v2": {"greedy without groups": dict(topk_method="greedy", n_group=ABSENT, topk_group=ABSENT),
                    "norm_topk_prob is not read": dict(norm_topk_prob=True)},
    "deepseek_v3": {"no groups": dict(n_group=1, topk_group=1), "interleaved": dict(rope_interleave=True),
                    "mlp_bias is not read": dict(mlp_bias=True), "128 heads": dict(num_attention_heads=128, num_key_value_heads=ABSENT),
                    "routing left out": dict(n_group=ABSENT, topk_group=ABSENT, routed_scaling_factor=ABSENT, norm_topk_prob=ABSENT,
                                             n_routed_experts=16, num_experts_per_tok=4)},
}
# Not of the model that patchhost runs: what a case would change is not computed, or not read from there.
NOT_REMOVED = {"bos_token_id", "eos_token_id"}
VISION = dict(depth=1, hidden_size=16, intermediate_size=8, num_heads=2, patch_size=4, spatial_merge_size=1,
              temporal_patch_size=1, out_hidden_size=128, num_position_embeddings=4, deepstack_visual_indexes=[])


def values(name, shape, mean, scale):
    """`mean` plus uniform noise of standard deviation `scale`: splitmix64 of the FNV-1a hash of the name and the index."""
    seed = 0xcbf29ce484222325
    for byte in name.encode(): seed = ((seed ^ byte) * 0x100000001b3) & 0xffffffffffffffff
    with np.errstate(over="ignore"):
        z = np.uint64(seed) + np.arange(1, math.prod(shape) + 1, dtype=np.uint64) * np.uint64(0x9e3779b97f4a7c15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xbf58476d1ce4e5b9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94d049bb133111eb)
        z = z ^ (z >> np.uint64(31))
    unit = (z >> np.uint64(40)).astype(np.float64) / float(1 << 24)
    return torch.from_numpy((mean + (2 * unit - 1) * (math.sqrt(3) * scale)).astype(np.float32).reshape(shape))


def drawn(name, shape, family):
    """The values of a checkpoint tensor."""
    fan = math.sqrt(shape[-1])
    if len(shape) == 1 and "norm" in name:
        plus_one = family == "qwen3_next" and "linear_attn.norm" not in name
        return values(name, shape, 0.0 if plus_one else 1.0, 0.2)
    if name.endswith("bias"): return values(name, shape, 0.0, 0.3)
    if name.endswith(("A_log", "conv1d.weight")): return values(name, shape, 0.0, 0.5)
    if "embed_tokens" in name: return values(name, shape, 0.0, 1.7 / fan)
    return values(name, shape, 0.0, (2.0 if name.endswith("gate.weight") else 1.3) / fan)


def fill(model, family):
    """Draws every tensor of the text model; experts, stacked in memory, under the names that they have in checkpoints. The number of values."""
    count = 0
    tensors = list(model.named_parameters()) + [(n, b) for n, b in model.named_buffers() if "e_score" in n]
    with torch.no_grad():
        for name, p in tensors:
            if ".visual." in name: continue
            count += p.numel()
            if family == "mixtral": name = name.replace(".mlp.", ".block_sparse_moe.")
            if ".experts." not in name:
                p.copy_(drawn(name, tuple(p.shape), family))
                continue
            stem, leaf = name.rsplit(".", 1)
            gate, up, down = ("w1", "w3", "w2") if family == "mixtral" else ("gate_proj", "up_proj", "down_proj")
            for e in range(p.shape[0]):
                one = lambda proj, rows: drawn(f"{stem}.{e}.{proj}.weight", (rows, p.shape[2]), family)
                if leaf == "down_proj": p[e].copy_(one(down, p.shape[1]))
                else: p[e].copy_(torch.cat([one(gate, p.shape[1] // 2), one(up, p.shape[1] // 2)]))
    return count


def build(family, text, wrapper):
    if family != "qwen3_vl_moe":
        config = AutoConfig.for_model(family, **text)
        config._experts_implementation = "eager"
        return AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    from transformers import Qwen3VLMoeConfig, Qwen3VLMoeForConditionalGeneration
    config = Qwen3VLMoeConfig(text_config=text, vision_config=dict(VISION), image_token_id=90, video_token_id=91,
                              vision_start_token_id=92, vision_end_token_id=93, **wrapper)
    config._attn_implementation = config._experts_implementation = "eager"
    return Qwen3VLMoeForConditionalGeneration(config).float().eval()


@torch.no_grad()
def last_rows(model):
    ids = lambda n: ((torch.arange(n) * 37 + 11) % VOCAB)[None]
    return [model(ids(n), use_cache=False).logits[0, -1, :KEPT].clone() for n in PROMPTS]


def evaluate(family, text, wrapper):
    # transformers changes the dictionaries that it is given
    model = build(family, json.loads(json.dumps(text)), json.loads(json.dumps(wrapper)))
    count = fill(model, family)
    rows = last_rows(model)
    assert all(torch.isfinite(r).all() for r in rows), "not finite"
    apart = max(float((a.double() - b).abs().max()) for a, b in zip(rows, last_rows(model.double())))
    return rows, count, apart


def changed(config, change):
    out = {**config, **change}
    return {k: v for k, v in out.items() if v != ABSENT}


def cases(family, config):
    yield "as it is", {}, {}
    for key in config:
        if key in NOT_REMOVED: continue
        yield f"without {key}", {key: ABSENT}, {}
        yield f"null {key}", {key: None}, {}
    yield "without rope_theta", {"rope_parameters": {k: v for k, v in config["rope_parameters"].items() if k != "rope_theta"}}, {}
    for name, change in {**SPELLINGS, **EXTRA[family]}.items(): yield name, change, {}
    if family == "qwen3_vl_moe":
        yield "wrapper is tied", {}, {"tie_word_embeddings": True}
        yield "wrapper is not tied", {}, {"tie_word_embeddings": False}


def class_fields(family):
    config = AutoConfig.for_model(family)
    config = config.text_config if family == "qwen3_vl_moe" else config
    plain = lambda v: v is None or isinstance(v, (bool, int, float, str))
    # the descriptors of its own fields, not of what every config has
    own = {f.name: f.default for f in dataclasses.fields(type(config)) if plain(f.default)}
    return {**own, "rope_theta": type(config).default_theta}


def main(out):
    torch.set_num_threads(1)
    os.makedirs(out, exist_ok=True)
    bad = []
    for family, config in FAMILIES.items():
        made, golden, plain = [], {}, None
        for name, change, wrapper in cases(family, config):
            case = dict(name=name, change=change, **({"wrapper": wrapper} if wrapper else {}))
            try:
                rows, count, apart = evaluate(family, changed(config, change), wrapper)
            except Exception as e:
                case["refused"] = f"{type(e).__name__}: {e}".split("\n")[0][:100]
            else:
                case["parameters"] = count
                if apart > TOLERANCE / 3: bad.append(f"{family}, {name}: float64 differs by {apart:.1e}")
                same = plain is not None and all(torch.equal(a, b) for a, b in zip(rows, plain))
                plain = rows if plain is None else plain
                if not same: golden.update({f"{name}.{i}": r.contiguous() for i, r in enumerate(rows)})
            made.append(case)
            print(f"{family}: {name}: " + case.get("refused", f"{case.get('parameters')} parameters" + (", as it is" if not case.get("refused") and same else "")), flush=True)
        file = dict(transformers=transformers.__version__, config=config, cases=made)
        file["class"] = class_fields(family)
        with open(os.path.join(out, f"{family}.json"), "w") as f: f.write(json.dumps(file, indent=1, sort_keys=True) + "\n")
        save_file(golden, os.path.join(out, f"{family}.safetensors"))
    if bad: sys.exit("\n".join(["FAILED"] + bad))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    main(sys.argv[1])
