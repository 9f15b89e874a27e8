"""Logits of a folder by the patchhost binary, weight-only: FP8 bytes as they are, their bf16 form, or quantized on the way."""
import os, subprocess, tempfile

import torch
from safetensors.torch import load_file, save_file


def run(binary, folder, ids, *more):
    with tempfile.TemporaryDirectory() as tmp:
        save_file({"input_ids": ids.clone()}, f"{tmp}/ids.safetensors")
        out = os.path.join(tmp, "logits.safetensors")
        done = subprocess.run([binary, "logits", folder, "--ids", f"{tmp}/ids.safetensors", "--out", out,
                               "--fp8-activation", "none", *more], capture_output=True, text=True)
        assert done.returncode == 0, f"patchhost logits {folder} {' '.join(more)}: {done.stderr or done.stdout}"
        return load_file(out)["logits"]


def apart(a, b):
    """Largest difference, in units of the tolerance for f32 arithmetic in another order; NaN counts as infinite."""
    difference = (a.double() - b.double()).abs().max().item()
    return difference if difference == difference else float("inf")


def ids_of(source, vocab):
    golden = os.path.join(source, "golden.safetensors")
    if os.path.exists(golden):
        golden = load_file(golden)
        return golden["input_ids"].reshape(-1), golden["logits"].reshape(-1, golden["logits"].shape[-1])
    return (torch.arange(24) * 37 + 11) % vocab, None
