"""The ways in which tensors of an update come to a worker. No pickle is read: unpickling runs code of the sender."""

from __future__ import annotations

import base64
import binascii
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo

from .._safetensors import tensors_of_bytes, tensors_of_file, tensors_of_folder
from ..errors import HostError, TensorError, UsageError


@dataclass
class InitInfo(WeightTransferInitInfo):
    """What `init_weight_transfer_engine` may say; all of it is optional.

    inner: another weight transfer engine of vLLM that moves the bytes, `{"backend": "nccl", "init_info": {...}}`. What it
        receives is staged and proved here.
    settings: keys of `patchhost.settings.Settings` over those that the engine was started with.
    """

    inner: dict[str, Any] | None = None
    settings: dict[str, Any] | None = None


@dataclass
class UpdateInfo(WeightTransferUpdateInfo):
    """One part of an update. Exactly one body, or none where only `last` or `abort` is said:

    path: a safetensors file or a checkpoint folder on the worker's machine.
    safetensors: base64 of safetensors bytes.
    data, names, dtype_names, shapes: base64 of raw bytes, and vLLM's lists that say what they are.
    shm, bucket_meta: shared memory (a name, or a path of /dev/shm) with verl's table {name: {dtype, shape, offset}}.
    inner: what the wrapped engine's `update_weights` takes.

    step: of the trainer; a swap that waits for it lands with this update. version: a name of these weights. manifest:
    `{"tensors": {name: {"dtype": "BF16", "shape": […], "sha256": "…"}}}`; what comes must be exactly that. update_id: a
    word that every part of one update has; a part with another one is of another sender. last: nothing comes any more, so
    everything is proved now, before `finish_weight_update`. abort: give the update up. sender: what
    `patchhost.sender.me()` gives in the process that sends; where it is on this machine and dies, the update is given up.
    """

    path: str | None = None
    safetensors: str | None = None
    data: str | None = None
    names: list[str] = field(default_factory=list)
    dtype_names: list[str] = field(default_factory=list)
    shapes: list[list[int]] = field(default_factory=list)
    shm: str | None = None
    bucket_meta: dict[str, Any] | None = None
    inner: dict[str, Any] | None = None
    step: int | None = None
    version: str | None = None
    manifest: dict[str, Any] | None = None
    update_id: str | None = None
    last: bool = False
    abort: bool = False
    sender: dict[str, Any] | None = None
    unreadable: str | None = None
    """What is wrong with the fields that came; it is not to be sent."""

    def body(self) -> str | None:
        """Which body it has. Raises `UsageError` for more than one."""
        given = [name for name in ("path", "safetensors", "data", "shm", "inner") if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError("a part of an update", f"it has {' and '.join(given)}", "send one body in each part")
        return given[0] if given else None


def tensors_of(info: UpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of one part. Raises `UsageError`, `TensorError`, `HostError`."""
    kind = info.body()
    if kind == "path":
        assert info.path is not None
        return tensors_of_folder(info.path) if os.path.isdir(info.path) else tensors_of_file(info.path)
    if kind == "safetensors":
        return tensors_of_bytes(_decoded("safetensors", info.safetensors))
    if kind == "data":
        return _raw(_decoded("data", info.data), _table(info))
    if kind == "shm":
        return _shared(info)
    return iter(())


def _decoded(what: str, text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise UsageError(f"`{what}` of an update", f"it is not base64: {error}", "encode the bytes as base64") from error


def _table(info: UpdateInfo) -> list[tuple[str, str, tuple[int, ...], int]]:
    """(name, dtype, shape, offset) from vLLM's lists, the tensors one behind the other."""
    if not len(info.names) == len(info.dtype_names) == len(info.shapes) or not info.names:
        why = f"{len(info.names)} names, {len(info.dtype_names)} dtype_names and {len(info.shapes)} shapes came"
        raise UsageError("the lists of an update", why, "give one of each for every tensor")
    table, offset = [], 0
    for name, dtype, shape in zip(info.names, info.dtype_names, info.shapes, strict=True):
        entry = _entry(name, {"dtype": dtype, "shape": shape, "offset": offset})
        table.append(entry)
        offset += math.prod(entry[2]) * getattr(torch, entry[1]).itemsize
    return table


def _entry(name: Any, meta: Any) -> tuple[str, str, tuple[int, ...], int]:
    if not isinstance(name, str) or not isinstance(meta, Mapping):
        raise UsageError("the table of an update", f"{name!r:.60} has no mapping", 'give {name: {"dtype": …, "shape": …, "offset": …}}')
    dtype = str(meta.get("dtype")).removeprefix("torch.")
    if not isinstance(getattr(torch, dtype, None), torch.dtype):
        raise TensorError(f"tensor `{name}`", f"`{dtype:.40}` is no dtype of torch", "give `bfloat16`, `float16` or `float32`")
    shape, offset = meta.get("shape"), meta.get("offset", 0)
    good = isinstance(shape, (list, tuple)) and all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, offset))
    if not good:
        raise TensorError(f"tensor `{name}`", f"its shape {shape!r:.60} or offset {offset!r:.30} is none", "give whole numbers")
    return name, dtype, tuple(shape), offset


def _raw(memory: Any, table: list[tuple[str, str, tuple[int, ...], int]]) -> Iterator[tuple[str, torch.Tensor]]:
    size = len(memory)
    for name, dtype, shape, offset in table:
        kind = getattr(torch, dtype)
        end = offset + math.prod(shape) * kind.itemsize
        if end > size:
            why = f"it would be at bytes {offset} to {end}, and {size} came"
            raise TensorError(f"tensor `{name}`", why, "send all bytes, and a table that fits them")
    for name, dtype, shape, offset in table:
        kind = getattr(torch, dtype)
        count = math.prod(shape)
        # A copy: offsets need not be aligned, and the memory may be the sender's.
        flat = torch.frombuffer(bytearray(memory[offset : offset + count * kind.itemsize]), dtype=kind) if count else torch.empty(0, dtype=kind)
        yield name, flat.reshape(shape)


def _shared(info: UpdateInfo) -> Iterator[tuple[str, torch.Tensor]]:
    name = str(info.shm)
    path = name if name.startswith("/dev/shm/") else os.path.join("/dev/shm", name.lstrip("/"))
    if os.path.dirname(os.path.realpath(path)) != "/dev/shm":
        raise UsageError("`shm` of an update", f"{name!r:.100} is not a name in /dev/shm", "give the name of the segment")
    if not isinstance(info.bucket_meta, Mapping):
        raise UsageError("`shm` of an update", "no `bucket_meta` came", 'give {name: {"dtype": …, "shape": …, "offset": …}}')
    table = [_entry(key, meta) for key, meta in info.bucket_meta.items()]
    try:
        with open(path, "rb") as file:
            # Read, not mapped: the sender may cut it while it is copied.
            memory = file.read() if os.fstat(file.fileno()).st_size else b""
    except OSError as error:
        raise HostError(f"the shared memory {path}", error.strerror or str(error), "keep it until update_weights has answered") from error
    return _raw(memory, table)
