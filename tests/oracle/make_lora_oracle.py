"""Makes LoRA adapters as PEFT saves them, with the logits that they must give (tests/data/lora).

    pip install torch transformers safetensors peft     # versions used: see README.md beside this file
    python make_lora_oracle.py ORACLES OUT [SEED]       # ORACLES: tests/data/oracle; SEED defaults to 10

Each OUT/<case>/ holds adapter_config.json and adapter_model.safetensors, byte for byte as `PeftModel.save_pretrained`
writes them, and golden.safetensors: `input_ids` I64 [24] and `logits` F32 [24, 160] of the base (CASES says which folder
of ORACLES) with that adapter, unmerged: float32 compute from the stored weights, eager attention, eager experts.

Routed experts: transformers 5 holds them in two stacked parameters, so PEFT finds no modules there and cannot save an
adapter of the old per-expert names. It does read one, as transformers 4 and PEFT wrote it, and converts it. The cases of
EXPERTS are such files: the config is PEFT's, the tensors are written here under those names, the golden is PEFT's.
(Without rslora: PEFT 0.21.2 doubles r and alpha when it fuses gate and up, which keeps alpha/r but not alpha/sqrt(r).)

PEFT leaves lora_B at zero, so that a runtime without LoRA would pass; here A and B are drawn. The script fails unless
- the adapter moves some logit by more than MOVES, and each adapted module alone by more than FLOOR: taking its adapter
  away, or giving every module the other rule of scaling (alpha/r, alpha/sqrt(r)), is seen;
- PEFT's own merge, and W + scaling * B A computed here from the two files by their names, agree within TOLERANCE;
- wholly-float64 evaluation agrees within a third of TOLERANCE;
- no routing decision is closer to a tie than MARGIN;
- the names are the module names of the checkpoint, `base_model.model.<module>.lora_{A,B}.weight`.
"""
import json, math, os, shutil, sys, warnings, zlib

# PEFT writes `target_modules` in the order of a Python set, which changes with the hash seed.
if os.environ.get("PYTHONHASHSEED") != "0":
    os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, "PYTHONHASHSEED": "0"})

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from make_oracle import BF16, F32, FLOOR, MARGIN, TOLERANCE, everything_in_f64, input_ids, load, logits, stored_tensors

MOVES = 0.5           # least max |dlogit| between the base and the adapted model
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
MLP = ["gate_proj", "up_proj", "down_proj"]
SHARED = [f"shared_expert.{p}" for p in MLP]
MLA = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"]

# case: (base, dtype of the stored adapter, LoraConfig)
CASES = {
    "llama": ("llama", F32, dict(r=4, lora_alpha=8, target_modules=ATTENTION + MLP)),
    "llama_bf16": ("llama_linear_rope", BF16, dict(r=8, lora_alpha=16, target_modules=ATTENTION + MLP)),
    # the pattern stays a string in adapter_config.json
    "llama_regex": ("llama3_rope", F32, dict(r=2, lora_alpha=3, target_modules=r".*\.(self_attn\.(q|v)|mlp\.down)_proj")),
    # layers_to_transform as an int; the base has biases on all seven
    "llama_one_layer": ("llama_tied_bias", F32, dict(r=4, lora_alpha=4, target_modules=ATTENTION + MLP, layers_to_transform=1)),
    "qwen2_some_layers": ("qwen2_some_windows", F32,
                          dict(r=4, lora_alpha=12, target_modules=["q_proj", "v_proj", "gate_proj"], layers_to_transform=[0, 2])),
    # PEFT spells `all-linear` out: full module names in adapter_config.json
    "qwen2_all_linear": ("qwen2", F32, dict(r=4, lora_alpha=8, target_modules="all-linear")),
    "qwen3_rslora": ("qwen3", F32, dict(r=3, lora_alpha=5, use_rslora=True, target_modules=ATTENTION + MLP)),
    "qwen3_moe_attention": ("qwen3_moe", F32, dict(r=4, lora_alpha=8, target_modules=ATTENTION)),
    "qwen2_moe_shared": ("qwen2_moe", F32, dict(r=8, lora_alpha=4, target_modules=ATTENTION + SHARED)),
    # odd rank, odd alpha, a shared expert of width 21
    "qwen2_moe_odd": ("qwen2_moe_norm", F32, dict(r=5, lora_alpha=7, target_modules=ATTENTION + SHARED)),
    # also shared_expert_gate, one row
    "qwen2_moe_all_linear": ("qwen2_moe", F32, dict(r=2, lora_alpha=3, use_rslora=True, target_modules="all-linear")),
    "deepseek_v3": ("deepseek_v3", F32, dict(r=4, lora_alpha=8, target_modules=MLA)),
    "deepseek_v3_direct": ("deepseek_v3_direct", F32,
                           dict(r=3, lora_alpha=7, target_modules=["q_proj", "kv_a_proj_with_mqa", "kv_b_proj", "o_proj"])),
}
EXPERTS = {
    "qwen3_moe_experts": ("qwen3_moe", F32, dict(r=2, lora_alpha=5, target_modules=ATTENTION + MLP)),
    "mixtral_experts": ("mixtral", F32, dict(r=3, lora_alpha=4, target_modules=["q_proj", "w1", "w2", "w3"])),
}


