"""The recipes of `docs/python.md` run as they stand: each in a process of its own, in an empty folder."""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import pytest

pytest.importorskip("torch")
ROOT = pathlib.Path(__file__).resolve().parents[2]
DOC = ROOT / "docs" / "python.md"
# A custom patch is a file of the user; here it is one that the repository has.
CUSTOM = ROOT / "guests" / "fp8_block.wasm"
RECIPE = re.compile(r"^<!-- recipe: ([\w-]+) -->\n```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)

# What the last line of each says.
LAST = {
    "quantize": r"14 of 19 tensors became FP8; relative error of \S+: 0\.02\d\d, measured by the cast: 0\.02\d\d",
    "refit": r"ledger: 28 records, 0 lost, 20 refits live",
    "lock": r"3 of 3 were refused; the locked one has the digest sha256:[0-9a-f]{64}",
    "custom": r"loaded fp8_block [\d.]+ with \{'profile': 'verl-triton', .*",
    "compare": r"compared 5 tensors: fp8_block_mse gains 0\.[1-9]\d dB on average",
}

pytestmark = pytest.mark.skipif(not DOC.is_file(), reason="docs/python.md is not there")


def recipes():
    found = RECIPE.findall(DOC.read_text(encoding="utf-8"))
    assert len(dict(found)) == len(found), "two recipes have one name"
    return dict(found)


def run(folder, code, head=""):
    (folder / "recipe.py").write_text(head + code, encoding="utf-8")
    env = {"OMP_NUM_THREADS": "1", **os.environ}
    # The recipe runs in another folder than this test.
    for key in ("PYTHONPATH", "PATCHHOST_PROGRAM"):
        if env.get(key):
            env[key] = os.pathsep.join(os.path.abspath(part) for part in env[key].split(os.pathsep))
    command = [sys.executable, "recipe.py"]
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout.splitlines()


def test_the_page_has_these_recipes():
    assert list(recipes()) == list(LAST)


@pytest.mark.parametrize("name", LAST)
def test_a_recipe(name, tmp_path):
    if name == "custom":
        if not CUSTOM.is_file():
            pytest.skip("there is no component to play the user's own")
        shutil.copy(CUSTOM, tmp_path / "my_patch.wasm")
    lines = run(tmp_path, recipes()[name])
    assert re.fullmatch(LAST[name], lines[-1]), lines[-1]
    text = "\n".join(lines)
    if name == "lock":
        assert "PH709 not-in-lock" in text and "PH710 digest-mismatch" in text
    if name == "custom":
        assert "next: if it is meant, review it and accept it: patchhost lock my_patch.wasm" in text
    if name == "compare":
        drawn = importlib.util.find_spec("matplotlib") is not None
        assert (tmp_path / "compare.png").is_file() == drawn and ("plot: compare.png" in lines) == drawn


def test_the_comparison_without_matplotlib(tmp_path):
    lines = run(tmp_path, recipes()["compare"], "import sys\nsys.modules['matplotlib'] = None\n")
    assert "no plot: matplotlib is missing (pip install matplotlib)" in lines
    assert re.fullmatch(LAST["compare"], lines[-1]) and not (tmp_path / "compare.png").exists()
