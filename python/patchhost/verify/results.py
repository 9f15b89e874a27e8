"""Results: one line for each case, a verdict for each level, a table for people and JSON for the certificate."""

from __future__ import annotations

import datetime
import json
import os
import tempfile
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from .. import _program
from ..errors import UsageError
from .engine import Engine
from .judge import Judgment, References
from .plan import Case, Plan

LEVELS = ("reload", "full")


def _utc() -> str:
    return datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")


@dataclass(frozen=True)
class CaseResult:
    """One case, judged. `level` is `reload` or `validation`."""

    id: str
    kind: str
    cls: str
    tensor: str | None
    level: str
    expected: str
    answered: str
    held: str
    right: bool
    detail: str
    seconds: float

    @staticmethod
    def of(plan: Plan, case: Case, made: Judgment, seconds: float) -> CaseResult:
        name = f"{plan.family}-{case.id}"
        return CaseResult(
            name, case.kind, case.cls, case.tensor, case.level, case.expect, made.answered, made.held, made.right,
            made.detail, round(seconds, 2),
        )  # fmt: skip

    def line(self) -> str:
        what = f"{self.id} {self.kind} ({self.cls}{f', {self.tensor}' if self.tensor else ''})"
        return f"{what}: right, {self.answered}" if self.right else f"{what}: WRONG, {self.answered}: {self.detail}"

    def json(self) -> dict[str, Any]:
        made = asdict(self)
        made["class"] = made.pop("cls")
        return made


