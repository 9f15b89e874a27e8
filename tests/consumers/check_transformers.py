"""Loads exports with transformers and compares with an independent reading of the same files.

    python check_transformers.py EXPORT --source MODEL [--patchhost BIN] [--scales f32|ue8m0]

EXPORT was made with --for transformers (or vllm, sglang, deepseek, whose format it shares), without partial blocks. First
what export_files.py says, then, on the CPU, where transformers dequantizes while it loads:
1. no missing, unexpected or mismatched keys;
2. every parameter and buffer and the logits equal, bit for bit, those of a twin without FP8 whose weights are
   bf16(f32(q) * scale), computed here;
3. where the source has golden.safetensors, the KL divergence from its logits is below 0.25 per token (random weights: a
   router near a tie may choose otherwise);
4. on the way that a GPU takes (FP8 stays FP8; nothing is computed): again no missing, unexpected or mismatched keys, the
   modules that transformers makes FP8 are exactly those whose tensors are, and their bytes and scales are the file's. Only
   this tries `modules_to_not_convert`: dequantizing ignores it.
With --patchhost, in float32 and within 1e-4:
5. `patchhost logits EXPORT --dequantize` (its bf16 form) equals transformers on the twin of 2;
6. `patchhost logits EXPORT` (weight-only FP8) equals transformers that dequantizes to float32;
7. the same from MODEL, quantized while it loads with what the export says of its settings.
"""
import argparse, json, os, sys, tempfile, warnings

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
import torch
import transformers
from safetensors.torch import save_file
from transformers.integrations.finegrained_fp8 import FP8Experts, FP8Linear
from transformers.quantizers.quantizer_finegrained_fp8 import FineGrainedFP8HfQuantizer

import patchhost_logits
from export_files import F8, Export

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()
TOLERANCE, KL = 1e-4, 0.25


def model_class(config):
    return getattr(transformers, config["architectures"][0], None)


def load(cls, folder, dtype):
    model, info = cls.from_pretrained(folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager",
                                      output_loading_info=True)
    refuse_keys(folder, model, info)
    for p in model.parameters():  # transformers leaves stacked experts that are not FP8 in the dtype of the file
        if p.dim() == 3: p.data = p.data.to(dtype)
    return model.eval()


def refuse_keys(folder, model, info):
    tied = model.config.get_text_config().tie_word_embeddings
    bad = {"missing": [k for k in info["missing_keys"] if not (k == "lm_head.weight" and tied)],
           "unexpected": list(info["unexpected_keys"]), "mismatched": list(info["mismatched_keys"])}
    assert not any(bad.values()), f"{folder}: {bad}"


@torch.no_grad()
def logits(model, ids):
    return model(ids[None], use_cache=False).logits[0]


def write_twin(export, folder, dtype=torch.bfloat16):
    json.dump(export.config, open(os.path.join(folder, "config.json"), "w"))
    save_file(export.dequantized(dtype), os.path.join(folder, "model.safetensors"), {"format": "pt"})


def as_on_a_gpu(cls, export):
    kept = FineGrainedFP8HfQuantizer.validate_environment
    FineGrainedFP8HfQuantizer.validate_environment = lambda *_, **__: None  # it would choose to dequantize
    try: model, info = cls.from_pretrained(export.folder, dtype=torch.bfloat16, output_loading_info=True)
    finally: FineGrainedFP8HfQuantizer.validate_environment = kept
    refuse_keys(export.folder, model, info)
    made = {n: m for n, m in model.named_modules() if isinstance(m, (FP8Linear, FP8Experts))}
    state, plain = model.state_dict(), lambda n: n.replace("block_sparse_moe", "mlp")
    wanted = {plain(n.split(".experts.")[0] + ".experts" if ".experts." in n else n.removesuffix(".weight")) for n in export.fp8}
    assert set(made) == wanted, f"{export.folder}: transformers makes other modules FP8: {sorted(set(made) ^ wanted)[:6]}"
    leaves = {"gate_proj": 0, "w1": 0, "up_proj": 1, "w3": 1}
    for name in export.fp8:
        for suffix in ("", "_scale_inv"):
            stored = export.stored[name + suffix]
            if ".experts." in name:
                stem, rest = plain(name).split(".experts.")
                expert, leaf, _ = rest.split(".")
                stack = "gate_up_proj" if leaf in leaves else "down_proj"
                got = state[f"{stem}.experts.{stack}{suffix}"][int(expert)]
                if leaf in leaves: got = got.chunk(2)[leaves[leaf]]
            else: got = state[plain(name) + suffix]
            # With scale_fmt ue8m0 transformers keeps scales as float8_e8m0fnu, which holds powers of two exactly.
            assert got.dtype == stored.dtype or got.dtype == torch.float8_e8m0fnu and suffix, (name, got.dtype)
            assert torch.equal(got.float(), stored.float()), f"{export.folder}: {name}{suffix} is another on a GPU"
    return len(made)


