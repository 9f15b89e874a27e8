"""One weight update between `start_weight_update` and `finish_weight_update`, and its end where nobody ends it."""

from __future__ import annotations

import threading
import time
import weakref
from typing import Any

import torch

from .. import sender as senders
from ..errors import RefitError, UsageError
from ..refitter import Update
from .bodies import UpdateInfo, tensors_of
from .host import Host

IDLE_SECONDS = 120
"A session to which nothing came for this long is given up, where no `sender_timeout` is set."
_LOOK_SECONDS = 0.5


class Session:
    """What came so far, from whom, and what was wrong with it."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.update: Update | None = None
        self.failed: Exception | None = None
        self.sender: Any = None
        self.touched = time.monotonic()
        self._says: tuple[Any, Any, Any] | None = None
        self._proved = False

    def about(self, info: UpdateInfo) -> bool:
        """Who sends: a part that gives another step, version or id than the one before is of another sender. `False`: it
        is refused, and so is the update at its end."""
        self.touched = time.monotonic()
        self.sender = info.sender or self.sender
        says = (info.step, info.version, info.update_id)
        try:
            if info.unreadable is not None:
                raise UsageError("a part of an update", info.unreadable, "docs/engines.md has the fields of a part")
            info.body()
            if self.update is None:
                self.update = self.host.update(info.step, info.version, info.manifest)
                self._says = says
            assert self._says is not None
            for word, before, now in zip(("step", "version", "update_id"), self._says, says, strict=True):
                if now is not None and before is not None and now != before:
                    why = f"a part with {word} {now!r:.60} came, and the open update has {before!r:.60}: two trainers send at once"
                    raise RefitError("the update", why, "let one trainer send at a time; the old weights keep serving")
        except Exception as error:
            self._failed(error)
        return self.failed is None

    def take(self, info: UpdateInfo) -> None:
        """Stages one part."""
        if not self.about(info):
            return
        assert self.update is not None
        try:
            self.update.add_all(tensors_of(info))
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        """With several ranks a refusal waits for the end, where all ranks hear of it: a worker that raised alone would leave
        the others in an update that never ends."""
        if self.host.world == 1:
            raise error
        self.failed = self.failed or error

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Stages one tensor of a wrapped engine."""
        if self.failed is None:
            assert self.update is not None
            try:
                self.update.add(name, tensor)
            except Exception as error:
                self.failed = error

    def prove(self) -> None:
        """Proves everything, once. Raises, on every rank, what any rank refuses."""
        if self._proved:
            return
        if self.update is None:
            self.update = self.host.update(None, None)
        self.host.prove(self.update, self.failed)
        self._proved = True

    def give_up(self, why: BaseException | str) -> None:
        """Forgets what came; what was live stays."""
        if self.update is not None:
            self.update.abandon(why)

    def stale(self) -> str | None:
        """Why nobody will end it; `None` while it may still go on."""
        if senders.gone(self.sender):
            return f"its sender (process {self.sender['pid']}) died in the middle of it"
        given = self.host.settings.sender_timeout
        most = IDLE_SECONDS if given is None else given
        idle = time.monotonic() - self.touched
        return f"nothing came for {idle:.0f} s" if 0 < most < idle else None


class Watch(threading.Thread):
    """Looks at the open session of an engine while there is one, and ends it where its sender is gone."""

    def __init__(self, engine: Any, session: Session, lock: threading.RLock) -> None:
        super().__init__(name="patchhost-session", daemon=True)
        self._engine = weakref.ref(engine)
        self._session = session
        self._lock = lock

    def run(self) -> None:
        while True:
            time.sleep(_LOOK_SECONDS)
            engine = self._engine()
            if engine is None or engine.session is not self._session:
                return
            why = self._session.stale()
            if why is None:
                continue
            with self._lock:
                # Somebody may have ended it, or sent to it, meanwhile.
                if engine.session is self._session and self._session.stale() is not None:
                    engine.abandon(why)
                    engine.end_in_vllm()
            return


def end_in_vllm(worker: Any) -> None:
    """vLLM's worker ends a session when `update_weights` raises, but neither when `finish_weight_update` does nor when the
    sender dies: it would refuse every later start ("already active"). The update is over, so its own note of it is taken
    back, on this one object."""
    if worker is not None and getattr(worker, "_weight_update_active", None) is True:
        worker._weight_update_active = False
