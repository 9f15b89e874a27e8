"""What `WorkerExtension` refuses before the first step, because only verl's changes of vLLM could do it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from ..errors import Refused

PATCHED = (
    ("vllm.lora.worker_manager", "LRUCacheWorkerLoRAManager", "_load_adapter"),
    ("vllm.model_executor.layers.quantization.fp8", "Fp8LinearMethod", "process_weights_after_loading"),
    ("vllm.model_executor.layers.quantization.fp8", "Fp8MoEMethod", "process_weights_after_loading"),
)
"methods of vLLM that verl 0.9.1 replaces for all objects of a process"

_EXTENSION = "patchhost.verl.WorkerExtension"


def replaced() -> list[str]:
    """Those methods of `PATCHED` that are not vLLM's own in this process."""
    import vllm

    root = os.path.dirname(os.path.abspath(vllm.__file__)) + os.sep
    found = []
    for module, name, method in PATCHED:
        function = getattr(getattr(import_module(module), name), method)
        code = getattr(getattr(function, "__func__", function), "__code__", None)
        if code is None or not os.path.abspath(code.co_filename).startswith(root):
            found.append(f"{module}.{name}.{method}")
    return found


def refuse_config(vllm_config: Any) -> None:
    """Raises `Refused` for what the engine was configured to, and this extension does not do."""
    transfer = getattr(getattr(vllm_config, "weight_transfer_config", None), "backend", None)
    if transfer == "verl_delta_ipc":
        why = "`checkpoint_engine.backend=delta_sharded` adds deltas to live parameters, which cannot be proved before"
        raise Refused(_EXTENSION, why, "use another checkpoint_engine.backend, for example nccl, nixl or naive")
    quantized = getattr(vllm_config, "quant_config", None)
    if (
        getattr(quantized, "quant_format", None) == "nvfp4-pack-quantized"
        or type(quantized).__name__ == "ModelOptNvFp4Config"
    ):
        why = (
            f"the model is quantized by {type(quantized).__name__} (NVFP4), which verl updates through its own patches"
        )
        raise Refused(_EXTENSION, why, "run this model with verl's own extension")
    others = replaced()
    if others:
        why = f"{others[0]} is not vLLM's own in this process: somebody replaced it before"
        raise Refused(_EXTENSION, why, "start vLLM's workers with VLLM_WORKER_MULTIPROCESSING_METHOD=spawn")


def refuse_model(worker: Any) -> None:
    """Raises `Refused` for a model whose parts this extension cannot keep in step."""
    if worker._use_mtp_drafter_weight_sync():
        name = type(worker._get_drafter_model()).__name__
        why = f"the MTP drafter `{name}` would keep its old weights: an update here is of one model"
        raise Refused("speculative decoding by MTP", why, "set rollout.mtp.enable=false, or use verl's own extension")


def require_masked(worker: Any, vocab_size: int, banned: Iterable[int]) -> None:
    """Raises `Refused` unless vLLM's logits processors mask what verl asks for: rows behind the tokenizer's ids, and
    ids that stand for an image or a video."""
    rows = int(worker.model_runner.model_config.get_vocab_size())
    wanted = set(range(vocab_size, rows)) | {int(token) for token in banned if int(token) < rows}
    if not wanted:
        return
    missing = wanted - _masked(worker)
    if not missing:
        return
    ids = ", ".join(str(token) for token in sorted(missing)[:4])
    asked = sorted({int(token) for token in banned if int(token) < rows})
    setting = f', "settings": {{"banned": "{",".join(map(str, asked))}"}}' if asked else ""
    advice = (
        f'add {{"component": "vocab_mask"{setting}}} to the patches; '
        "the entry point `patchhost` of vllm.logits_processors must be installed (pip install patchhost)"
    )
    why = (
        f"the tokenizer has {vocab_size} of {rows} ids; {len(missing)} that must not be sampled are not masked ({ids})"
    )
    raise Refused("sampling in this engine", why, advice)


def _masked(worker: Any) -> set[int]:
    from ..vllm.logits import LogitsMask

    batch = getattr(worker.model_runner, "input_batch", None)
    found: set[int] = set()
    for processor in getattr(getattr(batch, "logitsprocs", None), "all", ()):
        if isinstance(processor, LogitsMask) and processor._forbidden is not None:
            found.update(processor._forbidden.tolist())
    return found
