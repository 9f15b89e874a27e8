"""A receipt says what a refit did, is refused where it was changed, and names what differs between two ranks."""

import hashlib
import json
import os
import pickle
import subprocess

import pytest

from patchhost import Board, Ledger, PatchSet, PatchSpec, Receipt, Refused, UsageError
from patchhost import _program as program

torch = pytest.importorskip("torch")
Q, N = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"
OLD = os.path.join(os.path.dirname(__file__), "../../tests/data/ledger/before-receipts.jsonl")


def state(seed=0):
    torch.manual_seed(seed)
    return {Q: torch.randn(256, 128).bfloat16(), N: torch.ones(128).bfloat16()}


def octets(tensor):
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def made(tensors=None, patch="fp8_block", ledger=None, digest=True, **more):
    board = Board(PatchSet.load(patch), ledger=ledger)
    with board.refit(digest=digest, **{"step": 3, "version": "three", **more}) as one:
        assert one.receipt is None
        one.add_all(tensors or state())
        out = dict(one)
        assert one.receipt is None
    return one.receipt, out


def line(name, dtype, shape, data):
    return f"{name} {dtype} [{','.join(map(str, shape))}] {hashlib.sha256(data).hexdigest()}\n"


def root(lines):
    return "sha256:" + hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()


def test_the_digests_are_those_of_the_bytes():
    weights = state()
    receipt, out = made(weights)
    before = [line(name, "BF16", tensor.shape, octets(tensor)) for name, tensor in weights.items()]
    words = {torch.bfloat16: "BF16", torch.float32: "F32", torch.float8_e4m3fn: "F8_E4M3"}
    after = [line(name, words[tensor.dtype], tensor.shape, octets(tensor)) for name, tensor in out.items()]
    assert (receipt.root_before, receipt.root_after) == (root(before), root(after))
    assert (receipt.refit, receipt.step, receipt.version) == (1, 3, "three")
    assert receipt.patch_set == PatchSet.load("fp8_block").digest and receipt.manifest is None
    [q] = [tensor for tensor in receipt.tensors if tensor["name"] == Q]
    assert [one["name"] for one in q["after"]] == [Q, Q + "_scale_inv"] and not q["kept"] and q["blocks"] == 2
    counts = receipt.counts
    assert (counts["tensors"], counts["quantized"], counts["kept"]) == (2, 1, 1)
    assert (counts["elements"], counts["blocks_proved"], counts["saturated"]) == (256 * 128 + 128, 2, 0)
    assert (
        counts["bytes_before"] == 2 * counts["elements"]
        and counts["seconds"] > 0
        and 0 < counts["relative_rmse"] < 0.05
    )


def test_without_digests_there_are_counts_only():
    receipt, _ = made(digest=False)
    assert receipt.root_before is receipt.root_after is None and receipt.tensors == []
    assert receipt.counts["blocks_proved"] == 2
    assert any("cannot be compared" in said for said in receipt.difference(made(digest=False)[0]))


def test_the_manifest_is_named_by_its_digest():
    manifest = {"tensors": {N: {"shape": [128]}, Q: {"shape": [256, 128], "dtype": "BF16"}}}
    text = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    assert made(manifest=manifest)[0].manifest == "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def test_two_boards_agree_and_one_changed_element_is_named(tmp_path):
    (first, _), (second, _) = made(), made(step=4, version="four")
    assert first != second and first.root_after == second.root_after and first.difference(second) == []
    changed = state()
    changed[Q][7, 9] += 1
    third, _ = made(changed)
    [said] = first.difference(third)
    assert Q in said and "other bytes came" in said and N not in said
    assert first.root_before != third.root_before and first.root_after != third.root_after
    # The same bytes came, and another patch made something else of them.
    other, _ = made(patch=PatchSpec("fp8_block", settings={"scale_format": "ue8m0"}))
    patches, said = first.difference(other)
    assert "the patches differ" in patches and Q in said and "although the same bytes came" in said
    assert first.root_before == other.root_before
    with pytest.raises(UsageError):
        first.difference(first.to_json())

    # The program says the same of the files.
    files = {name: str(tmp_path / f"{name}.json") for name in ("first", "second", "third")}
    for name, receipt in (("first", first), ("second", second), ("third", third)):
        receipt.save(files[name])
    command = [program.find(), "log", "receipts", files["first"]]
    same, differ = (
        subprocess.run([*command, files[name]], check=False, capture_output=True, text=True)
        for name in ("second", "third")
    )
    assert same.returncode == 0 and "equal" in same.stdout, same.stdout
    assert differ.returncode == 1 and f"tensor `{Q}`: other bytes came" in differ.stdout and "next:" in differ.stderr
    code, answer = program.ask(("log", "receipts"), (), (files["first"], files["third"]))
    assert code == 1 and answer["difference"] == first.difference(third) and not answer["equal"]


