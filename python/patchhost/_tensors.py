"""Tensors of any library as the extension reads them (`Raw`), and memory for what it writes. Nothing is copied.

torch and numpy are never imported to look at a tensor: a tensor of theirs exists only where they are imported already.
"""

from __future__ import annotations

import ctypes
import math
import sys
import threading
import warnings
from collections.abc import Sequence
from typing import Any, NoReturn

from .errors import DetachedWarning, HostError, TensorError

Raw = tuple[int, str, tuple[int, ...], tuple[int, ...], Any]

SIZES = {
    "bool": 1, "uint8": 1, "int8": 1, "uint16": 2, "int16": 2, "uint32": 4, "int32": 4, "uint64": 8, "int64": 8,
    "float16": 2, "bfloat16": 2, "float32": 4, "float64": 8, "float8_e4m3fn": 1, "float8_e5m2": 1, "float8_e8m0fnu": 1,
    "float8_e4m3fnuz": 1, "float8_e5m2fnuz": 1,
}  # fmt: skip
"""Bytes of an element, by the dtypes that are read: torch's names, and ml_dtypes' (they are the same)."""

_CPU = 1  # kDLCPU
_WORDS: dict[Any, str] = {}
"""Names of the dtypes of torch that were read: real ones, of plain values."""
_warned = threading.Event()


def read(name: str, value: Any) -> Raw:
    """`value` in place: (address of its first element, dtype, shape, strides in elements, who keeps it alive).

    Takes tensors of torch (`torch.Tensor`, `nn.Parameter`, `nn.Buffer`) on the CPU, numpy arrays (`ml_dtypes`
    included), and what has `__dlpack__` or `__array_interface__`. Any strides but negative ones. Raises `TensorError`,
    with the name.
    """
    if not is_torch(value):
        value = _known(name, value)
        if not is_torch(value):
            return _read_numpy(name, value)
    return _read_torch(name, value)


def shown(name: Any) -> str:
    """A name as a message may have it: in one line, without control characters, and not longer than people read."""
    whole = str(name)
    if len(whole) <= 200 and whole.isprintable():
        return whole
    plain = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in whole[:200])
    return plain if len(whole) <= 200 else f"{plain}… ({len(whole)} characters)"


def describe(name: str, value: Any) -> tuple[str, tuple[int, ...]]:
    """(dtype, shape) of a tensor of any kind, on any device (`meta` too), or of a pair (dtype, shape)."""
    if isinstance(value, (tuple, list)) and len(value) == 2:
        dtype, shape = value
        try:
            dims = tuple(d.__index__() for d in shape)
        except (AttributeError, TypeError):
            _refuse(
                name,
                f"its shape is {shape!r:.100} of type {type(shape).__name__}",
                "give (dtype, shape): (torch.bfloat16, (256, 128))",
            )
        if any(d < 0 for d in dims):
            _refuse(name, f"its shape {list(dims)} has a negative dimension", "give the sizes of the tensor")
        if any(d >= 1 << 63 for d in dims):
            _refuse(name, f"its shape {list(dims)} is larger than any tensor", "give the sizes of the tensor")
        word = dtype_name(dtype)
        if not word.isascii():
            _refuse(name, f"its dtype is {word!r:.100}", "give (dtype, shape): (torch.bfloat16, (256, 128))")
        return word, dims
    if is_torch(value):
        if getattr(value, "is_nested", False):
            _refuse(name, "it is a nested tensor, which has no one shape", "give its parts one by one: tensor.unbind()")
        word = _WORDS.get(value.dtype)
        if word is not None:
            return word, tuple(map(int, value.shape))
    dtype, shape = getattr(value, "dtype", None), getattr(value, "shape", None)
    if dtype is None or shape is None:
        _refuse(
            name,
            f"it is of type {type(value).__name__}, which has no dtype and shape",
            "give a tensor, or (dtype, shape)",
        )
    return dtype_name(dtype), tuple(int(d) for d in shape)


