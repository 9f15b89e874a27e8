"""Nothing is lost and nothing is kept: memory, references and DLPack deleters over many calls."""

import ctypes
import gc
import sys
import time
import weakref

import pytest

from patchhost import Board, NonFiniteError, PatchSet, PatchSpec

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
Q, N = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"


def rss():
    """Resident bytes of this process."""
    gc.collect()
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def flat(call, times, warm, spare=8 << 20, seconds=240):
    """Calls it, and asserts that memory is what it was after the warm-up, within a tenth."""
    for _ in range(warm):
        call()
    before, end = rss(), time.monotonic() + seconds
    for _ in range(times):
        call()
        assert time.monotonic() < end, "too slow"
    after = rss()
    assert after <= before * 1.1 + spare, f"{before >> 20} MB became {after >> 20} MB"


@pytest.fixture(scope="module")
def patches():
    return PatchSet.load("fp8_block")


def weights(rows=256):
    return {Q: torch.ones(rows, 256).bfloat16(), N: torch.ones(256).bfloat16()}


@pytest.mark.slow
@pytest.mark.parametrize("what", ["quantize", "scales", "error"])
def test_many_calls(patches, what):
    weight, amax = torch.ones(128, 128).bfloat16(), torch.ones(1)
    scheme = patches.decide({Q: weight})[Q].scheme
    bad = torch.full((128, 128), float("nan")).bfloat16()

    def error():
        try:
            patches.quantize(Q, bad, scheme=scheme)
        except NonFiniteError:
            return
        raise AssertionError("NaN was quantized")

    call, times = {
        "quantize": (lambda: patches.quantize(Q, weight, scheme=scheme), 100_000),
        "scales": (lambda: patches.scales(Q, amax, rows=128, cols=128, scheme=scheme), 100_000),
        "error": (error, 10_000),
    }[what]
    counts = [sys.getrefcount(one) for one in (weight, amax, bad, scheme, patches)]
    flat(call, times, times // 20)
    assert counts == [sys.getrefcount(one) for one in (weight, amax, bad, scheme, patches)]


@pytest.mark.parametrize("library", ["torch", "numpy"])
def test_references(patches, library):
    weight = torch.ones(128, 128) if library == "torch" else np.ones((128, 128), np.float32)
    out = torch.empty(128, 128, dtype=torch.uint8) if library == "torch" else np.empty((128, 128), np.uint8)
    scale = torch.empty(1, 1) if library == "torch" else np.empty((1, 1), np.float32)
    board = Board(patches)

    def work():
        patches.quantize(Q, weight, out=out, scale_out=scale)
        for end in ("commit", "abandon"):
            refit = board.refit()
            refit.add(Q, weight)
            for _ in refit:
                pass
            getattr(refit, end)()
        board.refit().add(Q, weight)

    work()
    counts = [sys.getrefcount(one) for one in (weight, out, scale)]
    for _ in range(50):
        work()
    gc.collect()
    board.status()
    assert counts == [sys.getrefcount(one) for one in (weight, out, scale)]


def test_outputs_outlive_everything():
    board = Board(PatchSet.load("fp8_block"))
    given = weights(1024)
    with board.refit() as refit:
        refit.add_all(given)
        out = dict(refit)
    want = bytes(out[Q].view(torch.uint8).flatten().tolist())
    gone = []
    weakref.finalize(given[Q], gone.append, "weight")
    del refit, board, given
    gc.collect()
    _ = [torch.full((1 << 20,), 7, dtype=torch.uint8) for _ in range(20)]
    assert gone == ["weight"], "a weight that was quantized is kept"
    view = out.pop(Q)[3:, 1:].t()
    gc.collect()
    assert bytes(view.t().contiguous().view(torch.uint8).flatten().tolist())[:255] == want[3 * 256 + 1 : 4 * 256]


def test_outputs_die_with_their_tensors(patches):
    board = Board(patches)

    def once():
        with board.refit() as refit:
            refit.add(Q, big)
            return dict(refit)

    big = torch.ones(8192, 8192).bfloat16()
    once()
    before = rss()
    kept = once()
    assert rss() - before > 48 << 20
    del kept
    assert rss() - before < 24 << 20, "64 MB of codes are kept"


@pytest.mark.parametrize("end", ["commit", "abandon", "drop", "prove and drop", "raise", "refused"])
def test_inputs_are_let_go(patches, end):
    board, gone = Board(patches), []
    given = weights()
    for name, tensor in given.items():
        weakref.finalize(tensor, gone.append, name)
    if end == "refused":
        given[N][0] = float("nan")
    refit = board.refit(progress=(lambda *_: 1 / 0) if end == "raise" else None)
    refit.add_all(given)
    if end in ("raise", "refused"):
        with pytest.raises(ZeroDivisionError if end == "raise" else NonFiniteError):
            refit.prove()
    elif end == "prove and drop":
        refit.prove()
    elif end != "drop":
        getattr(refit, end)()
    del refit, given, tensor
    # What a thread let go is given back by the next call.
    for _ in range(100):
        gc.collect()
        board.status()
        if len(gone) == 2:
            return
        time.sleep(0.02)
    raise AssertionError(f"only {gone} died")


@pytest.mark.slow
def test_many_refits(patches):
    board, big = Board(patches), torch.ones(2560, 4096).bfloat16()

    def once():
        with board.refit() as refit:
            refit.add(Q, big)
            for _ in refit:
                pass

    flat(once, 300, 20)
    ends = iter(range(10**9))

    def drop():
        refit = board.refit()
        refit.add(Q, big)
        if next(ends) % 2:
            refit.prove()

    flat(drop, 100, 10)


@pytest.mark.slow
def test_many_sets():
    weight = torch.ones(128, 128).bfloat16()

    def once():
        patches = PatchSet.load(PatchSpec("fp8_block", settings={"profile": "deepseek"}))
        patches.quantize(Q, weight)
        board = Board(patches)
        board.stage("fp8_block")

    flat(once, 50, 10)


def test_dlpack_of_torch(patches):
    weight = torch.ones(128, 128)
    array = np.from_dlpack(weight)
    count = sys.getrefcount(array)
    for _ in range(20):
        assert patches.quantize(Q, array) is not None
    assert sys.getrefcount(array) == count and float(weight.sum()) == 128 * 128


class Exporter:
    """Counts how often the deleter of what it exports is called."""

    class Managed(ctypes.Structure):
        _fields_ = (
            ("data", ctypes.c_void_p), ("device", ctypes.c_int32 * 2), ("ndim", ctypes.c_int32),
            ("code", ctypes.c_uint8), ("bits", ctypes.c_uint8), ("lanes", ctypes.c_uint16),
            ("shape", ctypes.POINTER(ctypes.c_int64)), ("strides", ctypes.c_void_p), ("offset", ctypes.c_uint64),
            ("context", ctypes.c_void_p), ("deleter", ctypes.CFUNCTYPE(None, ctypes.c_void_p)),
        )  # fmt: skip

    def __init__(self, data):
        self.data, self.made, self.deleted, self.held = data, 0, 0, []

    def __dlpack_device__(self):
        return 1, 0

    def __dlpack__(self, *, stream=None, **_):
        def delete(_):
            self.deleted += 1

        shape = (ctypes.c_int64 * 2)(*self.data.shape)
        function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(delete)
        device = (ctypes.c_int32 * 2)(1, 0)
        managed = self.Managed(self.data.ctypes.data, device, 2, 2, 32, 1, shape, None, 0, None, function)
        self.held.append((shape, managed, function))
        self.made += 1
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, [ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p]
        return new(ctypes.addressof(managed), b"dltensor", None)


def test_deleters_are_called_once(patches):
    exporter = Exporter(np.ones((256, 256), np.float32))
    for _ in range(10):
        patches.quantize(Q, exporter, scheme=patches.decide({Q: ("float32", (256, 256))})[Q].scheme)
    gc.collect()
    assert exporter.made == exporter.deleted == 10
    board = Board(patches)
    with board.refit() as refit:
        refit.add(Q, exporter)
        refit.prove()
        gc.collect()
        assert exporter.deleted == exporter.made - 1
    del refit
    gc.collect()
    board.status()
    assert exporter.deleted == exporter.made == 11
