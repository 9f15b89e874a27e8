"""patchhost inside real vLLM on a CPU: weight updates, swaps, refusals, LoRA, and that nothing of vLLM is changed."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL, PROGRAM, missing

WHY = missing("vllm", "torch", "safetensors")
pytestmark = pytest.mark.skipif(WHY is not None, reason=str(WHY))


@pytest.fixture(scope="module", params=[1, 2], ids=["one worker", "two workers"])
def loop(request: pytest.FixtureRequest, run_script: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What a short run found. With vLLM's own processes, and the start method that it chooses itself."""
    scratch = tmp_path_factory.mktemp("loop")
    environment = {"VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    return run_script("vllm_loop.py", str(MODEL), str(scratch), str(request.param), **environment)


def test_right_updates_give_the_same_bits(loop: Any) -> None:
    assert loop["twice"] and loop["changed"] and loop["back"]


@pytest.mark.parametrize(
    ("what", "word"),
    [
        ("lost", "model.layers.1.input_layernorm.weight"),
        ("non-finite", "[3, 5]"),
        ("truncated", "its shape is"),
        ("doubled", "came already"),
        ("unknown", "model.layers.1.mlp.upproj.weight"),
        ("field", "stepp"),
    ],
)
def test_a_faulty_update_is_refused_by_name_and_the_old_weights_serve(loop: Any, what: str, word: str) -> None:
    assert loop["refused"][what] is not None, f"{what} was accepted"
    assert word in loop["refused"][what]
    assert loop["serving"][what] and loop["after refusals"]


def test_a_killed_sender_leaves_a_clean_engine(loop: Any) -> None:
    assert loop["killed"] and loop["after kill"]


def test_a_swap_lands_at_its_step_on_every_worker_and_rolls_back_bit_for_bit(loop: Any) -> None:
    assert loop["lands at 12"] and loop["other bytes"] and loop["rolled back"]


def test_a_refused_call_of_the_extension_leaves_the_engine_in_order(loop: Any) -> None:
    assert "refused" in loop["unknown swap"] and loop["alive"]


def test_every_worker_says_what_it_loaded_and_read_back(loop: Any) -> None:
    assert [one["rank"] for one in loop["status"]] == list(range(loop["world"]))
    for one in loop["status"]:
        assert one["moe"] == {"stock_keeps_packing": False, "repair_keeps_packing": True}
        assert one["loaded"]["repaired"] == 4 and one["loaded"]["unreadable"] == []
        assert one["loaded"]["read_back"] > 1_000_000
        assert 0 < one["last"]["staged_bytes"] < one["staging_limit"]
        assert set(one["last"]["seconds"]) == {"stage", "prove", "load"}


def test_the_seal_of_a_certificate_is_a_digest_of_it(loop: Any) -> None:
    for certificate in loop["certificates"]:
        seal = certificate.pop("seal")["sha256"]
        text = json.dumps(certificate, sort_keys=True, separators=(",", ":"))
        assert hashlib.sha256(text.encode()).hexdigest() == seal
        assert certificate["update"]["step"] == 14


@pytest.fixture(scope="module")
def inside(run_script: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process with the engine in it found."""
    return run_script("vllm_inside.py", str(MODEL), str(tmp_path_factory.mktemp("inside")))


def test_no_class_of_vllm_is_changed(inside: Any) -> None:
    assert inside["classes"] > 500
    assert inside["changed classes"] == []


def test_the_self_test_decides(inside: Any) -> None:
    assert inside["stock"] == [False, True]
    assert inside["mended upstream"] == [True, True]
    assert "does not hold" in inside["neither"] and "self-test" in inside["raises"]


def test_a_packing_is_inverted_and_a_stale_one_is_seen(inside: Any) -> None:
    assert inside["packing is a permutation"]
    assert "not those of the stream" in inside["without the repair"]


def test_a_tied_head_is_packed_again(inside: Any) -> None:
    assert "lm_head" in inside["rebuilt"] and inside["head with a copy"]


def test_a_head_that_is_not_the_embedding_it_is_tied_to_is_refused(inside: Any) -> None:
    assert inside["tied head"]["the same"] is None
    assert "lm_head.weight" in inside["tied head"]["another"] and "ties it" in inside["tied head"]["another"]


def test_roles_come_from_the_classes_of_vllm(inside: Any) -> None:
    assert inside["roles"] == {
        "model.embed_tokens.weight": "embedding",
        "model.layers.0.input_layernorm.weight": "norm",
        "model.layers.0.mlp.experts.3.up_proj.weight": "expert",
        "model.layers.0.mlp.gate.weight": "router",
        "model.layers.0.self_attn.q_proj.weight": "attention",
        "model.norm.weight": "norm",
    }
    assert "experts" in inside["wrong config"]


def test_stacked_experts_are_another_name_for_the_same(inside: Any) -> None:
    assert inside["stacked"] in ("same", "vLLM takes none")


def test_bodies_give_the_same_tensors(inside: Any) -> None:
    assert inside["bodies"] == {"path": True, "folder": True, "safetensors": True, "data": True, "shm": True}
    for word, text in inside["bad bodies"].items():
        assert text is not None, f"{word} was taken"


def test_an_engine_of_somebody_else_moves_the_bytes(inside: Any) -> None:
    assert inside["wrapped"] == "same" and "input_layernorm" in inside["wrapped lost"]


def test_lora_beside_updates(run_script: Callable[..., Any], tmp_path: Path) -> None:
    """On a dense model: vLLM's kernel for adapters of experts needs Triton."""
    program = os.environ.get("PATCHHOST_PROGRAM", str(PROGRAM))
    plan = [program, "verify-engine", "plan", "--family", "qwen3", "--cases", "6", "--out", str(tmp_path / "plan")]
    subprocess.run(plan, check=True, capture_output=True)
    found = run_script("vllm_lora.py", str(tmp_path / "plan" / "base"), str(tmp_path))
    assert found["plan"]["rank"] == 4 and found["left in /dev/shm"] == []
    assert found["changes"] and found["same adapter again"] and found["base after refit"] and found["lora after refit"]
    assert found["lora on new weights"] and found["zero is base"]
    assert "lora_B" in found["half"] and "not finite" in found["infinite"] and found["still"]


def test_the_hooks_of_this_vllm_are_those_that_were_read() -> None:
    """Of each version that patchhost takes the signatures are on record; the installed one must have them."""
    import importlib.util

    import vllm_hooks

    recorded = json.loads(Path(__file__).with_name("vllm_hooks.json").read_text())
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    root = Path(spec.origin).parents[1]
    assert vllm_hooks.read(root) == recorded[vllm_hooks.version(root)]


READ = {
    "distributed/weight_transfer/base.py:TrainerWeightTransferEngine.__init__": "a new `rank=0`, which is not given",
    "model_executor/layers/fused_moe/unquantized_fused_moe_method.py:UnquantizedFusedMoEMethod._setup_kernel": "the packed "
    "weight always gets new storage; the guard that skips the packing is the same",
    "v1/worker/gpu_worker.py:Worker.update_weights": "draft models only, which are refused here",
    "v1/worker/gpu_worker.py:Worker.finish_weight_update": "draft models only, which are refused here",
}
"""What differs in 0.33 and was read."""


def test_the_hooks_of_vllm_033_are_those_of_032() -> None:
    """0.33 was read, not run: no hook is missing, and what differs is known."""
    recorded = json.loads(Path(__file__).with_name("vllm_hooks.json").read_text())
    assert set(recorded) == {"0.32.0", "0.33.0"}
    assert "missing" not in recorded["0.33.0"].values()
    assert {hook for hook, says in recorded["0.33.0"].items() if says != recorded["0.32.0"][hook]} == set(READ)


@pytest.mark.slow
def test_reload_weights_of_everybody_is_right_with_the_repair(environment: dict[str, str]) -> None:
    """`PATCHHOST_REPAIR_RELOADS=1` (`patchhost.vllm.oot`): stock `reload_weights` of experts, which is wrong without it."""
    command = [sys.executable, "-m", "patchhost.verify", "vllm", "--backend", "stock", "--family", "qwen3_moe", "--cases", "10"]
    codes = {}
    for repair in ("0", "1"):
        env = environment | {"VLLM_PLUGINS": "patchhost", "PATCHHOST_REPAIR_RELOADS": repair}
        codes[repair] = subprocess.run(command, env=env, capture_output=True, check=False, timeout=400).returncode
    assert codes == {"0": 1, "1": 0}
