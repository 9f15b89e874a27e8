"""The judgment: is what the engine holds, to the last bit, what a fresh load of a checkpoint holds?

Three witnesses, since each misses something. Tokens and log probabilities miss a weight that these prompts do not
touch. Digests miss whatever an engine keeps beside its parameters, such as a packed copy of a tied head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from .engine import Answer, Engine, EngineError, Held
from .plan import Case

_MESSAGE = 200


@dataclass(frozen=True)
class Seen:
    """What an engine holds at one moment, as far as one can see."""

    answers: tuple[Answer, ...]
    digests: Mapping[str, Held]


@dataclass
class References:
    """Fresh loads of all checkpoints, each in an engine of its own.

    tolerance: how far the log probabilities of two fresh loads of one checkpoint lie apart; 0 for an engine that
    computes alike each time. unstable: parameters and buffers that already differ between two such loads.
    long: the answer to the long prompt, for the prefix cache. versions: how often a version that the engine reported
    was held against its weights.
    """

    seen: dict[str, Seen] = field(default_factory=dict)
    long: dict[str, Answer] = field(default_factory=dict)
    tolerance: float = 0.0
    unstable: frozenset[str] = frozenset()
    versions: int = 0

    def again(self, name: str, seen: Seen) -> None:
        """A second fresh load of a checkpoint: what differs is no fault of an update. Raises `EngineError` where the
        tokens differ: nothing could be judged then."""
        first = self.seen[name]
        if any(one.tokens != two.tokens for one, two in zip(first.answers, seen.answers, strict=True)):
            why = f"two fresh loads of the checkpoint {name} answer the same prompts with other tokens"
            raise EngineError("the engine cannot be judged", why, "make it deterministic: one thread, no sampling")
        self.tolerance = max(self.tolerance, distance(first.answers, seen.answers))
        names = first.digests.keys() | seen.digests.keys()
        self.unstable |= {one for one in names if first.digests.get(one) != seen.digests.get(one)}

    def differences(self, seen: Seen, name: str) -> list[str]:
        """How an engine differs from a fresh load of a checkpoint, in words. Empty: it holds that checkpoint."""
        return differences(seen, self.seen[name], self.tolerance, self.unstable)

    def holds(self, seen: Seen, first: Sequence[str] = ()) -> str | None:
        """The checkpoint that it holds; those of `first` are tried before the others."""
        for name in dict.fromkeys([*first, *self.seen]):
            if not self.differences(seen, name):
                return name
        return None


@dataclass(frozen=True)
class Judgment:
    """right: the engine did what the plan demands. answered: `accepted`, `refused`, `left-open` (nobody ended the
    session) or `gone` (the engine is dead). held: the checkpoint that it holds now, or a few words. same: it holds what
    it must hold. detail: what happened, in one sentence."""

    right: bool
    answered: str
    held: str
    same: bool
    detail: str


def look(engine: Engine, prompts: Sequence[Sequence[int]], max_tokens: int) -> Seen:
    """Asks the engine for everything that is compared. Raises `EngineError` where it is dead."""
    engine.forget()
    return Seen(tuple(engine.answers(prompts, max_tokens)), engine.digests())


def judge(
    case: Case, before: str, accepted: bool, message: str, seen: Seen | str, references: References, versions: str = ""
) -> Judgment:
    """Judges one case. before: the checkpoint held before it. seen: what it holds now, or why nothing can be seen.
    versions: what is wrong with the version that the engine reports, or nothing."""
    must_hold = before if case.then_holds is None else case.then_holds
    message = _short(message)
    wanted = case.expect == "accept"
    if isinstance(seen, str):
        held, off = "nothing", [f"the engine is dead ({_short(seen)})"]
    else:
        held = references.holds(seen, (must_hold, case.checkpoint, before)) or "none of the checkpoints"
        off = references.differences(seen, must_hold)
    same = not off
    right = same and accepted == wanted and not versions
    sentences = []
    if accepted and not wanted:
        sentences.append(_accepted(case, held, off, seen, references))
    elif not accepted and wanted:
        sentences.append(f"refused, though nothing is wrong with it: {message}")
        sentences += [f"and it does not hold {must_hold} now"] if off else []
    elif off:
        then = "accepted" if accepted else f"refused ({message})" if case.ends else message
        what = "compared with a fresh load" if accepted else "the old weights are lost"
        sentences.append(f"{then}, but {what}: {'; '.join(off)}")
    elif not accepted:
        sentences.append(message)
    sentences += [versions] if versions else []
    answered = "gone" if isinstance(seen, str) else "accepted" if accepted else "refused" if case.ends else "left-open"
    return Judgment(right, answered, held, same, "; ".join(sentences))


def _short(text: str) -> str:
    """The engine's own text, which can be a page."""
    return text if len(text) <= _MESSAGE else text[:_MESSAGE] + "…"


def _accepted(case: Case, held: str, off: list[str], seen: Seen | str, references: References) -> str:
    """What an engine holds that accepted a faulty stream."""
    if held == case.checkpoint:
        return f"accepted; its weights are all the same those of {held}"
    if not off:
        return f"accepted without a word, and it still holds {held}"
    if not isinstance(seen, str):
        off = references.differences(seen, case.checkpoint)
    return f"accepted; compared with a fresh load of {case.checkpoint}: {'; '.join(off)}"


def distance(one: Sequence[Answer], two: Sequence[Answer]) -> float:
    """The largest difference of two log probabilities. A NaN is infinitely far from a number, and no distance from
    itself."""
    most = 0.0
    for a, b in zip(one, two, strict=True):
        if len(a.logprobs) != len(b.logprobs) or len(a.prompt_logprobs) != len(b.prompt_logprobs):
            return math.inf
        for x, y in zip(a.logprobs + a.prompt_logprobs, b.logprobs + b.prompt_logprobs, strict=True):
            if x != y and not (math.isnan(x) and math.isnan(y)):
                gap = abs(x - y)
                most = max(most, math.inf if math.isnan(gap) else gap)
    return most


def differences(seen: Seen, wanted: Seen, tolerance: float, unstable: frozenset[str]) -> list[str]:
    """The differences of two engines, in words: tokens, log probabilities, parameters and buffers."""
    said = []
    off = sum(one.tokens != two.tokens for one, two in zip(seen.answers, wanted.answers, strict=True))
    if off:
        said.append(f"{off} of {len(wanted.answers)} prompts give other tokens")
    else:
        gap = distance(seen.answers, wanted.answers)
        if gap > tolerance:
            said.append(f"the same tokens, but log probabilities {gap:.3g} apart")
    names = sorted((seen.digests.keys() | wanted.digests.keys()) - unstable)
    other = [name for name in names if seen.digests.get(name) != wanted.digests.get(name)]
    if other:
        shown = ", ".join(other[:2]) + (", …" if len(other) > 2 else "")
        said.append(f"{len(other)} of {len(names)} parameters and buffers differ ({shown})")
    elif off:
        said.append("though no parameter or buffer differs: the engine computes with a copy that it keeps beside them")
    return said
