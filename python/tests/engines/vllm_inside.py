"""Looks at patchhost inside vLLM from within the engine's process. Arguments: model folder, scratch folder. Prints JSON."""

from __future__ import annotations

import base64
import copy
import json
import os
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save, save_file

NORM = "model.layers.1.input_layernorm.weight"


def classes_of_vllm() -> dict[str, dict[str, int]]:
    """Identity of each attribute of each class of vLLM that is imported."""
    found: dict[str, dict[str, int]] = {}
    for name, module in list(sys.modules.items()):
        if not name.startswith("vllm.") or module is None:
            continue
        for value in list(vars(module).values()):
            if isinstance(value, type) and value.__module__ == name:
                attributes = {key: id(item) for key, item in vars(value).items() if callable(item) or isinstance(item, (property, classmethod, staticmethod))}
                found[f"{name}.{value.__qualname__}"] = attributes
    return found


def foreign() -> list[str]:
    """Functions of patchhost that stand where vLLM has its own."""
    found = []
    for name, module in list(sys.modules.items()):
        if not name.startswith("vllm.") or module is None:
            continue
        for key, value in list(vars(module).items()):
            if getattr(value, "__module__", "").startswith(("patchhost", "verl")) and callable(value):
                found.append(f"{name}.{key}")
            if isinstance(value, type) and value.__module__ == name:
                for attribute, item in list(vars(value).items()):
                    if callable(item) and str(getattr(item, "__module__", "")).startswith(("patchhost", "verl")):
                        found.append(f"{name}.{key}.{attribute}")
    return found


def said(call: Any) -> str | None:
    try:
        call()
    except Exception as error:
        return str(error)
    return None


