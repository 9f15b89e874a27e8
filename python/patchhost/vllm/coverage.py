"""What a stream of weights fills of a vLLM model: found by loading it into a twin of the model that has no memory.

vLLM counts elements while it loads, so a tensor that comes twice hides one that is lost. Here every copy that a weight
loader makes is seen with its place: which parameter, which part of it, and from which tensor of the stream. The twin's
parameters are on the device `meta`, so nothing is written, and the live model is not touched.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from vllm.config import CompilationMode, set_current_vllm_config
from vllm.model_executor.model_loader.utils import initialize_model
from vllm.utils.torch_utils import set_default_torch_dtype

from ..errors import RefitError


class Piece(NamedTuple):
    """One copy that a weight loader makes: `source` (of the tensor `name` of the stream) into a part of `parameter`."""

    name: str | None
    parameter: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    source: torch.Tensor | None

    @property
    def numel(self) -> int:
        return math.prod(self.shape)

    def of(self, whole: torch.Tensor) -> torch.Tensor:
        """The same part of another tensor that is laid out as the twin's parameter."""
        return torch.as_strided(whole, self.shape, self.stride, whole.storage_offset() + self.offset)


class Trace(NamedTuple):
    """What one stream fills. `pieces` in the order of the copies; `filled`: parameter → merged runs [start, end) of
    elements; `copied`: parameter → elements copied, more than filled where something is written twice; `unused`: tensors
    of which nothing was copied."""

    pieces: list[Piece]
    filled: dict[str, tuple[tuple[int, int], ...]]
    copied: dict[str, int]
    unused: tuple[str, ...]


class Twin:
    """A second instance of a model on the device `meta`: the same classes and weight loaders, no memory."""

    def __init__(self, vllm_config: Any, model_config: Any) -> None:
        self.vllm_config = _apart(vllm_config)
        with torch.device("meta"), set_default_torch_dtype(model_config.dtype):
            self.model = initialize_model(vllm_config=self.vllm_config, model_config=model_config)
        self.parameters: dict[str, torch.Tensor] = dict(self.model.named_parameters())
        self.modules: dict[str, torch.nn.Module] = dict(self.model.named_modules())
        self.places: dict[int, str] = {}
        for name, tensor in [*self.parameters.items(), *self.model.named_buffers()]:
            self.places.setdefault(tensor.untyped_storage()._cdata, name)

    def trace(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Trace:
        """Loads a stream into the twin. Raises `RefitError` where a weight loader of vLLM refuses a tensor."""
        seen = _Copies(self.places)
        names: list[str] = []
        given: set[str] = set()

        def told() -> Iterator[tuple[str, torch.Tensor]]:
            for name, tensor in tensors:
                seen.name = name
                names.append(name)
                yield name, tensor
            seen.name = None

        try:
            with set_current_vllm_config(self.vllm_config), torch.no_grad(), seen:
                self.model.load_weights(told())
        except Exception as error:
            at = seen.name or (names[-1] if names else "")
            why = f"{type(error).__name__} in vLLM's loader: {error}"[:600]
            advice = "send the tensors of this model whole, under the names of its checkpoint; the old weights keep serving"
            raise RefitError(f"tensor `{at}`" if at else "the update", why, advice) from error
        copied: dict[str, int] = {}
        runs: dict[str, list[tuple[int, int]]] = {}
        for piece in seen.pieces:
            copied[piece.parameter] = copied.get(piece.parameter, 0) + piece.numel
            runs.setdefault(piece.parameter, []).extend(_runs(piece))
            if piece.name is not None:
                given.add(piece.name)
        filled = {parameter: _merged(parts) for parameter, parts in runs.items()}
        unused = tuple(name for name in dict.fromkeys(names) if name not in given)
        return Trace(seen.pieces, filled, copied, unused)


def unfilled(twin: Twin, trace: Trace) -> list[str]:
    """Parameters of which a part was not written, with how much of them."""
    out = []
    for name, parameter in twin.parameters.items():
        have = sum(end - start for start, end in trace.filled.get(name, ()))
        if have != parameter.numel():
            out.append(f"{name} ({have} of {parameter.numel()} elements)")
    return out


class _Copies(TorchDispatchMode):
    """Sees each write to memory of the twin."""

    def __init__(self, places: dict[int, str]) -> None:
        super().__init__()
        self._places = places
        self.pieces: list[Piece] = []
        self.name: str | None = None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.copy_.default:
            self._saw(args[0], args[1])
        elif func in _FILLS:
            self._saw(args[0], None)
        return func(*args, **(kwargs or {}))

    def _saw(self, into: torch.Tensor, source: torch.Tensor | None) -> None:
        parameter = self._places.get(into.untyped_storage()._cdata)
        if parameter is not None:
            shape, stride = tuple(into.shape), tuple(into.stride())
            self.pieces.append(Piece(self.name, parameter, into.storage_offset(), shape, stride, source))


_FILLS = (
    torch.ops.aten.fill_.Scalar,
    torch.ops.aten.fill_.Tensor,
    torch.ops.aten.zero_.default,
)


def _runs(piece: Piece) -> list[tuple[int, int]]:
    """A part of a parameter as runs of elements without gaps."""
    if piece.numel == 0:
        return []
    length, inner = 1, len(piece.shape)
    while inner > 0 and (piece.shape[inner - 1] == 1 or piece.stride[inner - 1] == length):
        length *= piece.shape[inner - 1]
        inner -= 1
    starts = torch.zeros(1, dtype=torch.int64)
    for size, stride in zip(piece.shape[:inner], piece.stride[:inner], strict=True):
        starts = (starts[:, None] + torch.arange(size, dtype=torch.int64) * stride).reshape(-1)
    return [(piece.offset + start, piece.offset + start + length) for start in starts.tolist()]


def _merged(runs: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    out: list[tuple[int, int]] = []
    for start, end in sorted(runs):
        if out and start <= out[-1][1]:
            out[-1] = (out[-1][0], max(end, out[-1][1]))
        else:
            out.append((start, end))
    return tuple(out)


def _apart(vllm_config: Any) -> Any:
    """A config for the twin: what a model registers in it while it is built does not reach the live one."""
    own = copy.copy(vllm_config)
    compilation = copy.copy(vllm_config.compilation_config)
    for field, value in vars(compilation).items():
        if isinstance(value, (dict, list, set)):
            setattr(compilation, field, copy.copy(value))
    compilation.static_forward_context = {}
    if hasattr(compilation, "static_all_moe_layers"):
        compilation.static_all_moe_layers = []
    compilation.mode = CompilationMode.NONE
    own.compilation_config = compilation
    return own
