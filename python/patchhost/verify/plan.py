"""Plans: which checkpoints exist, what is sent, and what an engine must do with it. The program makes them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import _program
from ..errors import UsageError
from .stream import Stream, Tensor, edited, read


@dataclass(frozen=True)
class Checkpoint:
    """One checkpoint of a plan. change: what differs from the first one, in words. tensors: what each one is."""

    name: str
    folder: Path
    change: str
    sha256: str
    tensors: dict[str, dict[str, Any]] = field(repr=False)

    def changed_from(self, other: Checkpoint) -> int:
        """How many tensors have other bytes than those of another checkpoint."""
        theirs = other.tensors
        return sum(about["sha256"] != theirs.get(name, {}).get("sha256") for name, about in self.tensors.items())


@dataclass(frozen=True)
class Case:
    """One update. expect: `accept` or `refuse`. checkpoint: what is sent, with `edits` in it. then_holds: the
    checkpoint that an engine must hold after it; `None` where it must hold what it held before."""

    id: str
    kind: str
    cls: str
    tensor: str | None
    expect: str
    checkpoint: str
    then_holds: str | None
    edits: tuple[dict[str, Any], ...]
    why: str

    @property
    def ends(self) -> bool:
        """Whether the sender lives to the end of its session."""
        return all(edit.get("op") != "stop" for edit in self.edits)

    @property
    def level(self) -> str:
        """`reload`: a right update must be done right. `validation`: a faulty one must be refused."""
        return "reload" if self.expect == "accept" else "validation"


@dataclass(frozen=True)
class Plan:
    """Tiny checkpoints of one family, prompts, and cases. Made by `Plan.make` or read by `Plan.read`."""

    folder: Path
    kit: str
    seed: int
    family: str
    architecture: str
    tied: bool
    prompts: tuple[tuple[int, ...], ...]
    max_tokens: int
    checkpoints: dict[str, Checkpoint]
    cases: tuple[Case, ...]

    @staticmethod
    def make(family: str, folder: str | os.PathLike[str], *, seed: int = 1, cases: int = 60) -> Plan:
        """Asks the program for a plan: `patchhost verify-engine plan`. The same seed gives the same bytes."""
        options = [f"--family={family}", f"--seed={seed}", f"--cases={cases}", f"--out={os.fspath(folder)}"]
        _program.ask(("verify-engine", "plan"), options)
        return Plan.read(folder)

    @staticmethod
    def read(folder: str | os.PathLike[str]) -> Plan:
        """Reads the plan of a folder. Raises `UsageError`."""
        place = Path(folder)
        what = f"the plan {place / 'plan.json'}"
        advice = "make it again: `patchhost verify-engine plan --family FAMILY --out FOLDER`"
        try:
            text = json.loads((place / "plan.json").read_text("utf-8"))
            if text["version"] != 1:
                raise UsageError(what, f"it has version {text['version']}; this kit reads version 1", advice)
            plan = _plan(place, text)
        except OSError as error:
            raise UsageError(what, error.strerror or str(error), advice) from error
        except (ValueError, KeyError, TypeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(what, f"it is no plan: {type(error).__name__} {error}", advice) from error
        for case in plan.cases:
            for name in filter(None, (case.checkpoint, case.then_holds)):
                if name not in plan.checkpoints:
                    raise UsageError(what, f"case {case.id} names the checkpoint {name}, which it has not", advice)
        if not plan.cases:
            raise UsageError(what, "it has no cases", advice)
        return plan

    @property
    def first(self) -> Checkpoint:
        """The checkpoint that an engine is started with."""
        return next(iter(self.checkpoints.values()))

    def used(self) -> list[Checkpoint]:
        """The checkpoints that an engine can come to hold, the first one first."""
        names = [self.first.name]
        for case in self.cases:
            names += [name for name in (case.checkpoint, case.then_holds) if name is not None]
        return [self.checkpoints[name] for name in dict.fromkeys(names)]

    def tensors(self, name: str) -> list[Tensor]:
        return read(self.checkpoints[name].folder)

    def stream(self, case: Case) -> Stream:
        """What the trainer sends in this case."""
        return edited(self.tensors(case.checkpoint), case.edits, self.tensors)

    def whole(self, name: str) -> Stream:
        """A right stream of one checkpoint."""
        return Stream(tuple(self.tensors(name)))

    def config_sha256(self) -> str:
        return hashlib.sha256((self.first.folder / "config.json").read_bytes()).hexdigest()

    def max_length(self, most: int = 256) -> int:
        """Tokens that the model takes at most."""
        config = json.loads((self.first.folder / "config.json").read_text("utf-8"))
        return min(most, int(config.get("max_position_embeddings", most)))

    def long_prompt(self, length: int = 96) -> list[int]:
        """A prompt of several blocks of a prefix cache."""
        tokens = [token for prompt in self.prompts for token in prompt] or [1]
        length = min(length, self.max_length() - 16)
        return (tokens * (length // len(tokens) + 1))[:length]


def _plan(place: Path, text: dict[str, Any]) -> Plan:
    return Plan(
        place,
        text["kit"],
        text["seed"],
        text["family"],
        text["architecture"],
        text["tied"],
        tuple(tuple(prompt) for prompt in text["prompts"]),
        text["max_tokens"],
        {
            one["name"]: Checkpoint(one["name"], place / one["path"], one["change"], one["sha256"], one["tensors"])
            for one in text["checkpoints"]
        },
        tuple(_cases(text["cases"])),
    )


def _cases(listed: Iterable[dict[str, Any]]) -> Iterable[Case]:
    for one in listed:
        if one["expect"] not in ("accept", "refuse"):
            raise ValueError(f"case {one['id']} expects {one['expect']!r}")
        yield Case(
            one["id"],
            one["kind"],
            one.get("class") or "all",
            one.get("tensor"),
            one["expect"],
            one["checkpoint"],
            one.get("then_holds"),
            tuple(one.get("edits", ())),
            one.get("why", ""),
        )
