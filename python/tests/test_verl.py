"""The streams of verl 0.9.1, by its own code: the same names, order, dtypes, shapes and bytes.

verl is read where it is installed (`pip install --no-deps verl==0.9.1`, anywhere on the path); nothing of it is here. Its
modules import vLLM and its packages import Ray, so what they need of those is put in their place while they load: vLLM's
`LinearBase`, empty packages, and the rank of a process that has no group. The arithmetic is all verl's, its PyTorch path:
the Triton path is another profile (`verl-triton`).

verl casts every weight to the dtype of the rollout first: for f32 and f16 that is the setting `round=bf16`. Both sides call
the scale `name + "_scale_inv"`.
"""

from __future__ import annotations

import asyncio
import importlib
import importlib.util
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from patchhost import NonFiniteError, PatchSet, PatchSpec

torch = pytest.importorskip("torch")

VERSION = "0.9.1"
BF16, F16, F32 = torch.bfloat16, torch.float16, torch.float32
FP8 = torch.float8_e4m3fn
HIDDEN, HEADS, KEYS, DENSE, WIDTH, EXPERTS, WORDS = 320, 384, 136, 500, 200, 4, 1000
BLOCK = types.SimpleNamespace(weight_block_size=[128, 128])


class LinearBase(torch.nn.Module):
    """In the place of vLLM's: a layer whose weight has the dtype that vLLM chose for it."""

    def __init__(self, dtype: Any) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(0, dtype=dtype), requires_grad=False)


class Experts(torch.nn.Module):
    """What holds fused experts in vLLM, as verl recognizes it: by the names of its weights."""

    def __init__(self) -> None:
        super().__init__()
        for name in ("w13_weight", "w2_weight"):
            self.register_parameter(name, torch.nn.Parameter(torch.empty(0, dtype=FP8), requires_grad=False))


class Other(torch.nn.Module):
    """A norm, an embedding or a head: no `LinearBase`."""


@pytest.fixture(scope="module")
def verl() -> Iterator[Any]:
    """verl's functions; skips where verl is not there, is another version, or needs more than is put in its place."""
    found = importlib.util.find_spec("verl")
    if found is None or not found.submodule_search_locations:
        pytest.skip(f"verl is not installed: pip install --no-deps verl=={VERSION}")
    root = Path(next(iter(found.submodule_search_locations)))
    said = (root / "version" / "version").read_text().strip()
    if said != VERSION:
        pytest.skip(f"verl {said} is installed, and its recipe was compared at {VERSION}")
    ours = ("verl", "vllm", "vllm_ascend")
    before = {name: module for name, module in sys.modules.items() if name.split(".")[0] in ours}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VERL_DISABLE_TRITON_FP8", "1")
        patch.setattr(torch.distributed, "get_rank", lambda *_: 0)
        for name in before:
            del sys.modules[name]
        for name in ("verl", "verl.utils", "verl.utils.kernel", "verl.utils.vllm"):
            _package(name, [str(root.joinpath(*name.split(".")[1:]))])
        for name in (
            "verl.workers",
            "verl.workers.rollout",
            "vllm",
            "vllm.model_executor",
            "vllm.model_executor.layers",
        ):
            _package(name, [])
        linear = _package("vllm.model_executor.layers.linear", [])
        linear.LinearBase = LinearBase
        rollout = _package("verl.workers.rollout.utils", [])
        rollout.ensure_async_iterator = _slowly
        try:
            try:
                kernel, vllm, sglang = (
                    importlib.import_module(f"verl.utils.{name}")
                    for name in ("kernel.fp8_kernel", "vllm.vllm_quant_utils", "fp8_utils")
                )
            except ImportError as error:
                pytest.skip(f"verl {said} cannot be imported without vLLM and Ray: {error}")
            # The streams ask while they run whether this one is there.
            sys.modules["vllm_ascend"] = None  # type: ignore[assignment]
            yield types.SimpleNamespace(
                blockwise=kernel.scaled_fp8_blockwise,
                quant_weights=vllm.quant_weights,
                helper=sglang.FP8QuantizerHelper,
            )
        finally:
            for name in [name for name in sys.modules if name.split(".")[0] in ours]:
                del sys.modules[name]
            sys.modules.update(before)


def _package(name: str, path: list[str]) -> Any:
    module = types.ModuleType(name)
    module.__path__ = path
    sys.modules[name] = module
    return module


async def _slowly(items: Any) -> Any:
    for item in items:
        yield item


