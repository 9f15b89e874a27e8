"""`metrics()`: numbers of receipts as a flat mapping, for the trackers of verl.

verl's server throws away what `collective_rpc` answers, so a receipt does not come back to the trainer that way. Each
worker therefore writes its last receipt beside its ledger (`PATCHHOST_LEDGER`), and `receipts(folder)` reads them.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from ..errors import HostError, UsageError

if TYPE_CHECKING:
    from ..ledger import Ledger
    from ..receipt import Receipt

SUFFIX = ".receipt.json"


def metrics(receipts: Any, prefix: str = "patchhost/") -> dict[str, float]:
    """Numbers of one receipt, or of those of several ranks.

    receipts: a `patchhost.Receipt`, a mapping of numbers, or several of them. Where ranks differ, a number comes as
        `NAME/min` and `NAME/max`.
    """
    several = [receipts] if isinstance(receipts, Mapping) or hasattr(receipts, "metrics") else list(receipts or ())
    each = [_flat(one, prefix) for one in several if one is not None]
    out: dict[str, float] = {}
    for name in dict.fromkeys(name for one in each for name in one):
        values = [one[name] for one in each if name in one]
        if min(values) == max(values):
            out[name] = values[0]
        else:
            out[f"{name}/min"], out[f"{name}/max"] = min(values), max(values)
    return out


def receipts(folder: str | os.PathLike[str]) -> list[Receipt]:
    """The last receipt of each worker that writes its ledger into this folder, by name. Raises `HostError`, and
    `Refused` for one that was changed."""
    from ..receipt import Receipt

    try:
        names = sorted(name for name in os.listdir(folder) if name.endswith(SUFFIX))
    except OSError as error:
        why = error.strerror or str(error)
        raise HostError(f"the receipts in {os.fspath(folder)}", why, "give the folder of PATCHHOST_LEDGER") from error
    return [Receipt.load(os.path.join(folder, name)) for name in names]


def write(ledger: Ledger | None, receipt: Receipt | None) -> None:
    """Writes a worker's last receipt beside its ledger; does nothing where there is none. Raises `HostError`."""
    if ledger is not None and receipt is not None:
        receipt.save(ledger.path.removesuffix(".jsonl") + SUFFIX)


def _flat(receipt: Any, prefix: str) -> dict[str, float]:
    own = getattr(receipt, "metrics", None)
    if callable(own):
        return {str(name): float(value) for name, value in own(prefix=prefix).items()}
    if not isinstance(receipt, Mapping):
        why = f"it is of type {type(receipt).__name__}"
        raise UsageError("a receipt", why, "give a patchhost.Receipt, or what receipts(folder) gives")
    return dict(_leaves(receipt, prefix))


def _leaves(given: Mapping[str, Any], prefix: str) -> Iterable[tuple[str, float]]:
    for key, value in given.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}/")
        elif isinstance(value, (int, float)) and not isinstance(value, bool):
            yield f"{prefix}{key}", float(value)
