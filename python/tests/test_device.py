"""`patchhost.table` and `patchhost.device`: their bytes are those of the program's CPU kernels.

The program is the reference: `PATCHHOST` names it, else the `patchhost` on the path; without one those tests are skipped.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import types
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
torch.set_num_threads(1)
HERE = Path(__file__).resolve().parent

try:
    from patchhost import device, table
except ImportError:
    # From a checkout, before the extension is built: the two modules need nothing of the package but its errors.
    for name in [name for name in sys.modules if name.split(".")[0] == "patchhost"]:
        del sys.modules[name]
    bare = types.ModuleType("patchhost")
    bare.__path__ = [str(HERE.parent / "patchhost")]
    sys.modules["patchhost"] = bare
    from patchhost import device, table

try:
    from patchhost.errors import NonFiniteError, TensorError
except ImportError:

    class _Error(Exception):
        def __init__(self, what: str, why: str, next: str, kind: str) -> None:
            super().__init__(f"{what}: {why}; {next}")
            self.what, self.why, self.next, self.kind = what, why, next, kind

    class TensorError(_Error): ...

    class NonFiniteError(_Error): ...

    stub = types.ModuleType("patchhost.errors")
    stub.TensorError, stub.NonFiniteError = TensorError, NonFiniteError
    sys.modules["patchhost.errors"] = stub

try:
    from patchhost import _native
except ImportError:
    _native = None

PROGRAM = os.environ.get("PATCHHOST") or shutil.which("patchhost")
needs_program = pytest.mark.skipif(not PROGRAM, reason="no program patchhost: set PATCHHOST or install it")
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]
F = torch.tensor(448.0)
TINY, TINY_POW2 = 448.0 * 2.0**-128, 448.0 * 2.0**-127
EPS = {"verl-torch": 0.0, "hf": 0.0, "verl-triton": 1e-10, "vllm-group": 1e-10, "slime": 1e-12}
PROFILES = ["verl-torch", "verl-triton", "deepseek", "vllm-group", "hf", "deepgemm", "slime"]
VARIANTS = [(profile, format, "strict") for profile in PROFILES for format in ("f32", "ue8m0")]
# The settings refuse other pairs of profile and edges.
SEEDS = [("verl-torch", f, "propagate-nan") for f in ("f32", "ue8m0")]
SEEDS += [(p, f, "ignore-nan") for p in PROFILES if p not in ("verl-torch", "hf") for f in ("f32", "ue8m0")]
SETTING = {"strict": "strict", "propagate-nan": "seed-torch", "ignore-nan": "seed-triton"}


@pytest.fixture(autouse=True)
def _only_with_gpu(request):
    if request.node.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU")


@dataclass(frozen=True)
class Scheme:
    profile: str
    format: str
    edges: str
    block: tuple[int, int] = (128, 128)
    round_bf16: bool = False
    needs: str = "amax"
    clip: float | None = None
    scale_suffix: str = "_scale_inv"
    rule: str = "a test"

    @property
    def eps(self) -> float:
        return EPS.get(self.profile, 1e-4)

    @property
    def cast(self) -> str:
        if self.format == "ue8m0" or self.profile in ("verl-triton", "deepgemm"):
            return "reciprocal"
        return "multiply" if self.eps == 0.0 else "divide"

    @property
    def contract(self) -> tuple[str, float | None]:
        return ("clip", self.clip) if self.clip is not None else ("pow2" if self.format == "ue8m0" else "amax", None)

    @property
    def floor(self) -> tuple[float, float, float]:
        if self.eps:
            return self.eps, 0.0, float(formula(self, torch.zeros(1)))
        return 0.0, TINY_POW2 if self.format == "ue8m0" else TINY if self.edges == "strict" else 0.0, 1.0


def formula(scheme: Scheme, amax):
    """`given` of profile.rs without its floor; divisions have a tensor on both sides."""
    f, one = F.expand_as(amax), torch.ones_like(amax)
    raised = amax.clamp(min=scheme.eps)
    if scheme.profile == "verl-torch":
        number = torch.where(amax == torch.inf, one, torch.div(f, amax))
    elif scheme.profile == "hf":
        number = torch.div(one, amax) * f
    else:
        number = raised * torch.div(one, f) if scheme.profile == "vllm-group" else torch.div(raised, f)
    if scheme.format == "f32":
        return number
    bits = (torch.div(one, number) if scheme.eps == 0.0 else number).view(torch.int32)
    return (((bits >> 23) + ((bits & 0x7FFFFF) != 0)).clamp(1, 254).to(torch.int32) << 23).view(torch.float32)


@cache
def numbers(scheme: Scheme):
    """The table with the answer to infinity as its last entry."""
    amax = (torch.arange(device.ENTRIES + 1, dtype=torch.int32) << 16).view(torch.float32)
    _, below, scale = scheme.floor
    return torch.where(amax <= below, torch.tensor(scale), formula(scheme, amax))


def bf16(bits) -> torch.Tensor:
    return torch.as_tensor(bits, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)


def special() -> torch.Tensor:
    """256x256, four blocks of 128x128: all e4m3 ties and boundaries when the scale is 1, subnormals, zeros, anything."""
    random = torch.Generator().manual_seed(7)
    x = torch.zeros(256, 256)
    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = torch.cat([codes, (codes[1:] + codes[:-1]) / 2, torch.tensor([0.0, 2.0**-10, 2.0**-9, 1.5 * 2.0**-9, 447.0, 448.0])])
    ties = torch.cat([ties, -ties])
    x[0, 0] = 448.0
    x[1 : 1 + -(-len(ties) // 128), :128] = torch.nn.functional.pad(ties, (0, -len(ties) % 128)).view(-1, 128)
    x[:128, 128:] = torch.randn(128, 128, generator=random) * 0.02
    x[128:, :128] = bf16(torch.arange(128 * 128) % 0x100).float().view(128, 128) * torch.tensor([1.0, -1.0]).repeat(64)
    x[128:, 128:] = -0.0
    x = x.bfloat16()
    assert (x[128:, :128] != 0).any(), "subnormals are flushed"
    return x


def tensors(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """By name, in the strides that are tested; the program gets contiguous copies."""
    random = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> torch.Tensor:
        spread = torch.exp2(torch.randint(-12, 3, (shape[-1],), generator=random).float())
        return (torch.randn(*shape, generator=random) * 0.05 * spread).to(dtype)

    shapes = [(1, 1), (128, 128), (129, 257), (300, 96), (3, 130, 200)]
    found = {"x".join(map(str, shape)): normal(*shape) for shape in shapes}
    found |= {"3x0": normal(3, 1)[:, :0], "0x128": normal(1, 128)[:0], "0x16x16": normal(1, 16, 16)[:0]}
    found |= {"transposed": normal(200, 150).t(), "strided": normal(260, 400)[::2, 1::3]}
    found["expanded"] = normal(1, 150).expand(130, 150)
    found["permuted"] = normal(130, 3, 70).permute(1, 0, 2)
    found["special"] = special().to(dtype)
    # Rounding to bf16: ties, a carry into the exponent, the smallest and (f32) the largest value.
    limits = torch.finfo(dtype)
    rounded = torch.tensor([[1.00390625, 1.01171875, 1.998046875, -1.99999, limits.tiny, limits.max * 0.99]])
    found["rounded"] = rounded.to(dtype).repeat(7, 3)
    if dtype == torch.bfloat16:
        found["every-value"] = bf16(torch.cat([torch.arange(0x7F80), torch.arange(0x8000, 0xFF80)])).view(510, 128)
    return found


def not_finite(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Six 4x4 blocks: NaN, -NaN, infinity with numbers, both, tiny values with zeros (an infinite multiplier), numbers."""
    x = torch.linspace(-3, 3, 24 * 4).view(4, 24)
    x[0, 0], x[1, 5], x[2, 9], x[3, 13], x[0, 12] = torch.nan, -torch.nan, torch.inf, -torch.inf, torch.nan
    x[1, 8] = 0.0
    x[:, 16:20] = torch.tensor([0.0, -0.0, 2.0**-130, -(2.0**-131)])
    found = {"edges": x, "all-nan": torch.full((4, 5), torch.nan), "zeros": torch.zeros(5, 5)}
    return {name: tensor.to(dtype) for name, tensor in found.items()}


