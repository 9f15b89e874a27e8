"""Reads exports with the compressed-tensors package.

    python check_compressed_tensors.py EXPORT --source MODEL [--patchhost BIN] [--scales f32|ue8m0] [--partial]

EXPORT was made with --for compressed-tensors (--partial: and --allow-partial-blocks). First what export_files.py says, then:
1. quantization_config is one that the package takes, of format float-quantized;
2. by its matching rules, `ignore` names every linear module that is not FP8 and none that is;
3. the package's `decompress` of every FP8 tensor equals f32(q) * scale of its block, bit for bit, and its `compress` of that
   with the same scale gives the same bytes;
4. dense models load with transformers (its MoE does not load there), twice: dequantized, every parameter is what 3 says;
   and compressed, the modules that carry a scheme are exactly the FP8 ones. No missing or unexpected keys;
5. with --patchhost, in float32 and within 1e-4: `patchhost logits EXPORT` equals transformers on a twin with the weights of
   3 in float32 (its own class, no quantization).
"""
import argparse, json, os, sys, tempfile, warnings

warnings.filterwarnings("ignore")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
os.environ.setdefault("TQDM_DISABLE", "1")
import compressed_tensors
import torch
import transformers
from compressed_tensors.compressors import FloatQuantizationCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.utils.match import match_name
from loguru import logger
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import patchhost_logits
from check_transformers import TOLERANCE, load, logits, model_class, refuse_keys
from export_files import F8, Export

logger.disable("compressed_tensors")  # it advises against sizes that are not multiples of the block


def check(folder, source, binary=None, scales="f32", partial=False):
    export = Export(folder, source, partial, scales)
    quant = QuantizationConfig.model_validate(export.quant)
    assert quant.format == "float-quantized" and list(quant.config_groups) == ["group_0"]
    scheme = quant.config_groups["group_0"]
    assert scheme.targets == ["Linear"] and scheme.weights.strategy == "block"
    assert list(scheme.weights.block_structure) == export.block
    wide = export.dequantized()
    for name, t in export.stored.items():
        if t.dim() != 2 or not name.endswith(".weight") or "embed_tokens" in name: continue
        module = name.removesuffix(".weight")
        listed = any(match_name(module, entry) for entry in quant.ignore)
        assert listed == (t.dtype != F8), f"{folder}: `{module}` is {t.dtype}, ignored: {listed}"
    for name in export.fp8:
        parts = {"weight": export.stored[name], "weight_scale": export.stored[name + "_scale"]}
        got = FloatQuantizationCompressor.decompress(dict(parts), scheme)["weight"]
        assert got.dtype == torch.float32 and torch.equal(got, wide[name]), f"{folder}: {name} decompresses to something else"
        back = FloatQuantizationCompressor.compress({"weight": got, "weight_scale": parts["weight_scale"]}, scheme)["weight"]
        assert torch.equal(back.view(torch.uint8), parts["weight"].view(torch.uint8)), f"{folder}: {name} compresses to something else"
    line = f"{len(export.fp8)} FP8 of {len(export.stored)}, {len(export.ignored)} ignored; decompress and compress agree"

    dense = not any(".experts." in name for name in export.stored)
    if dense:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, output_loading_info=True, quantization_config=CompressedTensorsConfig(dequantize=True))
        refuse_keys(folder, model, info)
        state = model.state_dict()
        for name, t in wide.items(): assert torch.equal(state[name].float(), t.float()), f"{folder}: {name} differs in transformers"
        model, info = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, output_loading_info=True)
        refuse_keys(folder, model, info)
        made = {f"{n}.weight" for n, m in model.named_modules() if getattr(m, "quantization_scheme", None) is not None}
        assert made == set(export.fp8), f"{folder}: other modules carry a scheme: {sorted(made ^ set(export.fp8))[:6]}"
        line += "; transformers loads it"
    cls = model_class(export.config)
    if binary and cls:
        text = export.config.get("text_config", export.config)
        ids, _ = patchhost_logits.ids_of(source, text["vocab_size"])
        with tempfile.TemporaryDirectory() as twin:
            json.dump(export.config, open(os.path.join(twin, "config.json"), "w"))
            save_file({n: t.float() for n, t in wide.items()}, os.path.join(twin, "model.safetensors"), {"format": "pt"})
            wanted = logits(load(cls, twin, torch.float32), ids)
        difference = patchhost_logits.apart(patchhost_logits.run(binary, folder, ids), wanted)
        assert difference < TOLERANCE, f"{folder}: patchhost's logits differ by {difference:.1e}"
        line += f"; patchhost within {difference:.1e}"
    return line


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export")
    parser.add_argument("--source", required=True)
    parser.add_argument("--patchhost")
    parser.add_argument("--scales", default="f32", choices=["f32", "ue8m0"])
    parser.add_argument("--partial", action="store_true")
    args = parser.parse_args()
    print(f"compressed-tensors {compressed_tensors.__version__}, transformers {transformers.__version__}, "
          f"torch {torch.__version__}", file=sys.stderr)
    print(check(args.export, args.source, args.patchhost, args.scales, args.partial))


if __name__ == "__main__":
    main()
