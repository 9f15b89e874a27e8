"""Makes FP8 checkpoints whose dequantization transformers and compressed-tensors define (tests/data/fp8).

    python make_fp8_oracle.py ORACLES OUT     # ORACLES: tests/data/oracle; versions: see README.md beside this file

Each OUT/<name>/ holds a model in block FP8 as an engine would publish it, and golden.safetensors: `input_ids` and `logits` of
transformers with the weights y = bf16(f32(q) * scale) (float32 compute). The quantizer here is torch's, not ours.
"""
import json, os, shutil, sys

import torch
from safetensors.torch import load_file, save_file

from make_oracle import input_ids, load, logits

F8, BF16 = torch.float8_e4m3fn, torch.bfloat16
SKIP = ("embed_tokens", "norm", "lm_head", ".gate.weight", "shared_expert_gate", "bias", "A_log", "conv1d", "in_proj_ba")


def quantize(w, block, pow2):
    rows, cols = w.shape
    gr, gc = -(-rows // block[0]), -(-cols // block[1])
    padded = torch.zeros(gr * block[0], gc * block[1])
    padded[:rows, :cols] = w.float()
    blocks = padded.view(gr, block[0], gc, block[1]).transpose(1, 2)
    scale = blocks.abs().amax(dim=(2, 3)).clamp(min=1e-10) / 448
    if pow2: scale = torch.exp2(torch.ceil(torch.log2(scale)))
    q = (blocks / scale[..., None, None]).clamp(-448, 448).to(F8)
    return q.transpose(1, 2).reshape(gr * block[0], gc * block[1])[:rows, :cols].contiguous(), scale


def stored_scale(scale, how):
    if how == "f32": return scale
    if how == "bf16": return scale.to(BF16)
    exponent = (torch.log2(scale) + 127).round().to(torch.uint8)
    return exponent if how == "u8" else exponent.view(torch.float8_e8m0fnu)


def write(source, out, block, suffix, how, config):
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    tensors = load_file(os.path.join(source, "model.safetensors"))
    made, plain = {}, {}
    for name, w in tensors.items():
        if w.dim() != 2 or any(s in name for s in SKIP):
            made[name] = plain[name] = w
            continue
        q, scale = quantize(w, block, how in ("u8", "e8m0"))
        kept = stored_scale(scale, how)
        scale = scale.to(BF16).float() if how == "bf16" else scale
        made[name], made[name.removesuffix(".weight") + suffix] = q, kept
        wide = scale.repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)[:w.shape[0], :w.shape[1]]
        plain[name] = (q.float() * wide).to(BF16)
    save_file(made, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    text = json.load(open(os.path.join(source, "config.json")))
    # The twin that transformers computes with.
    twin = os.path.join(out, "twin")
    os.makedirs(twin)
    save_file(plain, os.path.join(twin, "model.safetensors"), metadata={"format": "pt"})
    json.dump(text, open(os.path.join(twin, "config.json"), "w"))
    golden = logits(load(twin))
    shutil.rmtree(twin)
    save_file({"input_ids": input_ids(), "logits": golden}, os.path.join(out, "golden.safetensors"))
    json.dump({**text, "quantization_config": config}, open(os.path.join(out, "config.json"), "w"), indent=2, sort_keys=True)


def fp8(block, **more):
    return dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=block, **more)


def main(oracles, out):
    torch.set_num_threads(1)
    at = lambda name: os.path.join(oracles, name)
    to = lambda name: os.path.join(out, name)
    write(at("qwen3_moe"), to("deepseek_style"), [128, 128], ".weight_scale_inv", "f32", fp8([128, 128]))
    write(at("qwen3_moe"), to("weight_scale_small_blocks"), [16, 8], ".weight_scale", "f32", fp8([16, 8]))
    write(at("qwen2_moe"), to("ue8m0_u8"), [16, 16], ".weight_scale_inv", "u8", fp8([16, 16], scale_fmt="ue8m0"))
    write(at("deepseek_v3"), to("ue8m0_e8m0"), [8, 12], ".weight_scale_inv", "e8m0", fp8([8, 12], scale_fmt="ue8m0"))
    weights = dict(num_bits=8, type="float", strategy="block", block_structure=[16, 16], symmetric=True, dynamic=False)
    config = dict(quant_method="compressed-tensors", format="float-quantized", quantization_status="compressed",
                  config_groups={"group_0": dict(targets=["Linear"], weights=weights)}, ignore=["lm_head", "re:.*mlp.gate$"])
    write(at("llama"), to("compressed_tensors_bf16"), [16, 16], ".weight_scale", "bf16", config)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
