"""Reads exports with the compressed-tensors package.

    python check_compressed_tensors.py EXPORT …      # made with --for compressed-tensors

For each export:
1. quantization_config is one that the package takes, of format float-quantized;
2. with its matching rules, exactly the modules that hold FP8 weights are targeted, and `ignore` names all others;
3. `decompress` of every FP8 tensor equals f32(q) * scale of its block, bit for bit;
4. dense models load with transformers (compressed-tensors' MoE does not load there), and every weight is what 3 says.
"""
import json, os, sys, warnings

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
import compressed_tensors
import torch
import transformers
from compressed_tensors.compressors import FloatQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import match_name
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

torch.set_num_threads(1)
transformers.utils.logging.disable_progress_bar()


def tensors(folder):
    files = sorted(f for f in os.listdir(folder) if f.endswith(".safetensors"))
    return {name: t for f in files for name, t in load_file(os.path.join(folder, f)).items()}


def check(folder):
    config = json.load(open(os.path.join(folder, "config.json")))
    raw = config["quantization_config"]
    assert raw["quant_method"] == "compressed-tensors"
    quant = QuantizationConfig.model_validate(raw)
    assert quant.format == "float-quantized" and list(quant.config_groups) == ["group_0"]
    scheme = quant.config_groups["group_0"]
    assert scheme.targets == ["Linear"] and scheme.weights.strategy == "block"
    block = list(scheme.weights.block_structure)

    stored = tensors(folder)
    fp8, ignored, worst = {}, 0, 0
    for name, t in stored.items():
        if name.endswith("_scale"):
            assert stored[name.removesuffix("_scale")].dtype == torch.float8_e4m3fn
            continue
        module = name.removesuffix(".weight")
        listed = any(match_name(module, entry) for entry in quant.ignore)
        if t.dtype != torch.float8_e4m3fn:
            linear = t.dim() == 2 and "embed_tokens" not in name
            assert listed or not linear, f"{folder}: `{module}` is not FP8 and not ignored"
            ignored += listed
            continue
        assert not listed, f"{folder}: `{module}` is FP8 and ignored"
        s = stored[name + "_scale"]
        n, k = t.shape
        wide = s.repeat_interleave(block[0], 0)[:n].repeat_interleave(block[1], 1)[:, :k]
        expected = t.to(torch.float32) * wide
        got = FloatQuantizationCompressor.decompress({"weight": t, "weight_scale": s}, scheme)["weight"]
        assert got.dtype == torch.float32 and torch.equal(got, expected), f"{folder}: {name} differs"
        fp8[name] = expected
    line = f"{len(fp8)} FP8 tensors decompress to what the scales say; {ignored} modules ignored"

    if not any(".experts." in name for name in stored):
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True,
            quantization_config=CompressedTensorsConfig(dequantize=True))
        missing = [k for k in info["missing_keys"] if not (k == "lm_head.weight" and model.config.tie_word_embeddings)]
        assert not missing and not info["unexpected_keys"], f"{folder}: {info}"
        state = model.state_dict()
        for name, expected in fp8.items():
            assert torch.equal(state[name].float(), expected), f"{folder}: {name} differs in transformers"
        line += "; transformers loads it"
    print(f"good  {os.path.basename(folder.rstrip('/'))}: {line}")


if __name__ == "__main__":
    print(f"compressed-tensors {compressed_tensors.__version__}, transformers {transformers.__version__}, "
          f"torch {torch.__version__}", file=sys.stderr)
    for folder in sys.argv[1:]:
        check(folder)
