"""patchhost: patches of inference engines as sandboxed, audited, digest-pinned components, inside PyTorch programs.

```python
from patchhost import Board, PatchSet, PatchSpec

patches = PatchSet.load("fp8_block", config=model.config)
board = Board(patches, ledger="run.jsonl")
with board.refit(step=10) as refit:
    refit.add_all(model.state_dict())
    for name, tensor in refit:          # everything was proved before the first tensor comes
        engine_load(name, tensor)
```

Every error is a `patchhost.errors.Error` with `.what`, `.why` and `.next`. Names are loaded when they are first used:
to import patchhost costs little, and torch is never imported, only used where a torch tensor is given.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .errors import (
    ContractError,
    DetachedWarning,
    Error,
    Findings,
    ForkedError,
    HostError,
    InternalError,
    NonFiniteError,
    PatchError,
    RefitError,
    Refused,
    SwapError,
    TensorError,
    UsageError,
)

if TYPE_CHECKING:
    from ._native import Scheme, __version__, bundled, threads
    from .board import Board, RefitTransaction, Staged
    from .ledger import Ledger
    from .patchset import Decision, PatchSet, Quantized
    from .receipt import Receipt
    from .review import AuditReport, Finding, audit, lock, probe, sign, verify, verify_refit
    from .roles import role_of
    from .spec import PatchSpec
    from .table import ScaleTable

_WHERE = {
    "Scheme": "_native",
    "__version__": "_native",
    "bundled": "_native",
    "threads": "_native",
    "Board": "board",
    "RefitTransaction": "board",
    "Staged": "board",
    "Ledger": "ledger",
    "Decision": "patchset",
    "PatchSet": "patchset",
    "Quantized": "patchset",
    "Receipt": "receipt",
    "AuditReport": "review",
    "Finding": "review",
    "audit": "review",
    "lock": "review",
    "probe": "review",
    "sign": "review",
    "verify": "review",
    "verify_refit": "review",
    "role_of": "roles",
    "PatchSpec": "spec",
    "ScaleTable": "table",
}

__all__ = [
    "AuditReport",
    "Board",
    "ContractError",
    "Decision",
    "DetachedWarning",
    "Error",
    "Finding",
    "Findings",
    "ForkedError",
    "HostError",
    "InternalError",
    "Ledger",
    "NonFiniteError",
    "PatchError",
    "PatchSet",
    "PatchSpec",
    "Quantized",
    "Receipt",
    "RefitError",
    "RefitTransaction",
    "Refused",
    "ScaleTable",
    "Scheme",
    "Staged",
    "SwapError",
    "TensorError",
    "UsageError",
    "__version__",
    "audit",
    "bundled",
    "lock",
    "probe",
    "role_of",
    "sign",
    "threads",
    "verify",
    "verify_refit",
]


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'patchhost' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
