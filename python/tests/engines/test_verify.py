"""The kit that verifies engines: it must flag every engine that is wrong in one way, and no other.

Most tests use an engine in memory whose "model" is a hash of its tensors. Those with vLLM and transformers skip where
these are not installed.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import struct
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import patchhost
import pytest

from patchhost import _program
from patchhost.errors import Error, HostError, UsageError
from patchhost.verify import Answer, Engine, EngineError, Held, Outcome, Plan, Remote, Results, Stream, Tensor, run
from patchhost.verify import __main__ as command
from patchhost.verify import stream as streams

NAMES = {
    "model.embed_tokens.weight": ("embedding", (4, 2)),
    "model.layers.0.input_layernorm.weight": ("norm", (2,)),
    "model.layers.0.self_attn.q_proj.weight": ("attention", (2, 2)),
    "model.layers.0.mlp.experts.0.up_proj.weight": ("expert", (3, 2)),
    "model.layers.0.mlp.experts.0.down_proj.weight": ("expert", (3, 2)),
}
EMBEDDING, NORM, QUERY, UP, DOWN = NAMES
CASES: list[tuple[str, str, str, list[dict[str, Any]]]] = [
    ("full", "accept", "base", []),
    ("scaled-expert", "accept", "c1", []),
    ("twice", "accept", "c1", []),
    ("stale-head", "accept", "c2", []),
    ("out-of-order", "accept", "c1", [{"op": "shuffle", "seed": 3}]),
    ("lost", "refuse", "c2", [{"op": "drop", "name": NORM}]),
    ("doubled", "refuse", "c2", [{"op": "repeat", "name": DOWN, "instead_of": UP}]),
    ("doubled", "refuse", "c2", [{"op": "repeat", "name": DOWN, "instead_of": None}]),
    ("truncated", "refuse", "c2", [{"op": "truncate", "name": UP, "shape": [2, 2]}]),
    ("misshapen", "refuse", "c2", [{"op": "reshape", "name": UP, "shape": [2, 3]}]),
    ("renamed", "refuse", "c2", [{"op": "rename", "name": UP, "to": "up"}]),
    ("non-finite", "refuse", "c2", [{"op": "poison", "name": UP, "index": 3, "value": "nan"}]),
    ("interleaved", "refuse", "c2", [{"op": "interleave", "with": "c1", "names": [UP]}]),
    ("killed", "refuse", "c2", [{"op": "stop", "after": 3}]),
    ("full", "accept", "c2", []),
]

FAULTS = ["doubled", "interleaved", "lost", "misshapen", "non-finite", "renamed", "truncated"]


def tensors(seed: str, names: Sequence[str] = tuple(NAMES)) -> list[Tensor]:
    made = []
    for name in names:
        size = streams.count(NAMES[name][1])
        # Small numbers in bf16: finite, whatever the hash is.
        data = b"".join(bytes((byte, 0x3F)) for byte in hashlib.sha256((seed + name).encode()).digest()[:size])
        made.append(Tensor(name, "BF16", NAMES[name][1], data))
    return made


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    """A plan as the program writes one, over five small tensors."""
    base = tensors("base")
    changed = {"base": base, "c1": tensors("c1", [UP]), "c2": tensors("c2", [EMBEDDING])}
    listed = []
    for name, some in changed.items():
        other = {one.name: one for one in some}
        whole = [other.get(one.name, one) for one in base]
        (tmp_path / name).mkdir()
        streams.write(tmp_path / name / "model.safetensors", whole)
        (tmp_path / name / "config.json").write_text("{}")
        about = {
            one.name: {
                "class": NAMES[one.name][0],
                "dtype": one.dtype,
                "shape": list(one.shape),
                "sha256": hashlib.sha256(one.data).hexdigest(),
            }
            for one in whole
        }
        listed.append({"name": name, "path": name, "change": "", "sha256": "0" * 64, "tensors": about})
    cases = [
        {
            "id": f"{at:04}", "kind": kind, "class": None, "tensor": None, "expect": expect, "checkpoint": checkpoint,
            "then_holds": checkpoint if expect == "accept" else None, "edits": edits, "why": kind,
        }
        for at, (kind, expect, checkpoint, edits) in enumerate(CASES)
    ]  # fmt: skip
    text = {
        "version": 1, "kit": "patchhost 0", "seed": 1, "family": "fake", "architecture": "Fake", "tied": False,
        "prompts": [[1, 2, 3], [4, 5]], "max_tokens": 4, "checkpoints": listed, "cases": cases,
    }  # fmt: skip
    (tmp_path / "plan.json").write_text(json.dumps(text))
    return Plan.read(tmp_path)


class Fake(Engine):
    """An engine in memory, right in everything but `flaw`."""

    name, version, backend = "fake", "1", "memory"

    def __init__(self, flaw: str = "") -> None:
        self.flaw, self.weights, self.head, self.starts = flaw, None, b"", 0

    def start(self, folder: str) -> None:
        self.weights = {one.name: one for one in streams.read(folder)}
        self.head, self.serves, self.cache, self.half = self.weights[EMBEDDING].data, "default", {}, {}
        self.starts += 1

    def alive(self) -> bool:
        return self.weights is not None

    def stop(self) -> None:
        self.weights = None

    def forget(self) -> None:
        if self.flaw != "cache survives":
            self.cache = {}

    def weight_version(self) -> str:
        return self.serves

    def digests(self) -> dict[str, Held]:
        self._needed()
        return {
            name: Held(one.dtype, one.shape, hashlib.sha256(one.data).hexdigest()) for name, one in self.weights.items()
        }

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int, cache: bool = False) -> list[Answer]:
        self._needed()
        return [self._answer(tuple(prompt), max_tokens, cache) for prompt in prompts]

    def _needed(self) -> None:
        if self.weights is None:
            raise EngineError("a call", "it is dead", "start it")

    def _answer(self, prompt: tuple[int, ...], count: int, cache: bool) -> Answer:
        if cache and prompt in self.cache:
            tokens, logprobs = self.cache[prompt]
            return Answer(tokens, logprobs, (), len(prompt))
        data = b"".join(self.weights[name].data for name in sorted(self.weights)) + self.head + repr(prompt).encode()
        if self.flaw == "random":
            data += bytes([self.starts])
        tokens = tuple(hashlib.sha256(data).digest()[:count])
        logprobs = tuple(-one / 7 for one in tokens)
        if cache:
            self.cache[prompt] = tokens, logprobs
        return Answer(tokens, logprobs)

    def refit(self, stream: Stream, version: str) -> Outcome:
        self._needed()
        fault = self._fault(stream)
        kept = {one.name: one for one in stream.tensors if self._fits(one)}
        if not stream.finished:
            if self.flaw == "half of a killed session":
                self.weights |= kept
            return Outcome(False, "left open")
        if fault and not self._overlooks(fault):
            if self.flaw == "old weights lost":
                self.weights |= kept
            if self.flaw == "dies":
                self.weights = None
            if self.flaw == "version moves":
                self.serves = version
            return Outcome(False, fault)
        if self.flaw == "refuses order" and list(kept) != list(self.weights):
            return Outcome(False, "out of order")
        if self.flaw == "forgets a tensor":
            kept.pop(UP)
        if self.flaw == "second differs" and all(self.weights[name] == one for name, one in kept.items()):
            self.weights[UP] = tensors("wrong", [UP])[0]
            return Outcome(True)
        self.weights |= kept
        if self.flaw != "packed head":
            self.head = self.weights[EMBEDDING].data
        if self.flaw != "version stays":
            self.serves = version
        return Outcome(True)

    def _fits(self, one: Tensor) -> bool:
        return one.name in self.weights and one.shape == self.weights[one.name].shape

    def _overlooks(self, fault: str) -> bool:
        return self.flaw in (fault, "trusts its sender")

    def _fault(self, stream: Stream) -> str:
        names = [one.name for one in stream.tensors]
        if len(names) != len(set(names)):
            return "takes doubled"
        if set(names) - set(self.weights):
            return "takes unknown"
        if len(names) < len(self.weights):
            return "takes lost"
        if not all(self._fits(one) for one in stream.tensors):
            return "takes misshapen"
        if any(one.data[at + 1] & 0x7F == 0x7F for one in stream.tensors for at in range(0, len(one.data), 2)):
            return "takes NaN"
        return ""


def wrong(results: Results) -> list[str]:
    return sorted({one.kind for one in results.wrong()})


def test_a_right_engine_passes(plan: Plan) -> None:
    said: list[str] = []
    engine = Fake()
    results = run(engine, plan, progress=said.append)
    assert results.passed("full") and results.passed("reload") and not engine.alive()
    assert len(results.cases) == len(CASES) + 1 and wrong(results) == []
    assert sum("right" in line for line in said) == len(CASES) + 1
    assert engine.starts == 5, "three checkpoints, the first one again, and one for the caches: no restart in between"
    assert {one.answered for one in results.cases if one.expected == "refuse"} == {"refused", "left-open"}
    assert [one.held for one in results.cases][:3] == ["base", "c1", "c1"]


@pytest.mark.parametrize(
    ("flaw", "kinds", "reload"),
    [
        ("takes lost", ["lost"], True),
        ("takes doubled", ["doubled", "interleaved"], True),
        ("takes unknown", ["renamed"], True),
        ("takes misshapen", ["misshapen", "truncated"], True),
        ("takes NaN", ["non-finite"], True),
        ("old weights lost", FAULTS, True),
        ("dies", FAULTS, True),
        ("version moves", FAULTS, True),
        ("half of a killed session", ["killed"], True),
        ("refuses order", ["out-of-order"], False),
        ("forgets a tensor", ["full", "out-of-order", "scaled-expert", "stale-head"], False),
        ("second differs", ["full"], False),
        ("packed head", ["full", "out-of-order", "stale-head"], False),
        ("version stays", ["full", "out-of-order", "scaled-expert", "stale-head", "twice"], False),
    ],
)
def test_an_engine_with_one_flaw_is_flagged(plan: Plan, flaw: str, kinds: list[str], reload: bool) -> None:
    results = run(Fake(flaw), plan)
    assert wrong(results) == kinds and not results.passed("full")
    assert results.passed("reload") is reload
    assert all(one.detail for one in results.wrong())


def test_a_copy_beside_the_parameters_is_seen_by_the_tokens_alone(plan: Plan) -> None:
    results = run(Fake("packed head"), plan)
    head = next(one for one in results.cases if one.kind == "stale-head")
    assert not head.right and "no parameter or buffer differs" in head.detail


def test_faults_that_do_no_harm_are_told_apart(plan: Plan) -> None:
    details = {one.detail for one in run(Fake("takes doubled"), plan).cases if one.kind == "doubled"}
    assert "accepted; its weights are all the same those of c2" in details
    assert any("1 of 5 parameters and buffers differ" in detail and UP in detail for detail in details)


def test_stale_caches(plan: Plan) -> None:
    fresh = run(Fake(), plan).caches["fake"]["prefix"]
    assert fresh == {"exercised": True, "without_reset": "stale", "after_reset": "fresh"}
    results = run(Fake("cache survives"), plan)
    assert results.caches["fake"]["prefix"]["after_reset"] == "stale"
    assert wrong(results) == ["stale-cache"] and not results.passed("reload")


def test_an_engine_that_cannot_be_judged(plan: Plan) -> None:
    engine = Fake("random")
    with pytest.raises(EngineError, match="two fresh loads"):
        run(engine, plan)
    assert not engine.alive()


def test_results(plan: Plan) -> None:
    results = run(Fake("takes lost"), plan)
    made = json.loads(json.dumps(results.json(), allow_nan=False))
    assert made["type"] == "patchhost-engine-certificate" and made["version"] == 1
    assert made["levels"] == {"reload": "pass", "full": "fail"} and made["verdict"] == "fail"
    assert made["level"] == "reload" and results.json("full")["level"] == "full"
    assert set(made["cases"][0]) >= {"id", "kind", "class", "tensor", "expected", "answered", "held", "right", "detail"}
    assert made["totals"]["cases"] == len(CASES) + 1 and made["totals"]["faulty_updates_accepted"] == 1
    assert made["versions_checked"] == {"fake": len(CASES)}
    table = results.table()
    assert "verdict at level reload: pass" in table and "fake-0005 lost" in table
    both = results + run(Fake(), plan)
    assert len(both.cases) == 2 * len(CASES) + 2
    with pytest.raises(UsageError):
        results.passed("all")


def test_a_certificate(plan: Plan, tmp_path: Path) -> None:
    """The program seals what the kit found, and reads it back; one changed byte is seen."""
    place = tmp_path / "cert.json"
    try:
        sealed = run(Fake("takes lost"), plan).seal(place)
    except Error as error:
        pytest.skip(f"no program that seals: {error.why:.200}")
    assert sealed["verdict"] == "fail" and sealed["cases"] == len(CASES) + 1
    assert _program.ask(("verify",), (), (str(place),))[0] == 0
    place.write_text(place.read_text().replace('"right": false', '"right": true', 1))
    with pytest.raises(Error):
        _program.ask(("verify",), (), (str(place),))


def test_what_is_sent(plan: Plan) -> None:
    def stream(*edits: dict[str, Any]) -> Stream:
        return streams.edited(plan.tensors("base"), edits, plan.tensors)

    names = list(NAMES)
    assert [one.name for one in stream().tensors] == names and stream().finished
    assert [one.name for one in stream({"op": "drop", "name": NORM}).tensors] == [one for one in names if one != NORM]
    twice = stream({"op": "repeat", "name": DOWN, "instead_of": UP}).tensors
    assert [one.name for one in twice].count(DOWN) == 2 and UP not in [one.name for one in twice]
    before = plan.tensors("base")[names.index(UP)]
    cut = stream({"op": "truncate", "name": UP, "shape": [3, 1]}).tensors[names.index(UP)]
    assert cut.shape == (3, 1) and cut.data == before.data[:6]
    poisoned = stream({"op": "poison", "name": UP, "index": 3, "value": "inf"}).tensors[names.index(UP)]
    assert struct.unpack("<H", poisoned.data[6:8])[0] == 0x7F80 and poisoned.data[:6] == before.data[:6]
    shuffled = stream({"op": "shuffle", "seed": 3}).tensors
    assert sorted(one.name for one in shuffled) == sorted(names) != [one.name for one in shuffled]
    mixed = stream({"op": "interleave", "with": "c1", "names": [UP]}).tensors
    assert len(mixed) == 6 and mixed[-1].name == UP and mixed[-1] != before
    stopped = stream({"op": "stop", "after": 2})
    assert len(stopped.tensors) == 2 and not stopped.finished
    assert [[len(part) for part in Stream(mixed).parts(most)] for most in (4, 16)] == [[4, 2], [5, 1]]
    for edit in ({"op": "melt"}, {"op": "drop", "name": "nothing"}, {"op": "truncate", "name": UP, "shape": [4, 2]}):
        with pytest.raises(UsageError):
            stream(edit)


def test_plans_that_are_none(plan: Plan, tmp_path: Path) -> None:
    text = json.loads((tmp_path / "plan.json").read_text())
    lost = text["cases"][0] | {"checkpoint": "c9"}
    for change in ({"version": 2}, {"cases": []}, {"prompts": None}, {"cases": [lost]}):
        (tmp_path / "plan.json").write_text(json.dumps(text | change))
        with pytest.raises(UsageError) as caught:
            Plan.read(tmp_path)
        assert caught.value.what and caught.value.why and caught.value.next
    with pytest.raises(UsageError):
        Plan.read(tmp_path / "nowhere")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"\xff" * 20)
    with pytest.raises(HostError, match="no safetensors"):
        plan.tensors("base")


def test_the_command(plan: Plan, capsys: pytest.CaptureFixture[str]) -> None:
    assert command.main(["vllm", "--plan", str(plan.folder), "--family", "qwen3"]) == 2
    assert command.main(["vllm", "--plan", str(plan.folder / "nowhere")]) == 2
    assert command.main(["vllm", "--plan", str(plan.folder), "--plan", str(plan.folder)]) == 2
    assert command.main(["transformers", "--plan", str(plan.folder), "--key", "k"]) == 2
    assert "next:" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        command.main(["vllm", "--backend", "none"])
    assert stopped.value.code == 2
    with pytest.raises(UsageError):
        Remote("sglang")


@pytest.mark.skipif((Path(patchhost.__file__).parents[1] / "transformers").is_dir(), reason="transformers is beside patchhost")
def test_an_engine_that_is_not_installed(tmp_path: Path) -> None:
    """A Python of this version without any package: the import fails, and the error names what to install."""
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S "$@"\n')
    bare.chmod(0o755)
    with Remote("transformers", python=str(bare)) as engine:
        with pytest.raises(EngineError, match="install transformers"):
            engine.start(str(tmp_path))
        assert not engine.alive()


def program_plan(family: str, folder: Path, cases: int) -> Plan:
    try:
        return Plan.make(family, folder, cases=cases)
    except Error as error:
        pytest.skip(f"no program that makes plans: {error.why:.200}")


def test_a_plan_of_the_program(tmp_path: Path) -> None:
    """Its edits are all known here, and what it says of its tensors is so."""
    plan = program_plan("qwen3_moe", tmp_path / "plan", 80)
    assert len(plan.cases) == 80 and len(plan.prompts) > 1
    for case in plan.cases:
        assert plan.stream(case).tensors, case.id
    for name, checkpoint in plan.checkpoints.items():
        for one in plan.tensors(name):
            assert hashlib.sha256(one.data).hexdigest() == checkpoint.tensors[one.name]["sha256"]


def needs(module: str) -> None:
    if importlib.util.find_spec(module) is None:
        pytest.skip(f"{module} is not installed")


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3", "qwen3-tied", "qwen3_moe"])
def test_transformers_reloads_right(family: str, tmp_path: Path) -> None:
    needs("transformers")
    with Remote("transformers") as engine:
        results = run(engine, program_plan(family, tmp_path / "plan", 30))
    assert results.passed("reload"), results.table()


@pytest.mark.slow
def test_stock_vllm_is_flagged_for_moe_and_passes_dense(tmp_path: Path) -> None:
    """vLLM 0.32 on a CPU packs experts at the first load only. The kit is not told so."""
    needs("vllm")
    plans = {family: program_plan(family, tmp_path / family, 12) for family in ("qwen3", "qwen3_moe")}
    with Remote("vllm", "stock") as engine:
        dense, moe = (run(engine, plans[family]) for family in ("qwen3", "qwen3_moe"))
        known = engine.version.startswith(("0.32", "0.33"))
    assert dense.passed("reload") and not dense.passed("full"), dense.table()
    if known:
        assert not moe.passed("reload"), moe.table()
        assert all(not one.right and "w13_weight" in one.detail for one in moe.cases if one.kind in ("full", "twice"))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["qwen3-tied", "qwen3_moe"])
def test_patchhost_in_vllm_passes(family: str, tmp_path: Path) -> None:
    needs("vllm")
    with Remote("vllm", "patchhost") as engine:
        results = run(engine, program_plan(family, tmp_path / "plan", 60))
    assert results.passed("full"), results.table()


@pytest.mark.slow
def test_no_engine_outlives_its_kit(tmp_path: Path) -> None:
    """Not even one that hangs, when the kit is killed."""
    needs("transformers")
    made = program_plan("llama", tmp_path / "llama", 12)
    code = f"""
import os, signal
from patchhost.verify import Remote
engine = Remote("transformers")
engine.start({str(made.first.folder)!r})
print(engine._pid, engine._first.pid, flush=True)
os.kill(engine._pid, signal.SIGSTOP)
os.kill(os.getpid(), signal.SIGKILL)
"""
    environment = dict(os.environ, PYTHONPATH=str(Path(_program.__file__).parents[1]))
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    for pid in map(int, done.stdout.split()):
        for _ in range(100):
            if not Path("/proc", str(pid)).exists() or "State:\tZ" in Path("/proc", str(pid), "status").read_text():
                break
            time.sleep(0.1)
        else:
            pytest.fail(f"process {pid} is still there")


def test_only_the_engine_process_imports_the_engine() -> None:
    """The program of the kit stays light: neither torch nor the engine is imported by it."""
    code = (
        "import sys, patchhost.verify, patchhost.verify.__main__;"
        "sys.exit(any(m in sys.modules for m in ('torch', 'vllm', 'transformers', 'numpy')))"
    )
    root = str(Path(_program.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": root}, check=False).returncode == 0
