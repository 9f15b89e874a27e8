"""`Board`: the live patches of one model in a run. It stages candidates, swaps them at a refit, and proves each
refit."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

from . import _checks, _tensors
from ._native import NativeBoard, NativeRefit
from ._streams import check_process, pairs
from .errors import RefitError, TensorError, UsageError
from .ledger import Ledger
from .patchset import PatchSet
from .receipt import Receipt
from .roles import role_of
from .spec import PatchSpec

When = str | int
Progress = Callable[[str, int, int], object]


class Staged(NamedTuple):
    """A candidate that passed gate, audit, start and probe. `applicability` says whether it is for this engine and
    model; `already`: it was staged before; `remarks`: what the probe saw and does not refuse."""

    name: str
    version: str
    sha256: str
    generation: str
    applicability: Any
    already: bool
    remarks: Any


class Board:
    """The live set of one model, the candidates beside it, and the ledger of what happened.

    patches: what is live at first. ledger: a file to which every event is written; a refit that it cannot take is not
    published. actor: who acts, in the ledger.

    One refit at a time. In a forked child every method raises `ForkedError`: make a new board there, with another
    ledger.
    """

    __slots__ = ("_native", "_path", "_pid", "patches")

    def __init__(
        self, patches: PatchSet, *, ledger: str | os.PathLike[str] | None = None, actor: str = "python"
    ) -> None:
        if not isinstance(patches, PatchSet):
            why = f"the patches are of type {type(patches).__name__}"
            raise UsageError("Board", why, 'load them first: Board(PatchSet.load("fp8_block"))')
        self.patches = patches
        if ledger is not None and not isinstance(ledger, (str, os.PathLike)):
            raise UsageError("the ledger of a Board", f"it is of type {type(ledger).__name__}", "give a path")
        if ledger is not None and "\0" in os.fsdecode(ledger):
            raise UsageError("the ledger of a Board", f"{os.fsdecode(ledger)!r:.100} is not a path", "give a path")
        self._path = None if ledger is None else os.path.abspath(os.fsdecode(ledger))
        self._pid = os.getpid()
        self._native = NativeBoard(patches.native, self._path, _checks.text("the actor of a Board", actor))

    def __reduce__(self) -> Any:
        why = "it is the state of one process: a live set, a ledger, an open refit"
        raise UsageError("pickling a Board", why, "pickle its PatchSet, and make a board in the other process")

    @property
    def native(self) -> NativeBoard:
        """The extension's object, for the modules of this package. Raises `ForkedError` in a child."""
        check_process(self._pid, "a Board")
        return self._native

    @property
    def ledger(self) -> Ledger | None:
        """The ledger, to be read; `None` where the board has none."""
        return None if self._path is None else Ledger(self._path)

    def stage(
        self,
        spec: PatchSpec | str | os.PathLike[str],
        *,
        tensors: Mapping[str, Any] | Iterable[tuple[str, Any]] | None = None,
    ) -> Staged:
        """Takes a candidate in: gate, audit, start and probe. It changes nothing that is live.

        tensors: contiguous CPU tensors that it is probed with; they are not kept. Without them: those of the last
        refit. Raises `Refused`, `PatchError`, `SwapError`.
        """
        spec = PatchSpec.of(spec)
        given = []
        for name, value in pairs(() if tensors is None else tensors):
            raw = _whole(name, value)
            given.append((name, raw, role_of(name, raw[2])))
        answer = json.loads(self.native.stage(spec.component, spec.sha256, spec.settings, given))
        return Staged(**{name: answer.get(name) for name in Staged._fields})

    def swap(
        self,
        to: Staged | str,
        *,
        when: When = "refit",
        mode: str = "live",
        percent: int | None = None,
        expected: str | None = None,
    ) -> dict[str, Any]:
        """Plans that a staged candidate becomes live (or runs beside the live set) with a refit.

        to: what `stage` gave, or its generation. when: `"refit"`, the next one; or a number of the trainer's step: the
        first refit whose step reaches it. In a fleet give the step, so that all ranks swap at the same one. mode:
        `live`, `shadow` (compared, not used), or `canary` (used for `percent` of the tensors). expected: the digest
        that the live set must have for this. Raises `SwapError`.
        """
        native = self.native
        word = to.generation if isinstance(to, Staged) else to
        _checks.text("the target of a swap", word)
        if expected is not None:
            _checks.text("`expected` of a swap", expected)
        return _object(native.swap(word, _step(when), _mode(mode, percent), percent, expected))

    def set_mode(self, mode: str, *, percent: int | None = None, when: When = "refit") -> dict[str, Any]:
        """Changes the mode of the candidate that is planned or runs: from `shadow` to `live`, for example."""
        return _object(self.native.set_mode(_mode(mode, percent), percent, _step(when)))

    def rollback(self, *, when: When = "refit", reason: str | None = None) -> dict[str, Any]:
        """Plans to go back to the set before, which is still instantiated and gives the same bits."""
        if reason is not None:
            _checks.text("the reason of a rollback", reason)
        return _object(self.native.rollback(_step(when), reason))

    def cancel(self, why: str) -> bool:
        """Takes a planned swap back. `False`: there was none."""
        return self.native.cancel(_checks.text("why a swap is taken back", why))

    def status(self) -> dict[str, Any]:
        """What is live, what is staged and planned, and the last refit."""
        return _object(self.native.status())

    def report(self) -> dict[str, Any] | None:
        """The last comparison of a shadow or canary with the live set, tensor by tensor."""
        text = self.native.report()
        return None if text is None else _object(text)

    def health(self) -> dict[str, Any]:
        """Whether the ledger could write everything, and what it could not."""
        return _object(self.native.health())

    def recent(self, count: int = 20) -> list[dict[str, Any]]:
        """The last records, from memory; also without a ledger file."""
        records: list[dict[str, Any]] = json.loads(self.native.recent(_checks.number("how many records", count)))
        return records

    def refit(
        self,
        step: int | None = None,
        version: str | None = None,
        manifest: Mapping[str, Any] | str | None = None,
        duplicates: str = "refuse",
        allow_narrowing: bool = False,
        progress: Progress | None = None,
        digest: bool = False,
    ) -> RefitTransaction:
        """Begins a refit: see `RefitTransaction`.

        step: the trainer's step; planned swaps land by it. version: a name of the weights, for the ledger. manifest:
        what must arrive, `{"tensors": {name: {"dtype": "BF16", "shape": […], "sha256": "…"}}}`. duplicates: a name that
        comes twice is refused (`refuse`), or the last one counts (`last`). allow_narrowing: take tensors that are less
        precise than those of the first refit. progress: called with (name of a tensor, done, of how many); what it
        raises ends the refit. digest: the receipt gets a SHA-256 of everything that comes and that is handed on, and the
        ledger gets one digest of all of it; this costs a pass over all bytes.

        The first refit declares the names, shapes and dtypes of the model: later ones must bring the same. Raises
        `SwapError` where another refit is open.
        """
        step = None if step is None else _step(step)
        if duplicates not in ("refuse", "last"):
            raise UsageError("a refit", f"`duplicates` is {duplicates!r:.100}", "give `refuse` or `last`")
        if progress is not None and not callable(progress):
            raise UsageError("a refit", f"`progress` is {progress!r:.100}", "give a function of (name, done, of)")
        text = None if manifest is None else _manifest(manifest)
        if version is not None:
            version = _checks.text("the version of a refit", str(version))
        native = self.native.refit(step, version, text, duplicates, bool(allow_narrowing), bool(digest))
        return RefitTransaction(native, self._pid, progress)


