"""`quant_weights()`: verl's function of this name (verl/utils/vllm/vllm_quant_utils.py), computed by a patch.

The patch is `fp8_block` with `profile=verl-torch`: names, order, dtypes, shapes and bytes are those of verl's PyTorch
path. What is new: a weight that is not finite is refused by its name and index, and the patch's decision is held
against what vLLM has allocated, so a tensor that one side quantizes and the other keeps is an error and not a wrong
model.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch

from ..errors import RefitError, Refused, TensorError, UsageError
from ..patchset import PatchSet
from ..spec import PatchSpec

_loaded: dict[tuple[str, str], PatchSet] = {}
_ROUTERS = "*.mlp.gate.weight"


def patches(block: tuple[int, int] = (128, 128), rounding: str = "bf16") -> PatchSet:
    """The patch that computes verl's bytes. Loaded once for each process, block and rounding."""
    key = (f"{block[0]}x{block[1]}", rounding)
    found = _loaded.get(key)
    if found is None:
        given = {"profile": "verl-torch", "round": rounding, "block": key[0], "keep": _ROUTERS}
        found = _loaded[key] = PatchSet.load(PatchSpec("fp8_block", settings=given))
    return found


def quant_weights(
    weights: Iterable[tuple[str, torch.Tensor]],
    model: torch.nn.Module,
    quant_config: Any,
    dtype: torch.dtype = torch.bfloat16,
) -> Iterator[tuple[str, torch.Tensor]]:
    """Quantizes weights for a vLLM model with block FP8: gives (name, tensor), each FP8 weight followed by its scales.

    weights, model, quant_config: as for verl's function. dtype: of the rollout; every weight is rounded to it first.
    Tensors have to be on the CPU.

    Raises `UsageError` (no block size), `Refused` (DeepSeek-V4 and Ascend, which verl treats apart), `NonFiniteError`,
    `TensorError`, and `RefitError` where the patch and the model disagree about a tensor.
    """
    block = getattr(quant_config, "weight_block_size", None)
    if not block or len(block) != 2:
        why = f"`weight_block_size` is {block!r:.60}"
        raise UsageError("quant_weights", why, "set weight_block_size in quant_config, for example [128, 128]")
    _refuse_apart(model, quant_config)
    # The patch rounds to bfloat16 itself; for another dtype torch does, before the patch sees the weight.
    live = patches((int(block[0]), int(block[1])), "bf16" if dtype is torch.bfloat16 else "none")
    return _stream(weights, model, live, dtype)


def _stream(weights: Iterable[tuple[str, Any]], model: Any, live: PatchSet, to: Any) -> Iterator[tuple[str, Any]]:
    for name, weight in weights:
        allocated = _allocated_fp8(name, model)
        scheme = live.decide([(name, weight)])[name].scheme
        if allocated != (scheme is not None):
            mine, theirs = ("quantizes", "holds it wide") if scheme is not None else ("keeps", "has FP8 memory for it")
            why = f"the patch {mine} it, and the model {theirs}"
            raise RefitError(
                f"tensor `{name}`", why, "name the same layers in `keep` of the patch and in ignored_layers"
            )
        if scheme is None:
            yield name, weight
            continue
        if weight.device.type != "cpu":
            why = f"it is on {weight.device}, and this function computes on the CPU"
            raise TensorError(
                f"tensor `{name}`", why, "use patchhost.verl.WorkerExtension, which stages weights itself"
            )
        wide = weight if to is torch.bfloat16 or weight.dtype is to else weight.to(to)
        made = live.quantize(name, wide, scheme=scheme)
        assert made is not None
        yield name, made.codes
        yield name + "_scale_inv", made.scale


def _allocated_fp8(name: str, model: Any) -> bool:
    """Whether vLLM has FP8 memory for this tensor, by verl's own rule. Its answers are cached by name alone, for all
    models of a process; here each name is asked anew."""
    from verl.utils.vllm import vllm_quant_utils as upstream

    upstream.fp8_state.seen_params.discard(name)
    upstream.fp8_state.fp8_param_names.discard(name)
    return bool(upstream.is_fp8_weight(name, model))


def _refuse_apart(model: Any, quant_config: Any) -> None:
    from verl.utils.vllm import vllm_quant_utils as upstream

    apart = None
    if upstream.is_deepseek_v4_model(model):
        apart = "verl has a recipe of its own for DeepSeek-V4"
    elif upstream.is_vllm_ascend_mx_quant(quant_config):
        apart = "verl quantizes for Ascend with functions of torch_npu"
    if apart is not None:
        raise Refused("quant_weights", f"{apart}, and no patch has its bytes", "use verl's own function for this model")
