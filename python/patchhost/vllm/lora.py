"""LoRA adapters from tensors, by what vLLM documents: a folder and `LoRARequest(load_inplace=True)`.

verl replaces two methods of vLLM to hand it tensors. Here the adapter is admitted by a patch of the hook `lora`,
written to memory (tmpfs), loaded by vLLM's own loader, and removed again. vLLM loads the new one before it drops the old.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from safetensors.torch import save_file
from vllm.lora.request import LoRARequest

from .._configs import config_text
from ..errors import HostError, NonFiniteError, RefitError, UsageError
from ..expect import Expectation
from ..patchset import PatchSet

SHM = "/dev/shm"


def admit(
    peft_config: Any, tensors: Mapping[str, torch.Tensor], expectation: Expectation, patches: PatchSet | None
) -> dict[str, Any] | None:
    """Proves an adapter before anything of it is loaded: names in pairs, finite values, and, where a patch of the hook `lora` is
    live, a place in the model for each tensor. Gives the patch's plan, or `None` without one.

    Raises `RefitError`, `NonFiniteError`, `PatchError`, `UsageError`.
    """
    if not tensors:
        raise RefitError("the adapter", "it has no tensor", "send lora_A and lora_B of each module")
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
            raise UsageError(f"tensor `{name}` of the adapter", "it is no tensor of floats", "send bfloat16, float16 or float32")
        if not bool(torch.isfinite(tensor).all()):
            at = int((~torch.isfinite(tensor)).reshape(-1).nonzero()[0])
            why = f"the value at index {at} of its elements is not finite"
            raise NonFiniteError(f"tensor `{name}` of the adapter", why, "repair the adapter; the old one keeps serving")
        for mine, other in ((".lora_A.", ".lora_B."), (".lora_B.", ".lora_A.")):
            if mine in name and name.replace(mine, other) not in tensors:
                why = f"`{name.replace(mine, other)}` did not come"
                raise RefitError(f"tensor `{name}` of the adapter", why, "send both halves of each module")
    if patches is None or not _admits(patches) or expectation.forms is None:
        return None
    return patches.admit_lora(peft_config, adapter=dict(tensors), registry=expectation.forms)


@contextmanager
def request(
    peft_config: Any, tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]], *, name: str, int_id: int
) -> Iterator[LoRARequest]:
    """A request that loads these tensors in place of the adapter `name`; its folder is removed when the block is left.
    Raises `HostError` where the folder cannot be written (no space in /dev/shm)."""
    given = {key: tensor.detach().to("cpu").contiguous() for key, tensor in dict(tensors).items()}
    root = SHM if os.path.isdir(SHM) and os.access(SHM, os.W_OK) else None
    try:
        folder = tempfile.mkdtemp(prefix="patchhost-lora-", dir=root)
    except OSError as error:
        raise HostError("the adapter's folder", error.strerror or str(error), "make room in /dev/shm") from error
    try:
        try:
            with open(os.path.join(folder, "adapter_config.json"), "w", encoding="utf-8") as file:
                json.dump(json.loads(config_text(peft_config)), file)
            save_file(given, os.path.join(folder, "adapter_model.safetensors"))
        except OSError as error:
            raise HostError(f"the adapter's folder {folder}", error.strerror or str(error), "make room in /dev/shm") from error
        yield LoRARequest(lora_name=name, lora_int_id=int_id, lora_path=folder, load_inplace=True)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def load(
    worker: Any,
    peft_config: Any,
    tensors: Mapping[str, torch.Tensor] | Iterable[tuple[str, torch.Tensor]],
    *,
    name: str,
    int_id: int,
    expectation: Expectation,
    patches: PatchSet | None = None,
) -> dict[str, Any]:
    """Admits an adapter and loads it into one worker (`worker.add_lora`). The one of the same `int_id` is replaced."""
    given = dict(tensors)
    plan = admit(peft_config, given, expectation, patches)
    with request(peft_config, given, name=name, int_id=int_id) as one:
        loaded = bool(worker.add_lora(one))
    return {"name": name, "int_id": int_id, "tensors": len(given), "loaded": loaded, "plan": plan}


def _admits(patches: PatchSet) -> bool:
    return any("lora" in patch.get("hooks", ()) and not patch.get("reason") for patch in patches.patches)
