"""The checkpoint engine `patchhost` of verl: weights go from the trainer to the rollouts through files with a manifest.

```
rollout.checkpoint_engine.backend=patchhost
rollout.checkpoint_engine.custom_backend_module=patchhost.verl.checkpoint
+rollout.checkpoint_engine.engine_kwargs.patchhost.folder=/dev/shm/patchhost
```

Rank 0 of the trainer writes buckets of safetensors, then a manifest with a SHA-256 of each tensor; every rollout
worker waits for the manifest, and gives no tensor on before its bytes are those of the manifest. If the trainer fails,
the workers hear why, and do not wait. On one machine the folder is on a tmpfs; with several machines it is on a disk
that all of them mount. It needs no GPU and no other library; over NVLink or InfiniBand `nccl` and `nixl` of verl are
faster, and prove nothing.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import time
import uuid
from collections.abc import AsyncGenerator, Iterable
from typing import Any

import torch
from safetensors.torch import save_file
from verl.checkpoint_engine.base import CheckpointEngine, CheckpointEngineRegistry
from verl.workers.rollout.utils import ensure_async_iterator

from .._safetensors import tensors_of_file
from ..errors import HostError, RefitError, UsageError
from ..versions import check

BACKEND = "patchhost"
MANIFEST, FAILED = "manifest.json", "failed.json"
_TRAINER, _ROLLOUT = "trainer", "rollout"

check("verl")


@CheckpointEngineRegistry.register(BACKEND)
class FileCheckpointEngine(CheckpointEngine):
    """One process's side of the transfer.

    bucket_size: bytes of one file; verl gives it. is_master: whether this process is rank 0 of the trainer; verl gives
        it.
    folder: where files are written, the same for all processes. timeout: seconds that a rollout worker waits.
    """

    def __init__(
        self, bucket_size: int, is_master: bool = False, folder: str = "/dev/shm/patchhost", timeout: float = 1800.0
    ) -> None:
        if not isinstance(folder, str) or not os.path.isabs(folder):
            raise UsageError("`folder` of the checkpoint engine", f"it is {folder!r:.100}", "give an absolute path")
        self.bucket_size, self.is_master, self.folder, self.timeout = bucket_size, is_master, folder, float(timeout)
        self.role, self.rank = "", -1
        self.session: str | None = None

    def prepare(self) -> dict[str, Any]:
        """Makes the folder. Says where this process is. Raises `HostError`."""
        try:
            os.makedirs(self.folder, exist_ok=True)
        except OSError as error:
            raise _host_error(self.folder, error) from error
        return {"host": socket.gethostname(), "folder": self.folder, "memory": _is_memory(self.folder)}

    @classmethod
    def build_topology(
        cls, actor_wg_world_size: int, rollout_world_size: int, metadata: list[dict[str, Any]]
    ) -> tuple[dict[str, list[Any]], dict[str, list[Any]]]:
        """A session of its own for each transfer, so nobody reads the files of another one. Raises `UsageError` where
        the processes do not see the same folder."""
        folders = {each["folder"] for each in metadata}
        hosts = {each["host"] for each in metadata}
        advice = "set checkpoint_engine.engine_kwargs.patchhost.folder to a disk that all machines mount"
        if len(folders) != 1:
            raise UsageError("`folder` of the checkpoint engine", f"it differs: {sorted(folders)}", advice)
        if len(hosts) > 1 and any(each["memory"] for each in metadata):
            why = f"{next(iter(folders))} is memory of one machine, and there are {len(hosts)}"
            raise UsageError("`folder` of the checkpoint engine", why, advice)
        session = uuid.uuid4().hex

        def kwargs(role: str, count: int) -> dict[str, list[Any]]:
            return {"role": [role] * count, "rank": list(range(count)), "session": [session] * count}

        return kwargs(_TRAINER, actor_wg_world_size), kwargs(_ROLLOUT, rollout_world_size)

    def init_process_group(self, role: str, rank: int, session: str) -> None:
        """Takes this process's part in the transfer. Raises `HostError`."""
        self.role, self.rank = role, int(rank)
        self.session = os.path.join(self.folder, session)
        try:
            os.makedirs(self.session, exist_ok=True)
        except OSError as error:
            raise _host_error(self.session, error) from error

    def finalize(self) -> None:
        """Rank 0 of the trainer removes the files. verl calls it when every worker has answered."""
        if self.session is not None and self.role == _TRAINER and self.rank == 0:
            shutil.rmtree(self.session, ignore_errors=True)
        self.session = None

    async def send_weights(
        self, weights: Iterable[tuple[str, torch.Tensor]], global_steps: int | None = None
    ) -> dict[str, float]:
        """Writes all weights and their manifest. Every rank iterates (sharded weights are gathered by all ranks); rank
        0 writes. Gives numbers for verl's trackers. An error is raised here, and told to the workers."""
        session = self._begun("send_weights")
        if self.rank != 0:
            async for _ in ensure_async_iterator(weights):
                pass
            return {}
        began, writer = time.perf_counter(), _Writer(session, self.bucket_size)
        try:
            async for name, tensor in ensure_async_iterator(weights):
                writer.add(name, tensor)
            writer.close(global_steps)
        except BaseException as error:
            _put(session, FAILED, {"why": f"{type(error).__name__}: {error}"[:2000]})
            raise
        seconds = time.perf_counter() - began
        return {
            "patchhost/transfer/seconds": seconds,
            "patchhost/transfer/bytes": float(writer.bytes),
            "patchhost/transfer/tensors": float(len(writer.entries)),
        }

    def receive_weights(self, global_steps: int | None = None) -> AsyncGenerator[tuple[str, torch.Tensor], None]:
        """Waits for the manifest and holds all files against it, then gives a generator of (name, tensor) in the order
        of the trainer. All errors come before: verl's vLLM worker waits for ever where its sender fails in the middle.

        Raises `RefitError` for a tensor that is not the manifest's, one that is missing, and where the trainer failed
        or sent another step; `HostError` where nothing comes.
        """
        session = self._begun("receive_weights")
        manifest = self._manifest(session)
        if global_steps is not None and manifest["step"] is not None and manifest["step"] != global_steps:
            why = f"the trainer sent step {manifest['step']}, and step {global_steps} is asked for"
            raise RefitError("a weight transfer", why, "let one trainer use this folder; the old weights keep serving")
        files = [os.path.join(session, os.path.basename(file)) for file in manifest["files"]]
        _verify(files, dict(manifest["tensors"]))

        async def stream() -> AsyncGenerator[tuple[str, torch.Tensor], None]:
            for file in files:
                for pair in tensors_of_file(file):
                    yield pair

        return stream()

    def _manifest(self, session: str) -> dict[str, Any]:
        until = time.monotonic() + self.timeout
        while True:
            failed = _get(session, FAILED)
            if failed is not None:
                why = f"the trainer failed while it sent: {failed['why']}"
                raise RefitError("a weight transfer", why, "look at the trainer; the old weights keep serving")
            manifest = _get(session, MANIFEST)
            if manifest is not None:
                return dict(manifest)
            if time.monotonic() > until:
                why = f"after {self.timeout:.0f} s no manifest is in {session}"
                raise HostError("a weight transfer", why, "look at the trainer, and whether both see the same folder")
            time.sleep(0.02)

    def _begun(self, what: str) -> str:
        if self.session is None:
            raise UsageError(what, "the process group is not set up", "call prepare and init_process_group first")
        return self.session


