"""Components that misbehave, through Python: each in a process of its own with a watchdog. Whatever one does, the process
gets an error of this package in time, the tensors are as they were, and the next honest call works."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

pytest.importorskip("torch")

EVIL = Path(__file__).resolve().parents[2] / "guests" / "evil"
pytestmark = pytest.mark.skipif(not EVIL.is_dir(), reason="the repository is not around: no components that misbehave")

HEAD = """
import faulthandler, sys, time
faulthandler.dump_traceback_later(90, exit=True)
import torch
torch.set_num_threads(1)
from patchhost import Board, Error, PatchSet, PatchSpec
NAME = "model.layers.0.self_attn.q_proj.weight"
torch.manual_seed(0)
W = torch.randn(1024, 300).bfloat16()
WHOLE = {NAME: W, "model.norm.weight": torch.ones(300).bfloat16()}
def octets(tensor):
    return bytes(tensor.view(torch.uint8).flatten().tolist())
BEFORE = {name: octets(tensor) for name, tensor in WHOLE.items()}
GOOD = PatchSet.load("fp8_block")
WANT = octets(GOOD.quantize(NAME, W).codes)
SCHEME = GOOD.decide({NAME: W})[NAME].scheme
said = []
def tried(what, call, seconds=10):
    begin = time.perf_counter()
    try:
        call()
    except Error as error:
        assert error.what and error.why and error.next and len(str(error)) < 16384, what
        assert all(c == "\\n" or c.isprintable() for c in str(error)), repr(str(error))
        said.append(what)
    took = time.perf_counter() - begin
    assert took < seconds, f"{what}: {took:.1f} s"
    assert {name: octets(tensor) for name, tensor in WHOLE.items()} == BEFORE, f"{what} changed a tensor"
    assert octets(GOOD.quantize(NAME, W).codes) == WANT, f"after {what}"
def refit(board):
    with board.refit() as one:
        one.add_all(WHOLE)
        for _ in one:
            pass
def all_of(spec, **more):
    made = []
    tried("load", lambda: made.append(PatchSet.load(*([spec] if not isinstance(spec, list) else spec), **more)))
    if made:
        patches = made[0]
        for what, call in (
            ("decide", lambda: patches.decide(WHOLE)),
            ("quantize", lambda: patches.quantize(NAME, W)),
            ("quantize with a scheme", lambda: patches.quantize(NAME, W, scheme=SCHEME)),
            ("scales", lambda: patches.scales(NAME, torch.ones(24), rows=1024, cols=300)),
            ("table", lambda: patches.scale_table(NAME, W)),
            ("refit", lambda: refit(Board(patches))),
            ("masked", lambda: patches.masked(512, 500)),
            ("map_loader", lambda: patches.map_loader(WHOLE, WHOLE)),
            ("admit_lora", lambda: patches.admit_lora({"r": 8}, {"a.lora_A.weight": ("bfloat16", (8, 300))}, WHOLE)),
        ):
            tried(what, call)
    board = Board(GOOD)
    refit(board)
    live = board.status()["active"]
    one = spec[-1] if isinstance(spec, list) else spec
    tried("stage", lambda: board.stage(one))
    tried("stage with tensors", lambda: board.swap(board.stage(one, tensors=WHOLE)))
    # A candidate that fails as it lands is reversed; one that does not can do what it may.
    refit(board)
    assert "load" not in said or board.status()["active"] == live
