"""Forks, spawned processes, threads, interruptions, and ends: each in a process of its own that a watchdog ends."""

import subprocess
import sys
import textwrap

import pytest

pytest.importorskip("torch")

HEAD = """
import os, sys, threading, time
os.environ.setdefault("OMP_NUM_THREADS", "1")
import torch
torch.set_num_threads(1)
from patchhost import Board, Error, ForkedError, PatchSet, PatchSpec
NAME = "model.layers.0.self_attn.q_proj.weight"
def octets(made):
    return b"".join(bytes(one.view(torch.uint8).flatten().tolist()) for one in (made.codes, made.scale))
def weight(rows=256):
    torch.manual_seed(0)
    return torch.randn(rows, 256).bfloat16()
"""


def run(body, timeout=120, code=0):
    text = HEAD + textwrap.dedent(body)
    child = subprocess.Popen(
        [sys.executable, "-u", "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, err = child.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        child.kill()
        out, err = child.communicate()
        pytest.fail(f"it hangs\n{out}\n{err}")
    assert child.returncode == code, f"exit {child.returncode}\n{out}\n{err}"
    return out


# A forked child that hangs must not outlive its test.
CHILD = """
def in_child(call):
    pid = os.fork()
    if pid == 0:
        import signal
        signal.alarm(60)
        try:
            call()
            os._exit(0)
        except BaseException:
            import traceback
            traceback.print_exc()
            os._exit(1)
    assert os.waitpid(pid, 0)[1] == 0
"""


def test_a_fork_after_load():
    run(
        CHILD
        + """
patches = PatchSet.load("fp8_block")
board = Board(patches)
refit = board.refit(step=1)
refit.add(NAME, weight())
want = octets(patches.quantize(NAME, weight()))
def child():
    for call in (lambda: patches.quantize(NAME, weight()), lambda: patches.decide({NAME: weight()}), patches.stats,
                 board.status, lambda: board.refit(step=2), lambda: refit.add("x", weight()), refit.prove):
        try:
            call()
        except ForkedError as error:
            assert "reload" in error.next
        else:
            raise AssertionError("it was not refused")
    again = patches.reload()
    assert again.digest == patches.digest and octets(again.quantize(NAME, weight())) == want
    other = PatchSet.load(PatchSpec("fp8_block", settings={"profile": "deepseek"}))
    assert other.digest != patches.digest
    with Board(again).refit(step=1) as one:
        one.add(NAME, weight())
in_child(child)
refit.prove(); refit.commit()
assert octets(patches.quantize(NAME, weight())) == want
"""
    )


def test_a_fork_before_load():
    run(CHILD + 'in_child(lambda: PatchSet.load("fp8_block").quantize(NAME, weight()))\nPatchSet.load("fp8_block")')


def test_a_fork_while_threads_call():
    run(
        CHILD
        + """
patches = PatchSet.load("fp8_block")
stop = threading.Event()
def work():
    while not stop.is_set():
        patches.quantize(NAME, weight(2048))
threads = [threading.Thread(target=work) for _ in range(2)]
[thread.start() for thread in threads]
time.sleep(0.2)
tensor = torch.ones(256, 256, dtype=torch.bfloat16)
for _ in range(3):
    in_child(lambda: patches.reload().quantize(NAME, tensor))
stop.set()
[thread.join() for thread in threads]
"""
    )


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_processes_load_from_what_pickles(method, tmp_path):
    script = tmp_path / "main.py"
    body = f"""
import multiprocessing as mp
def work(patches):
    return patches.digest, octets(patches.quantize(NAME, weight()))
if __name__ == "__main__":
    patches = PatchSet.load("fp8_block")
    with mp.get_context({method!r}).Pool(2) as pool:
        answers = pool.map(work, [patches] * 3)
    assert set(answers) == {{work(patches)}}
    print("good")
"""
    script.write_text(HEAD + body)
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0 and "good" in done.stdout, done.stderr


def test_eight_threads():
    run(
        """
patches = PatchSet.load("fp8_block")
tensor = weight(1024)
want = octets(patches.quantize(NAME, tensor))
wrong = []
def work():
    try:
        for _ in range(10):
            if octets(patches.quantize(NAME, tensor)) != want or not patches.decide({NAME: tensor})[NAME].quantized:
                wrong.append("other bytes")
    except BaseException as error:
        wrong.append(repr(error))
threads = [threading.Thread(target=work) for _ in range(8)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
assert not wrong, wrong[:3]
"""
    )


def test_the_gil_is_released():
    run(
        """
patches = PatchSet.load("fp8_block")
big = torch.ones(16384, 4096, dtype=torch.bfloat16)
ticks, stop = [], threading.Event()
def tick():
    while not stop.is_set():
        ticks.append(time.perf_counter())
        time.sleep(0.001)
thread = threading.Thread(target=tick)
thread.start()
begin = time.perf_counter()
for _ in range(5):
    patches.quantize(NAME, big)
end = time.perf_counter()
stop.set(); thread.join()
assert sum(begin < t < end for t in ticks) >= 5
"""
    )


def test_an_interruption():
    run(
        """
import signal
patches = PatchSet.load("fp8_block")
big = torch.ones(8192, 4096, dtype=torch.bfloat16)
threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    begin = time.perf_counter()
    while time.perf_counter() - begin < 60:
        patches.quantize(NAME, big)
    raise AssertionError("not interrupted")
except KeyboardInterrupt:
    pass
patches.quantize(NAME, weight())
board = Board(patches)
try:
    with board.refit(step=1) as refit:
        refit.add(NAME, weight())
        raise KeyboardInterrupt
except KeyboardInterrupt:
    assert refit.state == "abandoned"
with board.refit(step=1) as refit:
    refit.add(NAME, weight())
"""
    )


def test_the_interpreter_ends_while_a_call_runs():
    run(
        """
patches = PatchSet.load("fp8_block")
board = Board(patches)
big = torch.ones(16384, 4096, dtype=torch.bfloat16)
scheme = patches.decide({NAME: big})[NAME].scheme
def work():
    # Memory of its own, so that nearly all time is spent in the extension and not in torch.
    out, scale = torch.empty(big.shape, dtype=torch.float8_e4m3fn), torch.empty(128, 32)
    while True:
        patches.quantize(NAME, big, out=out, scale_out=scale, scheme=scheme)
for _ in range(2):
    threading.Thread(target=work, daemon=True).start()
time.sleep(0.5)
"""
    )


def test_an_open_refit_at_the_end():
    run("board = Board(PatchSet.load('fp8_block'))\nrefit = board.refit(step=1)\nrefit.add(NAME, weight())")


def test_errors_cross_processes():
    run(
        """
import pickle
try:
    PatchSet.load("no_such_patch")
except Error as error:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error) and str(again) == str(error) and again.kind == error.kind
else:
    raise AssertionError("loaded")
"""
    )