def test_it_is_kept_and_read_again(tmp_path):
    receipt, _ = made()
    path = tmp_path / "receipt.json"
    receipt.save(path)
    for again in (Receipt.load(path), Receipt.from_json(receipt.to_json()), pickle.loads(pickle.dumps(receipt))):
        assert again == receipt and hash(again) == hash(receipt) and again.to_json() == receipt.to_json()
        assert again.counts == receipt.counts and again.difference(receipt) == []
    assert os.listdir(tmp_path) == ["receipt.json"] and "three" in repr(receipt)
    with pytest.raises(UsageError):
        Receipt()


def test_what_was_changed_is_refused(tmp_path):
    receipt, _ = made()

    def changed(change):
        value = json.loads(receipt.to_json())
        change(value)
        return json.dumps(value)

    digest = "sha256:" + "0" * 64
    for change in (
        lambda v: v.update(step=4),
        lambda v: v.update(root_after=digest),
        lambda v: v["counts"].update(saturated=1),
        lambda v: v["counts"].update(seconds=0.5),
        lambda v: v["tensors"][0].update(before=digest),
        lambda v: v["tensors"][0]["after"][0].update(sha256=digest),
        lambda v: v["tensors"].pop(),
        lambda v: v.pop("tensors") and v.update(tensors_sha256=None),
    ):
        with pytest.raises(Refused) as caught:
            Receipt.from_json(changed(change))
        assert caught.value.why and caught.value.next
    for text in ("", "[]", "{}", changed(lambda v: v.update(more=1)), 3, "\ud800"):
        with pytest.raises(UsageError):
            Receipt.from_json(text)
    (tmp_path / "bad.json").write_bytes(b"\xff")
    with pytest.raises(UsageError):
        Receipt.load(tmp_path / "bad.json")
    with pytest.raises(OSError):
        Receipt.load(tmp_path / "absent.json")


def test_metrics_are_flat_numbers():
    metrics = made()[0].metrics()
    assert all(name.startswith("patchhost/") and type(value) is float for name, value in metrics.items())
    assert metrics["patchhost/step"] == 3 and metrics["patchhost/blocks_proved"] == 2
    assert metrics["patchhost/saturated_share"] == 0
    plain, _ = made(tensors={N: torch.ones(128)}, step=None)
    assert not {"step", "relative_rmse"} & set(plain.metrics(""))


def test_the_ledger_carries_it_and_old_ledgers_are_read(tmp_path):
    receipt, _ = made(ledger=tmp_path / "run.jsonl")
    ledger = Ledger(tmp_path / "run.jsonl")
    assert ledger.verify()["lost"] == 0
    [record] = ledger.records(event="refit")
    kept = record["receipt"]
    assert kept["seal"] == receipt.seal and kept["root_after"] == receipt.root_after and "tensors" not in kept
    assert kept["counts"] == receipt.counts and record["weights_sha256"]
    # Without its list it is a receipt still: roots can be compared with what the ledger has.
    assert Receipt.from_json(json.dumps(kept)).difference(receipt) == []
    shown = subprocess.run(
        [program.find(), "log", "show", ledger.path], capture_output=True, text=True, check=True
    ).stdout
    assert "receipt=2 tensors (1 quantized, 1 kept), 2 blocks proved, 0 values clipped, before " in shown

    old = Ledger(OLD)
    assert old.verify()["records"] == 4
    assert [record.get("receipt") for record in old.records(event="refit")] == [None, None]
    # Its second refit has the digest of everything that was handed on: it is made as before.
    torch.manual_seed(2)
    weights = {Q: torch.randn(256, 128).bfloat16(), N: torch.ones(128).bfloat16()}
    made(weights, ledger=tmp_path / "new.jsonl")
    [new] = Ledger(tmp_path / "new.jsonl").records(event="refit")
    assert new["weights_sha256"] == old.records(event="refit")[1]["weights_sha256"]
