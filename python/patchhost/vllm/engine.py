"""`PatchhostEngine`: vLLM's weight transfer engine of the name `patchhost`.

vLLM calls `start_weight_update`, any number of `update_weights`, `finish_weight_update` in every worker. What comes is
staged; the first layer is touched in `finish_weight_update`, after everything was proved on all ranks.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.logger import init_logger
from vllm.v1.worker.worker_base import WorkerBase

from ..errors import RefitError, Refused, UsageError
from .bodies import InitInfo, UpdateInfo
from .host import Host, refuse_closed
from .session import Session, Watch, end_in_vllm

logger = init_logger(__name__)

_WRITES = ("sparse_nccl", "sharded_rdt", "nccl_m2n", "modelexpress", "patchhost")
"backends of vLLM that do not hand whole tensors in checkpoint format to `model.load_weights`, as nccl and ipc do"


class PatchhostEngine(WeightTransferEngine[InitInfo, UpdateInfo]):
    """Weight updates that are whole, proved and read back, with patches in between."""

    init_info_cls = InitInfo
    update_info_cls = UpdateInfo
    supports_draft_weight_update = False

    def __init__(self, config: Any, vllm_config: Any, device: torch.device, model: torch.nn.Module) -> None:
        super().__init__(config, vllm_config, device, model)
        self.host = Host(vllm_config, model)
        self.session: Session | None = None
        self._lock = threading.RLock()
        self._worker: weakref.ref[Any] | None = None
        self._inner: WeightTransferEngine[Any, Any] | None = None

    def parse_update_info(self, update_dict: dict[str, Any]) -> UpdateInfo:
        try:
            return super().parse_update_info(update_dict)
        except ValueError as error:
            # Refused where all refusals are: a worker that raises here alone would end the session of nobody.
            return UpdateInfo(unreadable=str(error))

    def init_transfer_engine(self, init_info: InitInfo) -> None:
        failed: BaseException | None = None
        try:
            self._init(init_info)
        except Exception as error:
            failed = error
        failed = self.host.agreed(failed)
        if failed is not None and self.host.speaks:
            raise failed

    def _init(self, init_info: InitInfo) -> None:
        if init_info.settings:
            self.host = self.host.reconfigure(init_info.settings)
        if init_info.inner is None:
            return
        backend = str(init_info.inner.get("backend"))
        if backend in _WRITES:
            why = f"`{backend}` writes into the parameters itself, so nothing could be proved before"
            raise UsageError("`inner` of init_info", why, "use one of nccl, ipc")
        try:
            config = type(self.config)(backend=backend)
            self._inner = WeightTransferEngineFactory.create_engine(config, self.vllm_config, self.device, self.model)
        except ValueError as error:
            raise UsageError("`inner` of init_info", str(error), "name one of nccl, ipc") from error
        self._inner.init_transfer_engine(self._inner.parse_init_info(init_info.inner.get("init_info") or {}))

    def start_weight_update(self) -> None:
        with self._lock:
            if self.session is not None:
                self.session.give_up("another update began, and this one was not ended")
            self.session = Session(self.host)
            worker = _worker_of(sys._getframe(1))
            self._worker = None if worker is None else weakref.ref(worker)
            Watch(self, self.session, self._lock).start()
        if self._inner is not None:
            self._inner.set_weight_update_target(_Receiver(self.session), self.model_config)
            self._inner.start_weight_update()

    def receive_weights(self, update_info: UpdateInfo) -> None:
        with self._lock:
            self._refusable(lambda session: self._receive(session, update_info), "a part of an update")

    def _receive(self, session: Session, update_info: UpdateInfo) -> None:
        if update_info.abort:
            raise Refused("the update", "its sender gave it up", "begin another one; the old weights keep serving")
        if update_info.inner is not None and session.about(update_info):
            self._from_inner(session, update_info)
        else:
            session.take(update_info)
        if update_info.last:
            session.prove()

    def finish_weight_update(self) -> None:
        with self._lock:
            self._refusable(self._finish, "the end of an update")

    def _finish(self, session: Session) -> None:
        if self._inner is not None:
            self._inner.finish_weight_update()
        session.prove()
        assert session.update is not None
        self.host.finish(session.update)
        self._over(session, None)

    def _refusable(self, call: Callable[[Session], None], what: str) -> None:
        """Calls with the open session. Where it is refused, the session is over here and in vLLM's worker, and the rank
        that speaks raises."""
        session = self.session
        try:
            if session is None:
                raise refuse_closed(what)
            call(session)
        except BaseException as error:
            if session is not None:
                self._over(session, error)
            self.end_in_vllm()
            if self.host.speaks or not isinstance(error, Exception):
                raise

    def end_in_vllm(self) -> None:
        """Ends the session in vLLM's own worker, where it was begun by one."""
        end_in_vllm(self._worker() if self._worker is not None else None)

    def shutdown(self) -> None:
        if self.session is not None:
            self._over(self.session, RefitError("the update", "the engine shut down", "send it to another engine"))
        if self._inner is not None:
            self._inner.shutdown()

    def abandon(self, why: str) -> bool:
        """Gives the open update up. `False`: none was open."""
        if self.session is None:
            return False
        self._over(self.session, RefitError("the update", why, "begin another one; the old weights keep serving"))
        return True

    def _from_inner(self, session: Session, update_info: UpdateInfo) -> None:
        if self._inner is None:
            why = "no `inner` was named in init_info"
            session.failed = UsageError("`inner` of an update", why, 'call init_weight_transfer_engine with {"inner": {"backend": …}}')
            return
        self._inner.update_weights(dict(update_info.inner or {}))

    def _over(self, session: Session, error: BaseException | None) -> None:
        if error is not None:
            session.give_up(error)
            logger.warning("patchhost: %s", error)
        if self.session is session:
            self.session = None
        if self._inner is not None:
            self._inner.reset_weight_update_target()


class _Receiver(torch.nn.Module):
    """Stands where a wrapped engine expects the model: what it would load is staged."""

    def __init__(self, session: Session) -> None:
        super().__init__()
        self._session_of = [session]

    def load_weights(self, weights: Any) -> set[str]:
        """As a model of vLLM takes them: (name, tensor)."""
        session, names = self._session_of[0], set()
        for name, tensor in weights:
            session.add(name, tensor)
            names.add(name)
        return names


def _worker_of(frame: Any) -> Any:
    """vLLM's worker, which calls an engine and does not introduce itself; `None` where somebody else calls."""
    caller = frame.f_locals.get("self")
    return caller if isinstance(caller, WorkerBase) else None
