"""TRL 1.16's own GRPOTrainer with `rollout_func`, and AsyncGRPOTrainer's weight transfer protocol, against
`patchhost serve`."""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from conftest import MODEL, PROGRAM, missing

from patchhost import HostError, RefitError, Refused, UsageError
from patchhost.trl import Server, WeightTransfer, _refusal

REASON = missing("trl", "torch", "transformers", "accelerate", "datasets")


def port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def serving(command: list[str], at: str, seconds: int, **more: Any) -> Iterator[str]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **more)
    try:
        until = time.monotonic() + seconds
        while True:
            try:
                urllib.request.urlopen(f"http://{at}/health", timeout=5)
                break
            except (urllib.error.URLError, OSError):
                assert process.poll() is None and time.monotonic() < until, f"{command[:3]} does not serve"
                time.sleep(0.2)
        yield f"http://{at}"
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def served() -> Iterator[str]:
    """The URL of `patchhost serve` with the tiny model."""
    if not PROGRAM.is_file():
        pytest.skip(f"{PROGRAM} is not built")
    at = f"127.0.0.1:{port()}"
    command = [str(PROGRAM), "serve", str(MODEL), "--listen", at, "--logprobs-mode", "processed_logprobs"]
    yield from serving(command, at, 60)


@pytest.fixture(scope="module")
def vllm_served(environment: dict[str, str]) -> Iterator[str]:
    """The URL of `vllm serve` with the weight transfer backend `patchhost`."""
    reason = missing("vllm", "torch")
    if reason is not None:
        pytest.skip(reason)
    at = port()
    command = [sys.executable, "-m", "vllm.entrypoints.cli.main", "serve", str(MODEL), "--port", str(at)]
    command += ["--host", "127.0.0.1", "--enforce-eager", "--max-model-len", "256", "--dtype", "bfloat16"]
    command += ["--weight-transfer-config", '{"backend": "patchhost"}', "--logprobs-mode", "processed_logprobs"]
    more = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    yield from serving(command, f"127.0.0.1:{at}", 300, env=environment | more)


@pytest.mark.slow
def test_the_same_calls_at_vllm(vllm_served: str) -> None:
    from safetensors.torch import load_file

    weights = load_file(str(MODEL / "model.safetensors"))
    transfer = WeightTransfer(Server(vllm_served, bucket_bytes=2 << 20))
    transfer.init_weight_transfer()
    assert transfer.server.kind == "vllm"
    greedy = {"max_tokens": 8, "temperature": 0.0}
    prompts = [[12, 293, 839], [479, 305]]
    first, logprobs = transfer.server.generate(prompts, greedy)
    assert [len(one) for one in first] == [8, 8] == [len(one) for one in logprobs]
    transfer.server.require_processed([12, 293])

    def send(tensors: dict[str, Any]) -> None:
        transfer.pause()
        transfer.send_weights(iter(tensors.items()))
        transfer.resume()

    send(weights)
    assert transfer.server.generate(prompts, greedy)[0] == first
    name = next(name for name in weights if name.endswith("o_proj.weight"))
    broken = {**weights, name: weights[name] * float("nan")}
    with pytest.raises(RefitError, match="NaN") as error:
        send(broken)
    assert error.value.what == f"tensor `{name}`"
    assert transfer.server.generate(prompts, greedy)[0] == first
    with pytest.raises(RefitError, match="did not come"):
        send({key: value for key, value in weights.items() if key != name})
    send({key: value * 1.5 if "o_proj" in key else value for key, value in weights.items()})
    assert transfer.server.generate(prompts, greedy)[0] != first
    # Over another name of this machine, parts go as base64 in the request.
    far = WeightTransfer(Server(vllm_served.replace("127.0.0.1", "127.1"), bucket_bytes=2 << 20))
    far.send_weights(iter(weights.items()))
    assert transfer.server.generate(prompts, greedy)[0] == first and far.last["update/tensors"] == len(weights)


@pytest.mark.skipif(REASON is not None, reason=REASON or "")
def test_two_steps_of_grpo(run_script: Any, served: str, tmp_path: Any) -> None:
    out = run_script("trl_loop.py", str(MODEL), served, str(tmp_path))
    assert [entry["patchhost/refit"] for entry in out["log"]] == [2.0, 3.0]
    assert all(entry["patchhost/update/bytes"] > 0 for entry in out["log"])
    assert out["version"] == "step-1"
    assert out["sent"]["refit"] == 4.0
    # A weight that is NaN: refused by name, the server resumed, with its old weights.
    assert out["refused"] == ["RefitError", f"tensor `{out['broken']}`"]
    assert out["paused"] is False and out["after"] == "step-1"
    assert "norm.weight" in out["lost"] and "refused: " in out["lost"]
    assert out["protocol"] == "equal", out["protocol"]


def test_a_server_that_is_not_there() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(HostError, match="look whether it runs"):
            Server(url, timeout=2).push(iter(()), step=1, version="1")
    with pytest.raises(UsageError, match="URL"):
        Server("127.0.0.1:8000")


def test_raw_log_probabilities_are_refused(served: str) -> None:
    server = Server(served)
    server.require_processed([1, 2])
    server.generate = lambda prompts, sampling: ([[5]], [[-0.7]])  # type: ignore[method-assign]
    with pytest.raises(Refused, match="processed_logprobs"):
        server.require_processed([1, 2])


@pytest.mark.parametrize(
    ("status", "body", "kind", "what"),
    [
        (422, b'{"error":{"message":"refused: tensor `a`\\n  why: lost\\n  next: send it"}}', RefitError, "tensor `a`"),
        (500, b'{"error":{"message":"Call failed: refused: tensor `b`\\n  why: NaN"}}', RefitError, "tensor `b`"),
        (503, b"busy", HostError, "POST /x"),
        (404, b'{"detail":"Not Found"}', RefitError, "POST /x"),
    ],
)
def test_refusals_keep_their_three_parts(status: int, body: bytes, kind: type, what: str) -> None:
    error = _refusal("POST /x", status, body)
    assert type(error) is kind and error.what == what and error.why and error.next
