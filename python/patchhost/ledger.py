"""`Ledger`: reads the record of what happened to patches, and verifies that nobody changed it."""

from __future__ import annotations

import os
from typing import Any

from ._program import ask, option
from .errors import Refused, UsageError


class Ledger:
    """A ledger that a `Board` (or the program) wrote. Reading it changes nothing, and may happen while it is written.

    path: the file, one of its closed segments, or the folder that holds one ledger.
    """

    __slots__ = ("path",)

    def __init__(self, path: str | os.PathLike[str]) -> None:
        if not isinstance(path, (str, os.PathLike)) or not os.fspath(path):
            raise UsageError("the path of a ledger", f"it is {path!r:.100}", 'give a path: Ledger("run.jsonl")')
        self.path = os.path.abspath(os.fsdecode(path))

    def __repr__(self) -> str:
        return f"Ledger({self.path!r})"

    def records(self, event: str | None = None, last: int | None = None) -> list[dict[str, Any]]:
        """Records in order, also of a ledger that is torn.

        event: only events of this name, or of this family (`patch` gives `patch.staged` too).
        last: only the newest so many of them.
        """
        if last is not None and (isinstance(last, bool) or not isinstance(last, int) or last < 0):
            raise UsageError("the records of a ledger", f"`last` is {last!r:.100}", "give how many, 0 or more")
        _, answer = ask(("log", "show"), option("event", event) + option("last", last), (self.path,))
        records: list[dict[str, Any]] = answer["records"]
        return records

    def verify(self, head: str | None = None, *, allow_gaps: bool = False) -> dict[str, Any]:
        """Verifies the chain through all its files. Gives `records`, `first_seq`, `head` (`seq` and `hash`), `files`,
        `lost` and `notes`.

        head: the hash of a record that must be in it, kept from before: shows whether its end was cut off.
        allow_gaps: accept a ledger that says itself that events could not be written (a full disk).

        Raises `Refused` where a record is changed, left out or put in between, and where events are missing.
        """
        options = option("head", head) + option("allow-gaps", allow_gaps)
        _, answer = ask(("log", "verify"), options, (self.path,))
        if not answer["good"]:
            why = f"its chain is good, but {answer['ledger']['lost']} events could not be written to it and are missing"
            advice = "make room on its disk; what is lost cannot be had back; allow_gaps=True takes it as it is"
            raise Refused(f"ledger `{self.path}`", why, advice)
        verified: dict[str, Any] = answer["ledger"]
        return verified