def program(given: dict[str, torch.Tensor], scheme: Scheme, folder: Path) -> dict[str, torch.Tensor]:
    save_file = pytest.importorskip("safetensors.torch").save_file
    load_file = sys.modules["safetensors.torch"].load_file
    # The program refuses tensors of several blocks below 16 values, empty ones too: those have nothing to compare but shapes.
    grids = {name: device.grid(tensor.shape, scheme.block) for name, tensor in given.items() if not tensor.numel()}
    empty = {name: blocks for name, blocks in grids.items() if blocks[-2:] not in [(1, 0), (0, 1)]}
    asked = {name: tensor.contiguous() for name, tensor in given.items() if name not in empty}
    save_file(asked, folder / "in.safetensors")
    settings = [f"profile={scheme.profile}", f"scale_format={scheme.format}", f"edges={SETTING[scheme.edges]}", "quantize=*"]
    settings += [f"block={scheme.block[0]}x{scheme.block[1]}", f"round={'bf16' if scheme.round_bf16 else 'none'}"]
    command = [PROGRAM, "quantize", "in.safetensors", "out.safetensors", "--force", "--component", "fp8_block", "--threads", "1"]
    command += [word for setting in settings for word in ("--set", setting)]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = load_file(folder / "out.safetensors")
    for name, blocks in empty.items():
        found[name] = torch.empty(given[name].shape, dtype=torch.float8_e4m3fn)
        found[name + "_scale_inv"] = torch.empty(blocks)
    return found


