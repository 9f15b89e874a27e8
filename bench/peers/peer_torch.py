"""torch: block FP8 quantization by verl's recipe and by compressed-tensors, and linear layers in f32 and bf16."""

import argparse
import importlib.util
import sys
from pathlib import Path

import common


def verl_recipe():
    """verl's own function from the installed package: the one file, since the package as a whole needs ray and more."""
    for folder in sys.path:
        path = Path(folder) / "verl/utils/kernel/fp8_kernel.py"
        if path.is_file():
            spec = importlib.util.spec_from_file_location("fp8_kernel", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            # The Triton path needs a GPU; this is what verl runs where there is none.
            return module._scaled_fp8_blockwise_pytorch
    raise SystemExit("the package verl is not installed")


def compressed_tensors_recipe():
    """The block strategy of compressed-tensors: scales from the observer's min and max, then its fake-free quantize."""
    from compressed_tensors.quantization import QuantizationArgs
    from compressed_tensors.quantization.lifecycle.forward import quantize
    from compressed_tensors.quantization.utils import calculate_qparams

    import torch

    args = QuantizationArgs(num_bits=8, type="float", strategy="block", block_structure=[128, 128], symmetric=True)

    def run(data, _):
        rows, cols = data.shape
        blocks = data.reshape(rows // 128, 128, cols // 128, 128)
        low, high = blocks.amin(dim=(1, 3)), blocks.amax(dim=(1, 3))
        scale, zero = calculate_qparams(low, high, args)
        return quantize(data, scale, zero, args, dtype=torch.float8_e4m3fn), scale

    return run


def quantize(what):
    """Jobs {"input", "rows", "cols", "repeats", "dump"?}."""
    torch = common.torch_threads()
    recipe = compressed_tensors_recipe() if what == "compressed-tensors" else verl_recipe()
    if what == "verl-compile":
        recipe = torch.compile(recipe, dynamic=False)
    last = {}

    def work(job):
        if last.get("input") != job["input"]:
            data = torch.from_file(job["input"], size=job["rows"] * job["cols"], dtype=torch.bfloat16).clone()
            last.update(input=job["input"], data=data.reshape(job["rows"], job["cols"]))
        data = last["data"]
        with torch.inference_mode():
            if path := job.get("dump"):
                q, scales = recipe(data, [128, 128])
                Path(path + ".q").write_bytes(q.contiguous().view(torch.uint8).numpy().tobytes())
                Path(path + ".scales").write_bytes(scales.contiguous().float().numpy().tobytes())
                return {}
            return common.timed(job["repeats"], lambda: recipe(data, [128, 128]))

    return {}, work


def linear(dtype):
    """Jobs {"m", "k", "n", "bytes", "repeats"}."""
    torch = common.torch_threads()
    dtype = getattr(torch, dtype)
    torch.manual_seed(0)
    last = {}

    def work(job):
        m, k, n = job["m"], job["k"], job["n"]
        size = n * k * dtype.itemsize
        copies = -(-job["bytes"] // size)
        if last.get("of") != (n, k) or len(last["weights"]) < copies:
            last.clear()
            one = torch.empty(n, k).normal_(0, 0.02).to(dtype)
            last.update(of=(n, k), weights=[one.clone() for _ in range(copies)])
        weights = last["weights"][:copies]
        x = torch.randn(m, k).to(dtype)

        def run():
            for w in weights:
                torch.nn.functional.linear(x, w)

        with torch.inference_mode():
            made = common.timed(job["repeats"], run)
        return {"seconds": [s / copies for s in made["seconds"]], "bytes": size}

    return {}, work


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("work", choices=["quantize", "linear"])
    parser.add_argument("what", help="verl-eager, verl-compile, compressed-tensors; float32, bfloat16")
    args = parser.parse_args()
    common.serve(lambda: (quantize if args.work == "quantize" else linear)(args.what))
