"""Swaps land with the refit of their step; a refit is all or nothing, and proved before anything is handed on."""

import pytest

from patchhost import (
    Board,
    Error,
    NonFiniteError,
    PatchSet,
    PatchSpec,
    RefitError,
    TensorError,
    UsageError,
)

torch = pytest.importorskip("torch")
Q, N, H = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.input_layernorm.weight", "lm_head.weight"


def state(seed=0):
    torch.manual_seed(seed)
    return {Q: torch.randn(256, 128).bfloat16(), N: torch.ones(128).bfloat16(), H: torch.randn(64, 128).bfloat16()}


def octets(tensor):
    return bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())


def refit(board, step, tensors=None, **more):
    with board.refit(step=step, **more) as one:
        one.add_all(tensors or state(step))
        return {name: octets(tensor) for name, tensor in one}


@pytest.fixture
def board(tmp_path):
    return Board(PatchSet.load("fp8_block"), ledger=tmp_path / "run.jsonl")


def test_a_refit(board):
    weights = state()
    with board.refit(step=1, version="one") as one:
        for name, tensor in weights.items():
            one.add(name, tensor)
        out = list(one)
        assert one.state == "proved"
    assert one.state == "committed" and one.report
    assert [name for name, _ in out] == [Q, Q + "_scale_inv", N, H]
    tensors = dict(out)
    assert tensors[N] is weights[N] and tensors[H] is weights[H]
    want = board.patches.quantize(Q, weights[Q])
    assert tensors[Q].dtype == torch.float8_e4m3fn and octets(tensors[Q]) == octets(want.codes)
    assert octets(tensors[Q + "_scale_inv"]) == octets(want.scale)
    assert board.ledger.verify()["lost"] == 0 and board.ledger.records(event="refit")
    # What was handed on lives on, whatever becomes of the refit.
    del one, out
    refit(board, 2)
    assert octets(tensors[Q]) == octets(want.codes)


def test_a_swap_lands_at_its_step_and_is_rolled_back(board):
    staged = board.stage(PatchSpec("fp8_block", settings={"profile": "deepseek"}), tensors=state())
    assert staged.name == "fp8_block" and not staged.already
    board.swap(staged, when=10)
    same = state()
    before = refit(board, 9, same)
    landed = refit(board, 10, same)
    after = refit(board, 11, same)
    theirs = PatchSet.load(PatchSpec("fp8_block", settings={"profile": "deepseek"})).quantize(Q, same[Q])
    assert before[Q + "_scale_inv"] != landed[Q + "_scale_inv"] == octets(theirs.scale) == after[Q + "_scale_inv"]
    board.rollback(reason="a test")
    assert refit(board, 12, same) == before
    events = [record["event"] for record in board.ledger.records()]
    assert any("swap" in event for event in events) and board.ledger.verify()["lost"] == 0


def test_a_swap_can_be_taken_back(board):
    board.swap(board.stage(PatchSpec("fp8_block", settings={"profile": "deepseek"})), when=5)
    assert board.cancel("not today") and not board.cancel("again")
    assert refit(board, 5, state()) == refit(board, 6, state())


def test_a_shadow_is_compared_and_not_used(board):
    same = state()
    before = refit(board, 1, same)
    board.swap(board.stage(PatchSpec("fp8_block", settings={"scale_format": "ue8m0"})), mode="shadow")
    assert refit(board, 2, same) == before
    assert board.report()
    assert board.status() and board.recent(5) and board.health() is not None


PLAIN, SEARCHED = PatchSpec("fp8_block"), PatchSpec("fp8_block_mse")
CLIPS = PatchSpec("fp8_block_mse", settings={"range": "0.5..0.99", "clip": "0.05", "candidates": 32})


