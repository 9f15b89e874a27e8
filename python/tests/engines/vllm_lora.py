"""LoRA adapters beside weight updates, in one vLLM process. Arguments: model folder, scratch folder. Prints JSON."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def main(model: str, scratch: str) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=128,
        enable_prefix_caching=False,
        enable_lora=True,
        max_lora_rank=8,
        worker_extension_cls="patchhost.vllm.worker.WorkerExtension",
        additional_config={"patchhost": {"patches": ["lora_tensors"]}},
    )
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(Path(model).glob("*.safetensors")):
        weights |= load_file(file)
    folder = Path(scratch, "adapter")
    folder.mkdir()
    request = LoRARequest("adapter", 1, str(folder))
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "o_proj"], "bias": "none"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    random = torch.Generator().manual_seed(1)
    adapter = {}
    for layer in range(2):
        for module in ("q_proj", "o_proj"):
            rows, cols = weights[f"model.layers.{layer}.self_attn.{module}.weight"].shape
            at = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            adapter[f"{at}.lora_A.weight"] = (torch.randn(4, cols, generator=random) * 0.3).bfloat16()
            adapter[f"{at}.lora_B.weight"] = (torch.randn(rows, 4, generator=random) * 0.3).bfloat16()

    def answers(lora: Any = None) -> list[Any]:
        params = SamplingParams(max_tokens=12, temperature=0, logprobs=0, ignore_eos=True, detokenize=False)
        asked = [{"prompt_token_ids": [1, 2, 3, last]} for last in range(5, 8)]
        out = llm.generate(asked, params, use_tqdm=False, lora_request=lora)
        return [[(t, s[t].logprob) for t, s in zip(o.outputs[0].token_ids, o.outputs[0].logprobs, strict=True)] for o in out]

    def load(tensors: dict[str, torch.Tensor]) -> Any:
        save_file(tensors, folder / "adapter_model.safetensors")
        return llm.collective_rpc("patchhost_lora", args=(str(folder), "adapter", 1))[0]

    def refit(tensors: dict[str, torch.Tensor]) -> None:
        save_file(tensors, f"{scratch}/weights.safetensors")
        llm.collective_rpc("patchhost_refit", kwargs={"path": f"{scratch}/weights.safetensors"})

    def said(tensors: dict[str, torch.Tensor]) -> str | None:
        try:
            load(tensors)
        except Exception as error:
            return str(error)
        return None

    found: dict[str, Any] = {}
    base = answers()
    found["plan"] = load(adapter)["plan"]
    with_adapter = answers(request)
    found["changes"] = with_adapter != base
    load(adapter)
    found["same adapter again"] = answers(request) == with_adapter
    refit(weights)
    found["base after refit"] = answers() == base
    found["lora after refit"] = answers(request) == with_adapter
    refit({name: tensor * 1.3 if "layers.0.mlp" in name else tensor for name, tensor in weights.items()})
    changed = answers()
    found["lora on new weights"] = changed != base and answers(request) not in (with_adapter, changed)
    zero = {name: tensor * 0 if "lora_B" in name else tensor for name, tensor in adapter.items()}
    load(zero)
    found["zero is base"] = answers(request) == changed
    first = next(iter(adapter))
    found["half"] = said({name: tensor for name, tensor in adapter.items() if name != first})
    found["infinite"] = said({**adapter, first: adapter[first] * float("inf")})
    found["still"] = answers(request) == changed
    found["left in /dev/shm"] = [name for name in os.listdir("/dev/shm") if name.startswith("patchhost-lora-")]
    return found


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2]), default=list))
