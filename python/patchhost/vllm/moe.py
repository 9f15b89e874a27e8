"""Mixture-of-experts layers of vLLM in a weight update: the repair of their packing, the self-test that says whether it is
needed and holds, and the map of the packing with which the experts that are really held can be read back.

The fault (vLLM 0.32 and 0.33, on CPUs): `UnquantizedFusedMoEMethod` packs the experts only while it has no kernel, which
is at the first load; after a weight update the kernel reads unpacked weights as packed ones. The repair: while the
update is loaded the layers have no kernel, so that vLLM itself packs them as at the first load, into its own storage;
afterwards the kernels are put back.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from vllm.model_executor.layers.fused_moe.unquantized_fused_moe_method import UnquantizedFusedMoEMethod

from ..errors import InternalError, Refused

WEIGHTS = ("w13_weight", "w2_weight")


class Verdict(NamedTuple):
    """What the self-test found. `stock`: an update keeps the packing without us; `mended`: with the repair it does."""

    stock: bool
    mended: bool

    @property
    def repair(self) -> bool:
        return not self.stock


def layers(model: torch.nn.Module) -> list[tuple[str, Any]]:
    """The layers with unquantized experts, by the name of their module."""
    found = []
    for name, module in model.named_modules():
        if isinstance(getattr(module, "quant_method", None), UnquantizedFusedMoEMethod):
            found.append((name, module))
    return found


def on_cpu(model: torch.nn.Module) -> bool:
    """Whether experts of the model are packed for the CPU."""
    return any(parameter.device.type == "cpu" for parameter in model.parameters())


@contextmanager
def packing_as_at_first_load(model: torch.nn.Module) -> Iterator[None]:
    """While this is open the experts have no kernel, so that vLLM packs them as at the first load."""
    held = [(one.quant_method, one.quant_method.moe_kernel, one.quant_method.moe_quant_config) for _, one in layers(model)]
    for method, _, _ in held:
        method.moe_kernel = None
    try:
        yield
    finally:
        for method, kernel, config in held:
            method.moe_kernel, method.moe_quant_config = kernel, config


def self_test(model: torch.nn.Module, version: str) -> Verdict | None:
    """Packs one random expert three times (at a first load, in an update, in an update with the repair) and compares. It
    takes some milliseconds, reads no checkpoint and touches no live layer. `None`: the model has no such experts here.

    Raises `Refused` where the packing of an update is wrong and the repair does not mend it.
    """
    found = layers(model)
    if not found or not on_cpu(model):
        return None
    layer = found[0][1]
    try:
        method = _bare(layer.quant_method)
        method.moe_kernel = None
        first = _packed(layer, method)
        stock = _packed(layer, method)
        kernel, config = method.moe_kernel, method.moe_quant_config
        method.moe_kernel = None
        mended = _packed(layer, method)
        method.moe_kernel, method.moe_quant_config = kernel, config
        verdict = Verdict(_same(first, stock), _same(first, mended))
    except Exception as error:
        raise _refusal(version, f"its self-test raised {type(error).__name__}: {error}"[:400]) from error
    if not verdict.stock and not verdict.mended:
        raise _refusal(version, "one expert that is packed twice differs from itself")
    return verdict


def _refusal(version: str, why: str) -> Refused:
    return Refused(
        "weight updates of this mixture-of-experts model",
        f"vLLM {version} loses the packing of expert weights in an update, and the repair does not hold here: {why}",
        "start the engine anew for new weights, or use a version of vLLM that docs/engines.md names; no weight was touched",
    )


def _bare(thing: Any) -> Any:
    """A stand-in that shares nothing that can be written to with the live object."""
    twin = copy.copy(thing)
    for part in ("_parameters", "_buffers", "_modules"):
        if part in thing.__dict__:
            twin.__dict__[part] = dict(thing.__dict__[part])
    return twin


def _unpacked(layer: Any, method: Any) -> Any:
    """A stand-in of a layer with one expert in the layout of the checkpoint, on the CPU."""
    twin = _bare(layer)
    twin._parameters.clear()
    dtype = layer.w13_weight.dtype
    method.create_weights(twin, 1, method.moe.hidden_dim, method.moe.intermediate_size_per_partition, dtype)
    return twin


def _packed(layer: Any, method: Any, seed: int = 0) -> list[torch.Tensor]:
    twin = _unpacked(layer, method)
    random = torch.Generator().manual_seed(seed)
    for parameter in twin.parameters(recurse=False):
        parameter.data.copy_(torch.randn(parameter.shape, generator=random).to(parameter.dtype))
    method.process_weights_after_loading(twin)
    return [parameter.detach().clone() for _, parameter in sorted(twin.named_parameters(recurse=False))]


def _same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(x.shape == y.shape and torch.equal(x, y) for x, y in zip(a, b, strict=True))


def packing(layer: Any) -> dict[str, torch.Tensor]:
    """Where each element of a packed expert comes from: for `w13_weight` and `w2_weight` an int64 tensor with one entry
    for each held element, its index in the unpacked expert [rows, cols], or -1 for padding.

    Found by packing indices instead of weights, 16 bits at a time: a packing moves elements and changes none. Raises
    `InternalError` where it does not.
    """
    wide = layer.w13_weight.dtype
    if wide.itemsize != 2:
        raise InternalError("reading packed experts", f"their dtype is {wide}", "set `readback` to `off`")
    halves: list[dict[str, torch.Tensor]] = []
    sizes: dict[str, int] = {}
    for shift in (0, 15):
        method = _bare(layer.quant_method)
        method.moe_kernel = None
        twin = _unpacked(layer, method)
        for name in WEIGHTS:
            weight = getattr(twin, name)
            sizes[name] = weight.numel()
            index = torch.arange(1, weight.numel() + 1, dtype=torch.int64) >> shift & 0x7FFF
            weight.data.copy_(index.to(torch.int16).view(wide).view(weight.shape))
        method.process_weights_after_loading(twin)
        halves.append({name: getattr(twin, name).detach().contiguous().view(torch.int16).long() for name in WEIGHTS})
    maps: dict[str, torch.Tensor] = {}
    for name in WEIGHTS:
        index = (halves[0][name] | halves[1][name] << 15).reshape(-1) - 1
        held = index[index >= 0]
        if held.numel() != sizes[name] or int(held.max()) >= sizes[name] or held.unique().numel() != sizes[name]:
            why = f"the packing of {name} is no permutation: {held.unique().numel()} of {sizes[name]} elements are held"
            raise InternalError("reading packed experts", why, "set `readback` to `off`, and report this")
        maps[name] = index
    return maps
