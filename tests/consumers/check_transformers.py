"""Loads exports with transformers and compares with an independent reading of the same files.

    python check_transformers.py EXPORT [--source MODEL] [--patchhost BIN] …      # exports made with --for transformers

For each export, on the CPU (where transformers dequantizes while it loads):
1. no missing, unexpected or mismatched keys;
2. every parameter and the logits equal, bit for bit, those of a twin whose weights this script dequantizes itself
   (f32(q) * scale, then one rounding to bf16);
3. with --source: every FP8 tensor is within 3.5 % relative RMSE of the source; where the source has golden.safetensors,
   the KL divergence from its logits is below 0.25 per token (random weights: a router near a tie may choose otherwise);
4. with --source and --patchhost: patchhost's own weight-only FP8 forward pass gives the same logits within 1e-4 of their
   largest magnitude (both in f32, without rounding to bf16).
"""
import argparse, json, os, re, subprocess, sys, tempfile, warnings

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()


def tensors(folder):
    """All tensors of a folder; refuses files that the index does not name."""
    index = os.path.join(folder, "model.safetensors.index.json")
    if not os.path.exists(index):
        return load_file(os.path.join(folder, "model.safetensors"))
    index = json.load(open(index))
    out = {}
    for file in sorted(set(index["weight_map"].values())):
        with safe_open(os.path.join(folder, file), "pt") as f:
            assert f.metadata()["format"] == "pt"
            for name in f.keys():
                assert index["weight_map"][name] == file, name
                out[name] = f.get_tensor(name)
    assert out.keys() == index["weight_map"].keys()
    assert index["metadata"]["total_size"] == sum(t.numel() * t.element_size() for t in out.values())
    return out


def dequantized(stored, block, dtype=torch.bfloat16):
    """Formula E: f32(q) * scale of its block, then one rounding."""
    out = {}
    for name, t in stored.items():
        if name.endswith("_scale_inv"):
            assert stored[name.removesuffix("_scale_inv")].dtype == torch.float8_e4m3fn
        elif t.dtype == torch.float8_e4m3fn:
            s = stored[name + "_scale_inv"]
            n, k = t.shape
            assert s.dtype == torch.float32 and list(s.shape) == [-(-n // block[0]), -(-k // block[1])], name
            wide = s.repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]
            out[name] = (t.to(torch.float32) * wide).to(dtype)
        else:
            out[name] = t.clone()
    return out


def load(folder, dtype):
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, attn_implementation="eager", experts_implementation="eager", output_loading_info=True)
    missing = [k for k in info["missing_keys"] if not (k == "lm_head.weight" and model.config.tie_word_embeddings)]
    bad = {"missing": missing, "unexpected": list(info["unexpected_keys"]), "mismatched": list(info["mismatched_keys"])}
    assert not any(bad.values()), f"{folder}: {bad}"
    # Asked for f32, transformers 5.24 leaves stacked experts that were not FP8 in bf16.
    return model.to(dtype).eval()


def logits(model, ids):
    with torch.no_grad():
        return model(ids, use_cache=False).logits[0]


def check(export, source, patchhost):
    config = json.load(open(os.path.join(export, "config.json")))
    quant = config.pop("quantization_config")
    assert quant["quant_method"] == "fp8" and quant["modules_to_not_convert"] == quant["ignored_layers"]
    block = quant["weight_block_size"]
    stored = tensors(export)
    fp8 = [n for n, t in stored.items() if t.dtype == torch.float8_e4m3fn]
    golden = source and os.path.join(source, "golden.safetensors")
    golden = load_file(golden) if golden and os.path.exists(golden) else None
    ids = golden["input_ids"].reshape(1, -1) if golden else torch.arange(24)[None] * 37 % config["vocab_size"]

    with tempfile.TemporaryDirectory() as twin:
        json.dump(config, open(os.path.join(twin, "config.json"), "w"))
        save_file(dequantized(stored, block), os.path.join(twin, "model.safetensors"), {"format": "pt"})
        ours, theirs = load(twin, torch.bfloat16), load(export, torch.bfloat16)
    a, b = ours.state_dict(), theirs.state_dict()
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]), f"{export}: {name} differs"
    assert torch.equal(logits(ours, ids), logits(theirs, ids)), f"{export}: logits differ"
    line = f"{len(fp8)} FP8 of {len(stored)} tensors; parameters and logits equal to the twin"

    if source:
        plain = tensors(source)
        worst = 0.0
        back = dequantized(stored, block, torch.float32)
        for name in fp8:
            if name in plain:  # fused experts have other names in the source
                w = plain[name].float()
                worst = max(worst, ((back[name] - w).norm() / w.norm()).item())
        assert worst < 0.035, f"{export}: relative RMSE {worst}"
        line += f"; worst relative RMSE {worst:.4f}"
    if golden:
        f32 = logits(load(export, torch.float32), ids)
        p, q = (torch.log_softmax(t.reshape(-1, t.shape[-1]).double(), -1) for t in (golden["logits"], f32))
        kl = (p.exp() * (p - q)).sum(-1).mean().item()
        assert kl < 0.25, f"{export}: KL {kl}"
        line += f"; KL from the golden logits {kl:.2e}"
    if source and patchhost:
        f32 = logits(load(export, torch.float32), ids)
        with tempfile.TemporaryDirectory() as tmp:
            save_file({"input_ids": ids[0].clone()}, f"{tmp}/ids.safetensors")
            meta = safe_open(os.path.join(export, sorted(f for f in os.listdir(export) if f.endswith(".safetensors"))[0]), "pt").metadata()
            sets = [x for pair in filter(None, meta["patchhost.settings"].split(",")) for x in ("--set", pair)]
            # What the export kept stays unquantized here too.
            kept = {re.sub(r"(?<=\.)\d+(?=\.)", "*", n) for n, t in stored.items()
                    if t.dim() == 2 and t.dtype != torch.float8_e4m3fn and not n.endswith("_scale_inv")}
            # Fused experts of the source have other names; all of them were kept, or none.
            if not any(".experts." in n for n in fp8):
                kept |= {n for n in tensors(source) if n not in stored}
            sets += ["--set", "keep=" + ",".join(sorted(kept))]
            subprocess.run([patchhost, "logits", source, "--ids", f"{tmp}/ids.safetensors", "--out", f"{tmp}/out.safetensors",
                            "--component", "fp8_block", "--dtype", "fp8", "--fp8-activation", "none", *sets],
                           check=True, stdout=subprocess.DEVNULL)
            own = load_file(f"{tmp}/out.safetensors")["logits"]
        difference = ((own - f32).abs().max() / f32.abs().max()).item()
        assert difference < 1e-4, f"{export}: patchhost's weight-only logits differ by {difference}"
        line += f"; patchhost's weight-only logits within {difference:.1e}"
    print(f"good  {os.path.basename(export.rstrip('/'))}: {line}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("--source")
    parser.add_argument("--patchhost")
    args = parser.parse_args()
    print(f"transformers {transformers.__version__}, torch {torch.__version__}", file=sys.stderr)
    check(args.export, args.source, args.patchhost)


if __name__ == "__main__":
    main()
