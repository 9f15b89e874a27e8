"""The trainer's side of the backend `patchhost`: sends a `WeightSource` through shared memory, in parts, with a manifest.

```python
from vllm.distributed.weight_transfer.base import ModuleSource
from patchhost.vllm.trainer import PatchhostTrainer, TrainerInit

sender = PatchhostTrainer.trainer_init(TrainerInit(rank=0), client=client, source=ModuleSource(policy))
sender.send_weights(step=12)
```

It is registered in vLLM's `WeightTransferTrainerFactory` under the name `patchhost` too.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from safetensors.torch import save
from vllm.distributed.weight_transfer.base import (
    TrainerInitInfo,
    TrainerWeightTransferEngine,
    VLLMWeightSyncClient,
    WeightSource,
)

from .. import sender as senders
from ..errors import HostError, UsageError

_WORDS = {torch.bfloat16: "BF16", torch.float16: "F16", torch.float32: "F32", torch.float64: "F64"}
_WORDS |= {torch.float8_e4m3fn: "F8_E4M3", torch.int64: "I64", torch.int32: "I32", torch.uint8: "U8", torch.bool: "BOOL"}


@dataclass
class TrainerInit(TrainerInitInfo):
    """bucket_bytes: most bytes of one part (and one tensor). folder: where parts are written, on a disk or tmpfs that trainer
    and workers share. init_info: for the engine (`patchhost.vllm.bodies.InitInfo`)."""

    backend: ClassVar[str] = "patchhost"
    bucket_bytes: int = 1 << 30
    folder: str = "/dev/shm"
    init_info: dict[str, Any] | None = None


class PatchhostTrainer(TrainerWeightTransferEngine[TrainerInit]):
    """Sends whole updates. Every rank iterates the source; rank 0 writes and sends."""

    init_info_cls = TrainerInit

    def __init__(self, info: TrainerInit, *, client: VLLMWeightSyncClient, source: WeightSource | None) -> None:
        super().__init__(client=client, source=source, is_sender=info.is_sender)
        self.info = info
        self.sent = 0

    @classmethod
    def trainer_init(
        cls, init_info: TrainerInit, *, client: VLLMWeightSyncClient, source: WeightSource | None = None
    ) -> PatchhostTrainer:
        made = cls(init_info, client=client, source=source)
        if made.is_sender:
            client.init_weight_transfer_engine(dict(init_info.init_info or {}))
        return made

    def send_weights(self, step: int | None = None, version: str | None = None) -> None:
        """One whole update. step: of the trainer; by default the updates of this object are counted. An error of the engine
        is raised as its client gives it; the engine's old weights keep serving."""
        if self.source is None:
            raise UsageError("send_weights", "there is no source", "give `source=` to trainer_init")
        self.sent += 1
        step = self.sent if step is None else step
        version = f"step-{step}" if version is None else version
        about = {"step": step, "version": version, "update_id": f"{os.getpid()}-{self.sent}", "sender": senders.me()}
        if not self.is_sender:
            for _ in _pairs(self.source):
                pass
            return
        self.client.start_weight_update()
        try:
            for part, last in _with_last(self._parts(self.source)):
                self._send(part, {**about, "last": last})
        except BaseException:
            self._give_up()
            raise
        self.client.finish_weight_update(version)

    def shutdown(self) -> None:
        """Nothing is held between updates."""

    def _parts(self, source: WeightSource) -> Iterator[dict[str, torch.Tensor]]:
        part: dict[str, torch.Tensor] = {}
        size = 0
        for name, tensor in _pairs(source):
            held = tensor.detach().to("cpu").contiguous()
            if part and size + held.nbytes > self.info.bucket_bytes:
                yield part
                part, size = {}, 0
            part[name] = held.clone() if held.data_ptr() == tensor.data_ptr() else held
            size += held.nbytes
        if part:
            yield part

    def _send(self, part: dict[str, torch.Tensor], about: dict[str, Any]) -> None:
        try:
            handle, path = tempfile.mkstemp(prefix="patchhost-", suffix=".safetensors", dir=self.info.folder)
        except OSError as error:
            raise HostError(f"the folder {self.info.folder}", error.strerror or str(error), "give one that can be written") from error
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(save(part))
            self.client.update_weights({"path": path, **about})
        except OSError as error:
            raise HostError(f"the file {path}", error.strerror or str(error), "make room, or lower `bucket_bytes`") from error
        finally:
            os.unlink(path)

    def _give_up(self) -> None:
        """Ends the session in the engine: it answers with an error, which says that it is given up."""
        try:
            self.client.update_weights({"abort": True})
        except Exception:
            pass


def manifest_of(tensors: dict[str, torch.Tensor]) -> dict[str, Any]:
    """What an update with these tensors must be, with a SHA-256 of each."""
    entries = {}
    for name, tensor in tensors.items():
        held = tensor.detach().to("cpu").contiguous()
        data = held.reshape(-1).view(torch.uint8).numpy().tobytes()
        entries[name] = {"dtype": _WORDS[held.dtype], "shape": list(held.shape), "sha256": hashlib.sha256(data).hexdigest()}
    return {"tensors": entries}


def _pairs(source: WeightSource) -> Iterator[tuple[str, torch.Tensor]]:
    """Whole tensors of a source: vLLM 0.32 iterates it, 0.33 asks `iter_full()`."""
    whole = getattr(source, "iter_full", None)
    return whole() if callable(whole) else iter(source)  # type: ignore[call-overload]


def _with_last(parts: Iterator[dict[str, torch.Tensor]]) -> Iterator[tuple[dict[str, torch.Tensor], bool]]:
    held = next(parts, None)
    while held is not None:
        following = next(parts, None)
        yield held, following is None
        held = following