def main(model: str, scratch: str) -> dict[str, Any]:
    from vllm import LLM, SamplingParams
    from vllm.config import WeightTransferConfig, set_current_vllm_config
    from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory

    llm = LLM(
        model=model,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=128,
        enable_prefix_caching=False,
        weight_transfer_config=WeightTransferConfig(backend="patchhost"),
        worker_extension_cls="patchhost.vllm.worker.WorkerExtension",
    )
    before = classes_of_vllm()
    worker = llm.llm_engine.model_executor.driver_worker.worker
    engine, config = worker.weight_transfer_engine, worker.vllm_config
    live = engine.host.live
    weights: dict[str, torch.Tensor] = {}
    for file in sorted(Path(model).glob("*.safetensors")):
        weights |= load_file(file)
    found: dict[str, Any] = {}

    def answers() -> list[Any]:
        params = SamplingParams(max_tokens=16, temperature=0, logprobs=0, ignore_eos=True, detokenize=False)
        out = llm.generate([{"prompt_token_ids": [1, 2, 3, last]} for last in range(5, 8)], params, use_tqdm=False)
        return [[(t, s[t].logprob) for t, s in zip(o.outputs[0].token_ids, o.outputs[0].logprobs, strict=True)] for o in out]

    def send(*infos: dict[str, Any]) -> None:
        llm.start_weight_update()
        for info in infos:
            llm.update_weights({"update_info": info})
        llm.finish_weight_update()

    first = answers()
    llm.init_weight_transfer_engine({"init_info": {}})

    # Bodies.
    path = f"{scratch}/all.safetensors"
    save_file(weights, path)
    table, offset, raw = {}, 0, bytearray()
    for name, tensor in weights.items():
        data = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        table[name] = {"dtype": str(tensor.dtype), "shape": list(tensor.shape), "offset": offset}
        raw += data
        offset += len(data)
    segment = f"patchhost-test-{os.getpid()}"
    Path("/dev/shm", segment).write_bytes(raw)
    lists = {"names": list(table), "dtype_names": [t["dtype"].removeprefix("torch.") for t in table.values()], "shapes": [t["shape"] for t in table.values()]}
    bodies: dict[str, dict[str, Any]] = {
        "path": {"path": path},
        "folder": {"path": model},
        "safetensors": {"safetensors": base64.b64encode(save(weights)).decode()},
        "data": {"data": base64.b64encode(bytes(raw)).decode(), **lists},
        "shm": {"shm": segment, "bucket_meta": table},
    }
    found["bodies"] = {}
    for word, body in bodies.items():
        save_file({name: tensor * 1.5 for name, tensor in weights.items()}, f"{scratch}/other.safetensors")
        send({"path": f"{scratch}/other.safetensors"})
        send({**body, "last": True})
        found["bodies"][word] = answers() == first
    short = {**table, NORM: {**table[NORM], "offset": len(raw)}}
    Path(scratch, "cut.safetensors").write_bytes(Path(path).read_bytes()[:-7])
    Path(scratch, "none.safetensors").write_bytes(b"\x80\x04pickle")
    found["bad bodies"] = {
        word: said(lambda info=info: send(info))
        for word, info in {
            "two": {"path": path, "safetensors": ""},
            "no file": {"path": f"{scratch}/missing.safetensors"},
            "cut": {"path": f"{scratch}/cut.safetensors"},
            "pickle": {"path": f"{scratch}/none.safetensors"},
            "not base64": {"safetensors": "%%%"},
            "beyond": {"shm": segment, "bucket_meta": short},
            "outside": {"shm": "../etc/passwd", "bucket_meta": table},
            "no table": {"shm": segment},
            "lists": {"data": "", "names": ["a"], "dtype_names": [], "shapes": []},
            "unknown field": {"pth": path},
            "another sender": {},
        }.items()
        if word != "another sender"
    }

    def two_senders() -> None:
        llm.start_weight_update()
        llm.update_weights({"update_info": {"path": f"{scratch}/other.safetensors", "version": "a"}})
        llm.update_weights({"update_info": {"path": path, "version": "b"}})

    found["bad bodies"]["another sender"] = said(two_senders)
    os.unlink(f"/dev/shm/{segment}")
    assert answers() == first

    # Names that vLLM takes too.
    stacked = {name: tensor for name, tensor in weights.items() if ".experts." not in name}
    for layer in range(4):
        prefix = f"model.layers.{layer}.mlp.experts."
        gate = [torch.cat([weights[f"{prefix}{e}.gate_proj.weight"], weights[f"{prefix}{e}.up_proj.weight"]]) for e in range(8)]
        stacked[f"{prefix}gate_up_proj"] = torch.stack(gate).contiguous()
        stacked[f"{prefix}down_proj"] = torch.stack([weights[f"{prefix}{e}.down_proj.weight"] for e in range(8)])
    save_file(stacked, f"{scratch}/stacked.safetensors")
    refused = said(lambda: send({"path": f"{scratch}/stacked.safetensors"}))
    found["stacked"] = ("same" if answers() == first else "other") if refused is None else ("vLLM takes none" if answers() == first else "broken")

    # An engine of somebody else that moves the bytes.
    @dataclass
    class Init(WeightTransferInitInfo):
        pass

    @dataclass
    class Info(WeightTransferUpdateInfo):
        file: str = ""

    class Files(WeightTransferEngine[Init, Info]):
        init_info_cls, update_info_cls = Init, Info

        def init_transfer_engine(self, init_info: Init) -> None: ...
        def start_weight_update(self) -> None: ...
        def receive_weights(self, update_info: Info) -> None:
            self.model.load_weights(iter(load_file(update_info.file).items()))

        def finish_weight_update(self) -> None: ...
        def shutdown(self) -> None: ...

    WeightTransferEngineFactory.register_engine("test_files", Files)
    llm.init_weight_transfer_engine({"init_info": {"inner": {"backend": "test_files"}}})
    send({"inner": {"file": f"{scratch}/other.safetensors"}})
    changed = answers() != first
    send({"inner": {"file": path}})
    found["wrapped"] = "same" if changed and answers() == first else "other"
    save_file({name: tensor for name, tensor in weights.items() if name != NORM}, f"{scratch}/lost.safetensors")
    found["wrapped lost"] = said(lambda: send({"inner": {"file": f"{scratch}/lost.safetensors"}}))

    # A head that a tied model does not load.
    embedding = weights["model.embed_tokens.weight"]
    found["tied head"] = {}
    for word, head in {"the same": embedding.clone(), "another": embedding * 2}.items():
        found["tied head"][word] = said(lambda head=head: live.check([*weights.items(), ("lm_head.weight", head)]))

    # A tied head whose layer keeps a packed copy of the weight, as layers on CPUs with oneDNN or AMX do.
    send({"path": f"{scratch}/other.safetensors"})
    other = answers()
    send({"path": path})
    head = live.model.lm_head
    packed = head.weight.detach().clone()
    head.cpu_linear = lambda x, weight, bias: torch.nn.functional.linear(x, packed, bias)
    send({"path": f"{scratch}/other.safetensors"})
    found["head with a copy"] = answers() == other != first
    send({"path": path})

    # Roles and config.json.
    asked = ("model.embed_tokens.weight", "model.layers.0.input_layernorm.weight", "model.layers.0.mlp.experts.3.up_proj.weight",
             "model.layers.0.mlp.gate.weight", "model.layers.0.self_attn.q_proj.weight", "model.norm.weight")  # fmt: skip
    found["roles"] = {name: live.expectation.role(name, ()) for name in asked}
    odd = copy.copy(live.expectation)
    odd.config = copy.copy(odd.config)
    odd.config.num_experts = 6
    found["wrong config"] = said(odd._check_config)
    found["rebuilt"] = list(engine.host.loaded.rebuilt)

    found["changed classes"] = foreign()
    after = classes_of_vllm()
    found["changed classes"] += [name for name in before if after.get(name) != before[name]]
    found["classes"] = len(after)

    with set_current_vllm_config(config):
        found |= self_tests(live)
        # Without the repair the engine holds unpacked experts, and reading back says so. This breaks the engine: last.
        live.verdict = None
        found["without the repair"] = said(lambda: live.load(weights.items()))
    return found