def same(name: str, found, codes, scale) -> None:
    """Bit for bit."""
    q, s = (t.cpu() for t in found)
    assert q.dtype == torch.float8_e4m3fn and q.shape == codes.shape and s.dtype == torch.float32 and s.shape == scale.shape
    differ = (q.view(torch.uint8) != codes.view(torch.uint8)).nonzero()
    assert not len(differ), f"{name}: {len(differ)} codes, first at {differ[0].tolist()}"
    # A NaN scale has no value that could be compared: its payload is the machine's.
    equal = (s.view(torch.int32) == scale.view(torch.int32)) | (s.isnan() & scale.isnan())
    assert equal.all(), f"{name}: scales {s[~equal][:3].tolist()} instead of {scale[~equal][:3].tolist()}"


def applied(scheme: Scheme, given, expected, where: str, apply=None) -> None:
    quantizer = table.ScaleTable(numbers(scheme), scheme)
    assert given, "nothing to compare"
    for name, weight in given.items():
        moved = weight.to(where)
        same(name, (apply or quantizer.apply)(moved), expected[name], expected[name + "_scale_inv"])
        # The same by way of the host: amax, the numbers, the cast.
        amax = device.block_amax(moved, scheme.block, scheme.round_bf16, scheme.edges == "ignore-nan")
        index = (amax.view(torch.int32) >> 16).clamp(max=device.ENTRIES + 1).long().cpu()
        asked = torch.cat([numbers(scheme), torch.tensor([torch.nan])])[index]
        assert device.proved(amax.cpu(), asked, scheme).all(), name
        same(name, device.apply_given(moved, asked.to(where), scheme), expected[name], expected[name + "_scale_inv"])
    if scheme.edges == "strict":
        quantizer.check()


@needs_program
@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("block", [(128, 128), (1, 128), (64, 32), (7, 3)], ids=lambda b: f"{b[0]}x{b[1]}")
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_bytes_of_bf16(variant, block, where, tmp_path):
    scheme, given = Scheme(*variant, block=block), tensors(torch.bfloat16)
    applied(scheme, given, program(given, scheme, tmp_path), where)


