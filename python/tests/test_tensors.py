"""What is read in place, and what is refused by name."""

import ctypes
import gc
import subprocess
import sys
import warnings
import weakref

import numpy as np
import pytest

from patchhost import _tensors
from patchhost.errors import DetachedWarning, TensorError

torch = pytest.importorskip("torch")
ml_dtypes = pytest.importorskip("ml_dtypes")


def refused(value, *words):
    with pytest.raises(TensorError) as caught:
        _tensors.read("model.w", value)
    text = str(caught.value)
    assert "`model.w`" in text and "\n  why: " in text and "\n  next: " in text
    assert all(word in text for word in words), text


@pytest.mark.parametrize(
    "dtype", ["float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e8m0fnu", "int64", "uint8"]
)
def test_torch_is_read_in_place(dtype):
    tensor = torch.zeros(4, 6, dtype=torch.uint8).view(torch.uint8).float().to(getattr(torch, dtype))
    assert _tensors.read("w", tensor) == (tensor.data_ptr(), dtype, (4, 6), (6, 1), tensor)
    view = tensor.t()[1:]
    assert _tensors.read("w", view)[:4] == (view.data_ptr(), dtype, (5, 4), (1, 6))
    assert not _tensors.is_contiguous(_tensors.read("w", view)) and _tensors.is_contiguous(_tensors.read("w", tensor))


def test_shapes_at_the_edge():
    for shape in ((), (0,), (0, 128), (3, 0, 5), (1, 1)):
        raw = _tensors.read("w", torch.empty(shape))
        assert raw[2] == shape and _tensors.is_contiguous(raw)
        raw = _tensors.read("w", np.empty(shape, np.float32))
        assert raw[2] == shape and _tensors.is_contiguous(raw)
    expanded = torch.ones(1, 4).expand(8, 4)
    assert _tensors.read("w", expanded)[3] == (0, 1)


def test_parameters_are_detached_with_a_word():
    _tensors._warned.clear()
    parameter = torch.nn.Parameter(torch.ones(2, 3))
    with pytest.warns(DetachedWarning, match="`w`"):
        raw = _tensors.read("w", parameter)
    assert raw[0] == parameter.data_ptr() and not raw[4].requires_grad
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _tensors.read("w", torch.ones(2, requires_grad=True))
        _tensors.read("w", torch.nn.Parameter(torch.ones(2), requires_grad=False))
        _tensors.read("w", torch.nn.Buffer(torch.ones(2)))
        for tensor in torch.nn.Linear(2, 2).state_dict().values():
            _tensors.read("w", tensor)
    refused(torch.ones(2, requires_grad=True) * 2, "MulBackward", "detach()")


def test_torch_that_cannot_be_read():
    refused(torch.empty(2, 2, device="meta"), "meta")
    refused(torch.eye(3).to_sparse(), "sparse_coo", "to_dense()")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        refused(torch.quantize_per_tensor(torch.ones(2, 2), 0.1, 0, torch.qint8), "qint8", "dequantize()")
        refused(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)]), "nested", "unbind()")
        refused(torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged), "nested")
    refused(torch.ones(2, dtype=torch.complex64), "complex64")
    refused(torch.ones(2, dtype=torch.complex64).conj().imag, "neg bit", "resolve_neg()")
    refused(torch.nn.parameter.UninitializedParameter(), "lazy")
    freed = torch.ones(4, 4)
    freed.untyped_storage().resize_(0)
    refused(freed, "0 bytes", "64", "FSDP")
    with torch.func.functionalize(lambda: None) and torch._subclasses.fake_tensor.FakeTensorMode():
        fake = torch.empty(2, 2)
    refused(fake, "FakeTensor")


def test_subclasses_are_refused():
    class Mine(torch.Tensor):
        pass

    refused(torch.ones(2).as_subclass(Mine), "Mine", "tensor.data")


def test_a_dtensor_is_refused():
    code = """
import os, torch, torch.distributed as dist
from torch.distributed.tensor import DTensor, Replicate, distribute_tensor, init_device_mesh
from patchhost import _tensors, errors
store = dist.HashStore()
dist.init_process_group("gloo", rank=0, world_size=1, store=store)
tensor = distribute_tensor(torch.ones(2, 2), init_device_mesh("cpu", (1,)), [Replicate()])
try:
    _tensors.read("w", tensor)
except errors.TensorError as error:
    assert "full_tensor()" in error.next, error
    _tensors.read("w", tensor.full_tensor())
    print("good")
os._exit(0)
"""
    done = subprocess.run([sys.executable, "-u", "-c", code], capture_output=True, text=True, timeout=300)
    assert "good" in done.stdout, done.stderr


@pytest.mark.parametrize("name", ["bfloat16", "float8_e4m3fn", "float8_e8m0fnu", "float32", "float16", "int64", "bool"])
def test_numpy_is_read_in_place(name):
    dtype = getattr(ml_dtypes, name, None) or np.dtype(name)
    array = np.zeros((4, 6), dtype)
    assert _tensors.read("w", array) == (array.ctypes.data, name, (4, 6), (6, 1), array)
    view = array[::2, 1:].T
    assert _tensors.read("w", view)[:4] == (view.ctypes.data, name, (5, 2), (1, 12))