def scaling(config, other=False):
    rslora = bool(config["use_rslora"]) != other
    return config["lora_alpha"] / (math.sqrt(config["r"]) if rslora else config["r"])


def draw(shape, side, factor, g, store):
    """A and B such that an adapter adds about half of what its module gives."""
    scale = 1 / shape[1] ** 0.5 if side == "A" else 0.6 / (factor * shape[1] ** 0.5)
    return (torch.randn(shape, generator=g) * scale).to(store)


def write(source, path, base, key, store, spec, seed):
    g = torch.Generator().manual_seed(seed * 1_000_003 + zlib.crc32(key.encode()))
    config = LoraConfig(task_type="CAUSAL_LM", **spec)
    factor = scaling(config.to_dict())
    if key in EXPERTS:
        config.base_model_name_or_path, lora = base, {}
        for name, w in sorted(stored_tensors(source).items()):
            module = name.removesuffix(".weight")
            if module.rsplit(".", 1)[-1] not in spec["target_modules"]: continue
            for side, shape in ("A", (config.r, w.shape[1])), ("B", (w.shape[0], config.r)):
                lora[f"base_model.model.{module}.lora_{side}.weight"] = draw(shape, side, factor, g, store)
        config.save_pretrained(path)
        save_file(lora, os.path.join(path, "adapter_model.safetensors"), metadata={"format": "pt"})
        return
    model = load(source)
    model.name_or_path = base  # what becomes base_model_name_or_path
    model = get_peft_model(model, config)
    for name, p in sorted(model.named_parameters()):
        if "lora_" in name: p.data = draw(p.shape, "A" if ".lora_A." in name else "B", factor, g, store)
    model.save_pretrained(path, save_embedding_layers=False)
    os.remove(os.path.join(path, "README.md"))  # the model card


def adapted(source, path, dtype=F32):
    return PeftModel.from_pretrained(load(source, dtype), path).to(dtype).eval()


def files(path):
    return json.load(open(os.path.join(path, "adapter_config.json"))), load_file(os.path.join(path, "adapter_model.safetensors"))


def weight_of(model, module):
    """The weight of a checkpoint's module in memory, where experts are stacked: gate rows, then up rows."""
    parent, leaf = module.rsplit(".", 1)
    if ".experts." not in module: return model.get_submodule(module).weight
    stem, expert = parent.replace("block_sparse_moe", "mlp").rsplit(".", 1)
    experts = model.get_submodule(stem)
    if leaf in ("down_proj", "w2"): return experts.down_proj[int(expert)]
    return experts.gate_up_proj[int(expert)].chunk(2)[leaf in ("up_proj", "w3")]


@torch.no_grad()
def by_hand(source, path, factor=None, without=None):
    """Logits of the base with W + scaling * B A; only the files' names and bytes say what goes where."""
    config, lora = files(path)
    model, factor = load(source), scaling(config) if factor is None else factor
    for name, a in lora.items():
        if ".lora_A." not in name: continue
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        b = lora[name.replace(".lora_A.", ".lora_B.")]
        if module != without:
            weight_of(model, module).add_(factor * (b.float() @ a.float()))
    return logits(model)


def logits_f64(source, path):
    model = adapted(source, path, torch.float64)
    with everything_in_f64():
        inner = model.get_base_model().model
        rotary = inner.rotary_emb
        fresh = type(rotary)(model.config)
        rotary.inv_freq, rotary.original_inv_freq = fresh.inv_freq.double(), fresh.inv_freq.double()
        out = logits(model)
    assert out.dtype == torch.float64
    return out


