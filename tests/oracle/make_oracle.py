"""Makes the small oracle checkpoints of the integration tests (tests/data/oracle).

    pip install torch transformers safetensors      # versions used: see README.md beside this file
    python make_oracle.py OUT [SEED]                # SEED defaults to 9

Each OUT/<variant>/ is a Hugging Face checkpoint written by transformers (config.json, *.safetensors) plus
golden.safetensors: `input_ids` I64 [24] and `logits` F32 [24, vocab]. The logits are float32 compute, eager attention,
one prefill of the 24 ids from position 0, with the weights exactly as stored (bf16 unless the name says otherwise).

Nothing is left at its initial value: norms are not 1, biases are not 0 and matrices are large enough that a runtime
that drops or mistakes one mechanism misses the golden by far. That is not assumed but measured: after writing, every
applicable mechanism is ablated (`ablations`) and the script fails if the logits move by less than FLOOR. It also
evaluates each checkpoint wholly in float64 and fails if float32 strays by more than a third of TOLERANCE, and it
fails if a routing decision is so close to a tie that rounding might flip it
(then take another SEED).

A variant's weights depend on SEED and its weight key only, so adding a variant leaves the others as they are.
"""
import contextlib, copy, json, os, shutil, sys, zlib

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

VOCAB, POSITIONS = 160, 24
TOLERANCE = 1e-4      # what a float32 runtime is held to: max |dlogit|
FLOOR = 0.05          # least max |dlogit| of an ablation
FLOOR_EPS = 1e-3      # the same for rms_norm_eps, a small mechanism by nature: still ten times TOLERANCE
MARGIN = 1e-4         # least gap between the last chosen and the first rejected router probability
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32

COMMON = dict(vocab_size=VOCAB, num_hidden_layers=2, max_position_embeddings=256, tie_word_embeddings=False,
              rms_norm_eps=1e-3, bos_token_id=1, eos_token_id=2, pad_token_id=None)


def rope(theta, **scaling):
    return dict(rope_parameters={"rope_type": "default", "rope_theta": theta, **scaling})


QWEN3 = dict(family="qwen3", hidden_size=96, num_attention_heads=3, num_key_value_heads=1, head_dim=16,
             intermediate_size=40, tie_word_embeddings=True, **rope(5000.0))
QWEN3_MOE = dict(family="qwen3_moe", hidden_size=72, num_attention_heads=3, num_key_value_heads=1, head_dim=12,
                 intermediate_size=40, moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2,
                 decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True, **rope(20000.0))
QWEN2_MOE = dict(family="qwen2_moe", hidden_size=72, num_attention_heads=4, num_key_value_heads=2, intermediate_size=40,
                 moe_intermediate_size=16, num_experts=4, num_experts_per_tok=2, decoder_sparse_step=1, **rope(3000.0))

# Per variant: `key` names the weights it shares (default: its own name), `store` the dtype, `shard` the shard size.
VARIANTS = {
    "llama": dict(family="llama", hidden_size=96, num_attention_heads=3, num_key_value_heads=1, head_dim=16,
                  intermediate_size=56, **{**rope(10000.0), "rms_norm_eps": 1e-2}),
    "llama_tied_bias": dict(family="llama", hidden_size=136, num_attention_heads=2, num_key_value_heads=2, head_dim=16,
                            intermediate_size=24, tie_word_embeddings=True, attention_bias=True, mlp_bias=True,
                            **rope(10000.0)),
    # head_dim 16: wavelengths 6.3 (kept), 20 (blended) and 63 up (divided) against the bounds 32/4 and 32/1
    "llama3_rope": dict(family="llama", hidden_size=80, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
                        intermediate_size=40, tie_word_embeddings=True,
                        **rope(10000.0, rope_type="llama3", factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0,
                               original_max_position_embeddings=32)),
    "llama_linear_rope": dict(family="llama", hidden_size=80, num_attention_heads=4, num_key_value_heads=2, head_dim=16,
                              intermediate_size=40, tie_word_embeddings=True,
                              **rope(10000.0, rope_type="linear", factor=4.0)),
    "qwen2": dict(family="qwen2", hidden_size=80, num_attention_heads=4, num_key_value_heads=2, intermediate_size=52,
                  tie_word_embeddings=True, **rope(2000.0)),
    "qwen3": dict(**QWEN3),
    "qwen3_f16": dict(**QWEN3, key="qwen3", store=F16),
    "qwen3_moe": dict(**QWEN3_MOE),
    "qwen3_moe_sharded": dict(**QWEN3_MOE, key="qwen3_moe", shard="40KB"),
    "qwen3_moe_f32": dict(**QWEN3_MOE, key="qwen3_moe", store=F32),
    "qwen3_moe_mixed": {**QWEN3_MOE, "hidden_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2,
                        "num_experts": 5, "num_experts_per_tok": 3, "mlp_only_layers": [0], "norm_topk_prob": False},
    "qwen2_moe": dict(**QWEN2_MOE, shared_expert_intermediate_size=24, norm_topk_prob=False),
    "qwen2_moe_norm": dict(**QWEN2_MOE, shared_expert_intermediate_size=21, norm_topk_prob=True,
                           tie_word_embeddings=True),
    "mixtral": dict(family="mixtral", hidden_size=72, num_attention_heads=4, num_key_value_heads=2, intermediate_size=16,
                    num_local_experts=4, num_experts_per_tok=2, sliding_window=None, **rope(50000.0)),
    "mixtral_window": dict(family="mixtral", hidden_size=72, num_attention_heads=4, num_key_value_heads=2,
                           intermediate_size=24, num_local_experts=3, num_experts_per_tok=2, sliding_window=8,
                           tie_word_embeddings=True, **rope(10000.0)),
}
# Made from the files of qwen3_moe: same weights, same golden.
DERIVED = ["qwen3_moe_fused", "old_config"]


