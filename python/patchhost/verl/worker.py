"""`WorkerExtension`: verl's vLLM worker with weight updates that are proved before the first layer is touched.

It is verl's own class with three methods over it. What verl replaces in vLLM
(verl/workers/rollout/vllm_rollout/utils.py) is not replaced:

| verl | here |
|---|---|
| `VLLMHijack` for adapters that come as tensors | a folder in memory, and vLLM's own `load_inplace` |
| `apply_vllm_quant_patches`, `load_quanted_weights` | one whole update, through vLLM's layerwise reload |
| `patch_vllm_moe_model_weight_loader` | nothing: layerwise reload restores the loaders |
| `monkey_patch_compute_logits` | the logits processor of `patchhost.vllm.logits`, with the patch `vocab_mask` |
"""

from __future__ import annotations

import logging
import os
from typing import Any

import torch
import verl
from verl.workers.rollout.vllm_rollout.utils import set_death_signal, vLLMColocateWorkerExtension

from ..errors import InternalError, RefitError
from ..settings import settings
from ..versions import check
from ..vllm.worker import WorkerExtension as _Asked
from ..vllm.worker import _forget_caches, _host, _one_voice
from . import measures
from .guard import refuse_config, refuse_model, require_masked
from .sync import Adapter, Buffers, Receiver, plain_name

logger = logging.getLogger(__name__)

check("verl", verl.__version__)


SENDER_SECONDS = 1800
"""A trainer may compute for long between two buckets."""


class WorkerExtension(_Asked, vLLMColocateWorkerExtension):
    """Set by `actor_rollout_ref.rollout.engine_kwargs.vllm.worker_extension_cls=patchhost.verl.WorkerExtension`.

    An update that is refused leaves the old weights in place and the worker alive; verl's trainer gets the error where
    it waits for `update_weights`. (With `free_cache_engine` and sleep level 2, vLLM itself has dropped the old weights
    before; then nothing serves until the next update.)
    """

    def __new__(cls, **kwargs: Any) -> WorkerExtension:
        """As verl's, but for what it replaces in vLLM. Raises `Refused` for what only those replacements could do."""
        set_death_signal()
        _full_determinism()
        refuse_config(kwargs.get("vllm_config"))
        # Over verl's `__new__`, on to the next class.
        instance: WorkerExtension = super(vLLMColocateWorkerExtension, cls).__new__(cls)
        instance._is_qat_model = False
        instance._is_modelopt_qat = False
        return instance

    @_one_voice
    def monkey_patch_model(self, vocab_size: int, banned_token_ids: list[int] | None = None) -> None:
        """verl calls this once, when the engine is up. No method is replaced here: it is the place before step 1 where
        everything is refused that cannot work, and where it is checked that the ids are masked."""
        refuse_model(self)
        require_masked(self, vocab_size, banned_token_ids or [])

    def update_weights_from_ipc(
        self, peft_config: dict[str, Any] | None = None, base_sync_done: bool = False, use_shm: bool = False
    ) -> None:
        """One sync of verl: all buckets are received and staged, then proved as a whole, then loaded once.

        verl's sender waits for an answer to each bucket, so an error must not leave it without one: it is kept, the
        rest is received and dropped, and it is raised at the end. Raises every error of `patchhost.errors`.
        """
        sync = _Sync(self, peft_config, base_sync_done)
        if self.device is None:
            from verl.utils.device import get_device_name

            self.device = torch.device(f"{get_device_name()}:{self.local_rank}")
        receiver = Receiver(zmq_handle=self._get_zmq_handle(), device=self.device, use_shm=use_shm)
        given = settings(self.vllm_config).sender_timeout
        receiver.timeout = SENDER_SECONDS if given is None else given
        try:
            receiver.receive_weights(on_bucket_received=sync.take)
        except Exception as error:
            sync.fail(error)
        sync.end()

    def _update_weights(
        self, weights: list[tuple[str, torch.Tensor]], peft_config: dict[str, Any], base_sync_done: bool
    ) -> None:
        """verl's step for one bucket. A bucket is no whole update, so here it is refused."""
        why = "it would load one bucket of an update before the others were proved"
        raise InternalError("_update_weights", why, "call update_weights_from_ipc, which takes the whole update")

    def update_verl_delta_weights(self, update_info: dict[str, Any]) -> None:
        """verl's delta transfer writes into the parameters itself. Raises `RefitError`."""
        why = "a delta is added to live parameters, so it cannot be proved before"
        raise RefitError("a delta update", why, "use another checkpoint_engine.backend, for example nccl or naive")


class _Sync:
    """One call of `update_weights_from_ipc`: the first error is kept, and everything after it is dropped."""

    def __init__(self, worker: Any, peft_config: dict[str, Any] | None, base_sync_done: bool) -> None:
        self._worker = worker
        self._failed: BaseException | None = None
        self._update: Any = None
        self._host: Any = None
        self._adapter: Adapter | None = None
        self._strip = peft_config is not None
        try:
            refuse_model(worker)
            self._host = _host(worker)
            self._buffers = Buffers(worker.model_runner.model, self._host.live.expectation)
            if peft_config and base_sync_done:
                patches = self._host.refitter.board.patches
                self._adapter = Adapter(worker, peft_config, self._host.live.expectation, patches)
            else:
                self._update = self._host.update(None, None)
        except Exception as error:
            self.fail(error)

    def take(self, weights: list[tuple[str, torch.Tensor]], is_last: bool) -> None:
        """One bucket. Its memory is the sender's again after this; staging copies. Never raises."""
        if self._failed is not None:
            return
        try:
            for name, tensor in weights:
                self._one(name, tensor)
        except Exception as error:
            self.fail(error)

    def _one(self, name: str, tensor: torch.Tensor) -> None:
        if self._adapter is not None:
            self._adapter.add(name, tensor)
            return
        name = plain_name(name) if self._strip else name
        if not self._buffers.add(name, tensor):
            self._update.add(name, tensor)

    def fail(self, error: BaseException) -> None:
        """Keeps the first error, and gives up what was staged."""
        if self._failed is None:
            self._failed = error
        if self._update is not None:
            self._update.abandon(error)
        logger.error("patchhost: this update is refused, and the rest of it is dropped: %s", error)

    def end(self) -> None:
        """Proves on all ranks, loads, commits. Raises what was kept, or what another rank refused: where one rank
        refuses, no rank loads anything, and one rank alone raises (see `patchhost.vllm.worker`)."""
        if self._host is None:
            assert self._failed is not None
            raise self._failed
        failed: BaseException | None = None
        try:
            self._finish()
        except Exception as error:
            failed = error
        failed = self._host.agreed(failed)
        if failed is not None and self._host.speaks:
            raise failed

    def _finish(self) -> None:
        self._host.prove(self._adapter or self._update or _Nothing(), self._failed)
        if self._adapter is not None:
            self._adapter.load()
            return
        receipt = self._host.finish(self._update)
        self._buffers.apply()
        _forget_caches(self._worker)
        measures.write(self._host.refitter.board.ledger, receipt)


class _Nothing:
    """Stands for an update that could not begin on this rank, while the other ranks hear of it."""

    def prove(self) -> None:
        """There is nothing."""

    def abandon(self, why: object) -> None:
        """There is nothing."""


def _full_determinism() -> None:
    if os.environ.get("VERL_FULL_DETERMINISM", "0") == "1" and os.environ.get("VERL_SEED") is not None:
        from verl.workers.engine.utils import enable_full_determinism

        enable_full_determinism(seed=int(os.environ["VERL_SEED"]))
