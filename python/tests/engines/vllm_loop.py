"""A trainer and a vLLM engine over the weight transfer backend `patchhost`: default processes and start method.

Arguments: model folder, scratch folder, tensor parallel size. Prints one JSON object of findings.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

PATCHES = ["fp8_block"]
TENSOR = "model.layers.1.input_layernorm.weight"


def main(model: str, scratch: str, world: int) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.config import WeightTransferConfig

    if world > 1:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(str(rank % (os.cpu_count() or 1)) for rank in range(world))
    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=128,
        max_num_seqs=8,
        enable_prefix_caching=False,
        tensor_parallel_size=world,
        weight_transfer_config=WeightTransferConfig(backend="patchhost"),
        worker_extension_cls="patchhost.vllm.worker.WorkerExtension",
        additional_config={"patchhost": {"patches": PATCHES, "ledger": f"{scratch}/ledger"}},
    )
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(Path(model).glob("*.safetensors")):
        weights |= load_file(file)
    found: dict[str, Any] = {"world": world}

    def answers() -> list[Any]:
        params = SamplingParams(max_tokens=16, temperature=0, logprobs=0, ignore_eos=True, detokenize=False)
        out = llm.generate([{"prompt_token_ids": [1, 2, 3, last]} for last in range(5, 9)], params, use_tqdm=False)
        return [
            [(token, round(step[token].logprob, 9)) for token, step in zip(o.outputs[0].token_ids, o.outputs[0].logprobs, strict=True)]
            for o in out
        ]

    def ask(method: str, *args: Any, **kwargs: Any) -> list[Any]:
        return llm.collective_rpc(f"patchhost_{method}", args=args, kwargs=kwargs)

    def send(tensors: dict[str, torch.Tensor] | list[tuple[str, torch.Tensor]], **about: Any) -> None:
        items = list(tensors.items()) if isinstance(tensors, dict) else tensors
        half = len(items) // 2
        llm.start_weight_update()
        for number, part in enumerate((items[:half], items[half:])):
            path = f"{scratch}/part{number}.safetensors"
            save_file({name: tensor.contiguous() for name, tensor in part}, path)
            llm.update_weights({"update_info": {"path": path, **about}})
        llm.finish_weight_update(about.get("version"))

    def refused(what: str, tensors: Any, **about: Any) -> None:
        before = answers()
        try:
            send(tensors, **about)
            found["refused"][what] = None
        except Exception as error:
            found["refused"][what] = str(error)
        found["serving"][what] = answers() == before

    llm.init_weight_transfer_engine({"init_info": {}})
    send(weights, step=1)
    one, digests = answers(), ask("digests")
    send(weights, step=2)
    found["twice"] = answers() == one and ask("digests") == digests

    # Faulty updates.
    found["refused"], found["serving"] = {}, {}
    name = next(n for n in weights if "layers.1." in n and "up_proj" in n)
    bad = weights[name].clone()
    bad[3, 5] = float("nan")
    refused("lost", {n: t for n, t in weights.items() if n != TENSOR})
    refused("non-finite", {**weights, name: bad})
    refused("truncated", {**weights, name: weights[name][:-1]})
    refused("doubled", [*weights.items(), (TENSOR, weights[TENSOR])])
    refused("unknown", {**weights, "model.layers.1.mlp.upproj.weight": bad})
    refused("field", weights, stepp=3)
    found["after refusals"] = None
    send(weights, step=3)
    found["after refusals"] = answers() == one

    # The sender is killed in the middle.
    child = subprocess.Popen(
        [sys.executable, "-c", "import json,time; from patchhost import sender; print(json.dumps(sender.me()), flush=True); time.sleep(600)"],
        stdout=subprocess.PIPE,
        text=True,
    )
    sender = json.loads(child.stdout.readline())
    llm.start_weight_update()
    save_file({TENSOR: weights[TENSOR] * 2}, f"{scratch}/half.safetensors")
    llm.update_weights({"update_info": {"path": f"{scratch}/half.safetensors", "sender": sender}})
    child.send_signal(signal.SIGKILL)
    child.wait()
    time.sleep(2)
    found["killed"] = answers() == one
    send(weights, step=4)
    found["after kill"] = answers() == one

    # Really other weights, and back.
    other = {n: t * 1.25 if "layers.0.mlp" in n else t for n, t in weights.items()}
    send(other, step=5, version="other")
    found["changed"] = answers() != one
    send(weights, step=6)
    found["back"] = answers() == one and ask("digests") == digests

    # A swap at step 12, rolled back at 14.
    staged = ask("stage", "fp8_block_mse")
    ask("swap", staged[0]["generation"], when=12)
    active = {}
    for step in (10, 11, 12, 13):
        send(weights, step=step)
        status = ask("status")
        active[step] = sorted({s["board"]["active"] for s in status})
    swapped = ask("digests")
    found["lands at 12"] = len(active[11]) == len(active[12]) == 1 and active[10] == active[11] != active[12] == active[13]
    found["other bytes"] = swapped != digests
    ask("rollback", when=14)
    send(weights, step=14)
    found["rolled back"] = ask("digests") == digests and answers() == one
    found["certificates"] = ask("certificate")
    found["status"] = [{key: s[key] for key in ("rank", "moe", "loaded", "last", "staging_limit")} for s in ask("status")]
    try:
        ask("swap", "0" * 64)
        found["unknown swap"] = None
    except Exception as error:
        found["unknown swap"] = str(error)
    found["alive"] = answers() == one
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2], int(sys.argv[3])), default=list))
