"""Arguments as the extension takes them: what it cannot convert is refused here, with an error of this package."""

from __future__ import annotations

import os
from typing import Any

from ._native import Scheme
from .errors import UsageError


def text(what: str, value: Any) -> str:
    """A text that can be UTF-8. Raises `UsageError` for anything else, lone surrogates too."""
    if not isinstance(value, str):
        raise UsageError(what, f"it is of type {type(value).__name__}", "give a text")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            why = f"{value!r:.100} has half of a surrogate pair, which no UTF-8 can hold"
            raise UsageError(what, why, "decode it with errors='strict', or give another text") from None
    return value


def named(name: Any) -> str:
    """The name of a tensor."""
    return text("the name of a tensor", name)


def number(what: str, value: Any, most: int = (1 << 63) - 1) -> int:
    """A whole number from 0 to `most`."""
    if isinstance(value, bool) or not hasattr(value, "__index__") or not 0 <= value.__index__() <= most:
        raise UsageError(what, f"it is {value!r:.100}", f"give a whole number from 0 to {most}")
    return int(value.__index__())


def path(what: str, value: Any) -> str | None:
    """A path, or `None`."""
    if value is None:
        return None
    if not isinstance(value, (str, bytes, os.PathLike)):
        raise UsageError(what, f"it is of type {type(value).__name__}", "give a path")
    return os.fsdecode(value)


def scheme(value: Any) -> Scheme:
    """A scheme."""
    if not isinstance(value, Scheme):
        raise UsageError("a scheme", f"it is of type {type(value).__name__}", "give what PatchSet.decide gave")
    return value


def block(value: Any) -> tuple[int, int]:
    """Rows and columns of a block."""
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise UsageError("a block", f"it is {value!r:.100}", "give its rows and columns: block=(128, 128)")
    return number("rows of a block", value[0]), number("columns of a block", value[1])
