"""What a trainer sends: named tensors in an order, and the faults that a plan puts into them.

Plain Python, without torch: a tensor is its bytes. So the kit can build every faulty stream itself, and the engine's
process does nothing but receive it.
"""

from __future__ import annotations

import json
import os
import random
import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..errors import HostError, UsageError

SIZES = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1, "U16": 2, "I16": 2, "F16": 2, "BF16": 2,
    "U32": 4, "I32": 4, "F32": 4, "U64": 8, "I64": 8, "F64": 8,
}  # fmt: skip
_NOT_FINITE = {
    ("BF16", "nan"): b"\xc0\x7f", ("BF16", "inf"): b"\x80\x7f",
    ("F16", "nan"): b"\x00\x7e", ("F16", "inf"): b"\x00\x7c",
    ("F32", "nan"): struct.pack("<f", float("nan")), ("F32", "inf"): struct.pack("<f", float("inf")),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Tensor:
    """One tensor as it travels. `dtype` is the word that safetensors uses (`BF16`)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes

    def __post_init__(self) -> None:
        if len(self.data) != count(self.shape) * SIZES[self.dtype]:
            why = f"{len(self.data)} bytes are not {self.dtype} of shape {list(self.shape)}"
            raise UsageError(f"tensor {self.name}", why, "make the plan again: `patchhost verify-engine plan`")


@dataclass(frozen=True, slots=True)
class Stream:
    """The tensors of one session in the order sent. `finished` is false where the sender died before its end."""

    tensors: tuple[Tensor, ...]
    finished: bool = True

    def parts(self, most: int = 16) -> list[tuple[Tensor, ...]]:
        """The stream in parts of at most `most` tensors. A name comes once in a part: a file cannot hold it twice."""
        parts: list[list[Tensor]] = []
        for tensor in self.tensors:
            full = not parts or len(parts[-1]) >= most or any(one.name == tensor.name for one in parts[-1])
            if full:
                parts.append([])
            parts[-1].append(tensor)
        return [tuple(part) for part in parts]


def count(shape: Sequence[int]) -> int:
    """How many elements a shape has."""
    total = 1
    for side in shape:
        total *= side
    return total


def read(path: str | os.PathLike[str]) -> list[Tensor]:
    """The tensors of a safetensors file, or of all such files of a folder, in the order of their bytes."""
    place = Path(path)
    files = sorted(place.glob("*.safetensors")) if place.is_dir() else [place]
    if not files:
        raise HostError(f"checkpoint {place}", "it has no file *.safetensors", "make the plan again")
    tensors: list[Tensor] = []
    for file in files:
        try:
            raw = file.read_bytes()
            length = struct.unpack("<Q", raw[:8])[0]
            header = json.loads(raw[8 : 8 + length])
            header.pop("__metadata__", None)
            for name, about in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                begin, end = (8 + length + at for at in about["data_offsets"])
                tensors.append(Tensor(name, about["dtype"], tuple(about["shape"]), raw[begin:end]))
        except OSError as error:
            raise HostError(f"checkpoint {file}", str(error.strerror or error), "make the plan again") from error
        except (ValueError, KeyError, TypeError, struct.error) as error:
            why = f"it is no safetensors file: {error}"
            raise HostError(f"checkpoint {file}", why, "make the plan again") from error
    return tensors


def write(path: str | os.PathLike[str], tensors: Iterable[Tensor]) -> None:
    """Writes tensors as one safetensors file. Their bytes lie in the order given."""
    header: dict[str, Any] = {}
    end = 0
    kept = list(tensors)
    for one in kept:
        header[one.name] = {"dtype": one.dtype, "shape": list(one.shape), "data_offsets": [end, end + len(one.data)]}
        end += len(one.data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.writelines(one.data for one in kept)


def edited(tensors: Sequence[Tensor], edits: Iterable[dict[str, Any]], other: Callable[[str], list[Tensor]]) -> Stream:
    """The stream of a case: the tensors of its checkpoint with the edits of the plan, one after another.

    `other` gives the tensors of another checkpoint by its name.
    """
    sent = list(tensors)
    finished = True
    for edit in edits:
        op = edit.get("op")
        if op == "stop":
            sent, finished = sent[: edit["after"]], False
        elif op in _EDITS:
            sent = _EDITS[op](sent, edit, other)
        else:
            raise UsageError("the plan", f"it has the edit {op!r}, which this kit does not know", _UPDATE)
    return Stream(tuple(sent), finished)


_UPDATE = "use the program and the package of one version"
_Other = Callable[[str], list[Tensor]]


def _drop(sent: list[Tensor], edit: dict[str, Any], _: _Other) -> list[Tensor]:
    at = _place(sent, edit["name"])
    return sent[:at] + sent[at + 1 :]


def _repeat(sent: list[Tensor], edit: dict[str, Any], _: _Other) -> list[Tensor]:
    """The tensor twice: again at the end, or in the place of another one."""
    again = sent[_place(sent, edit["name"])]
    lost = edit.get("instead_of")
    if lost is not None:
        return [again if one.name == lost else one for one in sent]
    return [*sent, again]


def _truncate(sent: list[Tensor], edit: dict[str, Any], _: _Other) -> list[Tensor]:
    """The first values only, as many as the shape has."""

    def change(one: Tensor) -> Tensor:
        wanted = count(edit["shape"]) * SIZES[one.dtype]
        if wanted > len(one.data):
            why = f"{one.name} of shape {list(one.shape)} cannot be cut to {edit['shape']}"
            raise UsageError("the plan", why, _UPDATE)
        return replace(one, shape=tuple(edit["shape"]), data=one.data[:wanted])

    return _changed(sent, edit["name"], change)


def _reshape(sent: list[Tensor], edit: dict[str, Any], _: _Other) -> list[Tensor]:
    """Another shape over the same bytes; where it has more or fewer elements, they are repeated or left out."""

    def change(one: Tensor) -> Tensor:
        wanted = count(edit["shape"]) * SIZES[one.dtype]
        data = (one.data * (-(-wanted // max(len(one.data), 1))))[:wanted]
        return replace(one, shape=tuple(edit["shape"]), data=data)

    return _changed(sent, edit["name"], change)


def _rename(sent: list[Tensor], edit: dict[str, Any], _: _Other) -> list[Tensor]:
    return _changed(sent, edit["name"], lambda one: replace(one, name=edit["to"]))


def _poison(sent: list[Tensor], edit: dict[str, Any], _: _Other) -> list[Tensor]:
    def change(one: Tensor) -> Tensor:
        value = _NOT_FINITE.get((one.dtype, edit["value"]))
        if value is None:
            raise UsageError("the plan", f"{one.dtype} cannot hold {edit['value']!r}", _UPDATE)
        index = edit["index"]
        if not isinstance(index, int):
            flat = 0
            for side, step in zip(one.shape, index, strict=True):
                flat = flat * side + step
            index = flat
        data = bytearray(one.data)
        data[index * len(value) : (index + 1) * len(value)] = value
        return replace(one, data=bytes(data))

    return _changed(sent, edit["name"], change)


def _shuffle(sent: list[Tensor], edit: dict[str, Any], _: _Other) -> list[Tensor]:
    return random.Random(edit["seed"]).sample(sent, len(sent))


def _interleave(sent: list[Tensor], edit: dict[str, Any], other: _Other) -> list[Tensor]:
    """Two senders in one session: these tensors come once more, from another checkpoint."""
    theirs = {one.name: one for one in other(edit["with"])}
    for name in edit["names"]:
        if name not in theirs:
            raise UsageError("the plan", f"checkpoint {edit['with']} has no tensor {name}", _UPDATE)
    return sent + [theirs[name] for name in edit["names"]]


_EDITS: dict[str, Callable[[list[Tensor], dict[str, Any], _Other], list[Tensor]]] = {
    "drop": _drop,
    "repeat": _repeat,
    "truncate": _truncate,
    "reshape": _reshape,
    "rename": _rename,
    "poison": _poison,
    "shuffle": _shuffle,
    "interleave": _interleave,
}


def _place(sent: Sequence[Tensor], name: str) -> int:
    for at, one in enumerate(sent):
        if one.name == name:
            return at
    raise UsageError("the plan", f"it edits the tensor {name}, which is not in the stream", _UPDATE)


def _changed(sent: list[Tensor], name: str, change: Callable[[Tensor], Tensor]) -> list[Tensor]:
    at = _place(sent, name)
    return sent[:at] + [change(sent[at])] + sent[at + 1 :]
