"""What can be seen of verl 0.9.1 and patchhost without an engine, in a process of its own. Called by
test_verl_engine.py.

verl_static.py FOLDER
"""

from __future__ import annotations

import asyncio
import inspect
import json
import os
import sys
import types
from importlib import import_module
from typing import Any

PATCHED_BY_VERL = (
    "vllm.lora.worker_manager",
    "vllm.lora.layers.base",
    "vllm.model_executor.layers.quantization.fp8",
    "vllm.model_executor.layers.quantization.mxfp4",
    "vllm.model_executor.layers.linear",
    "vllm.model_executor.layers.fused_moe",
    "vllm.model_executor.model_loader.utils",
    "vllm.model_executor.models.deepseek_v2",
    "vllm.model_executor.models.mixtral",
    "vllm.model_executor.models.qwen2_moe",
    "vllm.model_executor.models.qwen3_moe",
    "vllm.model_executor.models.qwen3_next",
    "vllm.v1.worker.cpu_worker",
    "vllm.v1.worker.gpu_worker",
)
"modules in which verl 0.9.1 replaces attributes, and their neighbors"


def snapshot() -> dict[str, dict[str, int]]:
    """Attributes of all classes of vLLM that are loaded, and functions of its modules, by who has them."""
    out: dict[str, dict[str, int]] = {}
    for name, module in list(sys.modules.items()):
        if name.split(".")[0] != "vllm" or module is None:
            continue
        for key, value in list(vars(module).items()):
            if inspect.isclass(value) and value.__module__.split(".")[0] == "vllm":
                held = {k: id(v) for k, v in list(vars(value).items()) if not k.startswith(("_abc_", "__"))}
                out[f"{value.__module__}.{value.__qualname__}"] = held
            elif inspect.isfunction(value):
                out.setdefault(f"{name} (module)", {})[key] = id(value)
    return out


def changes(before: dict[str, dict[str, int]], after: dict[str, dict[str, int]]) -> list[str]:
    """Attributes that were replaced or removed, and those that a class has got since."""
    found = []
    for owner, held in before.items():
        now = after.get(owner, {})
        found += [f"{owner}.{name}" for name, value in held.items() if now.get(name) != value]
        if not owner.endswith("(module)"):
            found += [f"{owner}.{name}" for name in now if name not in held]
    return sorted(found)


def signatures() -> dict[str, Any]:
    from verl.utils.vllm.vllm_quant_utils import quant_weights as theirs
    from verl.workers.rollout.vllm_rollout.utils import vLLMColocateWorkerExtension

    from patchhost.verl import WorkerExtension, quant_weights

    pairs = {"quant_weights": (quant_weights, theirs)}
    for name, ours in vars(WorkerExtension).items():
        if callable(ours) and hasattr(vLLMColocateWorkerExtension, name) and name != "__doc__":
            pairs[name] = (getattr(WorkerExtension, name), getattr(vLLMColocateWorkerExtension, name))

    def shape(function: Any) -> list[list[str]]:
        found = inspect.signature(function).parameters.values()
        return [[p.name, str(p.kind), "-" if p.default is p.empty else repr(p.default)] for p in found]

    return {name: [shape(ours), shape(upstream)] for name, (ours, upstream) in pairs.items()}