@needs_program
@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("variant", VARIANTS, ids="-".join)
def test_bytes_rounded_to_bf16(variant, dtype, where, tmp_path):
    scheme, given = Scheme(*variant, round_bf16=True), tensors(dtype)
    applied(scheme, given, program(given, scheme, tmp_path), where)


@needs_program
@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=["bf16", "f32", "f16"])
@pytest.mark.parametrize("variant", SEEDS, ids="-".join)
def test_edges(variant, dtype, where, tmp_path):
    scheme = Scheme(*variant, block=(4, 4), round_bf16=dtype != torch.bfloat16)
    given = not_finite(dtype) | tensors(dtype)
    applied(scheme, given, program(given, scheme, tmp_path), where)
    quantizer = table.ScaleTable(numbers(scheme), scheme)
    quantizer.apply(given["edges"].to(where))
    assert quantizer.nonfinite.device.type == where and quantizer.nonfinite.tolist() == [4]
    quantizer.check()
    assert quantizer.nonfinite.tolist() == [0]


@needs_program
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["f32", "f16"])
@pytest.mark.parametrize("profile", PROFILES)
def test_bucket_of_values_that_are_not_rounded(profile, dtype, tmp_path):
    """amax is no bf16 here: one bucket asks about all tensors, and the formula stands for the patch."""
    scheme, given = Scheme(profile, "f32", "strict"), tensors(dtype)
    expected = program(given, scheme, tmp_path)
    flat, offsets = device.bucket_amax(list(given.values()), scheme.block)
    assert flat.dtype == torch.float32 and flat.shape == (offsets[-1],) and len(offsets) == len(given) + 1
    asked = torch.where(flat <= scheme.floor[1], torch.tensor(scheme.floor[2]), formula(scheme, flat))
    assert device.proved(flat, asked, scheme).all()
    assert not device.proved(flat, asked * 1.001, scheme)[flat > TINY].any()
    for (name, weight), start, end in zip(given.items(), offsets, offsets[1:]):
        same(name, device.apply_given(weight, asked[start:end], scheme), expected[name], expected[name + "_scale_inv"])


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=["bf16", "f32", "f16"])
def test_strict_is_checked_later(dtype, where):
    scheme = Scheme("verl-triton", "f32", "strict", block=(4, 4), round_bf16=dtype != torch.bfloat16)
    quantizer = table.ScaleTable(numbers(scheme)[:-1], scheme).to(where)
    quantizer.apply(torch.ones(4, 4, dtype=dtype, device=where))
    quantizer.check()
    quantizer.apply(not_finite(dtype)["edges"].to(where))
    assert quantizer.nonfinite.tolist() == [4]
    with pytest.raises(NonFiniteError, match="4 on"):
        quantizer.check()
    quantizer.check()
    if dtype == torch.float32:
        # Finite, but infinite when rounded.
        quantizer.apply(torch.full((1, 1), torch.finfo(dtype).max, device=where))
        with pytest.raises(NonFiniteError):
            quantizer.check()


def exact(y: torch.Tensor) -> torch.Tensor:
    """e4m3 by search among all values in f64, ties to the even code; apart from NaN."""
    values = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).double()
    a = y.abs().double().clamp(max=448.0)
    low = (torch.searchsorted(values, a, right=True) - 1).clamp(max=0x7D)
    below, above = a - values[low], values[low + 1] - a
    up = (above < below) | ((above == below) & (low % 2 == 1))
    return ((low + up) | (y.signbit().long() << 7)).to(torch.uint8)


