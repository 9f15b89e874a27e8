"""What every export must be, whoever reads it; read with safetensors and torch alone, nothing of patchhost's.

`Export(folder, source, partial, scales)` holds the tensors of both folders and checks on the way:
1. the files are those of the index, the index is of the files, `format` is pt;
2. the tensors are those of the source (routed experts that were stacked: one by one), each once, and a scale for each FP8
   tensor and for nothing else;
3. FP8 is exactly what the rule says: linear weights in whole blocks (with --allow-partial-blocks: of any size), never
   embeddings, heads, norms, routers, gates of shared experts, convolutions or a vision tower; all members of a module that
   the reader fuses, or none;
4. everything else is the source's, bit for bit;
5. scales are F32, positive, one per block, and minimal: amax / 448, or the least power of two that is not below it;
6. every value is a nearest one: |w - q s| <= 2^-4 |w|, or 2^-10 s where e4m3 is subnormal;
7. config.json is the source's, plus `quantization_config`, whose list of unquantized modules names every linear one (also
   routers, which transformers never converts and vLLM would), `lm_head` even if tied, and none that is FP8.
"""
import json, os, re

import torch
from safetensors import safe_open

F8 = torch.float8_e4m3fn
NEVER = {"embed_tokens", "lm_head", "gate", "shared_expert_gate", "conv1d", "in_proj_ba", "visual", "vision_tower",
         "multi_modal_projector"}
FUSED = [{"q_proj", "k_proj", "v_proj"}, {"gate_proj", "up_proj"}, {"q_a_proj", "kv_a_proj_with_mqa"}]


def tensors(folder):
    index = os.path.join(folder, "model.safetensors.index.json")
    weight_map = json.load(open(index)) if os.path.exists(index) else None
    files = [f for f in sorted(os.listdir(folder)) if f.endswith(".safetensors") and f != "golden.safetensors"]
    if weight_map is None: assert files == ["model.safetensors"], f"{folder}: {files}"
    else: assert files == sorted(set(weight_map["weight_map"].values())), f"{folder}: {files}"
    out, meta = {}, {}
    for file in files:
        with safe_open(os.path.join(folder, file), "pt") as f:
            meta = f.metadata() or {}
            for name in f.keys():
                assert name not in out and (weight_map is None or weight_map["weight_map"][name] == file), name
                out[name] = f.get_tensor(name)
    if weight_map is not None:
        assert out.keys() == weight_map["weight_map"].keys()
        size = sum(t.numel() * t.element_size() for t in out.values())
        assert weight_map["metadata"]["total_size"] == size, (folder, size)
    return out, meta


def one_by_one(source, vision):
    """The source's tensors as an export names them: stacked experts [E, 2I, H] (gate, then up) and [E, H, I] apart."""
    out = {}
    for name, t in source.items():
        if vision or not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            out[name] = t
            continue
        stem = name.rsplit(".", 1)[0]
        for e, w in enumerate(t):
            parts = zip(("gate_proj", "up_proj"), w.chunk(2)) if "gate_up" in name else [("down_proj", w)]
            out.update({f"{stem}.{e}.{leaf}.weight": part for leaf, part in parts})
    return out


def may_be_fp8(name, t, block, partial):
    parts = name.split(".")
    linear = t.dim() == 2 and parts[-1] == "weight" and not NEVER & set(parts) and "norm" not in parts[-2]
    return linear and (partial or (t.shape[0] % block[0] == 0 and t.shape[1] % block[1] == 0))


def fused_with(name, reader):
    """The module that the reader fuses this one into; None where it does not."""
    if ".experts." in name: return name.split(".experts.")[0] + ".experts" if reader != "deepseek" else None
    if reader in ("transformers", "deepseek"): return None
    parent, _, leaf = name.removesuffix(".weight").rpartition(".")
    return next((f"{parent}.{min(group)}" for group in FUSED if leaf in group), None)


def widen(scale, block, shape):
    return scale.repeat_interleave(block[0], 0)[:shape[0]].repeat_interleave(block[1], 1)[:, :shape[1]]


