"""`Refitter`: one replica's patches and its weight updates, for the plug-ins of all engines.

An engine cannot undo a load that has begun. So an update is staged whole, proved whole, and only then handed over:

```python
with refitter.update(step=3, version="step-3") as update:
    for name, tensor in stream:
        update.add(name, tensor)            # copied into staging memory; refused where one tensor is enough to see it
    model.load_weights(update.proved())     # everything came and was proved before the first tensor comes out
receipt = update.receipt                    # leaving the block committed it
```
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from . import _tensors
from .board import Board, RefitTransaction
from .errors import Error, RefitError, UsageError
from .expect import Expectation, Form
from .patchset import PatchSet

_SPARE = 64 << 20
"bytes of staging memory over the size of the model: names, padding, a tensor that comes in a wider dtype"


class Refitter:
    """The patches of one replica, what its model loads, and the board that remembers both.

    patches: what is live at first; a set of no patch (`PatchSet.load()`) proves updates and changes nothing.
    expectation: what the model loads. ledger: a file to which every event is written. staging_limit: most bytes that an
    update may hold before it is proved; by default twice the model (f32 masters for a bf16 model), and 64 MiB.
    rank: of this worker, for the ledger and receipts.
    """

    def __init__(
        self,
        patches: PatchSet,
        expectation: Expectation | None = None,
        *,
        ledger: str | os.PathLike[str] | None = None,
        actor: str = "trainer",
        rank: int = 0,
        staging_limit: int | None = None,
    ) -> None:
        self.expectation = Expectation() if expectation is None else expectation
        self.board = Board(patches, ledger=ledger, actor=actor)
        self.rank = rank
        self.staging_limit = staging_limit
        self.updates = 0
        self.refused = 0
        self.last: dict[str, Any] | None = None
        self.last_error: dict[str, str] | None = None
        self.receipt: Any = None
        self._open: Update | None = None

    def update(
        self,
        *,
        step: int | None = None,
        version: str | None = None,
        manifest: Mapping[str, Any] | str | None = None,
        allow_narrowing: bool = False,
        digest: bool = True,
    ) -> Update:
        """Begins a weight update. One is open at a time: an older one that nobody ended is given up (its sender died),
        and nothing of it is live."""
        if self._open is not None:
            self._open.abandon("another update began, and this one was not ended")
        self._open = Update(self, step, version, manifest, allow_narrowing, digest)
        return self._open

    def limit(self) -> int | None:
        """Most bytes of staging memory for one update; `None`: the size of the model is not known yet."""
        if self.staging_limit is not None:
            return self.staging_limit
        whole = self.expectation.nbytes()
        return None if whole is None else 2 * whole + _SPARE

    def status(self) -> dict[str, Any]:
        """What is live, what waits, what the last update did and what refused the last refused one."""
        return {
            "rank": self.rank,
            "pid": os.getpid(),
            "updates": self.updates,
            "refused": self.refused,
            "open": self._open is not None,
            "staging_limit": self.limit(),
            "last": self.last,
            "last_error": self.last_error,
            "board": self.board.status(),
            "patches": self.board.patches.patches,
        }


class Update:
    """One weight update: staged, proved, handed over, committed. Use it with `with`; an exception abandons it."""

    def __init__(
        self,
        refitter: Refitter,
        step: int | None,
        version: str | None,
        manifest: Mapping[str, Any] | str | None,
        allow_narrowing: bool,
        digest: bool,
    ) -> None:
        self._refitter = refitter
        self._refit: RefitTransaction = refitter.board.refit(
            step=step, version=version, manifest=manifest, allow_narrowing=allow_narrowing, digest=digest
        )
        self._held: dict[str, Any] = {}
        self.forms: dict[str, Form] = {}
        self.step, self.version = step, version
        self.remarks: list[str] = []
        self.staged_bytes = 0
        self.seconds: dict[str, float] = {"stage": 0.0, "prove": 0.0, "load": 0.0}
        self.receipt: Any = None
        self.report: dict[str, Any] | None = None
        self._proved_at: float | None = None

    def __enter__(self) -> Update:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if error is not None:
            self.abandon(error)
        elif self.open:
            self.commit()

    @property
    def open(self) -> bool:
        """Whether tensors can be added, or it can be proved or committed."""
        return self._refit.state in ("open", "proved")

    @property
    def names(self) -> list[str]:
        """Names of what came, in order."""
        return list(self.forms)

    def add(self, name: str, tensor: Any) -> None:
        """Takes one whole tensor of any device; it is copied, so its memory may be used again at once. Raises
        `RefitError` (unknown, misshapen, doubled, beyond the staging limit) and `TensorError`; the update stays open,
        and it is the caller's to abandon it."""
        began = time.perf_counter()
        dtype, shape = _form(name, tensor)
        if name in self.forms:
            why = "it came already in this update: two senders, or one that began again"
            raise RefitError(f"tensor `{name}`", why, "send every tensor once; the old weights keep serving")
        self._refitter.expectation.one(name, dtype, shape)
        size = int(tensor.numel()) * int(tensor.element_size())
        limit = self._refitter.limit()
        if limit is not None and self.staged_bytes + size > limit:
            why = f"{self.staged_bytes + size} bytes came, and the staging memory for this model is {limit}"
            raise RefitError(f"tensor `{name}`", why, "send only the tensors of this model, or raise `staging_limit`")
        held = tensor.detach().to("cpu", copy=True).contiguous()
        self._refit.add(name, held, role=self._refitter.expectation.role(name, shape))
        self._held[name] = held
        self.forms[name] = (dtype, shape)
        self.staged_bytes += size
        self.seconds["stage"] += time.perf_counter() - began

    def add_all(self, tensors: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Adds every tensor of a mapping or of pairs."""
        for name, tensor in tensors.items() if isinstance(tensors, Mapping) else tensors:
            self.add(name, tensor)

    def held(self, name: str) -> Any:
        """The copy of a tensor that came."""
        return self._held[name]

    def prove(self) -> None:
        """Proves the whole update: everything came, once, in the right shape; finite; decided, quantized and each scale
        within its contract. Raises `RefitError`, `NonFiniteError`, `ContractError`, `PatchError`; nothing was handed
        over."""
        if self.report is not None:
            return
        began = time.perf_counter()
        try:
            self.remarks += self._refitter.expectation.whole(self.forms)
            self.report = self._refit.prove()
        except BaseException as error:
            self.abandon(error)
            raise
        self._proved_at = time.perf_counter()
        self.seconds["prove"] += self._proved_at - began

    def proved(self) -> Iterator[tuple[str, Any]]:
        """Proves, then gives (name, tensor) as the engine loads them: what is kept is the staged copy; what a patch
        quantizes comes as codes and scales where the engine takes them, else widened to the dtype that came."""
        self.prove()
        if self._refitter.expectation.takes_scales:
            return iter(self._refit)
        return self._widened()

    def _widened(self) -> Iterator[tuple[str, Any]]:
        scales = self._refit.blocks()
        quantized = {name for name, _ in scales.values()}
        codes: Any = None
        for name, tensor in self._refit:
            if name in quantized:
                codes = tensor
            elif name in scales:
                of, block = scales[name]
                dtype = getattr(_torch(), self.forms[of][0])
                yield of, self._refitter.board.patches.dequantize(codes, tensor, block=block, dtype=dtype)
                codes = None
            else:
                yield name, tensor

    def commit(self) -> Any:
        """Writes the update to the ledger; a swap that was to land has landed. Gives the receipt."""
        if self._proved_at is not None:
            self.seconds["load"] = time.perf_counter() - self._proved_at
        try:
            answer = self._refit.commit()
        except BaseException as error:
            self.abandon(error)
            raise
        refitter = self._refitter
        refitter.updates += 1
        self.receipt = getattr(self._refit, "receipt", None)
        refitter.receipt = self.receipt
        seconds = {word: round(value, 6) for word, value in self.seconds.items()}
        refitter.last = {
            **{word: answer.get(word) for word in ("refit", "step", "version", "patch_set", "swap")},
            "tensors": len(self.forms),
            "staged_bytes": self.staged_bytes,
            "seconds": seconds,
            "remarks": self.remarks,
            "report": answer.get("report"),
        }
        self._drop()
        return self.receipt

    def abandon(self, why: BaseException | str) -> None:
        """Forgets the update; what was live stays. Does nothing after it ended."""
        refitter = self._refitter
        if refitter._open is not self:
            return
        refitter.refused += 1
        if isinstance(why, Error):
            refitter.last_error = {"what": why.what, "why": why.why, "next": why.next, "kind": why.kind}
        else:
            refitter.last_error = {"what": "the update", "why": str(why)[:500], "next": "send it again", "kind": "refit"}
        self._refit.abandon(str(why)[:500] or type(why).__name__)
        self._drop()

    def _drop(self) -> None:
        self._held.clear()
        if self._refitter._open is self:
            self._refitter._open = None


def _form(name: str, tensor: Any) -> Form:
    dtype = getattr(tensor, "dtype", None)
    if dtype is None or not hasattr(tensor, "detach"):
        why = f"it is of type {type(tensor).__name__}"
        raise UsageError(f"tensor `{_tensors.shown(name)}`", why, "give tensors of torch")
    return str(dtype).removeprefix("torch."), tuple(int(n) for n in tensor.shape)


def _torch() -> Any:
    import torch

    return torch


def load_patches(given: Any, **load: Any) -> PatchSet:
    """Patches from a configuration: a `PatchSet`, or a list of specs, each a `PatchSpec`, a name or path, or a mapping
    with `component`, `sha256` and `settings`; also as JSON text. Keywords are those of `PatchSet.load`."""
    from .spec import PatchSpec

    if isinstance(given, PatchSet):
        return given
    if isinstance(given, str) and given.lstrip().startswith(("[", "{", '"')):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise UsageError("the patches", f"they are not JSON: {error}", 'give ["fp8_block"]') from error
    specs = []
    for one in [given] if isinstance(given, (str, os.PathLike, Mapping, PatchSpec)) else list(given or ()):
        if isinstance(one, Mapping):
            unknown = set(one) - {"component", "sha256", "settings"}
            if unknown or "component" not in one:
                why = f"{dict(one)!r:.200} has " + (f"the unknown key `{min(unknown)}`" if unknown else "no `component`")
                raise UsageError("a patch", why, 'give {"component": "fp8_block", "settings": {"profile": "deepseek"}}')
            one = PatchSpec(one["component"], one.get("sha256"), one.get("settings") or {})
        specs.append(PatchSpec.of(one))
    return PatchSet.load(*specs, **load)
