"""`settings()`: what the plug-ins of all engines are configured with, and where each value came from.

Two places are read. Environment variables (`PATCHHOST_PATCHES`, `PATCHHOST_LEDGER`, …) reach every process of a job.
What vLLM calls `additional_config` belongs to one engine, and wins:

```sh
vllm serve MODEL --additional-config '{"patchhost": {"patches": ["fp8_block"], "ledger": "/runs/7"}}'
```

A key that is not known is refused, and so is a variable that is almost one of these.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any

from .errors import HostError, UsageError

if TYPE_CHECKING:
    from .patchset import PatchSet

_PREFIX = "PATCHHOST_"
_OTHERS = frozenset(
    "ADMIN BUILD_PROGRAM CACHE ISA LOG PROGRAM REPAIR_RELOADS SEED SERVER SGLANG_MODEL THREADS TOKEN_FILE".split()
)
"variables of patchhost that are no settings of a plug-in"
_WORDS = {"repair": ("auto", "off"), "readback": ("full", "off")}


@dataclass(frozen=True)
class Settings:
    """The configuration of one replica.

    patches: what `patchhost.refitter.load_patches` takes: names, paths, or mappings with `component`, `sha256` and
        `settings`. None: updates are proved, and nothing is changed.
    ledger: a folder; each worker writes a file of its own into it.
    policy, lock, locked, isolate: as in `PatchSet.load`.
    staging_limit: most bytes that one update may hold before it is proved; `None`: twice the model.
    require: a plug-in that is not there, or that did not load, is an error before the first step.
    digest: whether an update's tensors are digested for the ledger.
    repair: `auto` mends layers that an engine does not reload right; `off` refuses such a model.
    readback: `full` compares what the engine's layers hold after a load with the stream; `off` does not.
    actor: who is named in the ledger.
    sender_timeout: seconds that a worker waits for the next part of an update whose sender says nothing; 0: for ever.
        `None`: 120 in vLLM's weight transfer, 1800 in verl, whose trainer may compute between two parts.
    """

    patches: Any = ()
    ledger: str | None = None
    policy: str | None = None
    lock: str | None = None
    locked: bool = False
    isolate: bool = False
    staging_limit: int | None = None
    require: bool = False
    digest: bool = True
    repair: str = "auto"
    readback: str = "full"
    actor: str = "trainer"
    sender_timeout: int | None = None

    def load(self, *, host: tuple[str, str] | None = None, config: Any = None) -> PatchSet:
        """The patches, loaded: for this engine (name and version) and the config of this model."""
        from .refitter import load_patches

        return load_patches(
            self.patches,
            host=host,
            config=config,
            policy=self.policy,
            lock=self.lock,
            locked=self.locked,
            isolate=self.isolate,
        )

    def ledger_file(self, rank: int = 0, replica: int | str | None = None) -> str | None:
        """The ledger of one worker, in the folder, which is made where it is missing. `replica`: of the engine, where a
        job runs more than one. Raises `HostError`."""
        if self.ledger is None:
            return None
        try:
            os.makedirs(self.ledger, exist_ok=True)
        except OSError as error:
            why = error.strerror or str(error)
            raise HostError(f"the ledger folder {self.ledger}", why, "give a folder that can be written") from error
        name = f"rank-{rank}.jsonl" if replica is None else f"replica-{replica}-rank-{rank}.jsonl"
        return os.path.join(self.ledger, name)


_NAMES = tuple(field.name for field in fields(Settings))
_TEXTS = ("ledger", "policy", "lock", "actor")
_NUMBERS = {"staging_limit": 1, "sender_timeout": 0}
"the least value of each"
_FLAGS = ("locked", "isolate", "require", "digest")


def settings(vllm_config: Any = None) -> Settings:
    """Reads the environment, then `vllm_config.additional_config["patchhost"]` over it. Raises `UsageError`."""
    values = _environment()
    additional = getattr(vllm_config, "additional_config", None)
    if isinstance(additional, Mapping) and "patchhost" in additional:
        values |= _mapping(additional["patchhost"], '`additional_config["patchhost"]`')
    return Settings(**values)


def of_mapping(given: Mapping[str, Any]) -> Settings:
    """Settings from a mapping alone; the environment is not read. Raises `UsageError`."""
    return Settings(**_mapping(given, "the settings"))


def _environment() -> dict[str, Any]:
    known = {_PREFIX + name.upper(): name for name in _NAMES}
    for variable in os.environ:
        if not variable.startswith(_PREFIX) or variable in known or variable[len(_PREFIX) :] in _OTHERS:
            continue
        near = get_close_matches(variable, known, n=1, cutoff=0.85)
        if near:
            why = f"there is no such setting; did you mean {near[0]}?"
            raise UsageError(f"the variable {variable}", why, f"call it {near[0]}, or unset it")
    found = {variable: os.environ[variable] for variable in known if os.environ.get(variable, "") != ""}
    return {known[name]: _checked(known[name], _parsed(known[name], text), name) for name, text in found.items()}


def _parsed(name: str, text: str) -> Any:
    if name in _FLAGS:
        word = text.strip().lower()
        return {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(word, text)
    if name in _NUMBERS:
        return int(text) if text.strip().isdecimal() else text
    if name == "patches" and text.lstrip().startswith(("[", "{", '"')):
        try:
            return json.loads(text)
        except ValueError as error:
            raise UsageError(_PREFIX + "PATCHES", f"it is not JSON: {error}", 'give ["fp8_block"]') from error
    return text


def _mapping(given: Any, where: str) -> dict[str, Any]:
    if not isinstance(given, Mapping):
        why = f"it is of type {type(given).__name__}"
        raise UsageError(where, why, 'give a mapping: {"patchhost": {"patches": ["fp8_block"]}}')
    for key in given:
        if key not in _NAMES:
            near = get_close_matches(str(key), _NAMES, n=1)
            why = f"the key {str(key)!r:.100} is not known" + (f"; did you mean `{near[0]}`?" if near else "")
            raise UsageError(where, why, f"the keys are {', '.join(_NAMES)}")
    return {name: _checked(name, value, f"`{name}` of {where}") for name, value in given.items() if value is not None}


def _checked(name: str, value: Any, where: str) -> Any:
    wanted = ""
    if name in _FLAGS and not isinstance(value, bool):
        wanted = "true or false (in a variable: 1 or 0)"
    elif name in _TEXTS and (not isinstance(value, str) or not value or "\0" in value):
        wanted = "a text that is not empty"
    elif name in _WORDS and value not in _WORDS[name]:
        wanted = " or ".join(f"`{word}`" for word in _WORDS[name])
    elif name in _NUMBERS and (isinstance(value, bool) or not isinstance(value, int) or value < _NUMBERS[name]):
        wanted = f"a whole number, {_NUMBERS[name]} or more"
    elif name == "patches" and not isinstance(value, (str, list, tuple, Mapping)):
        wanted = "a list of names, paths or mappings with `component`, `sha256` and `settings`"
    if wanted:
        raise UsageError(where, f"it is {value!r:.100}", f"give {wanted}")
    return value
