"""patchhost inside verl 0.9.1 with vLLM: enabled by configuration alone, and nothing of verl or vLLM is replaced.

```
actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls=patchhost.verl.WorkerExtension
+actor_rollout_ref.rollout.engine_kwargs.vllm.additional_config='{"patchhost": {"patches": ["fp8_block",
    "vocab_mask"]}}'
```

| name | what it is |
|---|---|
| `WorkerExtension` | the rollout worker: weight updates that are proved before the first layer is touched, adapters |
| `quant_weights` | verl's function of this name, computed by the patch `fp8_block`, byte for byte |
| `metrics` | numbers of receipts, flat, as verl's trackers take them |
| `require` | raises where this process or this configuration would run without patchhost |
| `checkpoint` | a module for `checkpoint_engine.custom_backend_module`: the backend `patchhost` |
| `plugin` | a module for `VERL_USE_EXTERNAL_MODULES` and for the entry point group `verl.plugins` |

Importing this module imports neither verl nor vLLM nor torch.
"""

from __future__ import annotations

from typing import Any

_WHERE = {
    "WorkerExtension": "worker",
    "metrics": "measures",
    "quant_weights": "quant",
    "receipts": "measures",
    "require": "requirement",
}

__all__ = ["WorkerExtension", "metrics", "quant_weights", "receipts", "require"]


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'patchhost.verl' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
