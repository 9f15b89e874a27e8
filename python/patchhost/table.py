"""Block FP8 with no question at run time: every answer that a patch can give, as a table on the device.

The amax of a block of bf16 values is itself a bf16 value, so a patch that answers block by block has at most 32,640
different questions. The program asks them once, proves the contract for each answer (`NativeSet.scale_table`), and the
device then takes `table[bits of amax >> 16]`: no copy, no wait, the same bits as the CPU kernels.
"""

from __future__ import annotations

import sys
from typing import Any

import torch
from torch import Tensor

from . import device as ops

__all__ = ["ScaleTable"]


class ScaleTable:
    """The numbers of one scheme for every amax, and the cast with them. One object serves many tensors and devices."""

    def __init__(self, values: bytes | Tensor, scheme: Any, *, infinity: float | None = None) -> None:
        """`values`: 32,640 f32 (bytes in little endian, or a float32 tensor), indexed by `bits of amax >> 16`, or 32,641,
        where the last is the answer to an infinite amax; `infinity` says that answer apart. `scheme`: the attributes of
        `Scheme`.

        Edges other than strict need the answer to infinity: finite values of amax say nothing about it. Raises
        `TensorError` for a table of another size, and for schemes that a table cannot serve: those whose `needs` is not
        `amax`, and those whose contract `clip` allows that values saturate, because the share of them is not counted here.
        """
        if scheme.needs != "amax":
            why = f"its patch needs {scheme.needs} of each block, and a table is indexed by amax only"
            ops.refuse(f"scheme of profile `{scheme.profile}`", why, "use PatchSet.quantize")
        if scheme.cast not in ("divide", "reciprocal", "multiply"):
            why = "known are divide, reciprocal, multiply"
            ops.refuse(f"cast `{scheme.cast}`", why, "use the scheme of a patch")
        ops.grid((0, 0), scheme.block)
        table = _numbers(values)
        if table.numel() == ops.ENTRIES:
            if infinity is None and scheme.edges != "strict":
                why = f"edges `{scheme.edges}` let infinity pass, and {ops.ENTRIES} finite values of amax have no answer to it"
                ops.refuse("a scale table", why, "pass infinity=, the patch's answer to an infinite amax")
            table = torch.cat([table, torch.tensor([torch.nan if infinity is None else infinity])])
        if scheme.contract[0] == "clip":
            _check_clip(table, scheme)
        self.scheme = scheme
        # NaN asks for the last entry.
        self._values = torch.cat([table, torch.tensor([torch.nan])])
        self._copies: dict[torch.device, tuple[Tensor, Tensor]] = {}
        self._last = torch.device("cpu")

    def to(self, device: torch.device | str) -> ScaleTable:
        """Copies the table (128 KiB) to a device, once for each; `apply` does it too where it was not called. A CUDA graph
        must find it done. Gives the table itself."""
        self._on(torch.device(device))
        return self

    def _on(self, device: torch.device) -> tuple[Tensor, Tensor]:
        found = self._copies.get(device)
        if found is None:
            if device.type == "cuda" and device.index is None:
                return self._on(torch.device("cuda", torch.cuda.current_device()))
            counter = torch.zeros(1, dtype=torch.int64, device=device)
            found = self._copies[device] = (self._values.to(device), counter)
            self._last = device
        return found

    @property
    def nonfinite(self) -> Tensor:
        """How many blocks with NaN or infinity `apply` met since the last `check`: int64 [1] on the device that came last
        to the table. Reading it waits for the device."""
        return self._on(self._last)[1]

    def apply(self, weight: Tensor, *, out: Tensor | None = None, scale_out: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Quantizes a tensor without waiting for the device: codes and the scales to store.

        `weight`: [rows, cols] or [n, rows, cols], any strides and device, 0 rows or cols too; bfloat16, or float32 and
        float16 where the scheme rounds to bf16 (`round_bf16`). Gives float8_e4m3fn of the same shape and float32
        [.., ceil(rows / block rows), ceil(cols / block cols)]; `out` and `scale_out`, of any strides, are used for them if
        given. Blocks that are not finite are counted in `nonfinite`; call `check` before the codes are used.

        Raises `TensorError` for meta and sparse tensors, other dtypes and shapes, and places that do not fit.
        """
        ops.check_weight(weight)
        scheme = self.scheme
        if weight.dtype != torch.bfloat16 and not scheme.round_bf16:
            why = f"the amax of {weight.dtype} values is no bf16, and the scheme does not round to bf16 (round_bf16)"
            ops.refuse(ops.named(weight), why, "use PatchSet.quantize, or one bucket (bucket_amax and apply_given)")
        table, counter = self._on(weight.device)
        if weight.is_cuda and ops.triton is not None:
            return ops.cast_triton(weight, scheme, table=table, nonfinite=counter, out=out, scale_out=scale_out)
        blocks = ops.grid(weight.shape, scheme.block)
        out, scale_out = ops.outputs(weight, blocks, out, scale_out)
        matrices = weight.detach()
        if matrices.dim() == 2:
            matrices = matrices.unsqueeze(0)
        bits, every = ops.amax_bits(matrices, scheme.block, scheme.round_bf16, scheme.edges == "ignore-nan")
        counter.add_((every >= ops.ENTRIES << 16).sum())
        index = (bits >> 16).clamp(max=ops.ENTRIES + 1).flatten()
        return ops.cast(weight, table.index_select(0, index), scheme, out=out, scale_out=scale_out)

    def check(self) -> None:
        """Waits for the devices; raises `NonFiniteError` if the scheme's edges are strict and a block with NaN or infinity
        was seen since the last check. The counters start again at 0 either way."""
        seen = {device: int(counter) for device, (_, counter) in self._copies.items()}
        for _, counter in self._copies.values():
            counter.zero_()
        bad = [f"{count} on {device}" for device, count in seen.items() if count]
        if bad and self.scheme.edges == "strict":
            from .errors import NonFiniteError

            raise NonFiniteError(
                f"weights with NaN or infinity: blocks of {self.scheme.block[0]}x{self.scheme.block[1]}, {', '.join(bad)}",
                "edges are strict, and no scale fits such a block",
                "find out why the trainer sent it (block_amax of each tensor shows where), or choose other edges",
                "non-finite",
            )


def _numbers(values: bytes | Tensor) -> Tensor:
    """The table as a float32 tensor on the CPU; raises `TensorError` for another size or dtype."""
    if isinstance(values, Tensor):
        if values.dtype != torch.float32 or values.dim() != 1:
            why = "one dimension of float32 is needed"
            ops.refuse(f"`values`, {ops.named(values)}", why, "pass what NativeSet.scale_table gave")
        table = values.detach().to("cpu", copy=True)
    else:
        data = bytearray(values)
        if len(data) % 4 or not data:
            why = f"{len(data)} bytes are no f32 numbers"
            ops.refuse("`values`", why, "pass what NativeSet.scale_table gave")
        table = torch.frombuffer(data, dtype=torch.int32)
        if sys.byteorder == "big":
            table = table.view(torch.uint8).view(-1, 4).flip(1).contiguous().view(torch.int32).flatten()
        table = table.view(torch.float32)
    if table.numel() not in (ops.ENTRIES, ops.ENTRIES + 1):
        why = f"it has {table.numel():,} numbers; {ops.ENTRIES:,} are needed, or one more for infinity"
        ops.refuse("a scale table", why, "pass what NativeSet.scale_table gave")
    return table


def _check_clip(table: Tensor, scheme: Any) -> None:
    """Refuses a table by which a value can lie beyond 448 by more than 8 units in the last place."""
    amax = (torch.arange(ops.ENTRIES, dtype=torch.int32) << 16).view(torch.float32)
    _, factor = ops.numbers(table[: ops.ENTRIES], scheme.cast)
    largest = torch.div(amax, factor) if scheme.cast == "divide" else amax * factor
    over = largest > 448.0 + 8 / 32768
    if over.any():
        first = int(over.nonzero()[0])
        why = f"an amax of {float(amax[first]):g} becomes {float(largest[first]):g}, beyond 448; the share that saturates "
        why += f"(contract clip, at most {scheme.contract[1]}) is counted by the CPU kernels only"
        ops.refuse(f"scheme of profile `{scheme.profile}`", why, "use PatchSet.quantize")
