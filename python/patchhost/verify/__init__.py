"""A CI kit for weight updates: does an inference engine hold, after each update, what a fresh load would hold?

```sh
python -m patchhost.verify vllm --family qwen3_moe                       # stock vLLM, reload_weights
python -m patchhost.verify vllm --backend patchhost --family qwen3_moe --out cert.json
python -m patchhost.verify transformers --family qwen3
```

```python
from patchhost.verify import Plan, Remote, run

plan = Plan.make("qwen3_moe", "plan", seed=1, cases=60)
with Remote("vllm", "stock") as engine:
    results = run(engine, plan)
print(results.table())
assert results.passed("reload")
```

The kit makes tiny checkpoints with random weights, loads each of them into an engine of its own, and then sends right
and faulty updates to one engine. After each update it compares the tokens and log probabilities of all prompts, and
the digests of all parameters and buffers, with those of the fresh loads. It needs no GPU and no download.

**Two levels.** An engine has two duties, and many engines have only the first:

- `reload`: a **right** update (full, twice, in any order, one tensor changed) leaves what a fresh load has. So do
  caches, after the reset that the engine's manual asks for.
- `full`: also, a **faulty** update (lost, doubled, misshapen, NaN, a sender that died) is refused, and the old weights
  serve on.

`--level` says which one sets the exit code. Default: `full` for the backend `patchhost`, which promises to validate;
`reload` for all others. An engine that trusts its sender would be red in CI for ever at `full`, and then nobody would
look at it; a reload that is wrong is a bug today. The table and the certificate always have both verdicts, and say how
many faulty updates were accepted. The `verdict` of a certificate is that of `full`.

Exit codes: 0 all is right at this level, 1 something is wrong, 2 wrong usage, 4 the engine or the program cannot start.

Your own engine: make a subclass of `Engine` and give it to `run`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .engine import Answer, Engine, EngineError, Held, Outcome
    from .kit import run
    from .plan import Case, Checkpoint, Plan
    from .remote import Remote
    from .results import CaseResult, Results
    from .stream import Stream, Tensor

_WHERE = {
    "Answer": "engine",
    "Engine": "engine",
    "EngineError": "engine",
    "Held": "engine",
    "Outcome": "engine",
    "run": "kit",
    "Case": "plan",
    "Checkpoint": "plan",
    "Plan": "plan",
    "Remote": "remote",
    "CaseResult": "results",
    "Results": "results",
    "Stream": "stream",
    "Tensor": "stream",
}

__all__ = [
    "Answer",
    "Case",
    "CaseResult",
    "Checkpoint",
    "Engine",
    "EngineError",
    "Held",
    "Outcome",
    "Plan",
    "Remote",
    "Results",
    "Stream",
    "Tensor",
    "run",
]


def __getattr__(name: str) -> Any:
    module = _WHERE.get(name)
    if module is None:
        raise AttributeError(f"module 'patchhost.verify' has no attribute {name!r}")
    from importlib import import_module

    value = getattr(import_module(f"{__name__}.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(set(globals()) | set(__all__))
