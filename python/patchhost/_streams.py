"""Named tensors as they come: mappings or pairs, one by one or in batches; and which process an object belongs to."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from . import _tensors
from ._checks import named
from .errors import ForkedError, UsageError
from .roles import role_of

Infos = Mapping[str, Any] | Iterable[tuple[str, Any]]
MOST_TENSORS, MOST_BYTES = 64, 256 << 20


def check_process(pid: int, what: str) -> None:
    """Raises `ForkedError` in another process than `pid`."""
    if os.getpid() != pid:
        why = f"it was made in process {pid}, and this is {os.getpid()}: threads and timers do not survive a fork"
        raise ForkedError(what, why, "load in this process: PatchSet.reload(), and a new Board")


def pairs(tensors: Any) -> Iterator[tuple[str, Any]]:
    """Names and tensors of a mapping, or of an iterable of pairs."""
    try:
        found = iter(tensors.items() if isinstance(tensors, Mapping) else tensors)
    except TypeError:
        why = f"they are of type {type(tensors).__name__}, which holds no tensors with names"
        raise UsageError("tensors", why, "give model.state_dict(), or pairs (name, tensor)") from None
    for pair in found:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2 or not isinstance(pair[0], str):
            why = f"one of them is of type {type(pair).__name__} and not a pair of name and tensor"
            raise UsageError("tensors", why, "give model.state_dict(), or pairs (name, tensor)")
        yield named(pair[0]), pair[1]


def infos(tensors: Infos, role: str | None = None) -> list[tuple[str, str, Sequence[int], str]]:
    """What is asked about: (name, dtype, shape, role). Names must differ."""
    out = {}
    for name, value in pairs(tensors):
        if name in out:
            raise UsageError(f"tensor `{_tensors.shown(name)}`", "two tensors have this name", "give each once")
        out[name] = info(name, value, role)
    return list(out.values())


def info(name: str, value: Any, role: str | None = None) -> tuple[str, str, Sequence[int], str]:
    """The same of one tensor."""
    dtype, shape = _tensors.describe(named(name), value)
    return name, dtype, shape, role or role_of(name, shape)


def batches(tensors: Iterator[tuple[str, Any]], most: int) -> Iterator[list[tuple[str, Any, str, tuple[int, ...]]]]:
    """Groups of (name, tensor, dtype, shape), each of at most `most` tensors, ended early by `MOST_BYTES`."""
    group, held = [], 0
    for name, tensor in tensors:
        dtype, shape = _tensors.describe(name, tensor)
        group.append((name, tensor, dtype, shape))
        held += _tensors.bytes_of(dtype, shape)
        if len(group) >= most or held >= MOST_BYTES:
            yield group
            group, held = [], 0
    if group:
        yield group


def once(seen: set[str], name: str) -> None:
    """Adds a name of a stream; raises where it was there."""
    if name in seen:
        why = "two tensors of the stream have this name (one may be the scale of a tensor that is quantized here)"
        raise UsageError(f"tensor `{_tensors.shown(name)}`", why, "give each tensor once, and none that is quantized already")
    seen.add(name)


def blocks_of(size: int, block: int) -> int:
    """Blocks of a dimension; the last may be smaller."""
    return -(-size // block)
