"""The API used wrongly: arguments that are none, memory that goes, calls out of turn, interruptions, ends and forks."""

import signal
import sys
import threading

import pytest

from patchhost import Board, Error, HostError, PatchSet, PatchSpec, RefitError, SwapError, TensorError, UsageError

np = pytest.importorskip("numpy")
torch = pytest.importorskip("torch")
Q, N = "model.layers.0.self_attn.q_proj.weight", "model.norm.weight"


def weights():
    return {Q: torch.ones(256, 256).bfloat16(), N: torch.ones(256).bfloat16()}


@pytest.fixture(scope="module")
def patches():
    return PatchSet.load("fp8_block")


@pytest.fixture
def board(patches):
    return Board(patches)


@pytest.fixture(autouse=True)
def watchdog():
    """A test that hangs ends by SIGALRM, where there is one."""

    def late(*_):
        raise TimeoutError("it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(120)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def good(board):
    with board.refit() as refit:
        refit.add_all(weights())
        assert len(list(refit)) == 3
    assert refit.state == "committed"


def readable(error):
    text = str(error)
    assert error.what and error.why and error.next and len(text) < 16384
    assert all(c == "\n" or c.isprintable() for c in text), repr(text)


NAMES = ["a\0b", "a\nb", "x" * (1 << 20), "\ud800x", "", "\u202e\u0007", 5, None, b"x"]


@pytest.mark.parametrize("name", NAMES, ids=[repr(name)[:12] for name in NAMES])
def test_names(patches, board, name):
    weight, scheme = weights()[Q], patches.decide(weights())[Q].scheme

    def refit():
        with board.refit() as one:
            one.add(name, weight)
            return list(one)

    for call in (
        lambda: patches.decide({name: weight}),
        lambda: patches.quantize(name, weight),
        lambda: patches.quantize(name, torch.empty(3, 3, device="meta"), scheme=scheme),
        lambda: patches.quantize(name, weight, scheme=scheme, out=torch.empty(1)),
        lambda: patches.scales(name, torch.ones(4), rows=256, cols=256),
        lambda: patches.scale_table(name, weight),
        lambda: list(patches.quantize_stream([(name, weight)])),
        lambda: board.stage(PatchSpec("fp8_block", settings={"profile": "hf"}), tensors=[(name, weight)]),
        refit,
    ):
        try:
            call()
        except Error as error:
            readable(error)
    good(Board(patches))


def test_arguments(patches, board, tmp_path):
    weight, half = weights()[Q], "\ud800"
    scheme, amax, codes = patches.decide(weights())[Q].scheme, torch.ones(1), torch.zeros(2, 2, dtype=torch.uint8)
    ask = lambda **more: patches.scales(Q, amax, **{"rows": 2, "cols": 2, "scheme": scheme, **more})  # noqa: E731
    many = torch.ones(1, 256, dtype=torch.bfloat16).expand(1 << 31, 256)
    calls = [
        lambda: patches.quantize(Q, weight, scheme=5),
        lambda: patches.quantize(Q, weight.double(), scheme=scheme),
        lambda: patches.quantize(Q, weight[0], scheme=scheme),
        lambda: patches.quantize(Q, many, scheme=scheme, out=torch.empty(1, 256, dtype=torch.uint8).expand(1 << 31, 256)),
        lambda: patches.quantize(Q, np.ones((256, 256), np.float32)[::-1], scheme=scheme),
        lambda: ask(rows=-200, cols=-200),
        lambda: ask(rows=1 << 62, cols=1 << 62),
        lambda: ask(rows=1 << 80),
        lambda: ask(rows="x"),
        lambda: ask(rows=2.5),
        lambda: ask(first_block=None),
        lambda: ask(first_block=-1),
        lambda: patches.masked(-1, 5),
        lambda: patches.masked(5, "a"),
        lambda: patches.scale_table(5),
        lambda: patches.decide(5),
        lambda: patches.decide({Q: ("bfloat16", "ab")}),
        lambda: patches.decide({Q: ("bfloat16", (1 << 70, 2))}),
        lambda: patches.decide({Q: ("bfloat16", (2.5, 2))}),
        lambda: patches.decide({Q: (half, (2, 2))}),
        lambda: PatchSet.dequantize(codes, torch.ones(1, 1), block=None),
        lambda: PatchSet.dequantize(codes, torch.ones(1, 1), block=(1,)),
        lambda: PatchSet.dequantize(codes, torch.ones(1, 1), block=(1 << 65, 1 << 65)),
        lambda: PatchSet.dequantize(codes, torch.ones(1, 1), dtype="no_dtype"),
        lambda: PatchSet.load("fp8_block", architecture=half),
        lambda: PatchSet.load("fp8_block", host=(half, "1")),
        lambda: PatchSet.load("fp8_block", policy=5),
        lambda: PatchSet.load("fp8_block", policy="a\0"),
        lambda: PatchSet.load("fp8_block", lock="/dev/zero"),
        lambda: PatchSet.load("fp8_block", config="a\0"),
        lambda: PatchSet.load("fp8_block", config='{"a":' * 100_000),
        lambda: PatchSet.load("fp8_block", config={"a": half}),
        lambda: PatchSet.load(PatchSpec("fp8_block", settings={"profile": half})),
        lambda: PatchSet.load(PatchSpec("fp8_block", settings={"profile": "x" * (1 << 24)})),
        lambda: PatchSet.load("a\udc80.wasm"),
        lambda: PatchSet.load("x" * (1 << 20)),
        lambda: Board(patches, actor=5),
        lambda: Board(patches, actor=half),
        lambda: Board(patches, ledger=5),
        lambda: Board(patches, ledger="/dev/zero"),
        lambda: Board(patches, ledger=tmp_path),
        lambda: Board(patches, ledger=tmp_path / "a\0b"),
        lambda: board.recent(-1),
        lambda: board.recent("a"),
        lambda: board.recent(1 << 64),
        lambda: board.cancel(None),
        lambda: board.rollback(reason=half),
        lambda: board.swap(half),
        lambda: board.swap("a" * 64, expected=5),
        lambda: board.refit(step=1 << 70),
        lambda: board.refit(version=half),
        lambda: board.refit(progress=5),
        lambda: board.refit(manifest="["),
        lambda: board.refit(manifest={"a": object()}),
        lambda: board.refit(manifest=half),
        lambda: board.stage("fp8_block", tensors=5),
    ]
    for at, call in enumerate(calls):
        with pytest.raises(Error) as caught:
            call()
            pytest.fail(f"call {at} was not refused")
        readable(caught.value)
    good(board)


def test_more_memory_than_there_is(patches):
    # 2**45 rows: no machine has the memory for the codes, whatever it promises.
    with pytest.raises(HostError):
        scheme = patches.decide(weights())[Q].scheme
        patches.quantize(Q, torch.ones(1, 256, dtype=torch.bfloat16).expand(1 << 45, 256), scheme=scheme)


@pytest.mark.parametrize("shape", [(0, 4), (4, 0), (0, 0), (1 << 40, 0), (0, 1 << 20, 1 << 20), (3, 0, 5)])
def test_nothing_in_it(patches, board, shape):
    empty, scheme = torch.empty(shape, dtype=torch.bfloat16), patches.decide(weights())[Q].scheme
    made = patches.quantize(Q, empty, scheme=scheme)
    assert tuple(made.codes.shape) == shape
    try:
        with board.refit() as refit:
            refit.add(Q, empty)
            assert len(list(refit)) in (1, 2)
    except Error as error:
        readable(error)
    good(Board(patches))


def test_places_to_write(patches):
    weight, scheme = weights()[Q], patches.decide(weights())[Q].scheme
    both = torch.empty(65536, dtype=torch.uint8)
    locked = np.empty((256, 256), np.uint8)
    locked.flags.writeable = False
    octets = weight.view(torch.uint8).flatten()
    before = octets.clone()
    for out, scale in (
        (octets[:65536].view(256, 256), None),
        (octets[65536:].view(256, 256), None),
        (None, weight.view(torch.float32).flatten()[-4:].view(2, 2)),
        (both.view(256, 256), both[-16:].view(torch.float32).view(2, 2)),
        (torch.empty(255, 256, dtype=torch.uint8), None),
        (torch.empty(256, 256, dtype=torch.int16), None),
        (torch.empty(256, 512, dtype=torch.uint8)[:, ::2], None),
        (torch.empty(1, 256, dtype=torch.uint8).expand(256, 256), None),
        (torch.empty(256, 256, dtype=torch.uint8, device="meta"), None),
        (locked, None),
        (bytearray(65536), None),
        (None, torch.empty(2, 2, dtype=torch.float64)),
        (None, torch.empty(3, 2)),
    ):
        with pytest.raises(TensorError) as caught:
            patches.quantize(Q, weight, scheme=scheme, out=out, scale_out=scale)
        readable(caught.value)
        assert torch.equal(octets, before)


def test_storage_that_is_gone(patches, board):
    gone, short = torch.ones(256, 256).bfloat16(), torch.ones(256, 256).bfloat16()
    gone.untyped_storage().resize_(0)
    short.untyped_storage().resize_(1000)
    with board.refit() as refit:
        for tensor in (gone, short):
            with pytest.raises(TensorError, match="storage has"):
                refit.add(Q, tensor)
            with pytest.raises(TensorError, match="storage has"):
                patches.quantize(Q, tensor)
        refit.add_all(weights())
    assert refit.state == "committed"


def test_another_storage_after_add(board):
    # The old storage may be freed by this: nothing but the address is known. Here somebody else holds it.
    given = weights()
    holds = given[Q].untyped_storage()
    with board.refit() as refit:
        refit.add_all(given)
        given[Q].set_(torch.zeros(4, 4).bfloat16())
        out = dict(refit)
    assert out[Q].shape == (256, 256) and out[Q].float().min() > 0 and holds.nbytes()


PROGRESS = ["refit", "raise", "exit", "prove", "commit", "list", "add"]


@pytest.mark.parametrize("quiet", [True, False])
@pytest.mark.parametrize("what", [*PROGRESS, "abandon", "status", "stage", "swap", "rollback", "cancel", "quantize"])
def test_calls_from_progress(board, patches, what, quiet):
    class Ours(Exception):
        pass

    def fails():
        raise Ours

    calls = {
        "refit": board.refit, "raise": fails, "exit": lambda: sys.exit(3), "prove": lambda: refit.prove(),
        "commit": lambda: refit.commit(), "list": lambda: list(refit), "add": lambda: refit.add("x", torch.ones(2)),
        "abandon": lambda: refit.abandon(), "status": board.status, "stage": lambda: board.stage("fp8_block"),
        "swap": lambda: board.swap(board.stage(PatchSpec("fp8_block", settings={"profile": "hf"}))),
        "rollback": board.rollback, "cancel": lambda: board.cancel("x"),
        "quantize": lambda: patches.quantize(Q, weights()[Q]),
    }  # fmt: skip
    seen = []

    def progress(*_):
        if seen:
            return
        seen.append(what)
        try:
            calls[what]()
        except BaseException as error:
            seen.append(error)
            if not quiet:
                raise

    good(board)
    refit = board.refit(progress=progress)
    refit.add_all(weights())
    raised = None
    try:
        with refit:
            assert len(list(refit)) == 3
    except BaseException as error:
        raised = error
    assert seen
    if what == "abandon":
        assert isinstance(raised, UsageError) and refit.state == "abandoned"
    elif len(seen) > 1 and not quiet:
        assert raised is seen[1] and refit.state == "abandoned"
    else:
        assert raised is None and refit.state == "committed"
    if what == "refit":
        assert isinstance(seen[1], SwapError | UsageError)
    good(board)


def test_calls_out_of_turn(board):
    refit = board.refit()
    refit.add_all(weights())
    assert refit.prove() is refit.prove()
    assert len(list(refit)) == len(list(refit)) == 3
    first = iter(refit)
    next(first)
    second = iter(refit)
    next(second)
    with pytest.raises(UsageError, match="another iteration"):
        next(first)
    with pytest.raises(RefitError, match="1 of 3"):
        refit.commit()
    assert len(list(refit)) == 3
    refit.commit()
    refit.abandon()
    assert refit.state == "committed"
    for call in (refit.commit, refit.prove, lambda: list(refit), lambda: refit.add("x", torch.ones(2))):
        with pytest.raises(UsageError):
            call()
    assert refit.state == "committed"
    good(board)


def test_dropped_in_every_state(board):
    for i in range(40):
        refit = board.refit()
        if i % 4:
            refit.add_all(weights())
        if i % 4 > 1:
            refit.prove()
        if i % 4 > 2:
            next(iter(refit))
        del refit
    good(board)


def test_one_board_from_eight_threads(board):
    wrong, done = [], []

    def work():
        for _ in range(10):
            try:
                good(board)
                done.append(1)
            except Error as error:
                if "another refit is open" not in error.why:
                    wrong.append(error)
            except BaseException as error:
                wrong.append(error)
            board.status()
            board.stage(PatchSpec("fp8_block", settings={"profile": "hf"}))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert done and not wrong, wrong[:3]


def test_one_refit_from_eight_threads(board):
    refit, said = board.refit(), []
    refit.add_all(weights())

    def work():
        try:
            refit.prove()
        except Error as error:
            said.append(error)

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert len(said) < 8 and all(isinstance(error, UsageError) for error in said)
    assert refit.state == "proved" and refit.commit()