def test_numpy_that_cannot_be_read():
    refused(np.ones(3, ">f4"), "big endian")
    refused(np.ones(3, np.complex64), "complex64")
    refused(np.array(["a"]), "dtype")
    refused(np.array([object()]), "object")
    refused(np.zeros(3, [("a", "f4"), ("b", "i2")]), "dtype")
    refused(np.zeros(3, [("a", "f4"), ("b", "i2")])["a"], "copy it")
    refused(np.ones((2, 3), np.float32)[::-1], "ascontiguousarray")
    refused(np.frombuffer(bytes(9), np.uint8)[1:].view(np.float32), "address")
    refused(np.ma.array([1.0, 2.0], mask=[0, 1]), "masked")
    refused(np.zeros(2, ml_dtypes.int4), "int4")
    refused(None, "NoneType")
    refused([1.0], "list")


def test_others_come_by_dlpack_and_by_interface():
    class Capsule:
        def __init__(self, inner):
            self.inner = inner

        def __dlpack__(self, **given):
            return self.inner.__dlpack__(**given)

        def __dlpack_device__(self):
            return self.inner.__dlpack_device__()

    inner = torch.ones(2, 3, dtype=torch.bfloat16)
    raw = _tensors.read("w", Capsule(inner))
    assert raw[:4] == (inner.data_ptr(), "bfloat16", (2, 3), (3, 1))

    class Elsewhere(Capsule):
        def __dlpack_device__(self):
            return (2, 0)

    refused(Elsewhere(inner), "Elsewhere", "CPU")

    class Broken:
        def __dlpack__(self, **given):
            raise BufferError("no such dtype")

        def __dlpack_device__(self):
            return (1, 0)

    refused(Broken(), "no such dtype")

    class Interface:
        __array_interface__ = np.ones((2, 2), np.float32).__array_interface__
        kept = np.ones((2, 2), np.float32)

    assert _tensors.read("w", Interface())[1:3] == ("float32", (2, 2))


def test_descriptions():
    assert _tensors.describe("w", torch.empty(2, 3, device="meta", dtype=torch.bfloat16)) == ("bfloat16", (2, 3))
    assert _tensors.describe("w", (torch.float16, [4])) == ("float16", (4,))
    assert _tensors.describe("w", ("float32", (1, 2))) == ("float32", (1, 2))
    assert _tensors.describe("w", np.zeros((2,), ml_dtypes.bfloat16)) == ("bfloat16", (2,))
    for wrong in (("float32", 3), ("float32", (-1,)), "text", None):
        with pytest.raises(TensorError):
            _tensors.describe("w", wrong)


def test_results_are_of_the_kind_of_their_source():
    made = _tensors.empty_like_kind(torch.ones(1), (2, 3), "float8_e4m3fn")
    assert made.dtype == torch.float8_e4m3fn and tuple(made.shape) == (2, 3)
    made = _tensors.empty_like_kind(np.ones(1), (2, 3), "float8_e4m3fn")
    assert made.dtype == ml_dtypes.float8_e4m3fn and made.shape == (2, 3)


@pytest.mark.parametrize("kind", [torch.ones(1), np.ones(1)])
def test_memory_lives_as_long_as_its_tensor(kind):
    class Owner:
        pass

    owner, memory = Owner(), (ctypes.c_float * 6)(*range(6))
    owner.memory = memory
    gone = weakref.ref(owner)
    tensor = _tensors.wrap(ctypes.addressof(memory), (2, 3), "float32", owner, kind)
    view = tensor[1:]
    del owner, memory, tensor
    gc.collect()
    assert gone() is not None and view.tolist() == [[3, 4, 5]]
    del view
    gc.collect()
    assert gone() is None
    empty = _tensors.wrap(0, (0, 3), "bfloat16", None, kind)
    assert tuple(empty.shape) == (0, 3)
    octets = (ctypes.c_uint8 * 4)(0x38, 0x40, 0xB8, 0)
    codes = _tensors.wrap(ctypes.addressof(octets), (4,), "float8_e4m3fn", octets, kind)
    values = codes.float().tolist() if _tensors.is_torch(codes) else codes.astype(np.float32).tolist()
    assert values == [1.0, 2.0, -1.0, 0.0]


def test_what_is_written_is_checked():
    source = torch.ones(4, 4)
    raw = _tensors.read("w", source)
    good = torch.empty(4, 4, dtype=torch.float8_e4m3fn)
    codes = ("float8_e4m3fn", "uint8")
    assert _tensors.writable("out", good, (4, 4), codes, raw) == good.data_ptr()
    locked = np.zeros((4, 4), np.uint8)
    locked.flags.writeable = False
    inside = source.view(torch.uint8).view(-1)[:16].view(4, 4)
    for bad, word in [
        (torch.empty(4, 5, dtype=torch.uint8), "shape"),
        (torch.empty(4, 4), "dtype"),
        (torch.empty(4, 4, dtype=torch.uint8).t()[:, :].t().t(), "strides"),
        (locked, "read-only"),
        (inside, "shares memory"),
        ([1], "list"),
    ]:
        with pytest.raises(TensorError, match=word):
            _tensors.writable("out", bad, (4, 4), codes, raw)


def test_neither_torch_nor_ml_dtypes_is_imported():
    code = """
import sys
from patchhost import _tensors
import numpy as np
raw = _tensors.read("w", np.ones((2, 2), np.float32))
assert raw[1] == "float32" and "torch" not in sys.modules and "ml_dtypes" not in sys.modules
sys.modules["ml_dtypes"] = None
assert _tensors.empty_like_kind(np.ones(1), (2,), "float8_e4m3fn").dtype == np.uint8
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
