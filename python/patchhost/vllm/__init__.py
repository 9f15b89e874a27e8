"""patchhost inside vLLM 0.32 and 0.33: weight updates that are proved before the first layer is touched, and patches that
decide what becomes FP8.

vLLM finds it by the entry point `patchhost` of `vllm.general_plugins`; nothing else has to be installed or imported:

    vllm serve MODEL --weight-transfer-config '{"backend": "patchhost"}' \\
        --worker-extension-cls patchhost.vllm.worker.WorkerExtension

docs/engines.md has the whole way. Nothing of vLLM is imported or changed by importing this module.
"""

from __future__ import annotations

from contextlib import suppress
from typing import Any

BACKEND = "patchhost"
_registered = False


def register() -> None:
    """The entry point: tells vLLM the name of the weight transfer engine, and nothing more. vLLM calls it in every
    process (front end, engine core, workers) and may call it twice."""
    global _registered
    if _registered:
        return
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory, WeightTransferTrainerFactory

    from ..versions import check

    check("vllm")
    for factory, module, name in (
        (WeightTransferEngineFactory, "patchhost.vllm.engine", "PatchhostEngine"),
        (WeightTransferTrainerFactory, "patchhost.vllm.trainer", "PatchhostTrainer"),
    ):
        # Twice where somebody registered it in this process already: a second entry point, or a call by hand.
        with suppress(ValueError):
            factory.register_engine(BACKEND, module, name)
    _register_repair_of_everybody()
    _registered = True


def _register_repair_of_everybody() -> None:
    import os

    if os.environ.get("PATCHHOST_REPAIR_RELOADS") == "1":
        from .oot import register as register_oot

        register_oot()


_WHERE = {
    "PatchhostEngine": "engine",
    "WorkerExtension": "worker",
    "LogitsMask": "logits",
}


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'patchhost.vllm' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{module}"), name)
