"""An open refit when the interpreter ends, when the process forks, and when somebody presses Ctrl-C."""

import os
import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("torch")

HEAD = """
import os, signal, sys, threading, time
import torch
torch.set_num_threads(1)
from patchhost import Board, ForkedError, PatchSet
Q = "model.layers.0.self_attn.q_proj.weight"
W = torch.ones(256, 256).bfloat16()
board = Board(PatchSet.load("fp8_block"))
refit = board.refit()
"""
OPEN = "refit.add(Q, W)\n"
FORK = """
pid = os.fork()
if pid == 0:
    signal.alarm(30)
    for call in (refit.prove, refit.commit, lambda: list(refit), lambda: refit.add("x", W), board.status):
        try:
            call()
        except ForkedError:
            continue
        os._exit(9)
    refit.abandon()
    sys.exit(0)
assert os.waitpid(pid, 0)[1] == 0
assert len(list(refit)) == 2
refit.commit()
"""
BIG = """
W = torch.ones(8192, 4096, dtype=torch.bfloat16)
for i in range(60):
    refit.add(f"model.layers.{i}.self_attn.q_proj.weight", W)
"""
INTERRUPTED = """
threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT)).start()
begin = time.perf_counter()
try:
    refit.prove()
except KeyboardInterrupt:
    assert time.perf_counter() - begin < 10 and refit.state == "abandoned"
else:
    raise AssertionError("not interrupted")
with board.refit() as refit:
    refit.add(Q, W)
assert refit.state == "committed"
"""
BODIES = {
    "open at the end": OPEN,
    "proved at the end": OPEN + "refit.prove()",
    "half handed on at the end": OPEN + "it = iter(refit); next(it)",
    "in a cycle": OPEN + "refit.prove(); ring = [refit, board]; ring.append(ring); sys.kept = ring",
    "sys.exit in its block": OPEN + "with refit: refit.prove(); sys.exit(0)",
    "exit in a daemon thread": BIG + "threading.Thread(target=refit.prove, daemon=True).start(); time.sleep(0.3)",
    "a fork while it is open": OPEN + FORK,
    "a fork while it is proved": OPEN + "refit.prove()" + FORK,
    "a fork while it is handed on": OPEN + "it = iter(refit); next(it)" + FORK,
    "an interruption of prove": BIG + INTERRUPTED,
}


@pytest.mark.parametrize("what", BODIES)
def test_ends(what):
    text = HEAD + textwrap.dedent(BODIES[what])
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=100, env=env)
    assert done.returncode == 0 and "panicked" not in done.stderr, done.stderr
