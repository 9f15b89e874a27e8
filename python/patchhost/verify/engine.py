"""What the kit asks of an engine: one interface, whatever the engine is and wherever it runs."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

from ..errors import HostError
from .stream import Stream


class EngineError(HostError):
    """The engine cannot start, died, or answered nothing."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What the engine made of one prompt, greedily: token ids, the log probability of each, and those of the prompt
    (empty where the engine gives none). `cached`: how many tokens of the prompt came out of a prefix cache."""

    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    prompt_logprobs: tuple[float, ...] = ()
    cached: int = 0


@dataclass(frozen=True, slots=True)
class Held:
    """One parameter or buffer that the engine holds."""

    dtype: str
    shape: tuple[int, ...]
    sha256: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the engine said to a stream. `message` is its own text where it refused."""

    accepted: bool
    message: str = ""


class Engine(ABC):
    """An engine under test. One object serves a whole run: `start` and `stop` come many times.

    name, version, backend: go into the certificate. default_level: see `patchhost.verify`.
    """

    name = "engine"
    version = ""
    backend = ""
    default_level = "reload"

    @abstractmethod
    def start(self, folder: str) -> None:
        """Loads a checkpoint into a new engine, as a user would; one that runs is stopped first. Raises
        `EngineError`."""

    @abstractmethod
    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int, cache: bool = False) -> list[Answer]:
        """Greedy answers to all prompts. cache: let a prefix cache take part; else no cached prefix may be used."""

    @abstractmethod
    def refit(self, stream: Stream, version: str) -> Outcome:
        """Sends a stream through the engine's own way of updating weights. A stream that is not `finished` is left
        open: the sender is dead. version: the name of these weights, where the engine takes one."""

    @abstractmethod
    def digests(self) -> dict[str, Held]:
        """Every parameter and buffer that the engine holds, by its own names."""

    @abstractmethod
    def alive(self) -> bool:
        """Whether it can still be asked."""

    @abstractmethod
    def stop(self) -> None:
        """Ends it and gives its memory back. May be called twice."""

    def forget(self) -> None:  # noqa: B027 (an engine without caches has nothing to do)
        """Empties the caches, as the engine's manual tells the trainer to do after an update."""

    def weight_version(self) -> str | None:
        """The version that the engine says it serves; `None` where it has no such thing."""
        return None

    def close(self) -> None:
        """Ends everything that outlives one engine."""
        self.stop()