def randomise(model, store, seed, key):
    """Draws every parameter in float32 and rounds it to `store`, so stored and computed weights are equal."""
    g = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(key.encode()))
    tied = model.config.tie_word_embeddings
    for name, p in sorted(model.named_parameters()):
        fan = p.shape[-1] ** 0.5
        scale, mean = 1.3 / fan, 0.0
        if "norm" in name and p.dim() == 1: scale, mean = 0.2, 1.0
        elif name.endswith("bias"): scale = 0.3
        elif "embed_tokens" in name: scale = 1.5 / fan if tied else 1.0
        elif "lm_head" in name: scale = 1.5 / fan
        elif "gate.weight" in name: scale = 2.0 / fan  # router and shared_expert_gate
        value = torch.randn(p.shape, generator=g) * scale + mean
        with torch.no_grad():
            p.data.copy_(value.to(store).to(p.dtype))


def load(path, dtype=F32, **changes):
    config = AutoConfig.from_pretrained(path)
    for k, v in changes.items(): setattr(config, k, v)
    return AutoModelForCausalLM.from_pretrained(path, config=config, dtype=dtype, attn_implementation="eager",
                                                experts_implementation="eager").eval()


def input_ids():
    return (torch.arange(POSITIONS) * 37 + 11).remainder(VOCAB)


@torch.no_grad()
def logits(model):
    return model(input_ids()[None], use_cache=False).logits[0].contiguous()


@contextlib.contextmanager
def everything_in_f64():
    """transformers computes norms, softmax and rope in float32 by name; here those names mean float64 too."""
    kept = torch.float32, torch.float, torch.Tensor.float
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double
    try: yield
    finally: torch.float32, torch.float, torch.Tensor.float = kept


def logits_f64(path):
    model = load(path, torch.float64)
    with everything_in_f64():
        rotary = model.model.rotary_emb
        fresh = type(rotary)(model.config)
        rotary.inv_freq, rotary.original_inv_freq = fresh.inv_freq.double(), fresh.inv_freq.double()
        out = logits(model)
    assert out.dtype == torch.float64
    return out


def routing_margin(path, k):
    """Least gap, over layers and tokens, between the k-th and the next router probability."""
    model, gaps = load(path), []
    for name, module in model.named_modules():
        if name.endswith("mlp.gate"):
            def hook(m, args, _out):
                p = torch.softmax(args[0].reshape(-1, m.weight.shape[1]) @ m.weight.T, -1).sort(-1, descending=True)[0]
                gaps.append(float((p[:, k - 1] - p[:, k]).min()))
            module.register_forward_hook(hook)
    logits(model)
    return min(gaps) if gaps else None