@pytest.fixture(scope="module")
def state() -> dict[str, Any]:
    """A Qwen3-MoE with biases: layer 0 dense in bf16, layer 1 in f32, layer 2 in bf16, layer 3 in f16 and bf16; 0.02
    standard deviation, with larger and smaller columns. No size is a multiple of 128 but the 384 of the heads."""
    torch.manual_seed(7)

    def made(*shape: int, dtype: Any = BF16) -> Any:
        values = torch.randn(*shape) * 0.02
        values *= torch.exp2(torch.randint(-12, 6, (shape[-1],)).float())
        return values.to(dtype)

    tensors = {"model.embed_tokens.weight": made(WORDS, HIDDEN)}
    for layer, dtype in enumerate((BF16, F32, BF16, F16)):
        at = f"model.layers.{layer}."
        tensors[at + "input_layernorm.weight"] = made(HIDDEN, dtype=dtype)
        for name, rows in (("q", HEADS), ("k", KEYS), ("v", KEYS)):
            tensors[at + f"self_attn.{name}_proj.weight"] = made(rows, HIDDEN, dtype=dtype)
            tensors[at + f"self_attn.{name}_proj.bias"] = made(rows, dtype=dtype)
        tensors[at + "self_attn.q_norm.weight"] = made(64, dtype=dtype)
        tensors[at + "self_attn.k_norm.weight"] = made(64, dtype=dtype)
        tensors[at + "self_attn.o_proj.weight"] = made(HIDDEN, HEADS, dtype=dtype)
        tensors[at + "post_attention_layernorm.weight"] = made(HIDDEN)
        if layer == 0:
            tensors |= _mlp(at + "mlp.", DENSE, made, dtype)
            continue
        tensors[at + "mlp.gate.weight"] = made(EXPERTS, HIDDEN, dtype=F32)
        for expert in range(EXPERTS):
            tensors |= _mlp(at + f"mlp.experts.{expert}.", WIDTH, made, BF16 if expert == 0 else dtype)
    tensors["model.norm.weight"] = made(HIDDEN)
    tensors["lm_head.weight"] = made(WORDS, HIDDEN)
    # A block of zeros of both signs, a transposed view, and one that starts inside its memory.
    tensors["model.layers.2.self_attn.q_proj.weight"][128:256, :128] = 0
    tensors["model.layers.2.self_attn.q_proj.weight"][140, :64] = -0.0
    tensors["model.layers.2.self_attn.o_proj.weight"] = made(HEADS, HIDDEN).T
    tensors["model.layers.2.self_attn.v_proj.weight"] = made(KEYS + 3, HIDDEN + 5)[3:, 5:]
    return tensors


def _mlp(at: str, width: int, made: Any, dtype: Any) -> dict[str, Any]:
    shapes = {"gate_proj": (width, HIDDEN), "up_proj": (width, HIDDEN), "down_proj": (HIDDEN, width)}
    return {f"{at}{name}.weight": made(*shape, dtype=dtype) for name, shape in shapes.items()}


def served(layers: int = 4) -> Any:
    """The module tree of vLLM's Qwen3-MoE under verl's `quantization=fp8`, whose `ignored_layers` are the routers."""
    model = Other()
    model.packed_modules_mapping = {
        "qkv_proj": ["q_proj", "k_proj", "v_proj"],
        "gate_up_proj": ["gate_proj", "up_proj"],
    }
    model.lm_head, model.model = Other(), Other()
    model.model.embed_tokens, model.model.norm, model.model.layers = Other(), Other(), torch.nn.ModuleList()
    for index in range(layers):
        layer = Other()
        layer.input_layernorm, layer.post_attention_layernorm = Other(), Other()
        layer.self_attn, layer.mlp = Other(), Other()
        layer.self_attn.qkv_proj, layer.self_attn.o_proj = LinearBase(FP8), LinearBase(FP8)
        layer.self_attn.q_norm, layer.self_attn.k_norm = Other(), Other()
        if index == 0:
            layer.mlp.gate_up_proj, layer.mlp.down_proj = LinearBase(FP8), LinearBase(FP8)
        else:
            layer.mlp.gate, layer.mlp.experts = LinearBase(BF16), Experts()
        model.model.layers.append(layer)
    return model


def loaded(policy_file: Path | None = None, **settings: str) -> PatchSet:
    spec = PatchSpec("fp8_block", settings={"profile": "verl-torch", "round": "bf16"} | settings)
    return PatchSet.load(spec, policy=policy_file)


def octets(tensor: Any) -> Any:
    return tensor.contiguous().flatten().view(torch.uint8)


def same(ours: Any, theirs: Any, name: str) -> None:
    assert ours.dtype == theirs.dtype and ours.shape == theirs.shape, name
    differ = int((octets(ours) != octets(theirs)).sum())
    assert differ == 0, f"{name}: {differ} of {octets(ours).numel()} bytes differ"


def same_streams(ours: list[tuple[str, Any]], theirs: list[tuple[str, Any]], state: dict[str, Any]) -> set[str]:
    """Compares two streams; gives the names that became FP8."""
    assert [name for name, _ in ours] == [name for name, _ in theirs]
    for (name, mine), (_, yours) in zip(ours, theirs, strict=True):
        same(mine, yours, name)
        if name in state and mine.dtype == state[name].dtype:
            assert mine is state[name] and yours is state[name], f"{name} is kept, and is not the tensor that came"
    return {name for name, tensor in ours if tensor.dtype == FP8}