class Export:
    def __init__(self, folder, source, partial=False, scales="f32"):
        self.folder, self.source = folder, source
        self.stored, self.meta = tensors(folder)
        assert self.meta["format"] == "pt"
        self.config = json.load(open(os.path.join(folder, "config.json")))
        self.quant = self.config.pop("quantization_config")
        self.model_config = json.load(open(os.path.join(source, "config.json")))
        assert self.config == self.model_config, f"{folder}: other keys of config.json changed"
        assert list(self.config) == list(self.model_config)
        self.reader = self.meta["patchhost.consumer"].split()[0]
        self.compressed = self.quant["quant_method"] == "compressed-tensors"
        assert self.compressed == (self.reader == "compressed-tensors")
        if self.compressed:
            self.block = self.quant["config_groups"]["group_0"]["weights"]["block_structure"]
            self.ignored = self.quant["ignore"]
        else:
            self.block = self.quant["weight_block_size"]
            self.ignored = self.quant["ignored_layers"]
            assert self.quant == {"quant_method": "fp8", "fmt": "e4m3", "activation_scheme": "dynamic",
                                  "weight_block_size": self.block, "ignored_layers": self.ignored,
                                  "modules_to_not_convert": self.ignored, **self.scale_fmt(scales)}, self.quant
        self.suffix = "_scale" if self.compressed else "_scale_inv"
        self.fp8 = sorted(n for n, t in self.stored.items() if t.dtype == F8)
        self.check(partial, scales)

    def scale_fmt(self, scales):
        return {"scale_fmt": "ue8m0"} if scales == "ue8m0" and any(t.dtype == F8 for t in self.stored.values()) else {}

    def check(self, partial, scales):
        vision = "vision_config" in self.model_config and "qwen3_vl" in self.model_config["model_type"]
        plain = one_by_one(tensors(self.source)[0], vision)
        scale_names = {n + self.suffix for n in self.fp8}
        assert set(self.stored) == set(plain) | scale_names, \
            f"{self.folder}: {sorted(set(self.stored) ^ (set(plain) | scale_names))[:6]}"
        wanted = {n for n, t in plain.items() if may_be_fp8(n, t, self.block, partial)}
        groups = {}
        for n, t in plain.items():
            group = fused_with(n, self.reader) if n.endswith(".weight") and t.dim() == 2 else None
            if group: groups.setdefault(group, []).append(n)
        for members in groups.values():
            if not wanted.issuperset(members): wanted.difference_update(members)
        assert set(self.fp8) == wanted, f"{self.folder}: {sorted(set(self.fp8) ^ wanted)[:6]}"
        modules = {n.removesuffix(".weight") for n, t in plain.items()
                   if t.dim() == 2 and n.endswith(".weight") and "embed_tokens" not in n and n not in wanted}
        assert modules <= set(self.ignored), f"{self.folder}: not listed as unquantized: {sorted(modules - set(self.ignored))[:6]}"
        assert any(m.split(".")[-1] == "lm_head" for m in self.ignored), self.folder
        assert not {n.removesuffix(".weight") for n in wanted} & set(self.ignored), self.folder
        self.worst = 0.0
        for name, w in plain.items():
            t = self.stored[name]
            assert t.shape == w.shape, name
            if t.dtype == F8: self.quantized(name, t, w.float(), scales)
            else: assert t.dtype == w.dtype and torch.equal(t, w), f"{self.folder}: {name} changed"

    def quantized(self, name, q, w, scales):
        block, s = self.block, self.stored[name + self.suffix]
        grid = [-(-w.shape[0] // block[0]), -(-w.shape[1] // block[1])]
        assert s.dtype == torch.float32 and list(s.shape) == grid and bool((s > 0).all()) and bool(s.isfinite().all()), name
        padded = torch.zeros(grid[0] * block[0], grid[1] * block[1])
        padded[:w.shape[0], :w.shape[1]] = w.abs()
        least = padded.view(grid[0], block[0], grid[1], block[1]).amax((1, 3)) / 448
        if scales == "ue8m0":
            assert bool((torch.frexp(s)[0] == 0.5).all()), f"{name}: a scale is no power of two"
            assert bool((s >= least).all()) and bool((s < 2 * least).all()), f"{name}: a scale is not the least power of two"
        else:
            assert bool(((s - least).abs() <= least * 2**-20).all()), f"{name}: a scale is not amax / 448"
        back = q.float() * widen(s, block, w.shape)
        assert bool(back.isfinite().all()), name
        most = torch.maximum(w.abs() * 2**-4, widen(s, block, w.shape) * 2**-10) * (1 + 1e-5)
        assert bool(((back - w).abs() <= most).all()), f"{name}: a value is not the nearest"
        self.worst = max(self.worst, ((back - w).norm() / w.norm()).item())

    def dequantized(self, dtype=None):
        """f32(q) * scale of its block, then one rounding to `dtype` (none: the result stays f32)."""
        out = {}
        for name, t in self.stored.items():
            if t.dtype == F8:
                wide = t.float() * widen(self.stored[name + self.suffix], self.block, t.shape)
                out[name] = wide.to(dtype) if dtype else wide
            elif not name.endswith((".weight_scale", ".weight_scale_inv")):
                out[name] = t.clone()
        return out

    def settings(self):
        """Arguments that make patchhost quantize the source as this export was."""
        sets = [x for pair in filter(None, self.meta["patchhost.settings"].split(",")) for x in ("--set", pair)]
        source = tensors(self.source)[0]
        kept = sorted(n for n, t in {**one_by_one(source, False), **source}.items()
                      if t.dim() >= 2 and n in self.stored and self.stored[n].dtype != F8)
        # Stacked experts of the source have other names there; all of them were kept, or none.
        if not any(".experts." in n for n in self.fp8): kept += [n for n in source if n not in self.stored]
        kept = sorted({re.sub(r"(?<=\.)\d+(?=\.)", "*", n) for n in kept}) if len(kept) > 60 else kept
        return sets + ["--set", "keep=" + ",".join(kept)] if kept else sets