class RefitTransaction:
    """One refit: all tensors in, everything proved, then out, then live. Use it with `with`.

    Leaving the block commits (proving first where nothing did); leaving it by an exception abandons, and what was live
    stays. Tensors are read where they are until the refit ends: they must not change meanwhile.
    """

    __slots__ = (
        "_given",
        "_handed",
        "_native",
        "_pid",
        "_progress",
        "_receipt",
        "_report",
        "_state",
        "_total",
        "_turn",
    )

    def __init__(self, native: NativeRefit, pid: int, progress: Progress | None) -> None:
        self._native, self._pid, self._progress = native, pid, progress
        self._given: dict[str, _tensors.Raw] = {}
        self._state = "open"
        self._report: dict[str, Any] | None = None
        self._receipt: Receipt | None = None
        self._handed: int | None = None
        self._total = self._turn = 0

    def __enter__(self) -> RefitTransaction:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if self._state in ("committed", "abandoned"):
            return
        if error is not None:
            after = f" after {self._handed} of {self._total} tensors were handed on" if self._handed else ""
            self.abandon(_why(error) + after)
            return
        try:
            self.commit()
        except BaseException as failed:
            self.abandon(_why(failed))
            raise

    def add(self, name: str, tensor: Any, *, role: str | None = None) -> None:
        """Takes one whole tensor: CPU, contiguous, detached. A refusal changes nothing; the refit goes on. role: what it is
        for, as one of `patchhost.roles.ROLES`; by default its name says so (`role_of`).

        Its address is noted here and read until the refit ends. The tensor is kept alive, but its storage is the
        caller's: to free, resize or replace it meanwhile (`untyped_storage().resize_`, `resize_`, `set_`, FSDP's
        resharding, a file of `numpy.memmap` that gets shorter) cannot be seen here, and ends the process or gives
        other bytes. To write to it gives other bytes.

        Raises `TensorError`, and `RefitError` for a name that came already.
        """
        self._must("open", "add a tensor")
        raw = _whole(name, tensor)
        self._native.add(name, raw, role_of(name, raw[2]) if role is None else _checks.text("the role of a tensor", role))
        self._given[name] = raw

    def add_all(self, tensors: Mapping[str, Any] | Iterable[tuple[str, Any]]) -> None:
        """Adds every tensor of a mapping (`model.state_dict()`), or of pairs."""
        for name, tensor in pairs(tensors):
            self.add(name, tensor)

    def prove(self) -> dict[str, Any]:
        """Proves that everything arrived in the right type and shape, finite, decided, quantized, within its contract.
        Gives the report. Nothing can be added afterwards.

        Raises `RefitError`, `NonFiniteError`, `ContractError`, `PatchError`; each names the tensor. Nothing was handed
        on.
        """
        check_process(self._pid, "a refit")
        if self._report is not None and self._state == "proved":
            return self._report
        self._must("open", "prove")
        self._state = "proving"
        with self._ending():
            report = _object(self._native.prove(self._progress))
        if self._state != "proving":
            # By `progress`, or by another thread: the extension could not stop what it was doing.
            self._native.abandon("abandoned while it was proved")
            raise UsageError("to prove a refit", "it was abandoned meanwhile", "begin another one: board.refit(step=…)")
        self._report, self._state = report, "proved"
        return report

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        """Proves, then gives (name, tensor) in the order of arrival; the scale follows its tensor. Tensors are as those
        that were added (torch or numpy); what is kept is the tensor itself. An iterator ends when another one begins:
        only the tensors of the newest one count for `commit`."""
        self.prove()
        check_process(self._pid, "a refit")
        outputs = self._native.outputs()
        self._handed, self._total, self._turn = 0, len(outputs), self._turn + 1
        return self._hand(outputs, self._turn)

    def _hand(self, outputs: list[tuple[str, str, list[int], int, Any]], turn: int) -> Iterator[tuple[str, Any]]:
        source: Any = None
        for name, dtype, shape, address, owner in outputs:
            self._must("proved", "hand on a tensor")
            if turn != self._turn:
                why = "another iteration over it began, and it gives every tensor"
                raise UsageError("to hand on a tensor in a refit", why, "go on with the newest iterator")
            raw = self._given.get(name)
            source = source if raw is None else raw[4]
            same = raw is not None and raw[1:3] == (dtype, tuple(shape)) and (raw[0] == address or 0 in shape)
            tensor = source if same else _tensors.wrap(address, shape, dtype, owner, source)
            self._handed = (self._handed or 0) + 1
            yield name, tensor

    def blocks(self) -> dict[str, tuple[str, tuple[int, int]]]:
        """For each scale that `prove` made: its name, with the tensor that it is of and the (rows, columns) of a
        block. Proves first where nothing did."""
        self.prove()
        return {scale: (name, (rows, cols)) for scale, name, rows, cols in self._native.blocks()}

    def commit(self) -> dict[str, Any]:
        """Writes the refit to the ledger and makes it live; a swap that was to land has landed. Gives the program's
        report.

        Proves first where nothing did. Raises `RefitError` where only some of the tensors were handed on.
        """
        self.prove()
        self._must("proved", "commit")
        if self._handed is not None and self._handed != self._total:
            why = f"{self._handed} of {self._total} tensors were handed on, so the engine has a mixture of two versions"
            raise RefitError(
                "committing a refit", why, "iterate to the end, or refit again: what was live is still live"
            )
        self._state = "committing"
        with self._ending():
            answer = _object(self._native.commit())
        self._receipt = Receipt._made(json.dumps(answer.pop("receipt"), ensure_ascii=False, separators=(",", ":")))
        self._end("committed")
        return answer

    def abandon(self, why: str = "abandoned by the caller") -> None:
        """Forgets the refit; what was live stays. Does nothing after it ended, and while it is committed.

        While it is proved (from `progress`, or from another thread), `prove` goes on, and raises `UsageError`."""
        if self._state in ("committing", "committed", "abandoned"):
            return
        if os.getpid() == self._pid:
            self._native.abandon(_checks.text("why a refit is abandoned", why))
        self._end("abandoned")

    @property
    def report(self) -> dict[str, Any] | None:
        """What `prove` gave; `None` before."""
        return self._report

    @property
    def receipt(self) -> Receipt | None:
        """What the refit did, to be kept and compared: counts, and with `digest=True` the SHA-256 of every tensor. `None`
        before the commit."""
        return self._receipt

    @property
    def state(self) -> str:
        """`open`, `proved`, `committed` or `abandoned`; while a call works on it `proving` or `committing`."""
        return self._state

    @contextmanager
    def _ending(self) -> Iterator[None]:
        """What fails in here ends the refit; the extension has let go of it already."""
        try:
            yield
        except BaseException as error:
            if os.getpid() == self._pid:
                self._native.abandon(_why(error))
            self._end("abandoned")
            raise

    def _end(self, state: str) -> None:
        self._state = state
        self._given.clear()

    def _must(self, state: str, what: str) -> None:
        check_process(self._pid, "a refit")
        if self._state != state:
            why = f"the refit is {self._state}, and that is for one that is {state}"
            raise UsageError(f"to {what} in a refit", why, "begin another one: board.refit(step=…)")


