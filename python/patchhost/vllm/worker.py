"""`WorkerExtension`: what `collective_rpc` can ask a vLLM worker about patches.

    vllm serve MODEL --worker-extension-cls patchhost.vllm.worker.WorkerExtension
    llm.collective_rpc("patchhost_swap", args=(generation,), kwargs={"when": 12})

vLLM mixes the class into its worker, so `self` is the worker. Each method answers with plain JSON values, from every
worker of the engine. It works beside the weight transfer engine `patchhost` (then both share patches, board and ledger),
and without it (`patchhost_refit` alone).
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any


def _one_voice(method: Callable[..., Any]) -> Callable[..., Any]:
    """Where one worker refuses, all do, and the last one alone raises: vLLM's executor leaves the answers behind the first
    error unread, and they would answer the next call."""

    @functools.wraps(method)
    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        host = _host(self)
        answer, failed = None, None
        try:
            answer = method(self, *args, **kwargs)
        except Exception as error:
            failed = error
        failed = host.agreed(failed)
        if failed is None:
            return answer
        if host.speaks:
            raise failed
        return None

    return call


class WorkerExtension:
    """Methods `patchhost_*`: weight updates, swaps, rollback, status and receipts."""

    @_one_voice
    def patchhost_refit(
        self,
        path: str | None = None,
        *,
        step: int | None = None,
        version: str | None = None,
        manifest: Mapping[str, Any] | None = None,
        **body: Any,
    ) -> dict[str, Any]:
        """One whole weight update in one call: a safetensors file or folder, or another body of
        `patchhost.vllm.bodies.UpdateInfo`. Everything is proved on all workers before the first layer is touched. Gives the
        receipt's numbers."""
        from .bodies import UpdateInfo, tensors_of

        host = _host(self)
        info = UpdateInfo(path=path, **body)
        receipt = host.whole(tensors_of(info), step=step, version=version, manifest=manifest)
        _forget_caches(self)
        return {"update": host.refitter.last, "receipt": _plain(receipt)}

    @_one_voice
    def patchhost_stage(self, component: Any, settings: Mapping[str, Any] | None = None, sha256: str | None = None) -> dict[str, Any]:
        """Takes a patch in beside the live ones: gate, audit, start, probe. `component`: a bundled name, or a path on the
        worker's machine. Gives its `generation`, which `patchhost_swap` takes."""
        from ..spec import PatchSpec

        staged = _host(self).refitter.board.stage(PatchSpec(component, sha256, settings or ()))
        return dict(staged._asdict())

    @_one_voice
    def patchhost_swap(self, generation: str, when: str | int = "refit", mode: str = "live", percent: int | None = None) -> dict[str, Any]:
        """Plans that a staged patch becomes live with an update: the next one, or the first whose step reaches `when`. With
        several workers or replicas give a step."""
        return _host(self).refitter.board.swap(generation, when=when, mode=mode, percent=percent)

    @_one_voice
    def patchhost_rollback(self, when: str | int = "refit", reason: str | None = None) -> dict[str, Any]:
        """Plans to go back to the set before."""
        return _host(self).refitter.board.rollback(when=when, reason=reason)

    @_one_voice
    def patchhost_cancel(self, why: str) -> bool:
        """Takes a planned swap back. `False`: there was none."""
        return _host(self).refitter.board.cancel(why)

    @_one_voice
    def patchhost_lora(self, path: str, name: str, int_id: int) -> dict[str, Any]:
        """Loads an adapter from a folder (`adapter_config.json` and safetensors), after its proof: names in pairs, finite,
        admitted by a live patch of the hook `lora`. It replaces the adapter of the same `int_id`."""
        import os

        from .._safetensors import tensors_of_folder
        from . import lora

        host = _host(self)
        tensors, config = dict(tensors_of_folder(path)), os.path.join(path, "adapter_config.json")
        patches = host.refitter.board.patches
        return lora.load(self, config, tensors, name=name, int_id=int_id, expectation=host.live.expectation, patches=patches)

    @_one_voice
    def patchhost_status(self) -> dict[str, Any]:
        """What is live, what waits, what the last update did."""
        return _host(self).status()

    @_one_voice
    def patchhost_receipt(self) -> dict[str, Any] | None:
        """The receipt of the last update; `None` before the first."""
        return _plain(_host(self).refitter.receipt)

    @_one_voice
    def patchhost_certificate(self) -> dict[str, Any] | None:
        """What is certain of the last update: what came, what was handed on, what was read back from the layers."""
        return _host(self).certificate

    @_one_voice
    def patchhost_digests(self) -> dict[str, str]:
        """SHA-256 of each parameter and buffer of this worker's model."""
        return _host(self).digests()

    @_one_voice
    def patchhost_abort(self, why: str = "an operator ended it") -> bool:
        """Ends an update that its sender left open (it died), so that the next one can begin. What was live stays."""
        engine = getattr(self, "weight_transfer_engine", None)
        abandoned = bool(engine.abandon(why)) if hasattr(engine, "abandon") else False
        from .session import end_in_vllm

        end_in_vllm(self)
        return abandoned


def _host(worker: Any) -> Any:
    """The host of this worker: that of its weight transfer engine, or one of its own."""
    from .engine import PatchhostEngine
    from .host import Host

    engine = getattr(worker, "weight_transfer_engine", None)
    if isinstance(engine, PatchhostEngine):
        return engine.host
    held = worker.__dict__.get("_patchhost_host")
    if held is None:
        held = worker.__dict__["_patchhost_host"] = Host(worker.vllm_config, worker.model_runner.get_model())
    return held


def _forget_caches(worker: Any) -> None:
    """LoRA state and encoder caches of the old weights, as vLLM's own `reload_weights` resets them."""
    for name in ("reset_lora_state", "reset_encoder_cache", "reset_mm_cache"):
        reset = getattr(worker.model_runner, name, None)
        if callable(reset):
            reset()


def _plain(receipt: Any) -> Any:
    return None if receipt is None else json.loads(receipt.to_json())
