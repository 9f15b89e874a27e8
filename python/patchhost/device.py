"""Block FP8 on any torch device: amax of blocks, and the cast to e4m3 with the numbers that a patch returned.

The bits are those of the CPU kernels of the program (`host/kernels`: `stats.rs`, `strip.rs`, `simd/portable.rs`); which
bits those are is written in `wit/patch/0.1.0/block-quant.wit` (`cast`, `edges`). Four things keep them equal in eager
mode, in `torch.compile` and in Triton:

- amax is the largest of the bits without their sign, as integers: NaN and subnormals need no care of the compiler.
- A division has a tensor on both sides. A tensor divided by a Python number is a product with its reciprocal on CUDA,
  and the `/` of code that the compiler writes for CUDA is not correctly rounded; there the division runs in float64.
- Values are clamped to ±448 before they become e4m3. Versions of torch disagree about what lies above 464.
- Rounding to bf16 and, in compiled code, to e4m3 is integer arithmetic: the compiler may drop a pair of conversions.

Nothing here waits for the device. `torch.set_flush_denormal(True)` would change bits: leave it off.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, NoReturn

import torch
from torch import Tensor

try:
    import triton
    import triton.language as tl
except ImportError:  # torch for CPUs may come without it
    triton = None

__all__ = ["ENTRIES", "apply_given", "block_amax", "bucket_amax", "cast", "cast_triton", "encode", "proved"]

ENTRIES = 0x7F80
"Finite bf16 values that are not negative; the bits of infinity, and so its place behind them in a table."
_NAN_ENTRY = ENTRIES + 1
_F32_INF = 0x7F80_0000
# Integers of the same size, the bits without the sign, and those of infinity.
_BITS = {
    torch.bfloat16: (torch.int16, 0x7FFF, 0x7F80),
    torch.float16: (torch.int16, 0x7FFF, 0x7C00),
    torch.float32: (torch.int32, 0x7FFF_FFFF, _F32_INF),
}
# Eager code works on pieces of so many values, because it needs 4 bytes of working memory for each.
_PIECE = {"cpu": 1 << 18}
_PIECE_DEVICE = 1 << 26


def refuse(what: str, why: str, next: str) -> NoReturn:
    """Raises `patchhost.errors.TensorError`."""
    from .errors import TensorError

    raise TensorError(what, why, next, "tensor")


def named(tensor: Any) -> str:
    """A tensor in words, for errors."""
    if not isinstance(tensor, Tensor):
        return f"a {type(tensor).__name__}"
    return f"a tensor {str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)} on {tensor.device}"


def check_weight(weight: Any) -> None:
    """Refuses what has no blocks of numbers: raises `TensorError`."""
    if not isinstance(weight, Tensor):
        refuse(named(weight), "only a torch.Tensor can be quantized", "pass a tensor")
    if hasattr(weight, "full_tensor"):
        refuse(named(weight), "a DTensor: this process holds only a part of it", "gather it first: tensor.full_tensor()")
    if weight.device.type == "meta":
        refuse(named(weight), "a meta tensor has no values", "quantize it after its values were loaded")
    if weight.layout != torch.strided:
        refuse(named(weight), f"its layout is {weight.layout}, only torch.strided has blocks", "call .to_dense() first")
    if weight.dtype not in _BITS:
        why = f"{weight.dtype} is not one of bfloat16, float16, float32"
        refuse(named(weight), why, "keep this tensor as it is, or convert it to bfloat16")
    if weight.dim() not in (2, 3):
        why = f"it has {weight.dim()} dimensions; blocks are cut of [rows, cols] or [n, rows, cols]"
        refuse(named(weight), why, "keep this tensor as it is, or reshape it")


def grid(shape: Sequence[int], block: tuple[int, int]) -> tuple[int, ...]:
    """`[.., rows, cols]` in blocks: `(.., ceil(rows / block rows), ceil(cols / block cols))`."""
    if not all(1 <= side <= 4096 for side in block):
        refuse(f"block {block[0]}x{block[1]}", "a side is not from 1 to 4096", "choose sides in that range")
    return (*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))


def outputs(weight: Tensor, blocks: tuple[int, ...], out: Tensor | None, scale_out: Tensor | None) -> tuple[Tensor, Tensor]:
    """Checks the places for codes and scales, or makes them; raises `TensorError` where one does not fit."""
    places = []
    for role, place, dtype, shape in (
        ("out", out, torch.float8_e4m3fn, tuple(weight.shape)),
        ("scale_out", scale_out, torch.float32, blocks),
    ):
        if place is None:
            place = torch.empty(shape, dtype=dtype, device=weight.device)
        for found, wanted in ((place.dtype, dtype), (tuple(place.shape), shape), (place.device, weight.device)):
            if found != wanted:
                refuse(f"`{role}`, {named(place)}", f"{found} where {wanted} is needed", f"pass {wanted}, or no {role}")
        places.append(place.detach())
    return places[0], places[1]


class _Region(NamedTuple):
    """`n` matrices from the first `n0`, of them `R x C` equal blocks of `br x bc` values, whose first is at `r0, c0`."""

    n0: int
    n: int
    r0: int
    R: int
    br: int
    c0: int
    C: int
    bc: int
    block_row: int
    block_col: int

    def of(self, tensor: Tensor) -> Tensor:
        """View [n, R, br, C, bc] of a tensor [n, rows, cols]. Splitting never copies, whatever the strides are."""
        tensor = tensor.narrow(0, self.n0, self.n).narrow(1, self.r0, self.R * self.br)
        return tensor.narrow(2, self.c0, self.C * self.bc).unflatten(2, (self.C, self.bc)).unflatten(1, (self.R, self.br))

    def blocks(self, tensor: Tensor) -> Tensor:
        """View [n, R, C] of a tensor that has one value for each block."""
        tensor = tensor.narrow(0, self.n0, self.n).narrow(1, self.block_row, self.R)
        return tensor.narrow(2, self.block_col, self.C)


def _regions(shape: Sequence[int], block: tuple[int, int], device: torch.device) -> Iterator[_Region]:
    """Full blocks and the narrower ones at the two edges; in eager mode cut into pieces."""
    n, rows, cols = shape
    limit = _PIECE.get(device.type, _PIECE_DEVICE)
    if torch.compiler.is_compiling():
        limit = 1 << 62

    def sides(size: int, side: int) -> list[tuple[int, int, int]]:
        full = size // side
        return [(at, count, width) for at, count, width in ((0, full, side), (full, 1, size - full * side)) if count * width]

    for first_row, R, br in sides(rows, block[0]):
        for first_col, C, bc in sides(cols, block[1]):
            some_rows = min(R, max(1, limit // (br * C * bc)))
            some = max(1, limit // (some_rows * br * C * bc)) if some_rows == R else 1
            for n0 in range(0, n, some):
                for r in range(0, R, some_rows):
                    at = first_row + r
                    count = min(some_rows, R - r)
                    yield _Region(
                        n0, min(some, n - n0), at * block[0], count, br, first_col * block[1], C, bc, at, first_col
                    )


def _round_bits(magnitude: Tensor) -> Tensor:
    """Bits of f32 without sign, rounded to bf16, ties to even; NaN becomes the bits 0x7fc00000."""
    number = magnitude.clamp(max=_F32_INF)
    rounded = (number + 0x7FFF + ((number >> 16) & 1)) & -0x10000
    return rounded.masked_fill(magnitude > _F32_INF, 0x7FC0_0000)


def _round_bf16(x: Tensor) -> Tensor:
    """f32 or f16 to f32 values that are bf16."""
    bits = x.float().view(torch.int32)
    return (_round_bits(bits & 0x7FFF_FFFF) | (bits & -0x8000_0000)).view(torch.float32)


def amax_bits(weight: Tensor, block: tuple[int, int], round_bf16: bool, ignore_nan: bool) -> tuple[Tensor, Tensor]:
    """Bits (int32) of the f32 amax of each block, of [n, rows, cols]; and the same with NaN never ignored."""
    integer, mask, infinity = _BITS[weight.dtype]
    source = weight.view(integer)
    every = torch.zeros(grid(weight.shape, block), dtype=integer, device=weight.device)
    numbers = torch.zeros_like(every) if ignore_nan else every
    for region in _regions(weight.shape, block, weight.device):
        bits = region.of(source) & mask
        region.blocks(every).copy_(bits.amax(-1).amax(-2))
        if ignore_nan:
            region.blocks(numbers).copy_(bits.masked_fill(bits > infinity, 0).amax(-1).amax(-2))

    def widen(bits: Tensor) -> Tensor:
        wide = bits.view(weight.dtype).float().view(torch.int32)
        # Rounding is monotonic: the rounded largest magnitude is the largest rounded one.
        return _round_bits(wide) if round_bf16 else wide.masked_fill(wide > _F32_INF, 0x7FC0_0000)

    every = widen(every)
    return (widen(numbers), every) if ignore_nan else (every, every)


def block_amax(weight: Tensor, block: tuple[int, int], round_bf16: bool = False, ignore_nan: bool = False) -> Tensor:
    """max |x| of each block, as the program tells it to a patch (`stats.rs`).

    `weight`: bfloat16, float16 or float32, [rows, cols] or [n, rows, cols], any strides and device. Gives float32
    [.., ceil(rows / block rows), ceil(cols / block cols)]; blocks at the edges are smaller. `round_bf16`: values are
    rounded to bf16 first. A block that holds a NaN gives NaN, unless `ignore_nan` takes NaN for 0. Raises `TensorError`.
    """
    check_weight(weight)
    blocks = grid(weight.shape, block)
    weight = weight.detach()
    if weight.dim() == 2:
        weight = weight.unsqueeze(0)
    return amax_bits(weight, block, round_bf16, ignore_nan)[0].view(torch.float32).view(blocks)


def bucket_amax(
    tensors: Sequence[Tensor], block: tuple[int, int], round_bf16: bool = False, ignore_nan: bool = False
) -> tuple[Tensor, list[int]]:
    """amax of many tensors in one: one copy to the host asks a patch about all of them.

    `tensors`: as for `block_amax`, all on one device. Gives float32 [blocks of all] and `len(tensors) + 1` offsets: tensor
    `i` has `flat[offsets[i]:offsets[i + 1]]`, row-major over its blocks. Numbers in the same order go to `apply_given`.
    Raises `TensorError`.
    """
    parts = [block_amax(tensor, block, round_bf16, ignore_nan).flatten() for tensor in tensors]
    offsets = [0]
    for tensor, part in zip(tensors, parts, strict=True):
        if tensor.device != tensors[0].device:
            why = f"the bucket began on {tensors[0].device}, and one round trip serves one device"
            refuse(named(tensor), why, "make one bucket for each device")
        offsets.append(offsets[-1] + part.numel())
    return (torch.cat(parts) if parts else torch.empty(0)), offsets


def _divide(a: Tensor, b: Tensor) -> Tensor:
    """IEEE division of f32. Rounding a float64 quotient of two f32 gives the same: 53 >= 2 * 24 + 2 bits."""
    if a.device.type != "cpu" and torch.compiler.is_compiling():
        return (a.double() / b.double()).float()
    return torch.div(a, b)


def encode(y: Tensor, nan: Tensor | int = 0x7F) -> Tensor:
    """e4m3 codes (uint8) of f32 values by integer arithmetic (`encode_bits` of `simd/portable.rs`): clamped to ±448,
    then rounded to nearest even, -0 kept. NaN becomes the code `nan` (a number, or uint8 that broadcasts to `y`)."""
    bits = y.view(torch.int32)
    magnitude = bits & 0x7FFF_FFFF
    a = magnitude.clamp(max=0x43E0_0000)
    # Below 2^-6: adding 2^14 brings multiples of 2^-9 to the last mantissa bit, rounded by the addition.
    small = (a.view(torch.float32) + 16384.0).view(torch.int32) - 0x4680_0000
    normal = ((a + 0x7FFFF + ((a >> 20) & 1)) >> 20) - (120 << 3)
    codes = torch.where(a < 0x3C80_0000, small, normal) | ((bits >> 24) & 0x80)
    return torch.where(magnitude > _F32_INF, nan, codes.to(torch.uint8))


def numbers(given: Tensor, rule: str) -> tuple[Tensor, Tensor]:
    """The stored scale, and what values are divided by (rule `divide`) or multiplied with."""
    if rule == "divide":
        return given, given
    inverse = _divide(torch.ones_like(given), given)
    return (given, inverse) if rule == "reciprocal" else (inverse, given)


def cast(
    weight: Tensor, given: Tensor, scheme: Any, *, out: Tensor | None = None, scale_out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Casts `weight` to e4m3 with the numbers that a patch returned, in torch operations (see `cast_triton`).

    `weight`: as for `block_amax`. `given`: float32 [.., block rows, block cols] or as many in one dimension, on the same
    device; what they mean says `scheme.cast` (`block-quant.wit`). Gives codes, float8_e4m3fn of the shape of `weight`, and
    the scales to store, float32 of the shape of the block grid; `out` and `scale_out` are used for them if given.
    NaN becomes 0xfe under `ignore-nan`, else 0x7f, or 0xff in a block whose multiplier is infinite. Under `strict` the codes of
    tensors that are not finite have no meaning. The numbers are not proved here: see `proved`. Raises `TensorError`.
    """
    check_weight(weight)
    blocks = grid(weight.shape, scheme.block)
    codes, scales = outputs(weight, blocks, out, scale_out)
    given = check_given(given, weight, blocks)
    if scheme.cast not in ("divide", "reciprocal", "multiply"):
        refuse(f"cast `{scheme.cast}`", "known are divide, reciprocal, multiply", "use the scheme of a patch")
    lead = weight.dim() == 2
    x, q, s, g = (t.unsqueeze(0) if lead else t for t in (weight.detach(), codes, scales, given))
    scale, factor = numbers(g, scheme.cast)
    s.copy_(scale)
    nan: Tensor | int = 0xFE
    if scheme.edges != "ignore-nan":
        # 0 times infinity: the NaN that x86 makes of it is negative.
        nan = (factor == torch.inf).to(torch.uint8) * 0x80 + 0x7F
    bytes_ = q.view(torch.uint8)
    for region in _regions(x.shape, scheme.block, x.device):
        values = region.of(x)
        if x.dtype != torch.bfloat16:
            values = _round_bf16(values) if scheme.round_bf16 else values.float()
        by = region.blocks(factor)[:, :, None, :, None]
        y = _divide(values, by) if scheme.cast == "divide" else values * by
        code = nan if isinstance(nan, int) else region.blocks(nan)[:, :, None, :, None]
        if torch.compiler.is_compiling():
            region.of(bytes_).copy_(encode(y, code))
        else:
            is_nan = None if scheme.edges == "strict" else y.isnan()
            place = region.of(bytes_)
            rounded = y.clamp_(-448.0, 448.0).to(torch.float8_e4m3fn).view(torch.uint8)
            place.copy_(rounded if is_nan is None else torch.where(is_nan, code, rounded))
    return codes, scales


