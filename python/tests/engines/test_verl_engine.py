"""patchhost.verl with verl 0.9.1 and vLLM 0.32 for CPUs: verl's own sender and class, a real engine, no GPU and no Ray
cluster."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import HERE, MODEL, PACKAGE, missing, path_of

from patchhost import Refused, UsageError, versions
from patchhost.settings import of_mapping, settings

REASON = missing("verl", "vllm", "torch", "transformers", "ray", "tensordict", "zmq")
needs_engine = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.fixture(scope="module")
def static(run_script: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_script("verl_static.py", str(tmp_path_factory.mktemp("static")))


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small dense Qwen3 with random weights: vLLM's mixture of experts takes no LoRA on a CPU."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    folder = tmp_path_factory.mktemp("models") / "dense"
    torch.manual_seed(0)
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "head_dim": 32, "vocab_size": 2048}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512}
    Qwen3ForCausalLM(Qwen3Config(tie_word_embeddings=False, **sizes, **heads)).bfloat16().save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (folder / name).write_text((MODEL / name).read_text())
    return folder


@needs_engine
def test_signatures_are_verls(static: Any) -> None:
    overridden = {
        "__new__",
        "monkey_patch_model",
        "update_weights_from_ipc",
        "_update_weights",
        "update_verl_delta_weights",
    }
    assert set(static["signatures"]) == overridden | {"quant_weights"}
    for name, (ours, theirs) in static["signatures"].items():
        assert ours == theirs, name


@needs_engine
def test_nothing_of_vllm_is_replaced_and_a_replacement_is_seen(static: Any) -> None:
    assert static["compared"] > 10_000 and static["changed"] == []
    hijacked = "vllm.lora.worker_manager.LRUCacheWorkerLoRAManager._load_adapter"
    assert static["replaced_before"] == [] and static["replaced_after"] == [hijacked]
    assert static["seen"] == [hijacked] and hijacked in static["refused"]


@needs_engine
def test_quant_weights_has_verls_bytes(static: Any) -> None:
    made = static["quantization"]
    for dtype in ("torch.bfloat16", "torch.float16"):
        assert made[dtype] == [46, 20, []], dtype
    assert "the patch keeps it, and the model has FP8 memory" in made["router"]
    assert made["block"].startswith("UsageError") and "[2, 3] is NaN" in made["nan"]


@needs_engine
def test_the_checkpoint_engine(static: Any) -> None:
    out = static["transfer"]
    assert out["good"]["rank0"] is True and out["good"]["rank1"] is True and out["good"]["other_rank"] == {}
    for rank in ("rank0", "rank1"):
        assert "the optimizer is on fire" in out["fail"][rank]
        assert "not those of the manifest" in out["flip"][rank] and "step 5 is asked for" in out["step"][rank]
    assert all(one["left"] == [] for one in (out["good"], out["fail"], out["flip"], out["step"]))
    assert "memory of one machine" in out["hosts"]


@needs_engine
@pytest.mark.slow
def test_a_loop_of_full_syncs(run_script: Any, tmp_path: Path) -> None:
    out = run_script("verl_loop.py", str(MODEL), "full", str(tmp_path))
    assert "patchhost.verl.worker.WorkerExtension" in out["mro"] and out["replaced"] == [] and out["changed"] == []
    assert out["patched_model"] is None and "vocab_mask" in out["not_masked"] and "(11)" in out["not_masked"]
    assert out["same"] is None and out["after_same"] == out["first"]
    assert not {7, 9} & {token for one in out["first"] + out["trained"] for token in one}
    # Each refusal reaches the trainer, names the tensor, leaves nothing changed, and the sender is never left waiting.
    assert out["gone"] in out["refused"]["lost"] and "RefitError" in out["refused"]["lost"]
    assert out["gone"] in out["refused"]["nan"] and "[3] is NaN" in out["refused"]["nan"]
    assert "model.layers.0.nothing.weight" in out["refused"]["unknown"]
    assert out["held"] is True and out["after_refused"] == out["first"]
    assert out["step"] is None and out["status"]["updates"] == 4 and out["status"]["refused"] == 3
    assert out["status"]["broken"] is None and "rank-0.jsonl" in out["ledger"]
    assert out["metrics"] and all(isinstance(value, float) for value in out["metrics"].values())
    # Three updates of live memory are a fresh load of the last weights, bit for bit; also the packed experts.
    fresh = run_script("verl_loop.py", str(tmp_path / "saved"), "fresh", "banned")
    assert out["trained"] == fresh["tokens"] and out["trained"] != out["first"]
    assert out["digests"] == fresh["digests"] and len(fresh["digests"]) == 55


@needs_engine
@pytest.mark.slow
def test_a_sync_in_fp8_has_the_values_of_verls_function(run_script: Any, dense: Path, tmp_path: Path) -> None:
    out = run_script("verl_loop.py", str(dense), "fp8", str(tmp_path))
    assert out["sync"] is None and out["quantized"] == 14
    fresh = run_script("verl_loop.py", str(tmp_path / "saved"), "fresh", "all")
    assert out["digests"] == fresh["digests"] and out["tokens"] == fresh["tokens"]


@needs_engine
@pytest.mark.slow
def test_adapters(run_script: Any, dense: Path, tmp_path: Path) -> None:
    out = run_script("verl_loop.py", str(dense), "lora", str(tmp_path))
    assert out["base"] is None and out["after_base"] == out["first"]
    assert out["zero"] is None and out["after_zero"] == out["first"]
    assert out["large"] is None and out["after_large"] != out["first"]
    assert "lora_B" in out["broken"] and "did not come" in out["half"] and out["after_broken"] == out["after_large"]
    assert out["again"] is None and out["after_again"] == out["after_large"]
    assert out["base_tokens"] == out["first"] and out["folders"] == []
    assert "said nothing for 3 s" in out["silent"] and out["after_silent"] == out["first"]


@needs_engine
@pytest.mark.slow
def test_where_one_of_two_workers_refuses_both_keep_their_weights(run_script: Any, dense: Path, tmp_path: Path) -> None:
    out = run_script("verl_loop.py", str(dense), "two", str(tmp_path))
    assert out["same"] is None and out["after_same"] == out["first"]
    for which in (0, 1):
        assert out["name"] in out[f"refused_{which}"] and "is NaN" in out[f"refused_{which}"]
        assert out[f"after_refused_{which}"] == out["first"]
    assert out["other"] is None and out["after_other"] != out["first"]
    assert out["back"] is None and out["after_back"] == out["first"] and out["updates"] == [3, 3]


def python(code: str, site: Path, *first: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    known = {name: value for name, value in os.environ.items() if not name.startswith(("PATCHHOST_", "VERL_"))}
    path = path_of(*first, site, PACKAGE, HERE)
    command = [sys.executable, "-c", code]
    return subprocess.run(
        command,
        env=known | {"PYTHONPATH": path} | environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@needs_engine
def test_a_plugin_that_is_required_and_cannot_run_ends_the_process(site: Path, tmp_path: Path) -> None:
    old = tmp_path / "vllm-0.31.0+cpu.dist-info"
    old.mkdir()
    (old / "METADATA").write_text("Metadata-Version: 2.1\nName: vllm\nVersion: 0.31.0+cpu\n")
    (old / "RECORD").write_text(f"{old.name}/METADATA,,\n")
    code = "import verl, sys; print('patchhost.verl.plugin' in sys.modules)"
    good = python(code, site, PATCHHOST_REQUIRE="1")
    assert good.returncode == 0 and good.stdout.strip().endswith("True"), good.stderr[-2000:]
    # verl logs the failure of a plug-in at DEBUG and goes on: this is the hole.
    silent = python(code, site, tmp_path)
    assert silent.returncode == 0 and silent.stdout.strip().endswith("False"), silent.stderr[-2000:]
    required = python(code, site, tmp_path, PATCHHOST_REQUIRE="1")
    assert required.returncode == 1 and "vllm 0.31.0+cpu is installed" in required.stderr
    external = python(
        code, site, tmp_path, VERL_USE_EXTERNAL_MODULES="patchhost.verl.plugin", VERL_USE_EXTERNAL_PLUGINS="none"
    )
    assert external.returncode == 1 and "Refused" in external.stderr


@needs_engine
def test_require_looks_at_the_configuration(monkeypatch: pytest.MonkeyPatch) -> None:
    from patchhost.verl import require

    named = {"worker_extension_cls": "patchhost.verl.WorkerExtension"}

    def config(engine: dict[str, str], name: str = "vllm") -> dict[str, Any]:
        return {"actor_rollout_ref": {"rollout": {"name": name, "engine_kwargs": {"vllm": engine}}}}

    monkeypatch.setattr(versions, "installed", lambda engine: {"verl": "0.9.1", "vllm": "0.32.0"}[engine])
    assert require(config(named))["verl"] == "0.9.1"
    for wrong in (config({}), config(named, "sglang"), config({"worker_extension_cls": "x.Y"})):
        with pytest.raises(Refused, match="in this verl run"):
            require(wrong)


def test_versions_outside_the_table_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    assert versions.check("vllm", "0.33.1+cu130") and versions.check("verl", "0.9.1")
    for engine, version in (
        ("vllm", "0.34.0"),
        ("vllm", "0.31.9"),
        ("vllm", "0.33.0rc1"),
        ("verl", "0.9.2"),
        ("trl", "x"),
    ):
        with pytest.raises(Refused, match="the plug-in is written for") as error:
            versions.check(engine, version)
        assert "pip install" in error.value.next
    monkeypatch.setattr(versions, "installed", lambda engine: None)
    with pytest.raises(Refused, match="not installed"):
        versions.check("sglang")


def test_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("PATCHHOST_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PATCHHOST_PATCHES", '["fp8_block"]')
    monkeypatch.setenv("PATCHHOST_DIGEST", "0")
    monkeypatch.setenv("PATCHHOST_CACHE", "off")
    found = settings()
    assert found.patches == ["fp8_block"] and found.digest is False and found.repair == "auto"

    given = {"patchhost": {"patches": ["fp8_block_mse"], "actor": "verl", "staging_limit": None}}
    over = settings(SimpleNamespace(additional_config=given))
    assert over.patches == ["fp8_block_mse"] and over.actor == "verl" and over.digest is False
    for wrong in ({"patchs": []}, {"digest": "no"}, {"staging_limit": 0}, {"repair": "maybe"}, {"ledger": ""}):
        with pytest.raises(UsageError):
            of_mapping(wrong)
    monkeypatch.setenv("PATCHHOST_PATCHS", "[]")
    with pytest.raises(UsageError, match="did you mean PATCHHOST_PATCHES"):
        settings()