@pytest.mark.parametrize(
    ("live", "candidate", "rules", "says"),
    [
        # What searches for the best scales loses by plain ones.
        (SEARCHED, PLAIN, "max_snr_loss_db = 0.1", "dB against the live set, allowed is 0.1"),
        (PLAIN, CLIPS, "max_saturated = 0.0", "more of its values saturate, allowed is 0"),
        (PLAIN, SEARCHED, "max_bytes_changed = 0.001", "of its bytes differ, allowed is 0.001"),
        (PLAIN, SEARCHED, "max_scales_changed = 0.5", "of its scales differ, allowed is 0.5"),
        (PLAIN, SEARCHED, "max_scale_ulp = 3", "ulp, allowed is 3"),
    ],
)
def test_a_shadow_is_judged_by_every_rule_of_the_policy(tmp_path, live, candidate, rules, says):
    policy = tmp_path / "patchhost.toml"
    rule = rules.split(" ")[0]
    wide = {"max_saturated": "1.0", "max_snr_loss_db": "99.0"}
    others = [f"{name} = {value}" for name, value in wide.items() if name != rule]
    policy.write_text("\n".join(["[shadow]", *others, rules]))
    board = Board(PatchSet.load(live, policy=policy), ledger=tmp_path / "run.jsonl")
    torch.manual_seed(0)
    weight = torch.rand(256, 128) * 2 - 1
    weight[0, 0] = weight[200, 5] = 1.3  # worth clipping, in each of the two blocks
    weights = {Q: weight.bfloat16(), N: torch.ones(128).bfloat16()}
    board.swap(board.stage(candidate), mode="shadow")
    refit(board, 1, weights)
    findings = board.report()["findings"]
    assert [finding["tensor"] for finding in findings] == [Q] and says in findings[0]["what"], findings
    [reversed_] = board.ledger.records(event="swap.reversed")
    assert says in reversed_["why"] and board.status()["transition"] is None
    # The same under rules that allow it: the candidate stays beside the live set.
    policy.write_text("[shadow]\nmax_snr_loss_db = 99.0\nmax_saturated = 1.0\n")
    board = Board(PatchSet.load(live, policy=policy))
    board.swap(board.stage(candidate), mode="shadow")
    refit(board, 1, weights)
    report = board.report()
    assert report["findings"] == [] and report["clean_refits"] == 1 and board.status()["transition"]
    [row] = report["compared"]["tensors"]
    assert (
        row["name"] == Q and row["bytes_changed"] > 0 and row["live"]["snr_db"] > 20 and row["candidate"]["snr_db"] > 20
    )


def test_words_are_checked(board):
    staged = board.stage(PatchSpec("fp8_block", settings={"profile": "hf"}))
    for call in (
        lambda: board.swap(staged, when="now"),
        lambda: board.swap(staged, when=True),
        lambda: board.swap(staged, when=-1),
        lambda: board.swap(staged, mode="canary"),
        lambda: board.swap(staged, percent=10),
        lambda: board.swap(staged, mode="canary", percent=100),
        lambda: board.swap(3),
        lambda: board.refit(step="1"),
        lambda: board.refit(duplicates="same"),
        lambda: Board("fp8_block"),
    ):
        with pytest.raises(UsageError) as caught:
            call()
        assert caught.value.why and caught.value.next
    with pytest.raises(Error):
        board.swap("no such generation")


def broken(board, cls, change, word, **more):
    """Nothing is handed on, what was live stays, and the next refit is good."""
    refit(board, 1)
    seen = []
    with pytest.raises(cls) as caught, board.refit(step=2, **more) as one:
        change(one)
        for name, _ in one:
            seen.append(name)
    assert not seen and one.state == "abandoned", seen
    assert word in str(caught.value) and caught.value.why and caught.value.next
    assert board.ledger.verify()["lost"] == 0
    refit(board, 3)


def with_(change):
    def apply(one):
        tensors = state(2)
        change(tensors)
        one.add_all(tensors)

    return apply


def test_a_lost_tensor(board):
    broken(board, RefitError, with_(lambda t: t.pop(N)), N)


def test_an_unknown_tensor(board):
    broken(board, RefitError, with_(lambda t: t.update({"model.new.weight": torch.ones(4, 4)})), "model.new.weight")


def test_a_misshapen_tensor(board):
    broken(board, RefitError, with_(lambda t: t.update({Q: torch.ones(128, 256).bfloat16()})), Q)


