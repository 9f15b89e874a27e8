"""Reading safetensors without a memory map: a file that somebody shortens meanwhile is an error here, not the end of the
process. Every range of the header is checked before a byte of data is read."""

from __future__ import annotations

import io
import json
import math
import os
import struct
from collections.abc import Iterator
from typing import Any, BinaryIO

from ._tensors import shown
from .errors import HostError, TensorError, UsageError

_MOST_HEADER = 100 << 20
_TORCH = {
    "BF16": "bfloat16",
    "F16": "float16",
    "F32": "float32",
    "F64": "float64",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U8": "uint8",
    "BOOL": "bool",
}


def tensors_of_file(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of one file, in the order of its data; each tensor has memory of its own. Raises `HostError` where it
    cannot be read and `UsageError` where it is not safetensors."""
    where = os.fspath(path)
    try:
        with open(where, "rb") as file:
            yield from _tensors_of(file, os.fstat(file.fileno()).st_size, where)
    except OSError as error:
        raise HostError(f"the file {where}", error.strerror or str(error), "give a safetensors file of this machine") from error


def tensors_of_folder(path: str | os.PathLike[str]) -> Iterator[tuple[str, Any]]:
    """(name, tensor) of all safetensors files of a checkpoint folder; with an index, only what it maps to each file."""
    folder = os.fspath(path)
    for part, names in _parts(folder):
        for name, tensor in tensors_of_file(os.path.join(folder, part)):
            if names is None or name in names:
                yield name, tensor


def forms_of_folder(path: str | os.PathLike[str]) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Name → (dtype, shape) of all tensors of a checkpoint folder, from the headers of its files; no weight is read. Empty
    where it has no safetensors file. Raises `HostError`, `UsageError`, `TensorError`."""
    folder = os.fspath(path)
    forms: dict[str, tuple[str, tuple[int, ...]]] = {}
    for part, names in _parts(folder, none_is_fine=True):
        where = os.path.join(folder, part)
        try:
            with open(where, "rb") as file:
                entries, _ = _entries(file, os.fstat(file.fileno()).st_size, where)
        except OSError as error:
            raise HostError(f"the file {where}", error.strerror or str(error), "give a whole checkpoint") from error
        forms |= {name: (dtype, shape) for name, dtype, shape, _, _ in entries if names is None or name in names}
    return forms


def _parts(folder: str, none_is_fine: bool = False) -> list[tuple[str, set[str] | None]]:
    """The files of a checkpoint, each with the names that count in it; `None`: all."""
    index = os.path.join(folder, "model.safetensors.index.json")
    try:
        if os.path.isfile(index):
            with open(index, encoding="utf-8") as file:
                mapped = json.load(file)["weight_map"]
            parts: dict[str, set[str]] = {}
            for name, part in mapped.items():
                parts.setdefault(os.path.basename(str(part)), set()).add(str(name))
            return sorted(parts.items())
        files = sorted(name for name in os.listdir(folder) if name.endswith(".safetensors"))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        why = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        raise HostError(f"the checkpoint {folder}", why, "give a folder with safetensors files") from error
    if not files and not none_is_fine:
        raise HostError(f"the checkpoint {folder}", "it has no safetensors file", "give a folder with safetensors files")
    return [(name, None) for name in files]


def tensors_of_bytes(data: bytes, where: str = "the body") -> Iterator[tuple[str, Any]]:
    """(name, tensor) of safetensors bytes."""
    return _tensors_of(io.BytesIO(data), len(data), where)


def _tensors_of(file: BinaryIO, size: int, where: str) -> Iterator[tuple[str, Any]]:
    import torch

    entries, start = _entries(file, size, where)
    for name, dtype, shape, begin, end in entries:
        file.seek(start + begin)
        memory = bytearray(end - begin)
        if file.readinto(memory) != end - begin:  # type: ignore[attr-defined]
            raise HostError(f"the file {where}", f"it got shorter while `{shown(name)}` was read", "write files under another name, then rename")
        kind = getattr(torch, dtype)
        flat = torch.frombuffer(memory, dtype=kind) if memory else torch.empty(0, dtype=kind)
        yield name, flat.reshape(shape)


def _entries(file: BinaryIO, size: int, where: str) -> tuple[list[tuple[str, str, tuple[int, ...], int, int]], int]:
    advice = "give a file that `safetensors.torch.save_file` wrote"
    raw = file.read(8)
    length = struct.unpack("<Q", raw)[0] if len(raw) == 8 else 0
    if not 2 <= length <= min(_MOST_HEADER, size - 8):
        raise UsageError(where, f"it has {size} bytes and its header would have {length}", advice)
    try:
        header = json.loads(file.read(length), object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise UsageError(where, f"its header is not JSON: {error}", advice) from error
    if not isinstance(header, dict):
        raise UsageError(where, "its header is no object", advice)
    out = []
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            word, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
            whole = all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in (*shape, begin, end))
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"tensor `{shown(name)}` of {where}", "its entry has no dtype, shape and offsets", advice) from error
        if word not in _TORCH:
            raise TensorError(f"tensor `{shown(name)}` of {where}", f"its dtype {word!r:.40} is not read here", f"use one of {', '.join(_TORCH)}")
        if not whole or end - begin != math.prod(shape) * _size(_TORCH[word]) or end > size - 8 - length:
            why = f"its shape {list(shape)!r:.100} and offsets {begin!r:.30}, {end!r:.30} do not fit each other or the file"
            raise UsageError(f"tensor `{shown(name)}` of {where}", why, advice)
        out.append((name, _TORCH[word], shape, begin, end))
    return sorted(out, key=lambda entry: entry[3]), 8 + length


def _size(dtype: str) -> int:
    import torch

    return int(getattr(torch, dtype).itemsize)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    out = dict(pairs)
    if len(out) != len(pairs):
        raise ValueError("a name stands in it twice")
    return out
