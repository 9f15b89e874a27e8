"""`Host`: what patchhost keeps in one worker of vLLM: patches, the board, the model's expectation, the open update."""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

import torch
import vllm
from vllm.config import set_current_vllm_config
from vllm.distributed.parallel_state import get_world_group
from vllm.logger import init_logger

from .. import __version__
from ..errors import Error, HostError, RefitError, Refused
from ..refitter import Refitter, Update
from ..settings import Settings, of_mapping, settings
from ..versions import check
from .load import LiveModel, Loaded

logger = init_logger(__name__)


class Host:
    """One worker's patches and weight updates.

    It is made when the engine starts, so that what cannot work is refused before anything serves: an unknown version of
    vLLM, a patch that the gate refuses, a model that cannot be updated right.
    """

    def __init__(self, vllm_config: Any, model: torch.nn.Module, given: Settings | None = None) -> None:
        self.version = check("vllm", vllm.__version__.split("+")[0])
        self.vllm_config = vllm_config
        self.settings = settings(vllm_config) if given is None else given
        config = vllm_config.model_config.hf_config
        with set_current_vllm_config(vllm_config):
            self.live = LiveModel(model, vllm_config, repair=self.settings.repair, readback=self.settings.readback)
        self.rank, self.world = _rank()
        size = int(vllm_config.parallel_config.world_size)
        # vLLM's executor reads the workers' answers in order and stops at the first error; those behind it stay in their
        # queues and answer the next call. So where all refuse, the last one alone says so.
        self.speaks = self.rank % size == size - 1
        patches = self.settings.load(host=("vllm", self.version), config=config)
        self.refitter = Refitter(
            patches,
            self.live.expectation,
            ledger=self.settings.ledger_file(self.rank, _replica(vllm_config)),
            actor=self.settings.actor,
            rank=self.rank,
            staging_limit=self.settings.staging_limit,
        )
        self.loaded: Loaded | None = None
        self.certificate: dict[str, Any] | None = None

    def reconfigure(self, given: Mapping[str, Any]) -> Host:
        """A host with other settings over these, for the same model. Nothing may be open."""
        changed = of_mapping({**{name: getattr(self.settings, name) for name in _names(self.settings)}, **given})
        return Host(self.vllm_config, self.live.model, replace(self.settings, **{n: getattr(changed, n) for n in given}))

    def update(self, step: int | None, version: str | None, manifest: Any = None) -> Update:
        """Begins an update; one that was open is given up."""
        return self.refitter.update(step=step, version=version, manifest=manifest, digest=self.settings.digest)

    def prove(self, update: Update, failed: BaseException | None = None) -> None:
        """Proves an update on this rank, and hears what the others say: where one rank refuses, all do. Nothing was
        loaded anywhere. Raises what this rank found, or `RefitError` with the words of the first other one."""
        if failed is None:
            try:
                update.prove()
            except Exception as error:
                failed = error
        failed = self.agreed(failed)
        if failed is not None:
            update.abandon(failed)
            raise failed

    def finish(self, update: Update) -> Any:
        """Loads a proved update into the live model, reads it back and commits. Gives the receipt."""
        failed: BaseException | None = None
        try:
            ledger = self.refitter.board.health()
            if not ledger.get("ok", True):
                why = f"the ledger cannot be written: {ledger.get('why')}"
                raise HostError("the update", why, "make room, or repair the ledger; the old weights keep serving")
            stream = list(update.proved())
            with set_current_vllm_config(self.vllm_config):
                trace = self.live.check(stream)
        except Exception as error:
            failed = error
        agreed = self.agreed(failed)
        if agreed is not None:
            update.abandon(agreed)
            raise agreed
        try:
            with set_current_vllm_config(self.vllm_config):
                self.loaded = self.live.load_checked(stream, trace)
        except Exception as error:
            failed = error
        agreed = self.agreed(failed)
        if agreed is not None:
            if failed is None:
                self.live.broken = f"another rank could not load what was proved: {agreed}"[:600]
            update.abandon(agreed)
            raise agreed
        try:
            receipt = update.commit()
            self.certificate = self._certificate(receipt)
        except Exception as error:
            # The new weights serve: to say that the update was refused would be wrong. Nothing more is taken.
            self.live.broken = f"the update before is live, and it could not be written down: {error}"[:600]
            logger.error("patchhost: %s", self.live.broken)
            return None
        return receipt

    def agreed(self, failed: BaseException | None) -> BaseException | None:
        """What all ranks say about one step: `None` where all are content, else an error on every rank: its own, or the
        first of the others. Every rank has to ask."""
        if self.world == 1:
            return failed
        heard: list[Any] = [None] * self.world
        says = None if failed is None else _parts(failed)
        torch.distributed.all_gather_object(heard, says, group=get_world_group().cpu_group)
        if failed is not None:
            return failed
        for rank, parts in enumerate(heard):
            if parts is not None:
                return RefitError(parts[0], f"rank {rank} refused it: {parts[1]}", parts[2])
        return None

    def whole(self, tensors: Iterable[tuple[str, Any]], *, step: int | None, version: str | None, manifest: Any = None) -> Any:
        """One update in one call: staged, proved on all ranks, loaded, committed."""
        update, failed = self.update(step, version, manifest), None
        try:
            update.add_all(tensors)
        except Exception as error:
            failed = error
        self.prove(update, failed)
        return self.finish(update)

    def status(self) -> dict[str, Any]:
        """For `patchhost_status`: everything that says what is held and what happened, as plain JSON values."""
        verdict = self.live.verdict
        return {
            "engine": ["vllm", self.version],
            "patchhost": __version__,
            "settings": {name: getattr(self.settings, name) for name in _names(self.settings) if name != "patches"},
            "moe": None if verdict is None else {"stock_keeps_packing": verdict.stock, "repair_keeps_packing": verdict.mended},
            "broken": self.live.broken,
            "takes_scales": self.live.expectation.takes_scales,
            "loaded": None if self.loaded is None else self.loaded._asdict(),
            **self.refitter.status(),
        }

    def digests(self) -> dict[str, str]:
        """SHA-256 of each parameter and buffer that this worker holds, by its name in vLLM."""
        out = {}
        for name, tensor in [*self.live.model.named_parameters(), *self.live.model.named_buffers()]:
            flat = tensor.detach().to("cpu").contiguous().reshape(-1).view(torch.uint8)
            out[name] = hashlib.sha256(flat.numpy().tobytes()).hexdigest()
        return out

    def _certificate(self, receipt: Any) -> dict[str, Any]:
        """What is certain of the last update, sealed by a digest of itself (it is not signed: `patchhost` signs files)."""
        last = self.refitter.last or {}
        body = {
            "type": "patchhost-sync-certificate",
            "version": 1,
            "engine": {"name": "vllm", "version": self.version},
            "patchhost": __version__,
            "model": self.vllm_config.model_config.model,
            "rank": self.rank,
            "world": self.world,
            "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "update": {word: last.get(word) for word in ("refit", "step", "version", "patch_set", "swap", "tensors", "remarks")},
            "receipt": None if receipt is None else json.loads(receipt.to_json()),
            "loaded": None if self.loaded is None else self.loaded._asdict(),
        }
        text = json.dumps(body, sort_keys=True, separators=(",", ":"), default=list)
        return {**json.loads(text), "seal": {"sha256": hashlib.sha256(text.encode()).hexdigest()}}


def _rank() -> tuple[int, int]:
    try:
        group = get_world_group()
    except AssertionError:
        return 0, 1
    return int(group.rank_in_group), int(group.world_size)


def _replica(vllm_config: Any) -> int | None:
    parallel = vllm_config.parallel_config
    return int(parallel.data_parallel_rank) if getattr(parallel, "data_parallel_size", 1) > 1 else None


def _names(one: Settings) -> tuple[str, ...]:
    return tuple(one.__dataclass_fields__)


def _parts(error: BaseException) -> tuple[str, str, str]:
    if isinstance(error, Error):
        return error.what, error.why, error.next
    return "the update", f"{type(error).__name__}: {error}"[:600], "send it again; the old weights keep serving"


def refuse_closed(what: str) -> Refused:
    """For calls that come when no update is open."""
    return Refused(what, f"no update is open in this worker (pid {os.getpid()})", "begin with start_weight_update")