def self_tests(live: Any) -> dict[str, Any]:
    from patchhost.vllm import moe

    name, layer = moe.layers(live.model)[0]
    kind = type(layer.quant_method)

    class Mended(kind):  # type: ignore[misc, valid-type]
        def process_weights_after_loading(self, layer: Any) -> None:
            held, self.moe_kernel = (self.moe_kernel, self.moe_quant_config), None
            super().process_weights_after_loading(layer)
            if held[0] is not None:
                self.moe_kernel, self.moe_quant_config = held

    class Neither(kind):  # type: ignore[misc, valid-type]
        def process_weights_after_loading(self, layer: Any) -> None:
            super().process_weights_after_loading(layer)
            layer.w13_weight.data.add_(torch.rand_like(layer.w13_weight))

    class Raises(kind):  # type: ignore[misc, valid-type]
        def process_weights_after_loading(self, layer: Any) -> None:
            raise AttributeError("moe_kernel is gone")

    def test(cls: type) -> Any:
        twin = torch.nn.Module()
        one = copy.copy(layer)
        one.__dict__["_modules"] = dict(layer._modules)
        method = copy.copy(layer.quant_method)
        method.__class__ = cls
        one.__dict__["quant_method"] = method
        one._modules.pop("quant_method", None)
        twin.layer = one
        return moe.self_test(twin, "0.32.0")

    maps = moe.packing(layer)
    permutation = all(torch.equal(m[m >= 0].sort().values, torch.arange(int((m >= 0).sum()))) for m in maps.values())
    return {
        "stock": list(test(kind)),
        "mended upstream": list(test(Mended)),
        "neither": said(lambda: test(Neither)),
        "raises": said(lambda: test(Raises)),
        "packing is a permutation": permutation,
    }


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1], sys.argv[2]), default=list))