@pytest.mark.parametrize("where", DEVICES)
def test_encode(where):
    random = torch.Generator().manual_seed(3)
    bits = torch.randint(-(2**31), 2**31, (1 << 20,), generator=random, dtype=torch.int64).to(torch.int32)
    near = torch.tensor([2.0**-11, 2.0**-10, 2.0**-9, 2.0**-6, 448.0, 464.0, 480.0, 2.0**-126, 3.4e38]).view(torch.int32)
    near = (near[:, None] + torch.arange(-64, 64, dtype=torch.int32)).flatten()
    codes = torch.arange(0x7F, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    ties = ((codes[1:] + codes[:-1]) / 2).view(torch.int32)
    y = torch.cat([bits, near, ties - 1, ties, ties + 1, bf16(torch.arange(0x7F81)).float().view(torch.int32)])
    y = torch.cat([y, y ^ -(2**31)]).view(torch.float32)
    found = device.encode(y.to(where)).cpu()
    assert (found[y.isnan()] == 0x7F).all()
    assert torch.equal(found[~y.isnan()], exact(y[~y.isnan()]))
    # What the eager cast relies on: after the clamp, torch's own conversion.
    own = y.to(where).clamp(-448, 448).to(torch.float8_e4m3fn).view(torch.uint8).cpu()
    assert torch.equal(own[~y.isnan()], found[~y.isnan()])


def cast_once(weight, given, scheme):
    return device.cast(weight, given, scheme)


@needs_program
@pytest.mark.slow
@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("variant", [SEEDS[0], ("slime", "f32", "ignore-nan"), VARIANTS[3]], ids="-".join)
def test_compiled(variant, where, tmp_path):
    for dtype, block, names in [
        (torch.bfloat16, (128, 128), ["special", "3x130x200", "129x257"]),
        (torch.float32, (4, 4), ["edges", "special"]),
    ]:
        torch._dynamo.reset()
        scheme = Scheme(*variant, block=block, round_bf16=True)
        given = tensors(dtype) | (not_finite(dtype) if scheme.edges != "strict" else {})
        given = {name: given[name] for name in names if name in given}
        expected = program(given, scheme, tmp_path)
        quantizer = table.ScaleTable(numbers(scheme), scheme).to(where)
        applied(scheme, given, expected, where, torch.compile(quantizer.apply, fullgraph=where == "cpu", dynamic=False))
        compiled = torch.compile(cast_once, fullgraph=True, dynamic=False)
        for name, weight in given.items():
            bits = device.block_amax(weight, block, True, scheme.edges == "ignore-nan").view(torch.int32) >> 16
            asked = torch.cat([numbers(scheme), torch.tensor([torch.nan])])[bits.clamp(max=device.ENTRIES + 1).long()]
            same(name, compiled(weight.to(where), asked.to(where), scheme), expected[name], expected[name + "_scale_inv"])


@pytest.mark.parametrize("where", DEVICES)
@pytest.mark.parametrize("profile", ["slime", "verl-triton", "verl-torch"])
def test_values_that_saturate(profile, where):
    """As under a contract clip: each rule with numbers by which values go far beyond 448, infinity too."""
    scheme = Scheme(profile, "f32", "propagate-nan", block=(4, 16))
    weight = torch.linspace(-460, 460, 8 * 30).view(8, 30).bfloat16()
    asked = torch.tensor([[1.0, 0.9], [0.5, 1e-38]])
    asked = 1 / asked if scheme.cast == "multiply" else asked
    wide = asked.repeat_interleave(4, 0).repeat_interleave(16, 1)[:, :30]
    one = torch.ones_like(wide)
    if scheme.cast == "divide":
        y = torch.div(weight.float(), wide)
    else:
        y = weight.float() * (torch.div(one, wide) if scheme.cast == "reciprocal" else wide)
    assert (y.abs() > 480).any() and (y.abs() == torch.inf).any()
    scale = torch.div(torch.ones_like(asked), asked) if scheme.cast == "multiply" else asked
    expected = exact(y).view(torch.float8_e4m3fn), scale
    same(profile, device.cast(weight.to(where), asked.to(where), scheme), *expected)
    same(profile, device.apply_given(weight.to(where), asked.to(where), scheme), *expected)


INTERPRETED = """
import pytest, sys
sys.exit(pytest.main([sys.argv[1], "-q", "-x", "-p", "no:cacheprovider", "-k", "in_interpreter"]))
"""


@needs_program
@pytest.mark.slow
@pytest.mark.skipif(device.triton is None, reason="needs triton")
def test_triton_interpreter():
    """TRITON_INTERPRET is read at import, so those tests run in a process of their own."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PATCHHOST": str(Path(PROGRAM).resolve()), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", INTERPRETED, __file__], env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and " passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="runs inside of test_triton_interpreter")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16], ids=["bf16", "f32", "f16"])
@pytest.mark.parametrize("variant", VARIANTS[:3] + VARIANTS[4:5] + [SEEDS[0], SEEDS[1], SEEDS[2], SEEDS[-2]], ids="-".join)
def test_in_interpreter(variant, dtype, tmp_path):
    # One tile, tiles of many blocks that are one row high, and blocks of several tiles. The interpreter is slow.
    block = {torch.bfloat16: (128, 128), torch.float32: (1, 128), torch.float16: (200, 136)}[dtype]
    names = ("1x1", "3x0", "129x257", "3x130x200", "transposed", "permuted", "special", "rounded")
    given = {name: tensor for name, tensor in tensors(dtype).items() if name in names}
    if variant[2] != "strict":
        block, given = (4, 4), not_finite(dtype)
    scheme = Scheme(*variant, block=block, round_bf16=dtype != torch.bfloat16)
    expected = program(given, scheme, tmp_path)
    values = torch.cat([numbers(scheme), torch.tensor([torch.nan])])
    for name, weight in given.items():
        counter = torch.zeros(1, dtype=torch.int64)
        found = device.cast_triton(weight, scheme, table=values, nonfinite=counter)
        same(name, found, expected[name], expected[name + "_scale_inv"])
        bad = ~weight.float().isfinite()
        assert counter.item() == device.block_amax(bad.float(), block).sum().item(), name
        amax = device.block_amax(weight, block, scheme.round_bf16, scheme.edges == "ignore-nan")
        asked = values[(amax.view(torch.int32) >> 16).clamp(max=device.ENTRIES + 1).long()]
        same(name, device.cast_triton(weight, scheme, given=asked), expected[name], expected[name + "_scale_inv"])


@pytest.mark.slow
@pytest.mark.skipif(device.triton is None or os.environ.get("TRITON_INTERPRET") == "1", reason="needs triton's compiler")
@pytest.mark.parametrize("rule", ["divide", "reciprocal", "multiply"])
@pytest.mark.parametrize("architecture", [80, 90, 100])
def test_triton_code_for_cuda(architecture, rule):
    """No GPU is needed to compile: divisions are rounded, nothing flushes subnormals, no product is fused into a sum."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = device._kernel
    constants = dict(x2=1, q2=1, BR=128, BC=128, TR=128, TC=128, PANELS=1)
    constants |= dict(LOOKUP=True, ROUND=False, IGNORE_NAN=False, RULE=rule)
    pointers = {"x": "*i16", "numbers": "*fp32", "q": "*u8", "s": "*fp32", "counter": "*i64"}
    signature = {name: pointers.get(name, "i32") for name in kernel.arg_names} | {name: "constexpr" for name in constants}
    # What a launch finds out itself: 16 divides sides, strides and addresses.
    divisible = ("x", "q", "rows", "cols", "x0", "x1", "q0", "q1")
    attributes = {(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in divisible}
    options = {"num_warps": 8, "enable_reflect_ftz": False, "enable_fp_fusion": False}
    try:
        source = ASTSource(kernel, signature, constants, attributes)
        code = device.triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options).asm["ptx"]
    except (ImportError, RuntimeError, FileNotFoundError) as problem:
        pytest.skip(f"triton cannot compile for CUDA here: {problem}")
    assert "ld.global.v4" in code and code.count("ld.global") < 20, "loads are not vectors"
    assert "div.rn.f32" in code and "div.full" not in code and "div.approx" not in code
    assert ".ftz" not in code and "fma.rn.f32" not in code


@pytest.mark.parametrize("where", DEVICES)
def test_places_are_used(where):
    scheme = Scheme("deepseek", "f32", "strict", block=(2, 3))
    quantizer = table.ScaleTable(numbers(scheme).numpy().tobytes()[:-4] if where == "cpu" else numbers(scheme), scheme)
    weight = torch.nn.Parameter(torch.randn(5, 7, device=where).bfloat16())
    expected = quantizer.apply(weight)
    out = torch.empty(7, 10, device=where).to(torch.float8_e4m3fn)[:, ::2].t()
    scale_out = torch.empty(3, 6, device=where)[:, ::2]
    q, s = quantizer.apply(weight, out=out, scale_out=scale_out)
    assert q.data_ptr() == out.data_ptr() and s.data_ptr() == scale_out.data_ptr()
    same("places", (out, scale_out), *(t.cpu() for t in expected))


def test_pieces_change_nothing(monkeypatch):
    scheme = Scheme("slime", "f32", "strict", block=(16, 24))
    quantizer = table.ScaleTable(numbers(scheme), scheme)
    for name, weight in tensors(torch.bfloat16).items():
        expected = quantizer.apply(weight)
        for limit in (1, 3000):
            monkeypatch.setitem(device._PIECE, "cpu", limit)
            same(name, quantizer.apply(weight), *expected)
        monkeypatch.undo()


GOOD = Scheme("verl-torch", "f32", "strict")
BF16 = torch.ones(4, 4).bfloat16()
REFUSED = {
    "f32": (lambda t: t.apply(BF16.float()), "float32.*round_bf16"),
    "f16": (lambda t: t.apply(BF16.half()), "float16.*round_bf16"),
    "integers": (lambda t: t.apply(BF16.int()), "int32"),
    "f64": (lambda t: t.apply(BF16.double()), "float64"),
    "fp8": (lambda t: t.apply(BF16.to(torch.float8_e4m3fn)), "float8"),
    "meta": (lambda t: t.apply(BF16.to("meta")), "meta"),
    "sparse": (lambda t: t.apply(BF16.to_sparse()), "sparse"),
    "list": (lambda t: t.apply([[1.0]]), "list"),
    "vector": (lambda t: t.apply(BF16[0]), "1 dimensions"),
    "4-D": (lambda t: t.apply(BF16[None, None]), "4 dimensions"),
    "out dtype": (lambda t: t.apply(BF16, out=torch.empty(4, 4)), "out.*float32 where .*float8"),
    "out shape": (lambda t: t.apply(BF16, out=torch.empty(4, 5).to(torch.float8_e4m3fn)), r"\(4, 5\)"),
    "out device": (lambda t: t.apply(BF16, out=torch.empty(4, 4, dtype=torch.float8_e4m3fn, device="meta")), "meta"),
    "scale dtype": (lambda t: t.apply(BF16, scale_out=torch.empty(1, 1).double()), "scale_out.*float64"),
    "scale shape": (lambda t: t.apply(BF16, scale_out=torch.empty(2, 1)), r"scale_out.*\(2, 1\)"),
    "given count": (lambda t: device.apply_given(BF16, torch.ones(2), GOOD), "1 float32 numbers"),
    "given dtype": (lambda t: device.apply_given(BF16, torch.ones(1).double(), GOOD), "float64"),
    "given device": (lambda t: device.apply_given(BF16, torch.ones(1, device="meta"), GOOD), "meta"),
    "needs": (lambda t: table.ScaleTable(numbers(GOOD), replace(GOOD, needs="moments")), "moments"),
    "size": (lambda t: table.ScaleTable(numbers(GOOD)[:99], GOOD), "99"),
    "bytes": (lambda t: table.ScaleTable(b"123", GOOD), "3 bytes"),
    "table dtype": (lambda t: table.ScaleTable(numbers(GOOD).double(), GOOD), "float64"),
    "infinity": (lambda t: table.ScaleTable(numbers(GOOD)[:-1], replace(GOOD, edges="propagate-nan")), "infinity"),
    "clip": (lambda t: table.ScaleTable(numbers(GOOD) * 1.5, replace(GOOD, clip=0.01)), "saturates"),
    "block": (lambda t: table.ScaleTable(numbers(GOOD), replace(GOOD, block=(0, 8))), "0x8"),
    "no numbers": (lambda t: device.cast_triton(BF16, GOOD), "triton"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_by_name(case):
    call, words = REFUSED[case]
    quantizer = table.ScaleTable(numbers(GOOD), GOOD)
    with pytest.raises(TensorError, match=f"(?s){words}"):
        call(quantizer)


def test_infinity_and_clip_can_be_said():
    seed = replace(GOOD, edges="propagate-nan", block=(4, 4))
    quantizer = table.ScaleTable(numbers(seed)[:-1], seed, infinity=1.0)
    weight = not_finite(torch.bfloat16)["edges"]
    same("edges", quantizer.apply(weight), *table.ScaleTable(numbers(seed), seed).apply(weight))
    table.ScaleTable(numbers(GOOD), replace(GOOD, clip=0.01))


def test_no_waits_in_apply():
    """Nothing of `apply` needs values: fake tensors have none, and .item(), bool() or nonzero() on one raises."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    for dtype, edges in [(torch.bfloat16, "strict"), (torch.bfloat16, "ignore-nan"), (torch.float32, "propagate-nan")]:
        scheme = Scheme("verl-triton", "f32", edges, round_bf16=True)
        quantizer = table.ScaleTable(numbers(scheme), scheme)
        values, counter = quantizer._on(torch.device("cpu"))
        with FakeTensorMode() as mode:
            quantizer._copies = {torch.device("cpu"): (mode.from_tensor(values), mode.from_tensor(counter))}
            q, s = quantizer.apply(torch.empty(3, 130, 200, dtype=dtype))
            assert q.shape == (3, 130, 200) and s.shape == (3, 2, 2)


@pytest.mark.skipif(_native is None, reason="needs the extension")
@pytest.mark.parametrize("variant", VARIANTS + SEEDS, ids="-".join)
def test_table_of_the_extension(variant):
    profile, format, edges = variant
    settings = [("profile", profile), ("scale_format", format), ("edges", SETTING[edges])]
    patches = _native.NativeSet(
        [("fp8_block", None, settings)], "vllm", "0.32.0", "Qwen3ForCausalLM", "{}", None, None, False, False
    )
    ((_, scheme),) = patches.decide([("model.layers.0.mlp.down_proj.weight", "bfloat16", [256, 256], "mlp")])
    mine = Scheme(*variant)
    for name in ("block", "cast", "format", "edges", "needs", "round_bf16"):
        assert getattr(scheme, name) == getattr(mine, name), name
    assert patches.scale_table(scheme)[: 4 * device.ENTRIES] == numbers(mine)[: device.ENTRIES].numpy().tobytes()


@pytest.mark.gpu
@pytest.mark.parametrize("way", ["triton", "torch"])
def test_speed_copies_and_waits(way, monkeypatch, capsys):
    scheme = Scheme("verl-torch", "f32", "strict")
    weight = torch.randn(8192, 8192, device="cuda").bfloat16()
    if way == "torch":
        monkeypatch.setattr(device, "triton", None)
    elif device.triton is None:
        pytest.skip("needs triton")
    quantizer = table.ScaleTable(numbers(scheme), scheme).to("cuda")
    out, scale_out = quantizer.apply(weight)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    try:
        with torch.profiler.profile(activities=list(torch.profiler.ProfilerActivity.__members__.values())[:2]) as profile:
            begin.record()
            for _ in range(20):
                quantizer.apply(weight, out=out, scale_out=scale_out)
            end.record()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    end.synchronize()
    events = {event.key: event.count for event in profile.key_averages()}
    copies = sum(count for name, count in events.items() if "Memcpy HtoD" in name or "Memcpy DtoH" in name)
    waits = sum(count for name, count in events.items() if name in ("cudaStreamSynchronize", "cudaMemcpy"))
    moved = 20 * (weight.numel() * 3 + scale_out.numel() * 4)
    with capsys.disabled():
        speed = moved / begin.elapsed_time(end) / 1e6
        print(f"\n{way}: {speed:.0f} GB/s read and written, {copies} copies, {waits} waits in 20 calls")
    assert copies == 0 and waits == 0