def dtype_name(dtype: Any) -> str:
    """`bfloat16` of `torch.bfloat16`, `numpy.dtype("float32")` or the text itself."""
    return str(getattr(dtype, "name", None) or dtype).removeprefix("torch.")


def is_torch(value: Any) -> bool:
    """Whether it is a tensor of torch (of any class)."""
    torch = sys.modules.get("torch")
    tensor = getattr(torch, "Tensor", None)
    return isinstance(tensor, type) and isinstance(value, tensor)


def is_contiguous(raw: Raw) -> bool:
    """Row-major without gaps, as torch means it: strides of dimensions of size 1 do not count."""
    if 0 in raw[2]:
        return True
    expected = 1
    for size, stride in zip(reversed(raw[2]), reversed(raw[3]), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


def bytes_of(dtype: str, shape: Sequence[int]) -> int:
    """Bytes of a contiguous tensor; a dtype that is not in `SIZES` counts as 8 an element."""
    return SIZES.get(dtype, 8) * math.prod(shape)


def writable(name: str, value: Any, shape: Sequence[int], dtypes: Sequence[str], *sources: Raw) -> int:
    """Address of memory of the caller that is to be written: contiguous, of this shape and one of these dtypes, and no
    part of `sources`. Raises `TensorError`."""
    array = not is_torch(value)
    if array and not _is_numpy(value):
        _refuse(name, f"it is of type {type(value).__name__}", "give a torch tensor or a numpy array to write to")
    raw = read(name, value)
    if tuple(raw[2]) != tuple(shape):
        _refuse(name, f"its shape is {list(raw[2])}, and {list(shape)} is written", "give memory of the right shape")
    if raw[1] not in dtypes:
        _refuse(name, f"its dtype is {raw[1]}, and {' or '.join(dtypes)} is written", "give memory of the right dtype")
    if not is_contiguous(raw):
        _refuse(
            name, f"its strides are {list(raw[3])}; what is written is row-major without gaps", "give contiguous memory"
        )
    if array and not value.flags.writeable:
        _refuse(name, "it is read-only", "give an array that can be written")
    end = raw[0] + bytes_of(raw[1], raw[2])
    for source in sources:
        if source[0] < end and raw[0] < source[0] + bytes_of(source[1], ()) * _elements(source[2], source[3]):
            _refuse(name, "it shares memory with a tensor that is read", "give memory of its own")
    return raw[0]


def empty_like_kind(kind_of: Any, shape: Sequence[int], dtype: str) -> Any:
    """Memory for a result: a CPU tensor of torch where `kind_of` is one, else a numpy array.

    Without `ml_dtypes`, numpy has no FP8: such an array is `uint8`, the same bytes. They are read later by
    `array.view(ml_dtypes.float8_e4m3fn)`, or by `torch.from_numpy(array).view(torch.float8_e4m3fn)`.
    """
    try:
        if is_torch(kind_of):
            torch = sys.modules["torch"]
            return torch.empty(tuple(shape), dtype=getattr(torch, dtype), device="cpu")
        return _numpy().empty(tuple(shape), dtype=_numpy_dtype(dtype))
    except TensorError:
        raise
    except (MemoryError, OverflowError, RuntimeError, ValueError) as error:
        why = f"{bytes_of(dtype, shape):,} bytes for {dtype} {list(shape)} cannot be had: {str(error)[:200]}"
        raise HostError("memory for a result", why, "free memory, or quantize it in parts") from error


def address_of(made: Any) -> int:
    """Address of what `empty_like_kind` made."""
    return int(made.data_ptr() if is_torch(made) else made.ctypes.data)


def wrap(address: int, shape: Sequence[int], dtype: str, owner: Any, kind_of: Any) -> Any:
    """Memory of the extension as a tensor (of torch where `kind_of` is one, else of numpy), without a copy. `owner`
    lives as long as the tensor and every view of it."""
    count = bytes_of(dtype, shape)
    if count == 0:
        return empty_like_kind(kind_of, shape, dtype)
    buffer = (ctypes.c_uint8 * count).from_address(address)
    buffer._owner = owner  # type: ignore[attr-defined]
    if is_torch(kind_of):
        torch = sys.modules["torch"]
        return torch.frombuffer(buffer, dtype=torch.uint8).view(getattr(torch, dtype)).reshape(tuple(shape))
    return _numpy().frombuffer(buffer, dtype=_numpy_dtype(dtype)).reshape(tuple(shape))


def _refuse(name: str, why: str, next: str) -> NoReturn:
    raise TensorError(f"tensor `{shown(name)}`", why, next)


def _elements(shape: Sequence[int], strides: Sequence[int]) -> int:
    """Elements from the first to the last one, with the gaps between them."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def _is_numpy(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    array = getattr(numpy, "ndarray", None)
    return isinstance(array, type) and isinstance(value, array)


def _known(name: str, value: Any) -> Any:
    """A tensor of torch or an array of numpy over the same memory."""
    if is_torch(value) or _is_numpy(value):
        return value
    if hasattr(value, "__dlpack__"):
        return _from_dlpack(name, value)
    if hasattr(value, "__array_interface__"):
        try:
            return _numpy().asarray(value)
        except Exception as error:
            _refuse(name, f"its __array_interface__ cannot be read: {error}", "give a numpy array or a torch tensor")
    _refuse(name, f"it is of type {type(value).__name__}, which is no tensor", "give a torch tensor or a numpy array")


def _from_dlpack(name: str, value: Any) -> Any:
    kind = type(value).__name__
    try:
        device = int(value.__dlpack_device__()[0])
    except Exception as error:
        _refuse(name, f"a {kind} that does not say by DLPack where it is: {error}", "convert it to a numpy array first")
    if device != _CPU:
        _refuse(name, f"a {kind} on a device (DLPack's number {device})", "copy it to the CPU first")
    said = []
    for library in ("torch", "numpy"):
        module = sys.modules.get(library) or (_numpy() if library == "numpy" else None)
        if module is None or not hasattr(module, "from_dlpack"):
            continue
        try:
            return module.from_dlpack(value)
        except Exception as error:
            said.append(f"{library}: {error}")
    why = f"a {kind} whose DLPack cannot be read ({'; '.join(said)})"
    _refuse(name, why, "import torch, which reads more dtypes than numpy, or convert it to float32 first")


def _read_torch(name: str, value: Any) -> Raw:
    torch = sys.modules["torch"]
    plain = type(value) is torch.Tensor or type(value) is torch.nn.Parameter
    if not plain:
        _refuse_class(name, value)
    if value.is_nested:
        _refuse(name, "it is a nested tensor", "give its parts one by one: tensor.unbind()")
    if value.layout != torch.strided:
        _refuse(name, f"its layout is {value.layout}", "make it dense first: tensor.to_dense()")
    dtype = _WORDS.get(value.dtype)
    if dtype is None and value.is_quantized:
        _refuse(name, f"a quantized tensor of torch ({value.dtype})", "give its values: tensor.dequantize()")
    if not plain:
        why = f"it is of class {type(value).__module__}.{type(value).__name__}, whose bytes may mean something else"
        _refuse(name, why, "give the plain tensor in it: tensor.data, or what the class offers to unwrap it")
    if value.is_meta:
        _refuse(name, "it is on the device meta: it has no values", "load the weights first")
    if not value.is_cpu:
        advice = "copy it first: tensor.cpu(); or quantize it where it is, with PatchSet.scale_table"
        _refuse(name, f"it is on the device {value.device}; only memory of the CPU is read here", advice)
    if dtype is None and value.is_complex():
        _refuse(name, f"its dtype is {value.dtype}; weights are real", "split it: torch.view_as_real(tensor)")
    if value.is_conj() or value.is_neg():
        bit = "conj" if value.is_conj() else "neg"
        why = f"a view with the {bit} bit: its memory holds other values"
        _refuse(name, why, f"resolve it: tensor.resolve_{bit}()")
    if value.requires_grad:
        value = _detached(name, value)
    if dtype is None:
        dtype = dtype_name(value.dtype)
        if dtype in SIZES:
            _WORDS[value.dtype] = dtype
    shape, strides = tuple(value.shape), tuple(value.stride())
    try:
        address = value.data_ptr()
        held = value.untyped_storage().nbytes()
    except RuntimeError as error:
        _refuse(name, f"it has no memory of its own: {error}", "leave vmap, grad and functionalize first")
    count = value.numel() if value.is_contiguous() else _elements(shape, strides)
    needed = (value.storage_offset() + count) * value.element_size() if count else 0
    if needed > held:
        why = (
            f"its storage has {held} bytes, and its shape {list(shape)} needs {needed}; FSDP frees parameters like this"
        )
        _refuse(name, why, "gather it first: FSDP.summon_full_params, module.unshard(), or tensor.full_tensor()")
    return address, dtype, shape, strides, value


def _refuse_class(name: str, value: Any) -> None:
    """Says it better than that the class is another one, for the classes of torch that are met."""
    names = [cls.__name__ for cls in type(value).__mro__]
    if "FakeTensor" in names:
        _refuse(name, "a FakeTensor has no values", "leave FakeTensorMode first (torch.compile and export use it)")
    if "DTensor" in names:
        _refuse(name, "a DTensor: this process holds only a part of it", "gather it first: tensor.full_tensor()")
    if "UninitializedTensorMixin" in names:
        _refuse(name, "its shape is not known yet (a lazy module)", "run the module once, or load its state")


def _detached(name: str, value: Any) -> Any:
    if not value.is_leaf:
        why = f"it is the result of {type(value.grad_fn).__name__} and needs its graph"
        _refuse(name, why, "detach it: tensor.detach()")
    if not _warned.is_set():
        _warned.set()
        text = f"tensor `{name}` has requires_grad; it is read detached, without a copy (said once in each process)"
        warnings.warn(text, DetachedWarning, stacklevel=2)
    return value.detach()


def _read_numpy(name: str, value: Any) -> Raw:
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.ma.MaskedArray):
        _refuse(name, "a masked array: its memory holds values that do not count", "fill it: array.filled(value)")
    dtype = value.dtype
    if dtype.byteorder == ">" or (dtype.byteorder == "=" and sys.byteorder == "big"):
        _refuse(
            name, f"its bytes are big endian ({dtype.str})", "convert it: array.astype(array.dtype.newbyteorder('<'))"
        )
    word = dtype.name
    if dtype.kind == "c":
        _refuse(name, f"its dtype is {word}; weights are real", "give real and imaginary part apart")
    if word not in SIZES or SIZES[word] != dtype.itemsize:
        _refuse(name, f"its dtype is {word}", f"known are {', '.join(SIZES)}")
    if not value.flags.aligned:
        _refuse(
            name, f"its address is no multiple of the {dtype.alignment} bytes of an element", "copy it: array.copy()"
        )
    strides = []
    for size, step in zip(value.shape, value.strides, strict=True):
        if size > 1 and (step < 0 or step % dtype.itemsize):
            why = f"a stride of {step} bytes over elements of {dtype.itemsize}"
            _refuse(name, why, "copy it: numpy.ascontiguousarray(array)")
        strides.append(step // dtype.itemsize if size > 1 else 1)
    return value.ctypes.data, word, tuple(value.shape), tuple(strides), value


def _numpy() -> Any:
    try:
        import numpy
    except ImportError as error:
        why = "neither torch (imported before the call) nor numpy is there to hold it"
        raise TensorError("a tensor that is not of torch", why, "install numpy, or give torch tensors") from error
    return numpy


def _numpy_dtype(dtype: str) -> Any:
    numpy = _numpy()
    if dtype != "bfloat16" and not dtype.startswith("float8"):
        return numpy.dtype(dtype)
    try:
        import ml_dtypes
    except ImportError as error:
        if dtype != "bfloat16":
            return numpy.dtype("uint8")
        next_ = "install ml_dtypes, give torch tensors, or ask for float32"
        raise TensorError("a numpy array of bfloat16", "numpy has no such dtype without ml_dtypes", next_) from error
    return numpy.dtype(getattr(ml_dtypes, dtype))