def test_the_stream_for_vllm(verl, state):
    assert len(state) >= 40 and {tensor.dtype for tensor in state.values()} == {BF16, F16, F32}
    theirs = list(verl.quant_weights(iter(state.items()), served(), BLOCK, dtype=BF16))
    quantized = same_streams(list(loaded().quantize_stream(state)), theirs, state)
    projections = {name for name in state if name.endswith("_proj.weight")}
    assert quantized == projections and len(quantized) == 4 * 4 + 3 + 3 * 3 * EXPERTS


def test_the_stream_for_sglang(verl, state):
    """verl's rule by names. Since 0.9 it leaves routers alone; `policy=verl-sglang` is the rule before that, so what
    verl excludes now is the setting `keep`."""

    async def stream() -> list[tuple[str, Any]]:
        return [pair async for pair in verl.helper(vars(BLOCK)).quant_weights_by_name(iter(state.items()))]

    patches = loaded(policy="verl-sglang", keep="*.mlp.gate.weight")
    quantized = same_streams(list(patches.quantize_stream(state)), asyncio.run(stream()), state)
    assert quantized == {name for name in state if name.endswith("_proj.weight")}
    rule = verl.helper(vars(BLOCK)).should_quantize_param
    without = loaded(policy="verl-sglang").decide(state)
    assert {name for name, one in without.items() if one.quantized != rule(name)} == {
        f"model.layers.{layer}.mlp.gate.weight" for layer in (1, 2, 3)
    }


def test_without_rounding_wide_inputs_differ(verl, state):
    """`round=bf16` is needed for f32 and f16, and only there."""
    patches = loaded(round="none")
    for name, tensor in state.items():
        if not name.endswith("_proj.weight"):
            continue
        codes, _ = verl.blockwise(tensor.to(BF16), BLOCK.weight_block_size)
        made = patches.quantize(name, tensor)
        assert made is not None
        assert torch.equal(octets(made.codes), octets(codes)) == (tensor.dtype == BF16), name


def test_a_stack_is_its_matrices(verl):
    """verl takes fused experts for FP8 by their name, and its kernel refuses them; here they are quantized one by one."""
    stack = (torch.randn(3, 200, 320) * 0.02).to(BF16)
    name = "model.layers.1.mlp.experts.gate_up_proj"
    with pytest.raises(AssertionError, match="2d"):
        list(verl.quant_weights([(name, stack)], served(), BLOCK))
    out = dict(loaded().quantize_stream([(name, stack)]))
    for i, matrix in enumerate(stack):
        codes, scale = verl.blockwise(matrix, BLOCK.weight_block_size)
        same(out[name][i], codes, name)
        same(out[name + "_scale_inv"][i], scale.squeeze(-1), name)


def test_every_magnitude(verl):
    """Blocks with bf16 values of random bits, from the smallest amax whose multiplier is finite (above 448 / 2^128) to the
    largest value."""
    torch.manual_seed(8)
    blocks = 300
    highest = torch.linspace(0x03E1, 0x7F7F, blocks).to(torch.int32)
    bits = (torch.rand(128, blocks, 128) * (highest[None, :, None] + 1)).to(torch.int32)
    bits[5, :, 9] = highest
    bits = bits | (torch.randint(0, 2, bits.shape, dtype=torch.int32) << 15)
    weight = (bits << 16).view(F32).to(BF16).reshape(128, blocks * 128)
    name = "model.layers.0.mlp.up_proj.weight"
    codes, scale = verl.blockwise(weight, BLOCK.weight_block_size)
    made = loaded().quantize(name, weight)
    assert made is not None
    same(made.codes, codes, "codes")
    same(made.scale, scale.squeeze(-1), "scales")


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan"), 2.0**-126])
def test_the_edges(verl, value, tmp_path):
    """verl sends whatever comes out for blocks that have no scale. Here that is refused (not finite) or has scale 1 (too
    small for a finite multiplier), unless `edges=seed-torch` asks for verl's bytes and the operator's policy lets values
    pass that are not finite."""
    policy = tmp_path / "policy.toml"
    policy.write_text('[quant]\nnon_finite = "allow"\n')
    weight = (torch.randn(256, 300) * 0.02).to(BF16)
    weight[:128, :128] = 0
    weight[7, 11] = value
    name = "model.layers.0.mlp.up_proj.weight"
    codes, scale = verl.blockwise(weight, BLOCK.weight_block_size)
    made = loaded(policy, edges="seed-torch").quantize(name, weight)
    assert made is not None
    same(made.codes, codes, "codes")
    same(made.scale, scale.squeeze(-1), "scales")
    if value == 2.0**-126:
        strict = loaded().quantize(name, weight)
        assert strict is not None and strict.scale[0, 0] == 1 and scale[0, 0] == 0
    else:
        for patches in (loaded(), loaded(edges="seed-torch")):
            with pytest.raises(NonFiniteError, match=r"\[7, 11\]"):
                patches.quantize(name, weight)
