"""`PatchSpec`: which component, with which bytes, under which settings. The only thing that crosses processes."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from .errors import UsageError

Setting = str | int | float | bool


@dataclass(frozen=True, slots=True, init=False, repr=False)
class PatchSpec:
    """One patch to load.

    component: a path to a component (`str` or `os.PathLike`), or the name of a bundled patch, for example `fp8_block`.
    sha256: 64 hex digits that its bytes must have, with or without `sha256:` in front; `None`: any bytes (where there
        is a lock, the lock decides).
    settings: a mapping, or pairs. Values are `str`, `int`, `float` or `bool` (`True` is passed as `true`). Their order
        is kept.

    Immutable, hashable, picklable. Raises `UsageError` where a type or a value is wrong.
    """

    component: str
    sha256: str | None
    settings: tuple[tuple[str, str], ...]

    def __init__(
        self,
        component: str | os.PathLike[str],
        sha256: str | None = None,
        settings: Mapping[str, Setting] | Iterable[tuple[str, Setting]] = (),
    ) -> None:
        object.__setattr__(self, "component", _component(component))
        object.__setattr__(self, "sha256", _digest(sha256))
        object.__setattr__(self, "settings", _settings(settings))

    @classmethod
    def of(cls, spec: PatchSpec | str | os.PathLike[str]) -> PatchSpec:
        """`spec` itself, or the component of this path or name without settings."""
        return spec if isinstance(spec, PatchSpec) else cls(spec)

    def __reduce__(self) -> tuple[Any, ...]:
        return PatchSpec, (self.component, self.sha256, self.settings)

    def __repr__(self) -> str:
        more = f", sha256={self.sha256!r}" if self.sha256 else ""
        more += f", settings={dict(self.settings)!r}" if self.settings else ""
        return f"PatchSpec({self.component!r}{more})"


def _component(given: Any) -> str:
    advice = 'give a path, or the name of a bundled patch: PatchSpec("fp8_block")'
    if not isinstance(given, (str, os.PathLike)):
        raise UsageError("the component of a PatchSpec", f"it is of type {type(given).__name__}, not a path", advice)
    text = os.fspath(given)
    if not isinstance(text, str):
        raise UsageError("the component of a PatchSpec", "its path is bytes, not str", "use os.fsdecode(path)")
    if not text or "\0" in text:
        raise UsageError("the component of a PatchSpec", f"{text!r:.100} is not a path", advice)
    return _utf8("the component of a PatchSpec", text)


def _digest(given: Any) -> str | None:
    if given is None:
        return None
    text = given.removeprefix("sha256:").lower() if isinstance(given, str) else ""
    if len(text) != 64 or any(c not in "0123456789abcdef" for c in text):
        why = f"it is {given!r:.100}; a SHA-256 has 64 hex digits, with or without `sha256:` in front"
        raise UsageError("the sha256 of a PatchSpec", why, "take it from patchhost.audit(component).digest")
    return text


def _settings(given: Any) -> tuple[tuple[str, str], ...]:
    advice = 'give a mapping: settings={"profile": "deepseek"}'
    if isinstance(given, Mapping):
        pairs = list(given.items())
    elif isinstance(given, Iterable) and not isinstance(given, (str, bytes)):
        pairs = list(given)
    else:
        raise UsageError("the settings of a PatchSpec", f"they are of type {type(given).__name__}", advice)
    out: dict[str, str] = {}
    for pair in pairs:
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise UsageError("the settings of a PatchSpec", f"{pair!r:.100} is not a pair of key and value", advice)
        key, value = pair
        if not isinstance(key, str) or not key or "=" in key or "\0" in key:
            why = f"the key {key!r:.100} is not a name: a text that is not empty and has no `=`"
            raise UsageError("the settings of a PatchSpec", why, advice)
        if key in out:
            raise UsageError("the settings of a PatchSpec", f"`{key}` stands there twice", "give it once")
        out[_utf8("the settings of a PatchSpec", key)] = _utf8("the settings of a PatchSpec", _value(key, value))
    return tuple(out.items())


def _utf8(what: str, text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(what, f"{text!r:.100} is no UTF-8", "give a text, or rename the file") from None
    return text


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return str(value)
    if isinstance(value, int):
        return str(int(value))
    if isinstance(value, float) and math.isfinite(value):
        return repr(float(value))
    kind = f"is {value}" if isinstance(value, float) else f"is of type {type(value).__name__}"
    why = f"the value of `{key}` {kind}; allowed are str, int, finite float and bool"
    raise UsageError("the settings of a PatchSpec", why, "give the value as text, as --set of the program takes it")
