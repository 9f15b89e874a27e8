"""`Receipt`: what one refit did. It can be kept, sent to another process, and compared with that of another rank."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from typing import Any

from . import _checks
from ._native import read_receipt, receipt_difference
from .errors import HostError, UsageError

Path = str | os.PathLike[str]
_MOST_BYTES = 512 << 20


class Receipt:
    """What one refit did: counts, and (of `board.refit(..., digest=True)`) SHA-256 digests of every tensor.

    A refit gives it after its commit, as `refit.receipt`. It never changes, and it can be pickled. Its seal, a digest
    of all that it says, also stands in the ledger's record of the refit. A receipt that was changed is refused when it
    is read.

    Two ranks that have the same `root_before` got the same tensors; with the same `root_after`, their engines got the
    same weights. `difference` names what differs.
    """

    __slots__ = ("_text", "_value")
    _text: str
    _value: dict[str, Any]

    def __init__(self) -> None:
        why = "it is made by a refit, or read from JSON"
        raise UsageError(
            "Receipt()", why, "use refit.receipt after the commit, Receipt.load(path) or Receipt.from_json(text)"
        )

    @classmethod
    def _made(cls, text: str) -> Receipt:
        """Of a text that the extension has made or read."""
        made = object.__new__(cls)
        made._text, made._value = text, json.loads(text)
        return made

    def __reduce__(self) -> tuple[Callable[[str], Receipt], tuple[str]]:
        return Receipt.from_json, (self._text,)

    def __repr__(self) -> str:
        counts = self._value["counts"]
        step = f"step {self.step}, " if self.step is not None else ""
        root = f", root_after {self.root_after[:19]}…" if self.root_after else ", no digests"
        return f"<Receipt of refit {self.refit}: {step}version {self.version!r}, {counts['tensors']} tensors{root}>"

    def __eq__(self, other: object) -> bool:
        """Whether it is the receipt of the same refit. For the same weights in two refits, see `difference`."""
        return self.seal == other.seal if isinstance(other, Receipt) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.seal)

    @property
    def refit(self) -> int:
        """The number of the refit on its board, from 1."""
        return int(self._value["refit"])

    @property
    def step(self) -> int | None:
        """The trainer's step; `None` where the refit had none."""
        step: int | None = self._value["step"]
        return step

    @property
    def version(self) -> str:
        """The name of the weights."""
        return str(self._value["version"])

    @property
    def patch_set(self) -> str:
        """The digest of the patches that made the weights (`sha256:…`)."""
        return str(self._value["patch_set"])

    @property
    def manifest(self) -> str | None:
        """The SHA-256 of the manifest as JSON with sorted keys and no spaces; `None` where none was given."""
        return self._digest("manifest")

    @property
    def root_before(self) -> str | None:
        """One digest of all tensors that came: names, dtypes, shapes and bytes. `None` where nobody asked for it."""
        return self._digest("root_before")

    @property
    def root_after(self) -> str | None:
        """One digest of all tensors that were handed on. `None` where nobody asked for it."""
        return self._digest("root_after")

    @property
    def seal(self) -> str:
        """One digest of all that the receipt says; the ledger has it too."""
        return str(self._value["seal"])

    @property
    def tensors(self) -> list[dict[str, Any]]:
        """Each tensor that came: `name`, `dtype`, `shape`, `before` (the SHA-256 of its bytes), `after` (a list of what
        was handed on for it: `name`, `dtype`, `shape`, `sha256`), `kept`, `blocks`, `saturated`. Dtypes are words of
        safetensors. Empty without `digest=True`."""
        return [dict(tensor) for tensor in self._value.get("tensors") or ()]

    @property
    def counts(self) -> dict[str, Any]:
        """What was counted: `tensors`, `quantized`, `kept`, `elements`, `blocks_proved`, `saturated`, `flushed`,
        `non_finite`, `relative_rmse` (`None` where nothing was quantized), `seconds`, `bytes_before`, `bytes_after`."""
        return dict(self._value["counts"])

    def metrics(self, prefix: str = "patchhost/") -> dict[str, float]:
        """The counts as flat numbers, for the metrics of a trainer (verl, TRL): `{"patchhost/saturated": 0.0, …}`.

        Beside the counts: `refit`, `step` (where there is one), and `saturated_share` of all values that came. What is
        `None` is left out."""
        prefix = _checks.text("the prefix of metrics", prefix)
        counts = self._value["counts"]
        found = {"refit": self.refit, "step": self.step, **counts}
        found["saturated_share"] = counts["saturated"] / max(1, counts["elements"])
        return {prefix + name: float(value) for name, value in found.items() if value is not None}

    def difference(self, other: Receipt) -> list[str]:
        """What differs between two refits (of two ranks, or two steps), one readable line for each tensor; `[]` where
        they agree. `first` in a line is this receipt, `second` is the other.

        Refit numbers, steps, versions, manifests and times may differ. Where one of the two has no digests, a line says
        that the bytes cannot be compared."""
        if not isinstance(other, Receipt):
            why = f"the other one is of type {type(other).__name__}"
            raise UsageError("to compare two receipts", why, "read it first: Receipt.load(path)")
        return list(receipt_difference(self._text, other._text))

    def to_json(self) -> str:
        """The receipt as JSON, in one line."""
        return self._text

    @classmethod
    def from_json(cls, text: str) -> Receipt:
        """Reads what `to_json` gave. Raises `Refused` where it was changed, and `UsageError` where it is no receipt."""
        return cls._read(text, "a receipt")

    def save(self, path: Path) -> None:
        """Writes the receipt to a file, whole or not at all; a file that is there is replaced. The program compares
        such files: `patchhost log receipts A.json B.json`."""
        path = _path(path)
        folder, temporary = os.path.dirname(os.path.abspath(path)), None
        try:
            handle, temporary = tempfile.mkstemp(prefix=".patchhost-", suffix=".json", dir=folder)
            with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
                file.write(self._text + "\n")
            os.replace(temporary, path)
        except OSError as error:
            if temporary is not None and os.path.exists(temporary):
                os.unlink(temporary)
            why = error.strerror or str(error)
            raise HostError(
                f"to write the receipt `{path}`", why, "give a path in a folder that can be written"
            ) from error

    @classmethod
    def load(cls, path: Path) -> Receipt:
        """Reads a file that `save` wrote. Raises `Refused` where it was changed, `UsageError` where it is no receipt,
        and `HostError` where it cannot be read."""
        path = _path(path)
        what = f"receipt `{path}`"
        try:
            with open(path, "rb") as file:
                content = file.read(_MOST_BYTES + 1)
            text = content.decode("utf-8")
        except OSError as error:
            raise HostError(what, error.strerror or str(error), "give a file that can be read") from error
        except UnicodeDecodeError as error:
            raise UsageError(
                what, f"it is not UTF-8: byte {error.start} is wrong", "give what Receipt.save wrote"
            ) from error
        if len(content) > _MOST_BYTES:
            why = f"it has more than the {_MOST_BYTES} bytes that are read"
            raise UsageError(what, why, "give what Receipt.save wrote")
        return cls._read(text, what)

    @classmethod
    def _read(cls, text: Any, what: str) -> Receipt:
        if not isinstance(text, str):
            raise UsageError(what, f"it is of type {type(text).__name__}", "give the text that to_json gave")
        return cls._made(read_receipt(_checks.text(what, text), what))

    def _digest(self, name: str) -> str | None:
        digest: str | None = self._value[name]
        return digest


def _path(path: Any) -> str:
    if not isinstance(path, (str, os.PathLike)) or not os.fspath(path) or "\0" in os.fsdecode(path):
        raise UsageError("the path of a receipt", f"it is {path!r:.100}", 'give a path: receipt.save("step-3.json")')
    return os.fsdecode(path)