def _object(text: str) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(text)
    return value


def _manifest(given: Any) -> str:
    if isinstance(given, str):
        return _checks.text("the manifest of a refit", given)
    try:
        return json.dumps(given)
    except (TypeError, ValueError, RecursionError) as error:
        advice = 'give {"tensors": {name: {"dtype": "BF16", "shape": [2, 3], "sha256": "…"}}}'
        raise UsageError("the manifest of a refit", f"it cannot become JSON: {error}", advice) from error


def _why(error: BaseException) -> str:
    """For the ledger, which holds UTF-8."""
    return f"{type(error).__name__}: {error}"[:500].encode("utf-8", "backslashreplace").decode()


def _whole(name: str, tensor: Any) -> _tensors.Raw:
    raw = _tensors.read(_checks.named(name), tensor)
    if not _tensors.is_contiguous(raw):
        why = f"its shape {list(raw[2])} has the strides {list(raw[3])}; it is read as rows without gaps"
        raise TensorError(f"tensor `{_tensors.shown(name)}`", why, "give tensor.contiguous()")
    return raw


def _step(when: Any) -> int | None:
    if when == "refit":
        return None
    if isinstance(when, int) and not isinstance(when, bool) and 0 <= when < 1 << 63:
        return when
    advice = 'give "refit", or the number of a step, 0 or more'
    raise UsageError("a time on a board", f"it is {when!r:.100}", advice)


def _mode(mode: Any, percent: Any) -> str:
    if not isinstance(mode, str) or mode not in ("live", "shadow", "canary"):
        raise UsageError("the mode of a swap", f"it is {mode!r:.100}", "give `live`, `shadow` or `canary`")
    if (percent is not None) != (mode == "canary"):
        why = f"`percent` is {percent!r:.100} and the mode is {mode}; a canary has one, and nothing else has"
        raise UsageError("the mode of a swap", why, 'give mode="canary", percent=10')
    if percent is not None and (isinstance(percent, bool) or not isinstance(percent, int) or not 1 <= percent <= 99):
        raise UsageError("the mode of a swap", f"`percent` is {percent!r:.100}", "give a whole number from 1 to 99")
    return mode