def test_a_truncated_tensor(board):
    broken(board, RefitError, with_(lambda t: t.update({Q: t[Q][:100]})), Q)


def test_a_narrowed_tensor(board):
    broken(board, RefitError, with_(lambda t: t.update({H: t[H].to(torch.float8_e4m3fn)})), H)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", [Q, N])
def test_a_value_that_is_not_finite(board, value, name):
    def change(tensors):
        tensors[name].flatten()[77] = value

    broken(board, NonFiniteError, with_(change), name)


def test_a_doubled_tensor(board):
    def change(one):
        one.add_all(state(2))
        one.add(Q, state(2)[Q])

    broken(board, RefitError, change, Q)
    with board.refit(step=4, duplicates="last") as one:
        one.add_all(state(4))
        one.add(Q, state(5)[Q])
        out = dict(one)
    assert octets(out[Q]) == octets(board.patches.quantize(Q, state(5)[Q]).codes)


def test_a_manifest_that_is_not_met(board):
    manifest = {"tensors": {name: {} for name in state()}}
    manifest["tensors"][Q] = {"dtype": "BF16", "shape": [256, 128], "sha256": "0" * 64}
    broken(board, RefitError, with_(lambda t: None), Q, manifest=manifest)


def test_a_tensor_with_gaps(board):
    broken(board, TensorError, with_(lambda t: t.update({Q: t[Q].repeat(1, 2)[:, ::2]})), "contiguous()")


def test_a_refused_add_leaves_the_refit_as_it_was(board):
    with board.refit(step=1) as one:
        one.add_all(state())
        with pytest.raises(TensorError):
            one.add("model.meta", torch.empty(1, device="meta"))
        assert len(list(one)) == 4
    assert one.state == "committed"


def test_half_of_a_refit_is_not_committed(board):
    refit(board, 1)
    live = board.status()
    with pytest.raises(RefitError, match="2 of 4") as caught, board.refit(step=2) as one:
        one.add_all(state(2))
        for i, _ in enumerate(one):
            if i == 1:
                break
    assert caught.value.next and one.state == "abandoned"
    assert board.status().get("active") == live.get("active")
    with pytest.raises(UsageError):
        one.commit()
    with pytest.raises(UsageError):
        one.add(Q, state()[Q])


def test_an_exception_of_the_engine_abandons(board):
    with pytest.raises(ZeroDivisionError), board.refit(step=1) as one:
        one.add_all(state())
        for _ in one:
            raise ZeroDivisionError
    assert one.state == "abandoned"
    refit(board, 2)


def test_leaving_the_block_proves_and_commits(board):
    with board.refit(step=1) as one:
        one.add_all(state())
    assert one.state == "committed" and one.report


def test_one_refit_at_a_time(board):
    with board.refit(step=1) as one:
        one.add_all(state())
        with pytest.raises(Error):
            board.refit(step=2)
        assert one.prove() and one.prove() is one.report


def test_progress_is_told(board):
    calls = []
    refit(board, 1, progress=lambda *what: calls.append(what))
    assert calls and all(isinstance(word, str) and done <= of for word, done, of in calls)


SCRIPT = """
import sys
from patchhost import Board, PatchSet, PatchSpec
import torch, hashlib
board = Board(PatchSet.load("fp8_block"))
board.swap(board.stage(PatchSpec("fp8_block", settings={"profile": "deepseek"})), when=10)
digest = hashlib.sha256()
for step in (8, 9, 10, 11):
    torch.manual_seed(step)
    with board.refit(step=step) as refit:
        refit.add("model.layers.0.self_attn.q_proj.weight", torch.randn(256, 128).bfloat16())
        for name, tensor in refit:
            digest.update(name.encode() + bytes(tensor.view(torch.uint8).flatten().tolist()))
print(digest.hexdigest())
"""


def test_two_processes_have_the_same_bits():
    import subprocess
    import sys

    runs = [subprocess.Popen([sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE) for _ in range(2)]
    assert len({run.communicate(timeout=300)[0] for run in runs}) == 1 and all(run.returncode == 0 for run in runs)
