"""What a set of patches decides and computes: the same bytes as the program, in place, with refusals by name."""

import json
import pickle
import subprocess

import numpy as np
import pytest

from patchhost import NonFiniteError, PatchSet, PatchSpec, Refused, TensorError, UsageError, _program

torch = pytest.importorskip("torch")
L = "model.layers.0."


@pytest.fixture(scope="module")
def patches():
    return PatchSet.load("fp8_block")


@pytest.fixture(scope="module")
def state():
    torch.manual_seed(0)

    def made(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape).to(dtype)

    return {
        "model.embed_tokens.weight": made(300, 256),
        L + "input_layernorm.weight": made(256),
        L + "self_attn.q_proj.weight": made(384, 256),
        L + "self_attn.q_proj.bias": made(384),
        L + "self_attn.o_proj.weight": made(256, 384, dtype=torch.float32),
        L + "mlp.gate.weight": made(4, 256),
        L + "mlp.experts.gate_up_proj": made(4, 200, 256),
        L + "mlp.experts.down_proj": made(4, 256, 100, dtype=torch.float16),
        L + "mlp.shared_expert.up_proj.weight": made(130, 256),
        "lm_head.weight": made(300, 256),
        "model.steps": torch.tensor([3]),
    }


QUANTIZED = {
    L + "self_attn.q_proj.weight",
    L + "self_attn.o_proj.weight",
    L + "mlp.experts.gate_up_proj",
    L + "mlp.experts.down_proj",
    L + "mlp.shared_expert.up_proj.weight",
}


def octets(tensor):
    return bytes(tensor.contiguous().view(torch.uint8).flatten().tolist())


def test_decisions(patches, state):
    decisions = patches.decide(state)
    assert list(decisions) == list(state)
    assert {name for name, one in decisions.items() if one.quantized} == QUANTIZED
    assert all(one.reason for one in decisions.values())
    scheme = decisions[L + "self_attn.q_proj.weight"].scheme
    assert scheme.block == (128, 128) and scheme.scale_suffix == "_scale_inv" and scheme.profile == "verl-torch"
    shapes = patches.decide((name, (tensor.dtype, tensor.shape)) for name, tensor in state.items())
    assert {name: one.quantized for name, one in shapes.items()} == {n: d.quantized for n, d in decisions.items()}
    meta = {name: tensor.to("meta") for name, tensor in state.items()}
    assert [one.reason for one in patches.decide(meta).values()] == [one.reason for one in decisions.values()]
    assert patches.decide({}) == {}


