"""The staged update of the plug-ins, without an engine: what is refused, what comes out, and files that are not what they
say."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
safetensors_torch = pytest.importorskip("safetensors.torch")

from patchhost import HostError, NonFiniteError, PatchSet, RefitError, TensorError, UsageError, sender  # noqa: E402
from patchhost._safetensors import forms_of_folder, tensors_of_bytes, tensors_of_file, tensors_of_folder  # noqa: E402
from patchhost.expect import Expectation  # noqa: E402
from patchhost.refitter import Refitter, load_patches  # noqa: E402
from patchhost.settings import of_mapping, settings  # noqa: E402

UP = "model.layers.0.mlp.up_proj.weight"
NORM = "model.norm.weight"


def weights(seed: int = 0) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed)
    return {UP: torch.randn(256, 128, generator=random).bfloat16(), NORM: torch.ones(128).bfloat16()}


def expectation() -> Expectation:
    return Expectation({name: (str(t.dtype).removeprefix("torch."), tuple(t.shape)) for name, t in weights().items()})


def test_an_update_without_patches_is_proved_and_comes_out_as_it_came(tmp_path: Path) -> None:
    refitter = Refitter(PatchSet.load(), expectation(), ledger=tmp_path / "run.jsonl")
    source = weights()
    with refitter.update(step=3, version="v3") as update:
        update.add_all(source)
        for tensor in source.values():
            tensor.zero_()  # The memory may be used again at once.
        out = dict(update.proved())
    want = weights()
    assert list(out) == list(want) and all(torch.equal(out[name], want[name]) for name in want)
    assert refitter.status()["last"]["step"] == 3 and refitter.status()["updates"] == 1
    assert refitter.board.ledger is not None and refitter.board.ledger.verify()["records"] >= 2


def test_what_a_patch_quantizes_is_widened_to_the_same_values() -> None:
    patches = PatchSet.load("fp8_block")
    refitter = Refitter(patches, expectation())
    with refitter.update() as update:
        update.add_all(weights())
        out = dict(update.proved())
    made = patches.quantize(UP, weights()[UP])
    assert made is not None
    assert list(out) == [UP, NORM] and out[UP].dtype == torch.bfloat16
    assert torch.equal(out[UP], patches.dequantize(made.codes, made.scale, dtype=torch.bfloat16))
    assert not torch.equal(out[UP], weights()[UP])


def test_the_role_of_a_tensor_is_what_the_expectation_says() -> None:
    class Routers(Expectation):
        def role(self, name: str, shape: Any) -> str:
            return "router" if name == UP else super().role(name, shape)

    refitter = Refitter(PatchSet.load("fp8_block"), Routers(expectation().forms))
    with refitter.update() as update:
        update.add_all(weights())
        out = dict(update.proved())
    assert torch.equal(out[UP], weights()[UP]), "fp8_block keeps routers"


def test_an_engine_that_takes_scales_gets_codes_and_scales() -> None:
    class Fp8(Expectation):
        @property
        def takes_scales(self) -> bool:
            return True

    refitter = Refitter(PatchSet.load("fp8_block"), Fp8(expectation().forms))
    with refitter.update() as update:
        update.add_all(weights())
        out = dict(update.proved())
    assert list(out) == [UP, UP + "_scale_inv", NORM] and out[UP].dtype == torch.float8_e4m3fn


@pytest.mark.parametrize(
    ("spoil", "error", "word"),
    [
        (lambda w: w.pop(NORM), RefitError, NORM),
        (lambda w: w.update({UP: w[UP][:-1]}), RefitError, "[255, 128]"),
        (lambda w: w.update({"model.layers.0.mlp.up.weight": w[UP]}), RefitError, "did you mean"),
        (lambda w: w[UP].__setitem__((7, 9), float("nan")), NonFiniteError, "[7, 9]"),
        (lambda w: w.update({NORM: "ones"}), UsageError, "str"),
    ],
)
def test_a_faulty_update_is_refused_and_the_next_one_is_good(spoil: Any, error: type[Exception], word: str) -> None:
    refitter = Refitter(PatchSet.load("fp8_block"), expectation())
    with refitter.update(step=1) as update:
        update.add_all(weights())
        before = dict(update.proved())
    bad = weights(1)
    spoil(bad)
    with pytest.raises(error) as raised:
        with refitter.update(step=2) as update:
            update.add_all(bad)
            list(update.proved())
    assert word in str(raised.value)
    status = refitter.status()
    assert status["refused"] == 1 and status["last"]["step"] == 1 and not status["open"]
    assert status["last_error"]["what"] and status["last_error"]["next"]
    with refitter.update(step=3) as update:
        update.add_all(weights())
        again = dict(update.proved())
    assert all(torch.equal(before[name], again[name]) for name in before)


def test_a_name_that_comes_twice_is_two_senders() -> None:
    refitter = Refitter(PatchSet.load(), expectation())
    update = refitter.update()
    update.add(NORM, weights()[NORM])
    with pytest.raises(RefitError, match="came already"):
        update.add(NORM, weights()[NORM])
    update.abandon("done")


def test_staging_memory_is_bounded() -> None:
    forms = {f"model.layers.{layer}.mlp.up_proj.weight": ("bfloat16", (256, 128)) for layer in range(4)}
    assert Refitter(PatchSet.load(), Expectation(forms)).limit() == 2 * 4 * 256 * 128 * 2 + (64 << 20)
    refitter = Refitter(PatchSet.load(), Expectation(forms), staging_limit=200_000)
    with pytest.raises(RefitError, match="200000"), refitter.update() as update:
        for name in forms:
            update.add(name, weights()[UP])
    assert update.staged_bytes <= 200_000


def test_another_update_gives_the_open_one_up() -> None:
    refitter = Refitter(PatchSet.load(), expectation())
    first = refitter.update(step=1)
    first.add(NORM, weights()[NORM])
    with refitter.update(step=1) as second:
        second.add_all(weights())
        list(second.proved())
    assert not first.open and refitter.status()["updates"] == 1
    with pytest.raises(UsageError):
        first.add(UP, weights()[UP])


def test_a_swap_lands_at_its_step_and_goes_back_bit_for_bit() -> None:
    refitter = Refitter(PatchSet.load("fp8_block"), expectation())

    def send(step: int) -> Any:
        with refitter.update(step=step) as update:
            update.add_all(weights())
            return dict(update.proved())[UP].clone()

    first = send(1)
    staged = refitter.board.stage("fp8_block_mse", tensors=weights())
    refitter.board.swap(staged, when=4)
    assert torch.equal(send(3), first)
    assert not torch.equal(send(4), first)
    refitter.board.rollback(when=6)
    assert not torch.equal(send(5), first)
    assert torch.equal(send(6), first)


def header(entries: Any, data: bytes = b"") -> bytes:
    text = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
    return struct.pack("<Q", len(text)) + text + data


F32 = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04\x95pickle",
        struct.pack("<Q", 1 << 62) + b"{}",
        header(b"not json"),
        header(b"[" * 100_000),
        header([1]),
        header({"a": 3}),
        header({"a": {**F32, "dtype": "Q4"}}, b"\0" * 8),
        header({"a": {**F32, "shape": [-2]}}, b"\0" * 8),
        header({"a": {**F32, "shape": [True, 2]}}, b"\0" * 8),
        header({"a": {**F32, "shape": [1 << 60, 1 << 60]}}, b"\0" * 8),
        header({"a": {**F32, "data_offsets": [4, 8]}}, b"\0" * 8),
        header({"a": {**F32, "data_offsets": [8, 16]}}, b"\0" * 8),
        header(b'{"a":' + json.dumps(F32).encode() + b',"a":' + json.dumps(F32).encode() + b"}", b"\0" * 8),
    ],
)
def test_a_file_that_is_no_safetensors_is_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises((UsageError, TensorError, HostError)) as raised:
        list(tensors_of_bytes(data))
    assert raised.value.what and raised.value.why and raised.value.next
    (tmp_path / "model.safetensors").write_bytes(data)
    with pytest.raises((UsageError, TensorError, HostError)):
        forms_of_folder(tmp_path)


def test_files_are_read_as_safetensors_wrote_them(tmp_path: Path) -> None:
    source = {**weights(), "empty": torch.empty(0, 3), "scalar": torch.tensor(2.5), "codes": torch.ones(3, dtype=torch.float8_e4m3fn)}
    safetensors_torch.save_file(source, tmp_path / "model.safetensors")
    read = dict(tensors_of_folder(tmp_path))
    assert set(read) == set(source) and all(read[name].dtype == t.dtype and read[name].shape == t.shape for name, t in source.items())
    assert torch.equal(read[UP], source[UP]) and read["scalar"] == 2.5
    assert forms_of_folder(tmp_path)[UP] == ("bfloat16", (256, 128))
    with pytest.raises(HostError):
        list(tensors_of_file(tmp_path / "missing"))
    with pytest.raises(HostError):
        list(tensors_of_folder(tmp_path / "missing"))


def test_an_index_says_which_file_counts(tmp_path: Path) -> None:
    safetensors_torch.save_file(weights(0), tmp_path / "a.safetensors")
    safetensors_torch.save_file(weights(1), tmp_path / "b.safetensors")
    index = {"weight_map": {UP: "b.safetensors", NORM: "a.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert torch.equal(dict(tensors_of_folder(tmp_path))[UP], weights(1)[UP])


def test_a_sender_is_gone_when_its_process_is() -> None:
    code = "import json; from patchhost import sender; print(json.dumps(sender.me()), flush=True); input()"
    child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=os.environ)
    assert child.stdout is not None
    me = json.loads(child.stdout.readline())
    assert not sender.gone(me)
    assert not sender.gone({**me, "where": "another machine"}) and not sender.gone(None) and not sender.gone({"pid": "x"})
    child.kill()
    child.wait()
    assert sender.gone(me)
    assert sender.gone({**sender.me(), "started": 1}), "the number is somebody else's now"


def test_settings_come_from_the_engine_over_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATCHHOST_PATCHES", '["fp8_block"]')
    monkeypatch.setenv("PATCHHOST_LOCKED", "1")

    class Config:
        additional_config = {"patchhost": {"ledger": "/runs/1", "locked": False}}

    found = settings(Config())
    assert found.patches == ["fp8_block"] and found.ledger == "/runs/1" and found.locked is False
    for wrong in ({"patch": []}, {"repair": "maybe"}, {"staging_limit": 0}, {"locked": "yes"}, {"readback": 1}, []):
        with pytest.raises(UsageError):
            of_mapping(wrong)  # type: ignore[arg-type]
    monkeypatch.setenv("PATCHHOST_PACHES", "[]")
    with pytest.raises(UsageError, match="PATCHHOST_PATCHES"):
        settings()


def test_patches_from_a_configuration() -> None:
    specs = '[{"component": "fp8_block", "settings": {"profile": "deepseek"}}, "vocab_mask"]'
    assert [patch["name"] for patch in load_patches(specs).patches] == ["fp8_block", "vocab_mask"]
    for wrong in ("[", [{"settings": {}}], [{"component": "fp8_block", "set": {}}]):
        with pytest.raises(UsageError):
            load_patches(wrong)