"""


def run(body, timeout=120):
    """What was refused, in a process that must end well and in time."""
    text = HEAD + textwrap.dedent(body) + "\nprint('SAID', *said, sep='|')\n"
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [sys.executable, "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=env
    ) as child:
        try:
            out, err = child.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            child.kill()
            pytest.fail(f"it hangs: {child.communicate()}")
    assert child.returncode == 0, f"exit {child.returncode}\n{out}\n{err}"
    assert "PanicException" not in err and "panicked" not in err, err
    return out.rsplit("SAID|", 1)[-1].strip().split("|")


# Settings that make a component misbehave, and where it must be refused at the latest.
QUANT = {
    "trap_configure": "load", "spin_describe": "load", "long_name": "load",
    "wrong_decisions": "decide", "bad_scheme": "decide", "big_floor": "decide",
}  # fmt: skip
OTHERS = {"loader_overlap", "loader_short", "loader_spin", "loader_wrong_target", "any_hook", "any_state", "any_wasi"}
ACTIVATION = {"activation_rule", "activation_saturating", "activation_short", "activation_spin"}
NAMES = sorted(path.stem for path in EVIL.glob("*.wasm"))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OTHERS | ACTIVATION])
def test_a_patch_that_quantizes(name):
    settings = {"n": "1"} if name == "trap_nth" else {}
    said = run(f"all_of(PatchSpec({str(EVIL / name)!r} + '.wasm', settings={settings!r}))")
    where = QUANT.get(name, "quantize with a scheme")
    assert where in said, said
    if where != "load":
        assert "refit" in said, said


@pytest.mark.parametrize("name", sorted(ACTIVATION))
def test_a_patch_of_activations(name):
    # Activations are never asked about here; a candidate is refused by what it answers a probe.
    run(f"all_of({str(EVIL / name)!r} + '.wasm')")


@pytest.mark.parametrize("name", sorted(name for name in OTHERS if name.startswith("loader")))
def test_a_loader_map(name):
    said = run(f"all_of(['fp8_block', {str(EVIL / name)!r} + '.wasm'])")
    # What a map may not say about an engine of somebody else is that engine's to know.
    assert "map_loader" in said or name in ("loader_overlap", "loader_wrong_target"), said


MASKS = ["spin", "overlap", "descending", "empty", "backwards", "beyond", "all", "many"]
VETOES = ["begin", "tensors", "finish"]
FAULTS = [f"observer-{one}" for one in ("spin", "trap-begin", "trap-tensors", "long-reason", "huge-reason")]


@pytest.mark.parametrize(
    "fault, where",
    [(f"mask-{one}", "masked") for one in MASKS]
    + [(f"observer-veto-{one}", "refit") for one in VETOES]
    + [(one, "refit") for one in FAULTS]
    + [("observer-control-characters", "refit"), ("layout-spin", ""), ("layout-short", ""), ("layout-twice", "")],
)
def test_other_hooks(fault, where):
    said = run(f"all_of(['fp8_block', PatchSpec({str(EVIL / 'any_hook.wasm')!r}, settings={{'fault': {fault!r}}})])")
    assert (where or "stage with tensors") in said, said


STATES = ["trap-third", "trap-tensors", "export-trap", "export-spin", "export-error", "export-over", "export-huge",
          "export-long-schema", "import-trap", "import-spin", "import-huge-error"]  # fmt: skip


@pytest.mark.parametrize("fault", STATES)
def test_state_that_is_handed_over(fault):
    path = str(EVIL / "any_state.wasm")
    run(f"all_of(['fp8_block', PatchSpec({path!r}, settings={{'fault': {fault!r}}})])")


def test_wasi():
    run(f"all_of({str(EVIL / 'any_wasi.wasm')!r})")


@pytest.mark.parametrize("name", ["spin", "grow", "recurse", "trap_nth", "nan_scales", "huge_list"])
def test_isolated(name):
    settings = {"n": "1"} if name == "trap_nth" else {}
    said = run(f"all_of(PatchSpec({str(EVIL / name)!r} + '.wasm', settings={settings!r}), isolate=True)")
    assert "quantize with a scheme" in said, said


def components(tmp_path):
    good = (EVIL / "zero.wasm").read_bytes()
    files = {
        "random": bytes(i * 2654435761 >> 7 & 255 for i in range(100_000)),
        "empty": b"",
        "magic only": b"\0asm\x0d\0\x01\0",
        "half": good[: len(good) // 2],
        "flipped": good[:500] + bytes(255 - byte for byte in good[500:600]) + good[600:],
        "text": b"(component",
    }
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    (tmp_path / "folder").mkdir()
    return [*(str(tmp_path / name) for name in (*files, "fifo", "loop", "folder", "absent")), "/dev/zero", "/dev/null"]


def test_what_is_no_component(tmp_path):
    for path in components(tmp_path):
        said = run(f"all_of({path!r})")
        assert said == ["load", "stage", "stage with tensors"], (path, said)