class _Writer:
    """Buckets of one transfer."""

    def __init__(self, session: str, bucket_size: int) -> None:
        self._session, self._bucket_size = session, bucket_size
        self._held: dict[str, torch.Tensor] = {}
        self._size = 0
        self._files: list[str] = []
        self.entries: dict[str, dict[str, Any]] = {}
        self.bytes = 0

    def add(self, name: str, tensor: torch.Tensor) -> None:
        if name in self.entries:
            raise RefitError(f"tensor `{name}`", "the trainer gave it twice", "give every tensor once")
        held = tensor.detach().to("cpu", copy=True).contiguous()
        if self._held and self._size + held.nbytes > self._bucket_size:
            self._write()
        self._held[name] = held
        self._size += held.nbytes
        self.entries[name] = _entry(held)
        self.bytes += held.nbytes

    def close(self, step: int | None) -> None:
        if self._held:
            self._write()
        _put(self._session, MANIFEST, {"step": step, "files": self._files, "tensors": self.entries})

    def _write(self) -> None:
        name = f"bucket-{len(self._files):05}.safetensors"
        path = os.path.join(self._session, name)
        try:
            save_file(self._held, path)
        except OSError as error:
            raise _host_error(path, error) from error
        self._files.append(name)
        self._held, self._size = {}, 0


def _verify(files: Iterable[str], expected: dict[str, dict[str, Any]]) -> None:
    for file in files:
        for name, tensor in tensors_of_file(file):
            entry = expected.pop(name, None)
            if entry is None or entry != _entry(tensor):
                why = "its bytes, dtype or shape are not those of the manifest" if entry else "the manifest has it not"
                raise RefitError(
                    f"tensor `{name}`", why, "look at the disk of the folder; the old weights keep serving"
                )
    if expected:
        why = "the manifest has it, and no file does"
        raise RefitError(f"tensor `{next(iter(expected))}`", why, "send again; the old weights keep serving")


def _entry(tensor: torch.Tensor) -> dict[str, Any]:
    flat = tensor.reshape(-1).view(torch.uint8)
    digest = hashlib.sha256(memoryview(flat.numpy())).hexdigest()
    return {"dtype": str(tensor.dtype).removeprefix("torch."), "shape": list(tensor.shape), "sha256": digest}


def _put(session: str, name: str, value: dict[str, Any]) -> None:
    path = os.path.join(session, name)
    try:
        with open(path + ".part", "w", encoding="utf-8") as file:
            json.dump(value, file)
        os.replace(path + ".part", path)
    except OSError as error:
        raise _host_error(path, error) from error


def _get(session: str, name: str) -> Any:
    try:
        with open(os.path.join(session, name), encoding="utf-8") as file:
            return json.load(file)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HostError(os.path.join(session, name), str(error), "look at the disk of the folder") from error


def _host_error(path: str, error: OSError) -> HostError:
    return HostError(path, error.strerror or str(error), "give a folder with room that can be written")


def _is_memory(folder: str) -> bool:
    """Whether the folder is on a tmpfs, which no other machine sees."""
    best, kind = "", ""
    try:
        with open("/proc/self/mounts", encoding="utf-8") as file:
            for line in file:
                fields = line.split()
                inside = os.path.realpath(folder).startswith(fields[1].rstrip("/") + "/") or fields[1] == "/"
                if inside and len(fields[1]) >= len(best):
                    best, kind = fields[1], fields[2]
    except OSError:
        return False
    return kind in ("tmpfs", "ramfs")