def check_given(given: Tensor, weight: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """`given` in the shape of the block grid; raises `TensorError` if it is not one number for each block."""
    count = 1
    for side in blocks:
        count *= side
    if given.dtype != torch.float32 or given.numel() != count or given.dim() not in (1, len(blocks)):
        why = f"{count} float32 numbers are needed, one for each block of the grid {list(blocks)}"
        refuse(f"`given`, {named(given)}", why, "pass the patch's numbers of this tensor")
    if given.device != weight.device:
        refuse(f"`given`, {named(given)}", f"the weight is on {weight.device}", "copy a bucket's numbers there at once")
    return given.detach().reshape(blocks)


def proved(amax: Tensor, given: Tensor, scheme: Any) -> Tensor:
    """Which blocks keep the scheme's contract: bool of the shape of `amax` (`check` of `contract.rs`).

    `amax` and `given`: float32 of one shape and device. Use it on the host, where a bucket's numbers pass by, before
    `apply_given`. Under a contract `clip` a block that may saturate is not proved: its share is known after the cast only.
    """
    scale, factor = numbers(given, scheme.cast)
    usable = [t.isfinite() & (t > 0) for t in (given, scale, factor)]
    power = (scale.view(torch.int32) & 0x007F_FFFF) == 0
    power &= scale.view(torch.int32) >= 1 << 23
    eps, zero_below, zero_scale = scheme.floor
    # f64, and 8 units in the last place of 448 and of 224.
    ratio = amax.clamp(min=eps).double() / scale.double()
    contract = scheme.contract[0]
    if contract == "amax":
        kept = (ratio - 448.0).abs() <= 8 / 32768
    elif contract == "pow2":
        kept = power & (ratio > 224.0 - 4 / 32768) & (ratio <= 448.0 + 8 / 32768)
    else:
        largest = torch.div(amax, factor) if scheme.cast == "divide" else amax * factor
        kept = (ratio > 224.0) & (largest <= 448.0 + 8 / 32768)
    kept = torch.where(amax <= zero_below, scale == torch.full_like(scale, zero_scale), kept)
    kept &= amax.isfinite() & usable[0] & usable[1] & usable[2]
    if scheme.format == "ue8m0":
        kept &= power
    if scheme.edges != "strict":
        # 448 * 2^-128: the largest amax for which the seed's own formula overflows.
        kept |= ~amax.isfinite() | ((amax <= 448.0 * 2.0**-128) & ~(usable[1] & usable[2]))
    return kept


def apply_given(
    weight: Tensor, given: Tensor, scheme: Any, *, out: Tensor | None = None, scale_out: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """`cast` by the fastest way of the device: `cast_triton` on a GPU with Triton, else torch operations.

    Shapes, dtypes and errors are those of `cast`. The numbers must have been proved (`proved`).
    """
    if weight.is_cuda and triton is not None:
        return cast_triton(weight, scheme, given=given, out=out, scale_out=scale_out)
    return cast(weight, given, scheme, out=out, scale_out=scale_out)


if triton is not None:

    @triton.jit
    def _widen(x):
        """Bits of x as f32. bf16 comes as int16: Triton's interpreter (3.9) widens bf16 subnormals wrongly."""
        if x.dtype == tl.int16:
            return x.to(tl.int32) << 16
        else:
            return x.to(tl.float32).to(tl.int32, bitcast=True)

    @triton.jit
    def _magnitude(x, ROUND: tl.constexpr):
        """Bits of |x| as f32; with ROUND those of |x| rounded to bf16, every NaN as 0x7fc00000."""
        bits = _widen(x) & 0x7FFFFFFF
        if ROUND:
            number = tl.minimum(bits, 0x7F800000)
            bits = tl.where(bits > 0x7F800000, 0x7FC00000, (number + 0x7FFF + ((number >> 16) & 1)) & -65536)
        return bits

    @triton.jit
    def _encode(bits, negative, nan):
        """As `encode`; `bits` are those of |y|."""
        a = tl.minimum(bits, 0x43E00000)
        small = (a.to(tl.float32, bitcast=True) + 16384.0).to(tl.int32, bitcast=True) - 0x46800000
        normal = ((a + 0x7FFFF + ((a >> 20) & 1)) >> 20) - 960
        code = tl.where(a < 0x3C800000, small, normal) | tl.where(negative, 0x80, 0)
        return tl.where(bits > 0x7F800000, nan, code).to(tl.uint8)

    @triton.jit
    def _kernel(
        x, numbers, q, s, counter, rows, cols, grid_rows, grid_cols,
        x0, x1, x2, q0, q1, q2, s0, s1, s2,
        BR: tl.constexpr, BC: tl.constexpr, TR: tl.constexpr, TC: tl.constexpr, PANELS: tl.constexpr,
        LOOKUP: tl.constexpr, ROUND: tl.constexpr, IGNORE_NAN: tl.constexpr, RULE: tl.constexpr,
    ):  # fmt: skip
        """One program casts one block in tiles of TR x TC values, or PANELS = TR blocks that are one row high."""
        # A block that fits into one tile is read once and stays in registers.
        ONCE: tl.constexpr = TC >= BC and (PANELS > 1 or TR >= BR)
        HIGH: tl.constexpr = BR if PANELS == 1 else TR
        program = tl.program_id(0).to(tl.int64)
        groups = tl.cdiv(grid_rows, PANELS)
        row = program // grid_cols % groups * PANELS
        n = program // grid_cols // groups
        col = program % grid_cols
        tile_row = tl.arange(0, TR)[:, None]
        tile_col = tl.arange(0, TC)[None, :]
        column = tl.zeros([TR, 1], dtype=tl.int32)
        block_row = row + (tile_row if PANELS > 1 else column)
        first = tile_row < PANELS
        top, left = row * BR, col * BC
        x += n * x0 + top * x1 + left * x2
        q += n * q0 + top * q1 + left * q2
        if ONCE:
            # Compared with `rows` and `cols` themselves: the compiler knows their divisors, and loads vectors.
            there = (tile_row < HIGH) & (top + tile_row < rows) & (tile_col < BC) & (left + tile_col < cols)
            kept = tl.load(x + tile_row.to(tl.int64) * x1 + tile_col.to(tl.int64) * x2, mask=there, other=0)

        if LOOKUP:
            largest = column
            highest = column
            for r in range(0, HIGH, TR):
                for c in range(0, BC, TC):
                    if ONCE:
                        value = kept
                    else:
                        down, right = (r + tile_row).to(tl.int64), (c + tile_col).to(tl.int64)
                        there = (down < HIGH) & (top + down < rows) & (right < BC) & (left + right < cols)
                        value = tl.load(x + down * x1 + right * x2, mask=there, other=0)
                    bits = _magnitude(value, ROUND)
                    highest = tl.maximum(highest, tl.max(bits, axis=1, keep_dims=True))
                    if IGNORE_NAN:
                        bits = tl.where(bits > 0x7F800000, 0, bits)
                    largest = tl.maximum(largest, tl.max(bits, axis=1, keep_dims=True))
            if PANELS == 1:
                largest = tl.max(largest, axis=0, keep_dims=True) + column
                highest = tl.max(highest, axis=0, keep_dims=True) + column
            bad = tl.sum(tl.where(first & (highest >= 0x7F800000), 1, 0))
            tl.atomic_add(counter, bad.to(tl.int64), mask=bad > 0, sem="relaxed")
            # The last entry is the answer to NaN.
            given = tl.load(numbers + tl.minimum(largest >> 16, 0x7F81))
        else:
            given = tl.load(numbers + (n * grid_rows + block_row) * grid_cols + col, mask=block_row < grid_rows, other=1.0)

        scale = given
        factor = given
        if RULE == "reciprocal":
            factor = tl.div_rn(tl.full([TR, 1], 1.0, dtype=tl.float32), given)
        if RULE == "multiply":
            scale = tl.div_rn(tl.full([TR, 1], 1.0, dtype=tl.float32), given)
        tl.store(s + n * s0 + block_row * s1 + col * s2, scale, mask=first & (block_row < grid_rows))
        nan = column + 0xFE
        if not IGNORE_NAN:
            nan = tl.where(factor == float("inf"), 0xFF, 0x7F)

        for r in range(0, HIGH, TR):
            for c in range(0, BC, TC):
                down, right = (r + tile_row).to(tl.int64), (c + tile_col).to(tl.int64)
                there = (down < HIGH) & (top + down < rows) & (right < BC) & (left + right < cols)
                if ONCE:
                    value = kept
                else:
                    value = tl.load(x + down * x1 + right * x2, mask=there, other=0)
                wide = _magnitude(value, ROUND).to(tl.float32, bitcast=True)
                if RULE == "divide":
                    y = tl.div_rn(wide, tl.broadcast_to(factor, [TR, TC]))
                else:
                    y = wide * factor
                bits = y.to(tl.int32, bitcast=True)
                # An unproved number may be negative: the sign of the result is that of both.
                negative = (_widen(value) < 0) != (bits < 0)
                tl.store(q + down * q1 + right * q2, _encode(bits & 0x7FFFFFFF, negative, nan), mask=there)


def cast_triton(
    weight: Tensor,
    scheme: Any,
    *,
    table: Tensor | None = None,
    given: Tensor | None = None,
    nonfinite: Tensor | None = None,
    out: Tensor | None = None,
    scale_out: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """amax, look-up and cast in one pass by one Triton kernel; with `given` only the cast. For CUDA tensors, and for CPU
    tensors under TRITON_INTERPRET=1.

    `table`: float32 [32642]: the numbers for all bf16 values of amax from 0 on, for infinity and for NaN; the scheme must
    be one that `ScaleTable` takes. `nonfinite`: int64 [1], to which the number of blocks that are not finite is added. One
    of `table` (with `nonfinite`) and `given` is needed; the rest is as for `cast`. Raises `TensorError`.
    """
    check_weight(weight)
    if triton is None:
        refuse("cast_triton", "the package triton is not installed", "install it, or call cast")
    blocks = grid(weight.shape, scheme.block)
    codes, scales = outputs(weight, blocks, out, scale_out)
    if table is not None:
        asked = table
        if nonfinite is None or table.shape != (ENTRIES + 2,) or {table.device, nonfinite.device} != {weight.device}:
            why = f"a table of {ENTRIES + 2} entries and a counter are needed, both on {weight.device}"
            refuse("`table` and `nonfinite`", why, "call ScaleTable.apply")
    elif given is not None:
        asked = nonfinite = check_given(given, weight, blocks).contiguous()
    else:
        refuse("cast_triton without numbers", "neither `table` nor `given` was passed", "pass one of them")
    if weight.numel() == 0:
        return codes, scales
    x, q, s = weight.detach(), codes.view(torch.uint8), scales
    if x.dim() == 2:
        x, q, s = x.unsqueeze(0), q.unsqueeze(0), s.unsqueeze(0)
    n, grid_rows, grid_cols = s.shape
    high, wide = min(scheme.block[0], x.shape[1]), min(scheme.block[1], x.shape[2])
    tile_cols = min(triton.next_power_of_2(wide), 1024)
    tile_rows, panels = min(triton.next_power_of_2(high), 16384 // tile_cols), 1
    if high == 1:
        tile_rows = panels = min(triton.next_power_of_2(grid_rows), max(1, 4096 // tile_cols))
    options = {"num_warps": 8 if tile_rows * tile_cols >= 8192 else 4}
    if x.is_cuda:
        options["enable_fp_fusion"] = False
        if torch.version.cuda:
            # Where Triton takes its division from libdevice, it must not flush subnormals.
            options["enable_reflect_ftz"] = False
    programs = n * grid_cols * -(-grid_rows // panels)
    values = x.view(torch.int16) if x.dtype == torch.bfloat16 else x
    arguments = (values, asked, q, s, nonfinite, x.shape[1], x.shape[2], grid_rows, grid_cols)
    arguments += (*x.stride(), *q.stride(), *s.stride())
    constants = dict(
        BR=high, BC=wide, TR=tile_rows, TC=tile_cols,
        PANELS=panels, LOOKUP=table is not None, ROUND=scheme.round_bf16 and x.dtype != torch.bfloat16,
        IGNORE_NAN=scheme.edges == "ignore-nan", RULE=scheme.cast,
    )  # fmt: skip
    with torch.cuda.device_of(x):
        _kernel[(programs,)](*arguments, **constants, **options)
    return codes, scales