def quantization() -> dict[str, Any]:
    """verl's quant_weights and ours, on a model tree of vLLM's own classes."""
    import torch
    from verl.utils.vllm import vllm_quant_utils as upstream
    from vllm.model_executor.layers.linear import LinearBase

    from patchhost.verl import quant_weights

    class Other(torch.nn.Module):
        pass

    class Linear(LinearBase):
        def __init__(self, dtype: Any) -> None:
            torch.nn.Module.__init__(self)
            self.weight = torch.nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)

    def experts() -> Any:
        made = Other()
        for name in ("w13_weight", "w2_weight"):
            made.register_parameter(
                name, torch.nn.Parameter(torch.empty(0, dtype=torch.float8_e4m3fn), requires_grad=False)
            )
        return made

    model = Other()
    model.packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    model.lm_head, model.model = Other(), Other()
    model.model.embed_tokens, model.model.norm, model.model.layers = Other(), Other(), torch.nn.ModuleList()
    fp8 = torch.float8_e4m3fn
    for index in range(2):
        layer = Other()
        layer.input_layernorm, layer.self_attn, layer.mlp = Other(), Other(), Other()
        layer.self_attn.qkv_proj, layer.self_attn.o_proj = Linear(fp8), Linear(fp8)
        if index:
            layer.mlp.gate, layer.mlp.experts = Linear(torch.bfloat16), experts()
        else:
            layer.mlp.gate_up_proj, layer.mlp.down_proj = Linear(fp8), Linear(fp8)
        model.model.layers.append(layer)

    torch.manual_seed(3)
    state = {"model.embed_tokens.weight": torch.randn(50, 320).bfloat16()}
    for index, dtype in enumerate((torch.float32, torch.bfloat16)):
        at = f"model.layers.{index}."
        state[at + "input_layernorm.weight"] = torch.randn(320, dtype=dtype)
        for name, rows in (("q_proj", 384), ("k_proj", 136), ("v_proj", 136)):
            state[at + f"self_attn.{name}.weight"] = (torch.randn(rows, 320) * 0.02).to(dtype)
        state[at + "self_attn.o_proj.weight"] = (torch.randn(384, 320).T * 0.02).to(dtype)
        inner = [at + "mlp."] if not index else [at + f"mlp.experts.{e}." for e in range(3)]
        if index:
            state[at + "mlp.gate.weight"] = torch.randn(3, 320)
        for path in inner:
            for name, shape in (("gate_proj", (200, 320)), ("up_proj", (200, 320)), ("down_proj", (320, 200))):
                state[path + name + ".weight"] = (torch.randn(*shape) * 0.02).to(dtype)
    state["model.norm.weight"], state["lm_head.weight"] = torch.randn(320), torch.randn(50, 320).bfloat16()

    config = types.SimpleNamespace(weight_block_size=[128, 128])
    out: dict[str, Any] = {}
    for dtype in (torch.bfloat16, torch.float16):
        theirs = list(upstream.quant_weights(iter(state.items()), model, config, dtype=dtype))
        ours = list(quant_weights(iter(state.items()), model, config, dtype=dtype))
        differ = [] if [n for n, _ in theirs] == [n for n, _ in ours] else ["names"]
        for (name, mine), (_, yours) in zip(ours, theirs, strict=False):
            octets = [t.contiguous().reshape(-1).view(torch.uint8) for t in (mine, yours)]
            if mine.dtype != yours.dtype or mine.shape != yours.shape or not torch.equal(*octets):
                differ.append(name)
        out[str(dtype)] = [len(ours), sum(t.dtype == fp8 for _, t in ours), differ]

    def refused(call: Any) -> str:
        try:
            list(call())
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        return "nothing"

    router = {**state, "model.layers.0.mlp.down_proj.bias": torch.zeros(3)}
    model.model.layers[1].mlp.gate = Linear(fp8)
    out["router"] = refused(lambda: quant_weights(router.items(), model, config))
    out["block"] = refused(lambda: quant_weights(state.items(), model, types.SimpleNamespace(weight_block_size=None)))
    state["model.layers.0.self_attn.q_proj.weight"][2, 3] = float("nan")
    out["nan"] = refused(lambda: quant_weights(state.items(), model, config))
    return out


