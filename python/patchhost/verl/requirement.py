"""`require()`: what makes a missing patchhost an error before the first step, and not a line in a log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import Refused
from ..settings import settings
from ..versions import check

EXTENSIONS = ("patchhost.verl.WorkerExtension", "patchhost.verl.worker.WorkerExtension")
_AT = "actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls"


def require(config: Any = None) -> dict[str, str]:
    """Raises `Refused`, `UsageError` or `HostError` where this process cannot run patchhost in verl: an unknown version
    of verl or vLLM, settings that cannot be read, an extension that does not load.

    config: verl's whole configuration (or only that of the rollout). Where it is given, its vLLM rollout has to name
    the worker extension. Gives the versions that were found.
    """
    found = {engine: check(engine) for engine in ("verl", "vllm")}
    settings()
    from .. import _native

    found["patchhost"] = str(_native.__version__)
    if config is not None:
        _named(config)
    return found


def _named(config: Any) -> None:
    rollout = _at(config, "actor_rollout_ref", "rollout") or config
    engine = _at(rollout, "name") or "vllm"
    if engine != "vllm":
        why = f"the rollout is `{engine}`, and the worker extension is one of vLLM"
        raise Refused("patchhost in this verl run", why, "set rollout.name=vllm; for SGLang see docs/engines.md")
    given = _at(rollout, "engine_kwargs", "vllm", "worker_extension_cls")
    if given not in EXTENSIONS:
        why = f"`worker_extension_cls` is {given!r:.100}, so verl would patch vLLM itself and prove nothing"
        raise Refused("patchhost in this verl run", why, f"set {_AT}={EXTENSIONS[0]}")


def _at(config: Any, *path: str) -> Any:
    for key in path:
        if config is None:
            return None
        get = config.get if isinstance(config, Mapping) or hasattr(config, "get") else None
        config = get(key) if get is not None else getattr(config, key, None)
    return config