def gap(scores, k):
    """Least distance between the k-th and the next score of a row."""
    ordered = scores.sort(-1, descending=True)[0]
    return float((ordered[:, k - 1] - ordered[:, k]).min()) if k < ordered.shape[1] else math.inf


def routing_margin(model):
    gaps = []

    def hook(router, args, _out):
        x = args[0].reshape(-1, router.weight.shape[1])
        if not hasattr(router, "e_score_correction_bias"):
            gaps.append(gap(torch.softmax(x @ router.weight.T, -1), router.top_k))
            return
        choice = (x @ router.weight.T).sigmoid() + router.e_score_correction_bias
        groups = choice.view(len(x), router.num_group, -1)
        best = groups.topk(2, -1)[0].sum(-1)
        gaps.append(gap(best, router.topk_group))
        kept = torch.zeros_like(best).scatter(1, best.topk(router.topk_group, -1)[1], 1.0)
        gaps.append(gap(groups.masked_fill(kept[..., None] == 0, -9.0).flatten(1), router.top_k))

    for name, module in model.named_modules():
        if name.endswith("mlp.gate"): module.register_forward_hook(hook)
    logits(model)
    return min(gaps, default=None)


def check(case, source, path, store):
    config, lora = files(path)
    golden = load_file(os.path.join(path, "golden.safetensors"))["logits"]
    apart = lambda other: float((other.double() - golden.double()).abs().max())
    modules = sorted({n.removeprefix("base_model.model.").rsplit(".lora_", 1)[0] for n in lora})
    assert set(lora) == {f"base_model.model.{m}.lora_{s}.weight" for m in modules for s in "AB"}, sorted(lora)
    stored = stored_tensors(source)
    for m in modules:
        a, b, w = (t.shape for t in (lora[f"base_model.model.{m}.lora_A.weight"], lora[f"base_model.model.{m}.lora_B.weight"],
                                     stored[f"{m}.weight"]))
        assert (a, b) == ((config["r"], w[1]), (w[0], config["r"])), m
    assert all(t.dtype == store and bool((t != 0).all()) for t in lora.values()), case

    plain, known = logits(load(source)), load_file(os.path.join(source, "golden.safetensors"))["logits"]
    assert float((plain - known).abs().max()) <= TOLERANCE / 3, f"{source}: the base does not give its own golden"
    rows = {"moved": apart(plain),
            "least module": min(apart(by_hand(source, path, without=m)) for m in modules),
            "other scaling": apart(by_hand(source, path, scaling(config, other=True))),
            "merged by PEFT": apart(logits(adapted(source, path).merge_and_unload())),
            "merged by hand": apart(by_hand(source, path)),
            "f64": apart(logits_f64(source, path)),
            "margin": routing_margin(adapted(source, path))}
    bad = [f"{case}: {label} is {rows[label]:.1e}" for label, least in
           [("moved", MOVES), ("least module", FLOOR), ("other scaling", FLOOR)] if not rows[label] > least]
    bad += [f"{case}: {label} is {rows[label]:.1e}" for label, most in
            [("merged by PEFT", TOLERANCE), ("merged by hand", TOLERANCE), ("f64", TOLERANCE / 3)] if not rows[label] <= most]
    if rows["margin"] is not None and rows["margin"] < MARGIN: bad.append(f"{case}: routing margin {rows['margin']:.1e}")
    size = sum(os.path.getsize(os.path.join(path, f)) for f in os.listdir(path)) / 1000
    text = ["-" if v is None else f"{v:.2g}" for v in rows.values()]
    print(f"| {case} | {size:.0f} | {len(modules)} | " + " | ".join(text) + " |", flush=True)
    return bad


def main(oracles, out, seed):
    torch.set_num_threads(1)
    print(f"seed {seed}, torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}\n")
    print("| case | KB | modules | moved | least module | other scaling | merged by PEFT | merged by hand | f64 | margin |")
    print("|" + "---|" * 10)
    bad = []
    for case, (base, store, spec) in {**CASES, **EXPERTS}.items():
        source, path = os.path.join(oracles, base), os.path.join(out, case)
        shutil.rmtree(path, ignore_errors=True)
        write(source, path, base, case, store, spec, seed)
        save_file({"input_ids": input_ids(), "logits": logits(adapted(source, path))}, os.path.join(path, "golden.safetensors"))
        for file in os.listdir(path): os.chmod(os.path.join(path, file), 0o644)
        bad += check(case, source, path, store)
    if bad: sys.exit("\n".join(["", "FAILED"] + bad))


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]) if len(sys.argv) > 3 else 10)