def check(folder, source, binary=None, scales="f32"):
    export = Export(folder, source, scales=scales)
    cls = model_class(export.config)
    text = export.config.get("text_config", export.config)
    ids, golden = patchhost_logits.ids_of(source, text["vocab_size"])
    line = f"{len(export.fp8)} FP8 of {len(export.stored)}; worst relative RMSE {export.worst:.4f}"
    if cls is None: return line + f"; transformers has no {export.config['architectures'][0]}"
    with tempfile.TemporaryDirectory() as twin:
        write_twin(export, twin)
        ours, theirs = load(cls, twin, torch.bfloat16), load(cls, folder, torch.bfloat16)
        a, b = ours.state_dict(), theirs.state_dict()
        assert a.keys() == b.keys()
        for name in a: assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), f"{folder}: {name} differs"
        assert torch.equal(logits(ours, ids), logits(theirs, ids)), f"{folder}: logits differ"
        rounded = logits(load(cls, twin, torch.float32), ids)
    exact = logits(load(cls, folder, torch.float32), ids)
    if golden is not None:
        p, q = (torch.log_softmax(t.double(), -1) for t in (golden, exact))
        kl = (p.exp() * (p - q)).sum(-1).mean().item()
        assert kl < KL and (kl > 1e-7 or not export.fp8), f"{folder}: KL {kl}"
        line += f"; KL {kl:.1e}"
    line += f"; {as_on_a_gpu(cls, export)} FP8 modules"
    if binary:
        runs = {"bf16": (rounded, folder, ["--dequantize"]), "fp8": (exact, folder, [])}
        if export.fp8: runs["online"] = exact, source, ["--component", "fp8_block", "--dtype", "fp8", *export.settings()]
        for label, (wanted, model, more) in runs.items():
            difference = patchhost_logits.apart(patchhost_logits.run(binary, model, ids, *more), wanted)
            assert difference < TOLERANCE, f"{folder}: patchhost's logits ({label}) differ by {difference:.1e}"
            line += f"; {label} within {difference:.1e}"
    return line


def check_partial(folder, source, binary=None, scales="f32"):
    """Partial blocks in transformers' format: transformers cannot load them, so its own class gets weights widened here."""
    export = Export(folder, source, True, scales)
    cls, line = model_class(export.config), f"{len(export.fp8)} FP8 of {len(export.stored)}; worst relative RMSE {export.worst:.4f}"
    if not (cls and binary): return line
    ids, _ = patchhost_logits.ids_of(source, export.config.get("text_config", export.config)["vocab_size"])
    for label, dtype, more in ("bf16", torch.bfloat16, ["--dequantize"]), ("fp8", torch.float32, []):
        with tempfile.TemporaryDirectory() as twin:
            write_twin(export, twin, dtype)
            wanted = logits(load(cls, twin, torch.float32), ids)
        difference = patchhost_logits.apart(patchhost_logits.run(binary, folder, ids, *more), wanted)
        assert difference < TOLERANCE, f"{folder}: patchhost's logits ({label}) differ by {difference:.1e}"
        line += f"; {label} within {difference:.1e}"
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("--source", required=True)
    parser.add_argument("--patchhost")
    parser.add_argument("--scales", default="f32", choices=["f32", "ue8m0"])
    args = parser.parse_args()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}", file=sys.stderr)
    print(check(args.export, args.source, args.patchhost, args.scales))


if __name__ == "__main__":
    main()
