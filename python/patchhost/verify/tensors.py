"""torch tensors of the files that the kit writes, and digests of what an engine holds. For the engine's process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import torch

from . import stream

_DTYPES = {
    "BOOL": torch.bool, "U8": torch.uint8, "I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64,
    "F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32, "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
}  # fmt: skip


def loaded(path: str) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors of one part, in the order in which they were sent."""
    for one in stream.read(path):
        flat = torch.frombuffer(bytearray(one.data), dtype=_DTYPES[one.dtype]) if one.data else None
        yield one.name, torch.empty(one.shape, dtype=_DTYPES[one.dtype]) if flat is None else flat.reshape(one.shape)


def digest(tensor: torch.Tensor) -> list[Any]:
    """Its dtype, its shape and the SHA-256 of its bytes; of a tensor on `meta` there are no bytes to read."""
    about: list[Any] = [str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
    if tensor.device.type == "meta":
        return [*about, "no bytes: it is on the meta device"]
    raw = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return [*about, hashlib.sha256(raw.numpy()).hexdigest()]