def ablations(path, golden):
    """(mechanism, max |dlogit| when it is taken away). For what exists per layer or per expert: the least of them."""
    base = load(path)
    config, names = base.config, [n for n, _ in base.named_parameters()]

    def moved(edit, **changes):
        model = load(path, **changes) if changes else copy.deepcopy(base)
        if edit is not None:
            with torch.no_grad():
                for n, p in model.named_parameters(): edit(n, p.data)
        return float((logits(model) - golden).abs().max())

    def each(fragment, change):
        """One ablation per parameter that holds `fragment`; the least effect."""
        hit = [n for n in names if fragment in n]
        return min(moved(lambda n, p, h=h: change(p) if n == h else None) for h in hit) if hit else None

    zero = lambda p: p.zero_()
    rows = []
    for label, fragment, change in [
        ("norm weights = 1", "norm.weight", lambda p: p.fill_(1.0)),
        ("q/k norm = 1", "self_attn.q_norm", lambda p: p.fill_(1.0)), ("", "self_attn.k_norm", lambda p: p.fill_(1.0)),
        ("q bias = 0", "q_proj.bias", zero), ("v bias = 0", "v_proj.bias", zero), ("o bias = 0", "o_proj.bias", zero),
        ("mlp biases = 0", "mlp.gate_proj.bias", zero), ("", "mlp.up_proj.bias", zero), ("", "mlp.down_proj.bias", zero),
        ("attention = 0", "o_proj.weight", zero), ("dense mlp = 0", "mlp.down_proj.weight", zero),
        ("experts = 0", ".experts.down_proj", zero),
        ("gate, up swapped", ".experts.gate_up_proj", lambda p: p.copy_(p.roll(p.shape[1] // 2, 1))),
        ("router rows rolled", "mlp.gate.weight", lambda p: p.copy_(p.roll(1, 0))),
        ("shared expert = 0", "shared_expert.down_proj", zero),
        ("shared gate = 0", "shared_expert_gate", zero),
    ]:
        effect = each(fragment, change)
        if effect is not None: rows.append((label or fragment, effect))
    # k_proj.bias adds, before rope, the same vector to every key: it matters only through rope
    effect = each("k_proj.bias", zero)
    if effect is not None: rows.append(("k bias = 0", effect))
    experts = [n for n in names if n.endswith(".experts.down_proj")]
    if experts:
        rows.append(("one expert = 0 (least)", min(
            moved(lambda n, p, h=h, e=e: p[e].zero_() if n == h else None)
            for h in experts for e in range(dict(base.named_parameters())[h].shape[0]))))
        k = config.num_experts_per_tok
        rows.append(("top-k one fewer", moved(None, num_experts_per_tok=k - 1)))
        if hasattr(config, "norm_topk_prob"):
            rows.append(("norm_topk_prob flipped", moved(None, norm_topk_prob=not config.norm_topk_prob)))
    theta = config.rope_parameters["rope_theta"]
    rows.append(("rope theta x 2", moved(None, rope_parameters={**config.rope_parameters, "rope_theta": 2 * theta})))
    if config.rope_parameters["rope_type"] != "default":
        rows.append(("rope scaling dropped", moved(None, rope_parameters={"rope_type": "default", "rope_theta": theta})))
    if getattr(config, "sliding_window", None):
        rows.append(("sliding window dropped", moved(None, sliding_window=None)))
        rows.append(("sliding window + 1", moved(None, sliding_window=config.sliding_window + 1)))
    rows.append(("rms_norm_eps = 1e-6", moved(None, rms_norm_eps=1e-6)))
    if not config.tie_word_embeddings:
        embed = base.model.embed_tokens.weight.data
        rows.append(("lm_head tied", moved(lambda n, p: p.copy_(embed) if n == "lm_head.weight" else None)))
    return rows


def stored_tensors(path):
    out = {}
    for file in sorted(os.listdir(path)):
        if file.endswith(".safetensors") and file != "golden.safetensors":
            out.update(load_file(os.path.join(path, file)))
    return out


def check_names(path, config):
    """Standard names: one tensor per expert and projection, no fused ones, no lm_head where tied."""
    names = set(stored_tensors(path))
    assert not any("gate_up_proj" in n or n.endswith(".experts.down_proj") for n in names), path
    assert ("lm_head.weight" in names) == (not config.tie_word_embeddings), path
    mixtral = config.model_type == "mixtral"
    for layer in range(config.num_hidden_layers):
        moe = config.model_type.endswith("moe") and layer not in config.mlp_only_layers
        if mixtral or moe:
            stem = f"model.layers.{layer}." + ("block_sparse_moe" if mixtral else "mlp")
            assert f"{stem}.gate.weight" in names, (path, stem)
            for e in range(config.num_local_experts if mixtral else config.num_experts):
                for proj in ("w1", "w2", "w3") if mixtral else ("gate_proj", "up_proj", "down_proj"):
                    assert f"{stem}.experts.{e}.{proj}.weight" in names, (path, stem, e, proj)


def write_variant(path, name, spec, seed):
    spec = {**COMMON, **spec}
    family, key = spec.pop("family"), spec.pop("key", name)
    store, shard = spec.pop("store", BF16), spec.pop("shard", None)
    config = AutoConfig.for_model(family, **spec)
    model = AutoModelForCausalLM.from_config(config, dtype=F32, attn_implementation="eager").eval()
    randomise(model, store, seed, key)
    model.to(store).save_pretrained(path, **({"max_shard_size": shard} if shard else {}))
    check_names(path, config)
    tensors = stored_tensors(path)
    assert all(t.dtype == store for t in tensors.values()), name
    assert not shard or sum(f.startswith("model-") for f in os.listdir(path)) >= 3, name
    save_file({"input_ids": input_ids(), "logits": logits(load(path))}, os.path.join(path, "golden.safetensors"))


def write_fused(source, path):
    """Experts as [E, 2I, H] (gate rows, then up rows) and [E, H, I], under the names transformers 5 uses in memory."""
    shutil.copytree(source, path)
    tensors = load_file(os.path.join(source, "model.safetensors"))
    config = json.load(open(os.path.join(source, "config.json")))
    for layer in range(config["num_hidden_layers"]):
        stem, count = f"model.layers.{layer}.mlp.experts", config.get("num_experts") or config["num_local_experts"]
        take = lambda proj: [tensors.pop(f"{stem}.{e}.{proj}.weight") for e in range(count)]
        gate, up, down = take("gate_proj"), take("up_proj"), take("down_proj")
        tensors[f"{stem}.gate_up_proj"] = torch.stack([torch.cat(pair) for pair in zip(gate, up)])
        tensors[f"{stem}.down_proj"] = torch.stack(down)
    save_file(tensors, os.path.join(path, "model.safetensors"), metadata={"format": "pt"})
    memory = load(source).state_dict()
    for n, t in tensors.items(): assert torch.equal(memory[n], t.float()), n


def write_old_config(source, path):
    """The weights of `source` under a config.json as transformers 4 wrote it."""
    shutil.copytree(source, path)
    new = json.load(open(os.path.join(source, "config.json")))
    keep = ["vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim",
            "intermediate_size", "moe_intermediate_size", "num_experts_per_tok", "decoder_sparse_step",
            "mlp_only_layers", "norm_topk_prob", "max_position_embeddings", "tie_word_embeddings", "rms_norm_eps",
            "attention_bias", "hidden_act", "bos_token_id", "eos_token_id"]
    old = {k: new[k] for k in keep}
    old.update(architectures=["Qwen3MoeForCausalLM"], model_type="qwen3_moe", attention_dropout=0.0,
               initializer_range=0.02, max_window_layers=2, num_experts=new.get("num_experts") or new["num_local_experts"],
               output_router_logits=False, rope_scaling=None, rope_theta=new["rope_parameters"]["rope_theta"],
               router_aux_loss_coef=0.001, sliding_window=None, torch_dtype="bfloat16", transformers_version="4.51.3",
               use_cache=True, use_sliding_window=False)
    with open(os.path.join(path, "config.json"), "w") as f:
        f.write(json.dumps(old, indent=2, sort_keys=True) + "\n")


def main(out, seed):
    torch.set_num_threads(1)
    print(f"seed {seed}, torch {torch.__version__}, transformers {transformers.__version__}")
    at = lambda name: os.path.join(out, name)
    for name in [*VARIANTS, *DERIVED]: shutil.rmtree(at(name), ignore_errors=True)
    for name, spec in VARIANTS.items(): write_variant(at(name), name, spec, seed)
    write_fused(at("qwen3_moe"), at("qwen3_moe_fused"))
    write_old_config(at("qwen3_moe"), at("old_config"))
    for name in [*VARIANTS, *DERIVED]:
        for file in os.listdir(at(name)): os.chmod(os.path.join(at(name), file), 0o644)

    bad = []
    print("\n| variant | KB | tensors | logit std | f32 vs f64 | routing margin |\n|---|---|---|---|---|---|")
    for name in [*VARIANTS, *DERIVED]:
        path = at(name)
        golden = load_file(os.path.join(path, "golden.safetensors"))["logits"]
        if not torch.equal(logits(load(path)), golden): bad.append(f"{name}: reloaded logits differ from the golden")
        apart = float((logits_f64(path) - golden.double()).abs().max())
        margin = routing_margin(path, getattr(load(path).config, "num_experts_per_tok", 0))
        if apart > TOLERANCE / 3: bad.append(f"{name}: f32 strays by {apart:.1e}")
        if margin is not None and margin < MARGIN: bad.append(f"{name}: routing margin {margin:.1e}")
        size = sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path)) / 1000
        print(f"| {name} | {size:.0f} | {len(stored_tensors(path))} | {float(golden.std()):.2f} | {apart:.1e} | "
              + ("-" if margin is None else f"{margin:.1e}") + " |", flush=True)
    print("\nmax |dlogit| when one mechanism is taken away (least over layers):")
    for name in VARIANTS:
        if name == "qwen3_moe_sharded": continue  # byte for byte the weights of qwen3_moe
        golden = load_file(os.path.join(at(name), "golden.safetensors"))["logits"]
        rows = ablations(at(name), golden)
        for label, effect in rows:
            if effect < (FLOOR_EPS if "eps" in label else FLOOR): bad.append(f"{name}: {label} moves only {effect:.1e}")
        print(f"- {name}: " + ", ".join(f"{label} {effect:.2g}" for label, effect in rows), flush=True)
    if bad: sys.exit("\n".join(["", "FAILED"] + bad))


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main(sys.argv[1], int(sys.argv[2]) if len(sys.argv) > 2 else 9)
