"""Which layers are quantized, on the trainer's side and in the engine."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from .engine import Held

_QUANTIZED = re.compile(r"^(f8|float8|float4|u8|i8|i32|uint8|int8|int32)", re.IGNORECASE)
_SCALES = ("_scale", "_scale_inv", "_scale_2", "_zero_point", "_shape")
# Engines fuse these; the same words on both sides make their lists comparable.
_FUSED = {"q_proj": "qkv_proj", "k_proj": "qkv_proj", "v_proj": "qkv_proj", "gate_proj": "gate_up_proj",
          "up_proj": "gate_up_proj"}  # fmt: skip


def quantized(tensors: Mapping[str, Mapping[str, Any]], held: Mapping[str, Held]) -> dict[str, Any]:
    """The layers that are quantized in the checkpoint and those in the engine, and whether they are the same.

    A layer counts as quantized where its weight has a dtype of 8 bits or fewer, is packed into int32, or has scales.
    """
    sent = _layers({name: str(about["dtype"]) for name, about in tensors.items()})
    kept = _layers({name: one.dtype for name, one in held.items()})
    return {
        "checkpoint": {"layers": len(sent), "quantized": sorted(name for name in sent if sent[name])},
        "engine": {"layers": len(kept), "quantized": sorted(name for name in kept if kept[name])},
        "same": {name for name in sent if sent[name]} == {name for name in kept if kept[name]},
    }


def _layers(dtypes: Mapping[str, str]) -> dict[str, bool]:
    made: dict[str, bool] = {}
    for name, dtype in dtypes.items():
        module, _, leaf = name.rpartition(".")
        if not leaf.endswith(("weight", "weight_packed", "gate_up_proj", "down_proj")):
            continue
        scaled = any(f"{name}{end}" in dtypes for end in _SCALES)
        layer = _layer(module)
        made[layer] = made.get(layer, False) or scaled or bool(_QUANTIZED.match(dtype))
    return made


def _layer(module: str) -> str:
    if ".experts" in module:
        return module.split(".experts")[0] + ".experts"
    head, _, last = module.rpartition(".")
    return f"{head}.{_FUSED.get(last, last)}" if head else last
