"""ggml's matrix product, called through ctypes in the libraries that llama-cpp-python was built with.

One graph holds one product per copy of the weights, so that its threads start once for all of them, as in a model.
On x86 ggml has no repacked form of Q8_0 and BF16 (repack.cpp), so plain buffers are what llama.cpp uses too.
"""

import argparse
import ctypes
from pathlib import Path

import common

Q8_0, BF16, F32 = 8, 30, 0


class Params(ctypes.Structure):
    """ggml_init_params."""

    _fields_ = [("size", ctypes.c_size_t), ("buffer", ctypes.c_void_p), ("no_alloc", ctypes.c_bool)]


def libraries():
    """libggml-base and libggml-cpu."""
    import importlib.util

    folder = Path(importlib.util.find_spec("llama_cpp").origin).parent / "lib"
    base = ctypes.CDLL(str(folder / "libggml-base.so"), mode=ctypes.RTLD_GLOBAL)
    cpu = ctypes.CDLL(str(folder / "libggml-cpu.so"), mode=ctypes.RTLD_GLOBAL)
    pointer = ctypes.c_void_p
    base.ggml_init.argtypes, base.ggml_init.restype = [Params], pointer
    base.ggml_free.argtypes, base.ggml_free.restype = [pointer], None
    base.ggml_new_tensor_2d.argtypes = [pointer, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    base.ggml_get_data.argtypes = base.ggml_nbytes.argtypes = [pointer]
    base.ggml_nbytes.restype = ctypes.c_size_t
    base.ggml_mul_mat.argtypes = [pointer, pointer, pointer]
    base.ggml_new_graph.argtypes = [pointer]
    base.ggml_build_forward_expand.argtypes = [pointer, pointer]
    base.ggml_build_forward_expand.restype = None
    cpu.ggml_graph_compute_with_ctx.argtypes = [pointer, pointer, ctypes.c_int]
    for function in (base.ggml_new_tensor_2d, base.ggml_get_data, base.ggml_mul_mat, base.ggml_new_graph):
        function.restype = pointer
    cpu.ggml_cpu_init()
    return base, cpu


def weights(kind, count):
    """`count` numbers of std 0.02 as ggml stores them."""
    import numpy

    rng = numpy.random.default_rng(0)
    if kind == BF16:
        return ((rng.standard_normal(count, numpy.float32) * 0.02).view(numpy.uint32) >> 16).astype(numpy.uint16)
    blocks = numpy.empty(count // 32, numpy.dtype([("d", "<f2"), ("q", "i1", 32)]))
    blocks["d"] = 0.02 / 42
    blocks["q"] = numpy.clip(rng.standard_normal((count // 32, 32), numpy.float32) * 42, -127, 127)
    return blocks


def load(kind):
    """Jobs {"m", "k", "n", "bytes", "repeats"}."""
    import numpy

    base, cpu = libraries()
    number = {"q8_0": Q8_0, "bf16": BF16}[kind]
    made_of, kept = {}, {}

    def copies_of(n, k, count):
        """At least `count` copies of the weights, kept for the next job of the same shape."""
        if kept.get("of") != (n, k) or len(kept["tensors"]) < count:
            if kept:
                base.ggml_free(kept["context"])
                kept.clear()
            if n * k not in made_of:
                made_of[n * k] = weights(number, n * k)
            one = made_of[n * k]
            context = base.ggml_init(Params(count * (one.nbytes + 4096), None, False))
            tensors = []
            for _ in range(count):
                w = base.ggml_new_tensor_2d(context, number, k, n)
                assert base.ggml_nbytes(w) == one.nbytes
                ctypes.memmove(base.ggml_get_data(w), one.ctypes.data, one.nbytes)
                tensors.append(w)
            kept.update(of=(n, k), context=context, tensors=tensors, bytes=one.nbytes)
        return kept["tensors"][:count]

    def work(job):
        m, k, n = job["m"], job["k"], job["n"]
        copies = -(-job["bytes"] // (n * k * 34 // 32 if kind == "q8_0" else n * k * 2))
        tensors = copies_of(n, k, copies)
        context = base.ggml_init(Params(copies * (m * n * 4 + 4096) + m * k * 4 + (64 << 20), None, False))
        try:
            x = base.ggml_new_tensor_2d(context, F32, k, m)
            values = numpy.random.default_rng(1).standard_normal(m * k, numpy.float32)
            ctypes.memmove(base.ggml_get_data(x), values.ctypes.data, values.nbytes)
            graph = base.ggml_new_graph(context)
            for w in tensors:
                base.ggml_build_forward_expand(graph, base.ggml_mul_mat(context, w, x))

            def run():
                if status := cpu.ggml_graph_compute_with_ctx(context, graph, common.threads()):
                    raise RuntimeError(f"ggml gives {status}")

            made = common.timed(job["repeats"], run)
        finally:
            base.ggml_free(context)
        return {"seconds": [s / copies for s in made["seconds"]], "bytes": kept["bytes"]}

    return {}, work


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=["q8_0", "bf16"])
    args = parser.parse_args()
    common.serve(lambda: load(args.kind))
