"""The parts of a sync of verl: its receiver, buffers, and adapters."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import zmq
from verl.workers.rollout.vllm_rollout.bucketed_weight_transfer import BucketedWeightReceiver
from verl.workers.rollout.vllm_rollout.utils import VLLM_LORA_INT_ID, VLLM_LORA_NAME
from verl.workers.rollout.vllm_rollout.weight_update_utils import apply_buffer_updates

from ..errors import NonFiniteError, RefitError
from ..expect import Expectation
from ..vllm import lora


def plain_name(name: str) -> str:
    """The name of a base weight in the checkpoint, for one that PEFT wraps: `…q_proj.base_layer.weight`."""
    return name.replace(".base_layer.", ".", 1)


class Receiver(BucketedWeightReceiver):
    """verl's receiver, which does not wait for ever where its sender died."""

    timeout = 0

    def _init_socket(self) -> None:
        super()._init_socket()
        if self.timeout and self.socket is not None:
            self.socket.setsockopt(zmq.RCVTIMEO, self.timeout * 1000)

    def receive_weights(self, on_bucket_received: Any) -> None:
        """As verl's. Raises `RefitError` where the sender says nothing for `timeout` seconds."""
        try:
            super().receive_weights(on_bucket_received)
        except zmq.Again as error:
            why = f"its sender said nothing for {self.timeout} s"
            raise RefitError("the update", why, "look at the trainer; the old weights keep serving") from error


class Buffers:
    """Buffers of the live model that came with an update, where its checkpoint has none of their name. verl sends them,
    and vLLM's loader takes no buffers; they are copied after the weights are loaded."""

    def __init__(self, model: torch.nn.Module, expectation: Expectation) -> None:
        self._model = model
        self._known = dict(model.named_buffers())
        self._forms = expectation.forms or {}
        self._held: dict[str, torch.Tensor] = {}

    def add(self, name: str, tensor: torch.Tensor) -> bool:
        """Takes a tensor if it is such a buffer. `False`: it is none. Raises `RefitError`, `NonFiniteError`."""
        known = self._known.get(name)
        if known is None or name in self._forms:
            return False
        if known.shape != tensor.shape:
            why = f"its shape is {list(tensor.shape)}, that of the buffer in vLLM is {list(known.shape)}"
            raise RefitError(f"buffer `{name}`", why, "send it in its own shape; the old weights keep serving")
        if name in self._held:
            raise RefitError(f"buffer `{name}`", "it came twice in this update", "send every tensor once")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            why = "it has a value that is not finite"
            raise NonFiniteError(f"buffer `{name}`", why, "look at the trainer; the old weights keep serving")
        self._held[name] = tensor.detach().to("cpu", copy=True)
        return True

    def apply(self) -> int:
        """Copies what came into the live buffers. Gives how many."""
        return int(apply_buffer_updates(self._model, list(self._held.items())))


class Adapter:
    """An adapter that comes in buckets, and is loaded when all of it is here: through a folder in memory. vLLM loads
    the new one before it drops the old one, so there is no moment without an adapter."""

    def __init__(self, worker: Any, peft_config: Mapping[str, Any], expectation: Expectation, patches: Any) -> None:
        self._worker = worker
        self._config = dict(peft_config)
        self._expectation = expectation
        self._patches = patches
        self._tensors: dict[str, torch.Tensor] = {}

    def add(self, name: str, tensor: torch.Tensor) -> None:
        """Takes one tensor; it is copied. Raises `RefitError` for one that comes twice."""
        if name in self._tensors:
            why = "it came twice in this sync"
            raise RefitError(
                f"tensor `{name}` of the adapter", why, "send every tensor once; the old one keeps serving"
            )
        self._tensors[name] = tensor.detach().to("cpu", copy=True)

    def prove(self) -> None:
        """Proves all that came: halves in pairs, finite, and admitted by a live patch. Raises `RefitError` and
        others."""
        lora.admit(self._config, self._tensors, self._expectation, self._patches)

    def abandon(self, why: object) -> None:
        """Forgets what came; the adapter that was loaded before keeps serving."""
        self._tensors.clear()

    def load(self) -> None:
        """Loads it into this worker, in the place of the one before, under verl's name and number."""
        with lora.request(self._config, self._tensors, name=VLLM_LORA_NAME, int_id=VLLM_LORA_INT_ID) as one:
            self._worker.add_lora(one)
        self._tensors.clear()