@dataclass
class Results:
    """What a run found. Results of several families are added with `+`."""

    engine: dict[str, Any]
    kit: str
    seed: int
    default_level: str
    models: list[dict[str, Any]]
    cases: list[CaseResult]
    layers: dict[str, Any] = field(default_factory=dict)
    caches: dict[str, Any] = field(default_factory=dict)
    fresh: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, int] = field(default_factory=dict)
    date: str = field(default_factory=_utc)

    @staticmethod
    def of(
        engine: Engine,
        plan: Plan,
        cases: Sequence[CaseResult],
        layers: dict[str, Any],
        caches: dict[str, Any],
        references: References,
    ) -> Results:
        model = {
            "family": plan.family,
            "architecture": plan.architecture,
            "config_sha256": plan.config_sha256(),
            "checkpoint_sha256": plan.first.sha256,
        }
        about = {"name": engine.name, "version": engine.version, "backend": engine.backend, "url": None}
        fresh = {
            "checkpoints": len(references.seen),
            "logprob_tolerance": references.tolerance,
            "not_compared": sorted(references.unstable),
        }
        key = plan.family
        return Results(
            about, plan.kit, plan.seed, engine.default_level, [model], list(cases), {key: layers}, {key: caches},
            {key: fresh},
            {key: references.versions},
        )  # fmt: skip

    def __add__(self, other: Results) -> Results:
        if (self.engine, self.seed) != (other.engine, other.seed):
            raise UsageError("results of two runs", "they are of two engines or seeds", "give each its own certificate")
        return Results(
            self.engine, self.kit, self.seed, self.default_level, self.models + other.models, self.cases + other.cases,
            self.layers | other.layers, self.caches | other.caches, self.fresh | other.fresh,
            self.versions | other.versions, self.date,
        )  # fmt: skip

    def wrong(self, level: str = "full") -> list[CaseResult]:
        """The cases that were done wrong and that count at this level."""
        return [one for one in self.cases if not one.right and (level == "full" or one.level == "reload")]

    def passed(self, level: str | None = None) -> bool:
        """Whether everything that counts at this level is right; `None`: at the engine's own level."""
        level = level or self.default_level
        if level not in LEVELS:
            raise UsageError(f"level {level!r}", "there is no such level", f"one of {', '.join(LEVELS)}")
        return not self.wrong(level)

    def json(self, level: str | None = None) -> dict[str, Any]:
        """What is sealed as a certificate. `verdict`: that of all cases; `levels`: that of each level."""
        level = level or self.default_level
        return {
            "type": "patchhost-engine-certificate",
            "version": 1,
            "engine": self.engine,
            "kit": self.kit,
            "date": self.date,
            "seed": self.seed,
            "models": self.models,
            "cases": [one.json() for one in self.cases],
            "totals": self.totals(),
            "fresh_loads": self.fresh,
            "versions_checked": self.versions,
            "layers": self.layers,
            "caches": self.caches,
            "level": level,
            "levels": {one: "pass" if self.passed(one) else "fail" for one in LEVELS},
            "verdict": "pass" if self.passed("full") else "fail",
        }

    def totals(self) -> dict[str, int]:
        right = sum(one.right for one in self.cases)
        faulty = [one for one in self.cases if one.expected == "refuse"]
        return {
            "cases": len(self.cases),
            "right": right,
            "wrong": len(self.cases) - right,
            "right_updates": len(self.cases) - len(faulty),
            "right_updates_wrong": sum(not one.right for one in self.cases if one.expected == "accept"),
            "faulty_updates": len(faulty),
            "faulty_updates_accepted": sum(one.answered == "accepted" for one in faulty),
            "faulty_updates_wrong": sum(not one.right for one in faulty),
        }

    def seal(self, out: str | os.PathLike[str], *, level: str | None = None, key: str | None = None) -> dict[str, Any]:
        """Has the program seal the results: `patchhost verify-engine seal`. key: a file with a signing key."""
        with tempfile.TemporaryDirectory(prefix="patchhost-verify-") as folder:
            results = os.path.join(folder, "results.json")
            with open(results, "w", encoding="utf-8") as file:
                json.dump(self.json(level), file, allow_nan=False)
            options = _program.option("key", key) + [f"--out={os.fspath(out)}"]
            _, answer = _program.ask(("verify-engine", "seal"), options, (results,))
        made: dict[str, Any] = answer
        return made

    def table(self, level: str | None = None) -> str:
        """The results for people."""
        level = level or self.default_level
        counts: dict[tuple[str, str, str], Counter[str]] = {}
        for one in self.cases:
            count = counts.setdefault((one.level, one.kind, one.cls), Counter())
            count.update(["cases", one.answered, "wrong"] if not one.right else ["cases", one.answered])
        rows = [
            [kind, cls, which, *(str(count[key]) for key in ("cases", "accepted", "refused", "wrong"))]
            for (which, kind, cls), count in sorted(counts.items())
        ]
        head = ["kind", "class", "level", "cases", "accepted", "refused", "wrong"]
        lines = [self._head(), "", *_columns([head, *rows]), *self._notes()]
        wrong = self.wrong()
        if wrong:
            lines += ["", "wrong:"]
            lines += [f"  {one.id} {one.kind} of {one.tensor or one.cls}: {one.detail}" for one in wrong]
        lines += ["", *self._verdict(level)]
        return "\n".join(lines)

    def _head(self) -> str:
        families = ", ".join(model["family"] for model in self.models)
        engine = " ".join(filter(None, (self.engine["name"], self.engine["version"])))
        return f"{engine}, backend {self.engine['backend']}: {families}; seed {self.seed}, {self.kit}"

    def _notes(self) -> Iterable[str]:
        yield ""
        for family, caches in self.caches.items():
            prefix = caches["prefix"]
            if "after_reset" in prefix:
                said = f"without a reset {prefix['without_reset']}, after the reset {prefix['after_reset']}"
            else:
                said = f"not judged: {prefix.get('skipped', '')}"
            yield f"prefix cache of {family}: {said}"
        for family, layers in self.layers.items():
            sent, kept = layers["checkpoint"], layers["engine"]
            same = "the same" if layers["same"] else "NOT the same"
            yield (
                f"quantized layers of {family}: {len(sent['quantized'])} of {sent['layers']} sent, "
                f"{len(kept['quantized'])} of {kept['layers']} held, {same}"
            )
        for family, checked in self.versions.items():
            said = f"held against the weights in {checked} cases" if checked else "none reported"
            yield f"weight versions of {family}: {said}"
        for family, fresh in self.fresh.items():
            left_out = len(fresh["not_compared"])
            yield (
                f"fresh loads of {family}: {fresh['checkpoints']} checkpoints; two of the first differ by "
                f"{fresh['logprob_tolerance']:.3g} in log probabilities; {left_out} tensors not compared"
            )

    def _verdict(self, level: str) -> Iterable[str]:
        totals = self.totals()
        right, off = totals["right_updates"], totals["right_updates_wrong"]
        passed = "FAIL" if off else "pass"
        yield f"reload:     {passed}: {right - off} of {right} right updates are done right"
        faulty, bad = totals["faulty_updates"], totals["faulty_updates_wrong"]
        passed = "FAIL" if bad else "pass"
        yield (
            f"validation: {passed}: {faulty - bad} of {faulty} faulty updates are refused with the old weights kept; "
            f"{totals['faulty_updates_accepted']} were accepted"
        )
        yield f"verdict at level {level}: {'pass' if self.passed(level) else 'FAIL'}"
        if self.passed(level) and bad:
            yield "This engine trusts its sender. What it accepts wrongly does not count here; --level full counts it."


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[at]) for row in rows) for at in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