def transfer(folder: str) -> dict[str, Any]:
    """The checkpoint engine `patchhost`, made as verl makes it, between a trainer of two ranks and a rollout of two."""
    import threading

    import torch
    from verl.checkpoint_engine.base import CheckpointEngineRegistry
    from verl.utils.import_utils import import_external_libs

    import_external_libs("patchhost.verl.checkpoint")
    given = {"bucket_size": 4096, "folder": os.path.join(folder, "transfer"), "timeout": 20}
    backend = CheckpointEngineRegistry.get("patchhost")
    weights = {
        f"layer.{i}.weight": torch.randn(16, 40).to(torch.bfloat16 if i % 2 else torch.float32) for i in range(9)
    }

    async def drained(stream: Any) -> dict[str, Any]:
        return {name: tensor async for name, tensor in stream}

    def round_(step: int, change: Any = None, ask: int | None = None) -> dict[str, Any]:
        actors = [CheckpointEngineRegistry.new("patchhost", is_master=rank == 0, **given) for rank in range(2)]
        rollouts = [CheckpointEngineRegistry.new("patchhost", **given) for _ in range(2)]
        everyone = [engine.prepare() for engine in (*actors, *rollouts)]
        for engines, kwargs in zip((actors, rollouts), backend.build_topology(2, 2, everyone), strict=True):
            for index, engine in enumerate(engines):
                engine.init_process_group(**{name: values[index] for name, values in kwargs.items()})
        said: dict[str, Any] = {}

        def receive(index: int) -> None:
            try:
                got = asyncio.run(drained(rollouts[index].receive_weights(global_steps=step if ask is None else ask)))
                said[f"rank{index}"] = list(got) == list(weights) and all(
                    torch.equal(got[n], w) for n, w in weights.items()
                )
            except Exception as error:
                said[f"rank{index}"] = f"{type(error).__name__}: {error}"

        def stream() -> Any:
            for at, pair in enumerate(weights.items()):
                if change == "fail" and at == 5:
                    raise RuntimeError("the optimizer is on fire")
                yield pair

        if change == "flip":
            hold = asyncio.run(actors[0].send_weights(stream(), global_steps=step))
            path = os.path.join(actors[0].session, "bucket-00001.safetensors")
            data = bytearray(open(path, "rb").read())
            data[-1] ^= 1
            open(path, "wb").write(data)
        threads = [threading.Thread(target=receive, args=(index,)) for index in range(2)]
        for thread in threads:
            thread.start()
        try:
            if change != "flip":
                hold = asyncio.run(actors[0].send_weights(stream(), global_steps=step))
            said["metrics"] = sorted(hold)
            said["other_rank"] = asyncio.run(actors[1].send_weights(stream(), global_steps=step))
        except RuntimeError as error:
            said["sender"] = str(error)
        for thread in threads:
            thread.join(30)
        for engine in (*actors, *rollouts):
            engine.finalize()
        said["left"] = os.listdir(given["folder"])
        return said

    out: dict[str, Any] = {
        "good": round_(1),
        "fail": round_(2, "fail"),
        "flip": round_(3, "flip"),
        "step": round_(4, ask=5),
    }
    two = [{"host": host, "folder": "/dev/shm/x", "memory": True} for host in ("a", "b")]
    try:
        backend.build_topology(1, 1, two)
    except Exception as error:
        out["hosts"] = str(error)
    return out


def main(folder: str) -> dict[str, Any]:
    import torch

    os.environ["VERL_DISABLE_TRITON_FP8"] = "1"
    for module in PATCHED_BY_VERL:
        import_module(module)
    before = snapshot()
    import verl_cpu  # noqa: F401

    import_module("patchhost.verl.worker")
    import_module("patchhost.verl.quant")
    store = os.path.join(folder, "store")
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=0, world_size=1)
    out: dict[str, Any] = {"signatures": signatures(), "quantization": quantization(), "transfer": transfer(folder)}
    out["changed"] = changes(before, snapshot())
    out["compared"] = sum(map(len, before.values()))

    # The other way round: what verl's own extension replaces is seen by the snapshot and refused by the guard.
    from verl.utils.vllm import VLLMHijack

    from patchhost.verl.guard import refuse_config, replaced

    out["replaced_before"] = replaced()
    VLLMHijack.hijack()
    out["replaced_after"] = replaced()
    out["seen"] = changes(before, snapshot())
    try:
        refuse_config(None)
    except Exception as error:
        out["refused"] = str(error)
    return out


if __name__ == "__main__":
    print(json.dumps(main(sys.argv[1])), flush=True)
    os._exit(0)
