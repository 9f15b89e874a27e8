"""One run: fresh loads of all checkpoints, then the cases one after another, then the caches."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from .engine import Answer, Engine, EngineError, Outcome
from .judge import References, Seen, distance, judge, look
from .layers import quantized
from .plan import Case, Plan
from .results import CaseResult, Results

Progress = Callable[[str], None]
_CACHE_TOKENS = 8


def run(engine: Engine, plan: Plan, *, progress: Progress | None = None) -> Results:
    """Puts an engine through the cases of a plan, and judges it.

    The engine is started as often as needed and is stopped at the end. Raises `EngineError` where it cannot start, or
    where two fresh loads differ so that nothing can be judged. What the engine does wrong is in the results, and is no
    exception.
    """
    return _Run(engine, plan, progress or (lambda line: None)).run()


class _Run:
    def __init__(self, engine: Engine, plan: Plan, progress: Progress) -> None:
        self.engine, self.plan, self.progress = engine, plan, progress
        self.references = References()
        self.held = plan.first.name
        # Whether a full reload gives what a fresh load gives. Where not, only a new engine restores weights.
        self.reloads = True

    def run(self) -> Results:
        try:
            self._fresh_loads()
            fresh = self.references.seen[self.plan.first.name]
            layers = quantized(self.plan.first.tensors, fresh.digests)
            cases = []
            for number, case in enumerate(self.plan.cases, 1):
                made = self._case(case)
                cases.append(made)
                self.progress(f"[{number}/{len(self.plan.cases)}] {made.line()}")
            caches, judged = self._caches()
            cases += judged
        finally:
            self.engine.stop()
        return Results.of(self.engine, self.plan, cases, layers, caches, self.references)

    def _fresh_loads(self) -> None:
        """Each checkpoint in a new engine; the first one twice, to learn how far two fresh loads lie apart."""
        plan = self.plan
        for one in [*plan.used(), plan.first]:
            begun = time.monotonic()
            self.engine.start(str(one.folder))
            seen = self._look()
            if one.name in self.references.seen:
                self.references.again(one.name, seen)
            else:
                self.references.seen[one.name] = seen
                self.references.long[one.name] = self._long()
                self.engine.forget()
            self.progress(f"fresh load of {plan.family} {one.name} ({one.change}): {time.monotonic() - begun:.1f} s")

    def _look(self) -> Seen:
        return look(self.engine, self.plan.prompts, self.plan.max_tokens)

    def _long(self) -> Answer:
        return self.engine.answers([self.plan.long_prompt()], _CACHE_TOKENS, cache=True)[0]

    def _case(self, case: Case) -> CaseResult:
        begun = time.monotonic()
        if not self.engine.alive():
            self._restart()
        must_hold = self.held if case.then_holds is None else case.then_holds
        stream = self.plan.stream(case)
        old_version, version = self._version(), f"{self.plan.family}-{case.id}"
        outcome = Outcome(True)
        for _ in range(2 if case.kind == "twice" else 1):
            if outcome.accepted:
                outcome = self.engine.refit(stream, version)
        if not stream.finished and outcome.accepted:
            outcome = Outcome(False, "the session was left open")
        try:
            seen: Seen | str = self._look()
            now = self._version()
            versions = _version_fault(old_version, version, now, outcome.accepted)
            self.references.versions += now is not None
        except EngineError as error:
            # Requests that broke off stay in its queue, so nothing more can be asked of it.
            seen, versions = error.why, ""
            self.engine.stop()
        made = judge(case, self.held, outcome.accepted, outcome.message, seen, self.references, versions)
        if not made.same:
            if case.expect == "accept" and outcome.accepted and not case.edits:
                self.reloads = False
            self._restore(must_hold)
        self.held = must_hold
        took = time.monotonic() - begun
        return CaseResult.of(self.plan, case, made, took)

    def _version(self) -> str | None:
        return self.engine.weight_version() if self.engine.alive() else None

    def _restore(self, name: str) -> None:
        """Puts the weights back that the plan counts on: by a full reload if that can be trusted, else by a restart."""
        self.held = name
        if self.reloads and self.engine.alive():
            try:
                outcome = self.engine.refit(self.plan.whole(name), f"{self.plan.family}-restored")
                if outcome.accepted and not self.references.differences(self._look(), name):
                    return
            except EngineError:
                pass
        self._restart()

    def _restart(self) -> None:
        self.engine.start(str(self.plan.checkpoints[self.held].folder))

    def _caches(self) -> tuple[dict[str, Any], list[CaseResult]]:
        """Asks one prompt before and after an update: an answer out of the old weights' prefix cache is stale. It is a
        case of its own where the engine has such a cache."""
        begun = time.monotonic()
        made, to = self._prefix_cache()
        if "after_reset" not in made["prefix"]:
            return made, []
        fresh = made["prefix"]["after_reset"] == "fresh"
        detail = "" if fresh else f"after the update to {to} and a reset of the cache it answers from the old weights"
        case = CaseResult(
            f"{self.plan.family}-cache", "stale-cache", "all", None, "reload", "accept", "accepted", to, fresh, detail,
            round(time.monotonic() - begun, 2),
        )  # fmt: skip
        self.progress(case.line())
        return made, [case]

    def _prefix_cache(self) -> tuple[dict[str, Any], str]:
        """What the prefix cache gave, and the checkpoint that the update brought."""
        prefix: dict[str, Any] = {"exercised": False}
        made = {
            "prefix": prefix,
            "packed_copies": {"judged_by": "tokens against digests in every case, and the cases of kind stale-head"},
            "lora": {"skipped": "the checkpoints of a plan have no adapters"},
        }
        try:
            self._restart()
            here = self.plan.checkpoints[self.held]
            long = self.references.long
            others = [one for one in self.plan.used() if long[one.name] != long[here.name]]
            if not others:
                prefix["skipped"] = "no two checkpoints of the plan answer the long prompt differently"
                return made, ""
            to = max(others, key=lambda one: one.changed_from(here))
            self._long()
            prefix["exercised"] = self._long().cached > 0
            if not prefix["exercised"]:
                prefix["skipped"] = "the engine has no prefix cache, or used none"
                return made, ""
            outcome = self.engine.refit(self.plan.whole(to.name), f"{self.plan.family}-cache")
            self.held = to.name
            if not outcome.accepted:
                prefix["skipped"] = f"the update was refused: {outcome.message}"
                return made, ""
            prefix["without_reset"] = self._freshness(to.name)
            self.engine.forget()
            prefix["after_reset"] = self._freshness(to.name)
            if prefix["after_reset"] == "stale" and self.references.differences(self._look(), to.name):
                del prefix["without_reset"], prefix["after_reset"]
                prefix["skipped"] = "the update itself was not done right, so its cache says nothing"
        except EngineError as error:
            prefix["skipped"] = f"the engine died: {error.why}"
        return made, self.held

    def _freshness(self, name: str) -> str:
        answer, wanted = self._long(), self.references.long[name]
        same = answer.tokens == wanted.tokens and distance([answer], [wanted]) <= self.references.tolerance
        return "fresh" if same else "stale"


def _version_fault(old: str | None, new: str, now: str | None, accepted: bool) -> str:
    """What is wrong with the version that the engine says it serves."""
    if old is None or now is None or now == (new if accepted else old):
        return ""
    return f"it says that it serves version {now!r}, which is not {new if accepted else old!r}"
