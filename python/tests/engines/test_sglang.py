"""patchhost.sglang against SGLang 0.5.23: its own weight updater, plug-in loader and hook registry on a CPU, with a
stand-in for the model; and, without importing it, the places in its source that the plug-in stands on."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest
from conftest import MODEL, missing

from patchhost import RefitError, Refused, versions
from patchhost import sglang as plug

REASON = missing("sglang", "torch")
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


@pytest.fixture(scope="module")
def ran(run_script: Any) -> Any:
    out = run_script("sglang_loop.py", str(MODEL), PATCHHOST_PATCHES='["fp8_block"]')
    plain = run_script("sglang_loop.py", str(MODEL))
    if "skip" in plain:
        pytest.skip(plain["skip"])
    return out, plain


def source(path: str) -> ast.Module:
    found = importlib.util.find_spec("sglang")
    assert found is not None and found.submodule_search_locations
    return ast.parse(Path(found.submodule_search_locations[0], *path.split("/")).read_text(encoding="utf-8"))


def method(tree: ast.Module, cls: str, name: str) -> ast.FunctionDef:
    found = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == cls]
    return next(node for node in found[0].body if isinstance(node, ast.FunctionDef) and node.name == name)


def test_the_source_is_what_the_plugin_stands_on() -> None:
    assert versions.check("sglang").startswith("0.5.23")
    tree = source("srt/model_executor/model_runner_components/weight_updater.py")
    update = method(tree, "WeightUpdater", "update_weights_from_tensor")
    assert [a.arg for a in update.args.args] == ["self", "named_tensors", "load_format"]
    calls = [ast.unparse(node) for node in ast.walk(update) if isinstance(node, ast.Call)]
    assert "dynamic_import(load_format)" in calls
    assert "custom_loader(self.get_model(), named_tensors)" in calls
    manager = source("srt/managers/scheduler_components/weight_updater.py")
    for name in ("begin_weight_update", "end_weight_update"):
        assert [a.arg for a in method(manager, "SchedulerWeightUpdaterManager", name).args.args] == ["self", "recv_req"]
    # A custom loader that raises is caught nowhere on its way: that is what the hook is for.
    outer = method(manager, "SchedulerWeightUpdaterManager", "update_weights_from_tensor")
    assert not [node for node in ast.walk(outer) if isinstance(node, ast.Try)]
    assert not [node for node in ast.walk(update) if isinstance(node, ast.Try)]


def test_a_model_comes_in_parts_and_is_loaded_once(ran: Any) -> None:
    _, out = ran
    assert out["hooked"] and out["session_hooked"] == [True, True]
    assert [part[0] for part in out["parts"]] == [True] * 3
    assert "84 tensors are still to come" in out["parts"][0][1] and out["parts"][2][1] == "Success"
    assert out["loaded"] == [1, 134] and out["same"] is True


def test_a_refusal_is_an_answer_and_loads_nothing(ran: Any) -> None:
    for out in ran:
        poisoned, first = out["names"]
        # What one tensor shows is refused with its bucket, the rest where the whole update is proved.
        assert out["poisoned"][0][0] is True
        assert out["poisoned"][1][0] is False and poisoned in out["poisoned"][1][1]
        assert out["twice"][0] is False and first in out["twice"][1]
        assert out["unknown"][0] is False and out["misshapen"][0] is False
        assert out["after_refused"] == 1
        assert out["again"][0][0] is True and out["again"][1] == 104 and out["again"][2] == [True, "Success"]
        assert out["after_again"][0] == 2
        assert out["ended"][0] is False and "114 tensors did not come" in out["ended"][1] and out["ended"][2] == 2


def test_drafts_and_a_failure_inside_sglang(ran: Any) -> None:
    for out in ran:
        assert out["draft"][0] is False and "LlamaForCausalLMEagle" in out["draft"][1]
        assert out["other_formats"] == [True, "Success"]
        assert out["mixture_1"] == out["mixture_2"] == "InternalError"


def test_with_fp8_the_model_gets_widened_values(ran: Any) -> None:
    quantized, _ = ran
    assert quantized["loaded"] == [1, 134] and quantized["same"] is False


class Qwen3MoeForCausalLM:
    """A model without torch: the plug-in only calls `load_weights`."""

    def __init__(self) -> None:
        self.loads: list[list[str]] = []

    def load_weights(self, weights: Any) -> None:
        self.loads.append([name for name, _ in weights])


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PATCHHOST_PATCHES", "PATCHHOST_REQUIRE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(plug.FOLDER, str(MODEL))


def tensors() -> list[tuple[str, Any]]:
    from safetensors.torch import load_file

    return list(load_file(str(MODEL / "model.safetensors")).items())


def test_without_the_hooks_a_refusal_is_raised(folder: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Qwen3MoeForCausalLM()
    items = tensors()
    plug.load(model, items[:9])
    with pytest.raises(RefitError, match="came already"):
        plug.load(model, items[8:])
    with pytest.raises(RefitError, match="an earlier part"):
        plug.load(model, items[20:])
    plug.load(model, items)
    assert len(model.loads) == 1 and plug.pending(model) == []
    monkeypatch.setenv("PATCHHOST_REQUIRE", "1")
    with pytest.raises(Refused, match="hooks are not in place"):
        plug.load(Qwen3MoeForCausalLM(), items)


def test_an_fp8_checkpoint_needs_a_patch_with_its_layers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safetensors.torch import save_file

    from patchhost import PatchSet

    wide = dict(tensors())
    served = dict(PatchSet.load("fp8_block").quantize_stream(wide))
    save_file({name: tensor.contiguous() for name, tensor in served.items()}, str(tmp_path / "model.safetensors"))
    (tmp_path / "config.json").write_text((MODEL / "config.json").read_text())
    monkeypatch.setenv(plug.FOLDER, str(tmp_path))
    for name in ("PATCHHOST_REQUIRE", "PATCHHOST_PATCHES"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RefitError, match="scales for it"):
        plug.load(Qwen3MoeForCausalLM(), wide.items())
    monkeypatch.setenv("PATCHHOST_PATCHES", '["fp8_block"]')
    model = Qwen3MoeForCausalLM()
    plug.load(model, wide.items())
    assert sorted(model.loads[0]) == sorted(served)
    monkeypatch.setenv("PATCHHOST_PATCHES", '[{"component": "fp8_block", "settings": {"keep": "*.q_proj.weight"}}]')
    with pytest.raises(RefitError, match="keeps it"):
        plug.load(Qwen3MoeForCausalLM(), wide.items())
