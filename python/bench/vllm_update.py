"""What a proved weight update costs in vLLM on a CPU, beside stock `reload_weights` of the same folder: rounds in turn, in one
process. `python vllm_update.py FOLDER [--rounds 5] [--layers 12] [--hidden 1024]` makes a dense Qwen3 model of random weights there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from pathlib import Path

os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "ERROR")

import torch
from safetensors.torch import save_file


def make(folder: Path, layers: int, hidden: int) -> int:
    """A checkpoint; gives its bytes."""
    wide, vocabulary, heads, size = 3 * hidden, 32000, hidden // 64, 64
    config = {
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": hidden, "intermediate_size": wide,
        "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": heads, "head_dim": size,
        "vocab_size": vocabulary, "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0,
        "tie_word_embeddings": False, "hidden_act": "silu", "torch_dtype": "bfloat16", "attention_bias": False,
    }  # fmt: skip
    tensors = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden), "model.norm.weight": (hidden,)}
    for layer in range(layers):
        at = f"model.layers.{layer}."
        for name in ("q", "k", "v", "o"):
            tensors[f"{at}self_attn.{name}_proj.weight"] = (hidden, hidden)
        for name, shape in (("gate", (wide, hidden)), ("up", (wide, hidden)), ("down", (hidden, wide))):
            tensors[f"{at}mlp.{name}_proj.weight"] = shape
        for name in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{at}{name}.weight"] = (hidden,)
        for name in ("q_norm", "k_norm"):
            tensors[f"{at}self_attn.{name}.weight"] = (size,)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    made = {name: (torch.randn(shape) * 0.02).bfloat16() for name, shape in tensors.items()}
    save_file(made, folder / "model.safetensors")
    return sum(tensor.nbytes for tensor in made.values())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=1024)
    options = parser.parse_args()
    size = make(options.folder, options.layers, options.hidden)
    from vllm import LLM

    llm = LLM(
        model=str(options.folder),
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=128,
        worker_extension_cls="patchhost.vllm.worker.WorkerExtension",
        additional_config={"patchhost": {}},
    )
    ways = {
        "stock": lambda: llm.collective_rpc("reload_weights", kwargs={"weights_path": str(options.folder)}),
        "patchhost": lambda: llm.collective_rpc("patchhost_refit", kwargs={"path": str(options.folder)}),
    }
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    parts: list[dict[str, float]] = []
    for number in range(options.rounds + 1):
        for name, way in ways.items():
            began = time.perf_counter()
            way()
            if number:
                seconds[name].append(time.perf_counter() - began)
        status = llm.collective_rpc("patchhost_status")[0]
        parts.append({**status["last"]["seconds"], "layerwise": status["loaded"]["seconds"]})
    middle = {name: statistics.median(times) for name, times in seconds.items()}
    mean = {part: round(statistics.median(one[part] for one in parts[1:]), 3) for part in parts[0]}
    print(json.dumps({
        "model bytes": size, "rounds": options.rounds, "seconds": {n: round(s, 3) for n, s in middle.items()},
        "patchhost / stock": round(middle["patchhost"] / middle["stock"], 2), "parts of patchhost": mean,
    }, indent=1))  # fmt: skip


if __name__ == "__main__":
    main()
