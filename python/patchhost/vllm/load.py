"""Loading a proved stream into a live vLLM model, and reading back what it then holds."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from vllm.logger import init_logger
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from ..errors import InternalError, RefitError, Refused
from . import moe
from .coverage import Piece, Trace
from .expect import ModelExpectation

logger = init_logger(__name__)


class Loaded(NamedTuple):
    """What one load did. `read_back`: elements that were read from the live model and are those of the stream;
    `unreadable`: parameters that cannot be read (packed inside a closure); `rebuilt`: modules that share a weight and were
    packed again."""

    seconds: float
    read_back: int
    unreadable: tuple[str, ...]
    rebuilt: tuple[str, ...]
    repaired: int


class LiveModel:
    """One model of a worker, with what it loads and how its layers have to be treated in an update.

    repair: `auto` mends mixture-of-experts layers where the self-test says that they need it; `off` refuses there.
    readback: `full` reads every parameter after a load and compares it with the stream; `off` does not.
    """

    def __init__(
        self,
        model: torch.nn.Module,
        vllm_config: Any,
        model_config: Any = None,
        *,
        repair: str = "auto",
        readback: str = "full",
    ) -> None:
        import vllm

        self.model = model
        self.vllm_config = vllm_config
        self.model_config = vllm_config.model_config if model_config is None else model_config
        self.expectation = ModelExpectation(model, vllm_config, self.model_config)
        self.readback = readback
        self.verdict = moe.self_test(model, vllm.__version__)
        self.broken: str | None = None
        self._maps: dict[tuple[Any, ...], dict[str, torch.Tensor]] = {}
        if self.verdict is not None and self.verdict.repair and repair == "off":
            why = f"vLLM {vllm.__version__} loses the packing of expert weights in an update, and `repair` is `off`"
            raise Refused("weight updates of this model", why, "set `repair` to `auto`, or start the engine anew")

    def load(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Loaded:
        """Checks and loads a whole stream: `check`, then `load_checked`."""
        listed = list(tensors)
        return self.load_checked(listed, self.check(listed))

    def check(self, listed: list[tuple[str, torch.Tensor]]) -> Trace:
        """The last look before the first layer is touched: what the stream fills of this model. Raises `RefitError`, and
        `InternalError` where the model cannot be updated any more."""
        if self.broken is not None:
            raise InternalError("a weight update", self.broken, "start this engine anew")
        return self.expectation.check(listed)

    def load_checked(self, listed: list[tuple[str, torch.Tensor]], trace: Trace) -> Loaded:
        """Loads what `check` let through, and reads it back. Raises `InternalError`: the load itself failed, and the model
        must not serve."""
        began = time.perf_counter()
        try:
            with ExitStack() as stack:
                if self.verdict is not None and self.verdict.repair:
                    stack.enter_context(moe.packing_as_at_first_load(self.model))
                initialize_layerwise_reload(self.model)
                self.model.load_weights(iter(listed))
                finalize_layerwise_reload(self.model, self.model_config)
            rebuilt = _rebuild_shared(self.model)
            seconds = time.perf_counter() - began
            count, unreadable = self._read_back(trace) if self.readback == "full" else (0, ())
        except BaseException as error:
            self.broken = f"loading proved weights failed in vLLM: {type(error).__name__}: {error}"[:600]
            raise InternalError("a weight update", self.broken, "start this engine anew; it must not serve") from error
        repaired = len(moe.layers(self.model)) if self.verdict is not None and self.verdict.repair else 0
        return Loaded(seconds, count, unreadable, rebuilt, repaired)

    def _read_back(self, trace: Trace) -> tuple[int, tuple[str, ...]]:
        live = dict(self.model.named_parameters())
        experts = {f"{path}.{name}": layer for path, layer in moe.layers(self.model) for name in moe.WEIGHTS}
        unreadable, count = [], 0
        packed: dict[str, list[Piece]] = {}
        for piece in trace.pieces:
            if piece.source is None:
                continue
            held = live.get(piece.parameter)
            held = live.get(_with_base_layer(piece.parameter)) if held is None else held
            twin = self.expectation.twin.parameters.get(piece.parameter)
            if held is None or twin is None:
                if twin is not None:
                    unreadable.append(piece.parameter)
                continue
            if not _as_it_came(self.expectation.twin.modules.get(piece.parameter.rpartition(".")[0])):
                # A quantization method makes other numbers of it (other scales, another layout) at the end of a load.
                unreadable.append(piece.parameter)
            elif piece.parameter in experts and held.device.type != "cpu":
                # Kernels for devices may swap halves or shuffle rows in place.
                unreadable.append(piece.parameter)
            elif piece.parameter in experts:
                packed.setdefault(piece.parameter, []).append(piece)
            elif held.shape == twin.shape and held.stride() == twin.stride() and not held.is_meta:
                _must_equal(piece.parameter, piece.name, piece.of(held.data), piece.source)
                count += piece.numel
            else:
                unreadable.append(piece.parameter)
        for parameter, pieces in packed.items():
            count += self._experts(parameter, pieces, live[parameter].data, experts[parameter])
        return count, tuple(dict.fromkeys(unreadable))

    def _experts(self, parameter: str, pieces: list[Piece], held: torch.Tensor, layer: Any) -> int:
        """Packed experts: the packing is a permutation, so each held element has one place in the stream."""
        twin = self.expectation.twin.parameters[parameter]
        key = (tuple(twin.shape[1:]), tuple(held.shape[1:]), held.dtype)
        if key not in self._maps:
            self._maps[key] = moe.packing(layer)
        name = parameter.rpartition(".")[2]
        index = self._maps[key][name]
        count = 0
        for expert in range(twin.shape[0]):
            whole = torch.empty(twin.shape[1:], dtype=held.dtype)
            size = whole.numel()
            for piece in pieces:
                if expert * size <= piece.offset < (expert + 1) * size and piece.source is not None:
                    inner = piece._replace(offset=piece.offset - expert * size)
                    inner.of(whole).copy_(piece.source)
                elif piece.offset == 0 and piece.numel == twin.numel() and piece.source is not None:
                    whole.copy_(piece.source[expert])
            want = torch.where(index >= 0, whole.reshape(-1)[index.clamp(min=0)], torch.zeros((), dtype=held.dtype))
            _must_equal(parameter, f"expert {expert}", held[expert].reshape(-1), want)
            count += size
        return count


def _rebuild_shared(model: torch.nn.Module) -> tuple[str, ...]:
    """A tied head gets no tensor in a stream, so layerwise reload does not process it again: where its layer keeps a
    packed copy of the weight, that copy is still of the old one. Modules that share a weight are processed again."""
    by_place: dict[int, list[tuple[str, Any]]] = {}
    for name, module in model.named_modules():
        weight = module._parameters.get("weight")
        if weight is not None and weight.numel() and hasattr(module, "quant_method"):
            by_place.setdefault(weight.data_ptr(), []).append((name, module))
    rebuilt = []
    for group in by_place.values():
        if len(group) < 2:
            continue
        for name, module in group:
            if callable(getattr(module, "cpu_linear", None)):
                module.quant_method.process_weights_after_loading(module)
                rebuilt.append(name)
    return tuple(rebuilt)


def _as_it_came(module: torch.nn.Module | None) -> bool:
    """Whether a layer holds the values of the checkpoint after a load, perhaps in another order."""
    method = getattr(module, "quant_method", None)
    return method is None or type(method).__name__.startswith("Unquantized") or isinstance(method, moe.UnquantizedFusedMoEMethod)


def _with_base_layer(parameter: str) -> str:
    """With LoRA enabled vLLM wraps a module, and its parameters are those of `base_layer`."""
    path, _, leaf = parameter.rpartition(".")
    return f"{path}.base_layer.{leaf}"


def _must_equal(parameter: str, part: str | None, held: torch.Tensor, source: torch.Tensor) -> None:
    want = source.detach().to(device=held.device, dtype=held.dtype)
    if want.is_meta or held.is_meta:
        return
    if not torch.equal(held.reshape(-1).view(_bits(held)), want.reshape(-1).contiguous().view(_bits(held))):
        off = int((held.reshape(-1).view(_bits(held)) != want.reshape(-1).contiguous().view(_bits(held))).sum())
        why = f"{off} of {held.numel()} elements of `{parameter}` that came as {part} are not those of the stream"
        raise RefitError("reading back what the engine holds", why, "start this engine anew, and report this")


def _bits(tensor: torch.Tensor) -> torch.dtype:
    return {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