def test_a_state_dict_becomes_a_stream(patches, state):
    stream = list(patches.quantize_stream(state))
    names = []
    for name in state:
        names += [name, name + "_scale_inv"] if name in QUANTIZED else [name]
    assert [name for name, _ in stream] == names
    out = dict(stream)
    for name, tensor in state.items():
        if name in QUANTIZED:
            assert out[name].dtype == torch.float8_e4m3fn and out[name].shape == tensor.shape
            *outer, rows, cols = tensor.shape
            assert tuple(out[name + "_scale_inv"].shape) == (*outer, -(-rows // 128), -(-cols // 128))
            wide = patches.dequantize(out[name], out[name + "_scale_inv"], dtype=torch.float32)
            assert (wide - tensor.float()).norm() / tensor.float().norm() < 0.04
        else:
            assert out[name] is tensor
    for batch in (1, 3):
        again = dict(patches.quantize_stream(iter(state.items()), batch=batch))
        assert all(octets(again[name]) == octets(out[name]) for name in out)


def test_the_bytes_are_those_of_the_program(patches, state, tmp_path):
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(state, tmp_path / "in.safetensors")
    command = [_program.find(), "quantize", tmp_path / "in.safetensors", tmp_path / "out.safetensors", "--force"]
    for settings in ({}, {"profile": "deepseek"}, {"scale_format": "ue8m0"}, {"block": "64x256", "profile": "hf"}):
        given = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
        subprocess.run([*command, "--component", "fp8_block", *given], check=True, capture_output=True, timeout=300)
        theirs = safetensors.load_file(tmp_path / "out.safetensors")
        ours = dict(PatchSet.load(PatchSpec("fp8_block", settings=settings)).quantize_stream(state))
        # The program has no registry for a plain file: it quantizes by names too, and the sets must agree.
        assert set(ours) == set(theirs)
        for name, tensor in ours.items():
            assert tensor.dtype == theirs[name].dtype and tensor.shape == theirs[name].shape, name
            assert octets(tensor) == octets(theirs[name]), name


def test_strides_and_stacks(patches):
    name = L + "mlp.experts.gate_up_proj"
    whole = torch.randn(3, 200, 300).bfloat16()
    for view in (
        whole,
        whole.transpose(1, 2),
        whole[1:],
        whole[:, 10:150, ::2],
        whole[:1].expand(3, 200, 300),
        whole[1],
    ):
        key = name if view.dim() == 3 else L + "mlp.up_proj.weight"
        got, want = (
            patches.quantize(key, view),
            patches.quantize(key, view.clone(memory_format=torch.contiguous_format)),
        )
        assert octets(got.codes) == octets(want.codes) and octets(got.scale) == octets(want.scale)
        assert got.codes.is_contiguous() and got.scale_name == key + "_scale_inv"


@pytest.mark.parametrize("shape", [(0, 128), (128, 0), (2, 0, 128), (0, 4, 4)])
def test_nothing_to_quantize(patches, shape):
    scheme = patches.decide([("model.layers.0.mlp.up_proj.weight", ("bfloat16", (4, 4)))]).popitem()[1].scheme
    made = patches.quantize("w", torch.empty(shape, dtype=torch.bfloat16), scheme=scheme)
    assert made.codes.shape == shape and made.scale.numel() == 0 and made.saturated == 0


def test_numpy_and_memory_of_the_caller(patches, state):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    name = L + "self_attn.q_proj.weight"
    tensor = state[name]
    want = patches.quantize(name, tensor, measure="all")
    assert 0.01 < want.relative_rmse < 0.04
    array = tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    got = patches.quantize(name, array)
    assert got.codes.dtype == ml_dtypes.float8_e4m3fn and got.codes.tobytes() == octets(want.codes)
    assert got.scale.dtype == np.float32 and got.scale.tobytes() == octets(want.scale)
    out, scale = torch.empty_like(want.codes), torch.empty_like(want.scale)
    made = patches.quantize(name, tensor, out=out, scale_out=scale)
    assert made.codes is out and made.scale is scale and octets(out) == octets(want.codes)
    wide = patches.dequantize(got.codes, got.scale, dtype="float32")
    assert wide.tobytes() == octets(patches.dequantize(want.codes, want.scale, dtype="float32"))
    for bad in ({"out": torch.empty(1)}, {"scale_out": torch.empty(1)}, {"out": torch.empty_like(out).t()}):
        with pytest.raises(TensorError, match=name):
            patches.quantize(name, tensor, **bad)


def test_scales_are_those_of_the_cast(state):
    # With this profile the patch's numbers are the scales that are stored.
    patches = PatchSet.load(PatchSpec("fp8_block", settings={"profile": "deepseek"}))
    assert patches.decide(state)[L + "self_attn.q_proj.weight"].scheme.cast == "divide"
    name = L + "mlp.shared_expert.up_proj.weight"
    weight = state[name].float()
    amax = torch.stack([torch.stack([b.abs().max() for b in rows.split(128, 1)]) for rows in weight.split(128, 0)])
    scale = patches.scales(name, amax, rows=130, cols=256)
    assert octets(scale) == octets(patches.quantize(name, state[name]).scale)
    part = patches.scales(name, amax[1:].contiguous(), rows=130, cols=256, first_block=2)
    assert octets(part) == octets(scale[1:])
    with pytest.raises(UsageError, match="5"):
        patches.scales(name, amax, rows=130, cols=256, first_block=1)
    with pytest.raises(TensorError, match="float64"):
        patches.scales(name, amax.double(), rows=130, cols=256)


def test_the_table_is_what_the_patch_says(patches, state):
    name = L + "self_attn.q_proj.weight"
    table = patches.scale_table(name, state[name])
    assert patches.scale_table(patches.decide(state)[name].scheme) is table
    codes, scale = table.apply(state[name])
    want = patches.quantize(name, state[name])
    assert octets(codes) == octets(want.codes) and octets(scale) == octets(want.scale)
    with pytest.raises(UsageError, match="keeps it"):
        patches.scale_table("lm_head.weight", state["lm_head.weight"])


def test_refusals_name_the_tensor(patches):
    name = L + "self_attn.q_proj.weight"
    bad = torch.ones(200, 130).bfloat16()
    bad[150, 129] = float("nan")
    with pytest.raises(NonFiniteError, match=r"\[150, 129\]") as caught:
        patches.quantize(name, bad)
    assert name in caught.value.what
    for wrong in (torch.ones(4, 4, 4, 4), torch.ones(4)):
        scheme = patches.decide([(name, bad)])[name].scheme
        with pytest.raises(TensorError, match="dimensions"):
            patches.quantize(name, wrong.bfloat16(), scheme=scheme)
    with pytest.raises(TensorError, match="meta"):
        patches.quantize(name, bad.to("meta"))
    with pytest.raises(UsageError, match="measure"):
        patches.quantize(name, bad, measure="some")
    good = torch.ones(128, 128).bfloat16()
    for twice in ([(name, good), (name, good)], [(name, good), (name + "_scale_inv", torch.ones(1, 1))]):
        with pytest.raises(UsageError, match="two tensors"):
            list(patches.quantize_stream(twice))
    with pytest.raises(UsageError, match="pair"):
        list(patches.quantize_stream([good]))
    with pytest.raises(UsageError):
        next(patches.quantize_stream([], batch=0))
    assert patches.quantize("lm_head.weight", good) is None


def test_loading_is_refused_in_three_parts(tmp_path):
    cases = [
        (lambda: PatchSet.load("no_such_patch"), UsageError, "no_such_patch"),
        (lambda: PatchSet.load(PatchSpec("fp8_block", sha256="0" * 64)), Refused, "0000"),
        (lambda: PatchSet.load(PatchSpec("fp8_block", settings={"foo": 1})), (UsageError, Refused), "foo"),
        (lambda: PatchSet.load("fp8_block", host=("nothing", "1.0")), Refused, "nothing"),
        (lambda: PatchSet.load("fp8_block", host=("vllm", "0.1.0")), Refused, "0.1.0"),
        (lambda: PatchSet.load("fp8_block", host="vllm"), UsageError, "host"),
        (lambda: PatchSet.load("fp8_block", config="[]"), UsageError, "config"),
        (lambda: PatchSet.load("fp8_block", config={"x": float("nan")}), UsageError, "JSON"),
        (lambda: PatchSet.load("fp8_block", threads=0), UsageError, "threads"),
        (lambda: PatchSet.load("fp8_block", lock=tmp_path / "none.lock", locked=True), (Refused, UsageError), "lock"),
        (lambda: PatchSet(), UsageError, "load"),
    ]
    for call, cls, word in cases:
        with pytest.raises(cls) as caught:
            call()
        assert word in str(caught.value) and caught.value.why and caught.value.next


def test_hosts_and_configs(tmp_path):
    config = {"architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "num_experts": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    sets = [PatchSet.load("fp8_block", "moe_loader", config=given) for given in (config, tmp_path, json.dumps(config))]
    assert {one.digest for one in sets} == {sets[0].digest} and sets[0].digest.startswith("sha256:")
    assert sets[0].architecture == "Qwen3MoeForCausalLM" and sets[0].host[0] == "patchhost"
    assert [one["name"] for one in sets[0].patches] == ["fp8_block", "moe_loader"]
    dense = PatchSet.load("fp8_block", "moe_loader", architecture="LlamaForCausalLM")
    assert "LlamaForCausalLM" in dense.patches[1]["reason"] and not dense.patches[0]["reason"]
    assert PatchSet.load("fp8_block", host=("vllm", "0.32.0")).host == ("vllm", "0.32.0")
    assert sets[0].stats()
    transformers = pytest.importorskip("transformers")
    assert PatchSet.load("fp8_block", config=transformers.LlamaConfig(architectures=["A"])).architecture == "A"


def test_pickling_loads_again(patches, state, tmp_path):
    again = pickle.loads(pickle.dumps(patches))
    name = L + "self_attn.q_proj.weight"
    assert again.digest == patches.digest and again.specs == patches.specs
    assert octets(again.quantize(name, state[name]).codes) == octets(patches.quantize(name, state[name]).codes)
    settings = PatchSet.load(PatchSpec("fp8_block", settings={"profile": "deepseek"}))
    assert settings.digest != patches.digest
    load, (specs, args, _) = settings.__reduce__()
    with pytest.raises(Refused, match="digest"):
        load(specs, args, patches.digest)


def test_other_hooks():
    masks = PatchSet.load("vocab_mask")
    assert masks.masked(128, 100) == [range(100, 128)]
