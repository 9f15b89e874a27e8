"""transformers in this process. Imported by the engine's process only (see `child`).

A model takes new weights by `load_state_dict(strict=True)`. Where transformers keeps other tensors than the checkpoint
has (it fuses experts), the stream is first loaded by `from_pretrained` into a twin, which is the conversion that
transformers itself has; the twin's tensors are then copied over by `load_state_dict`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

# Some of these are for the first engine: what is not loaded before the fork is loaded by each one again.
import torch
import transformers
import transformers.generation.utils
import transformers.models.llama.modeling_llama
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from .stream import read
from .tensors import digest, loaded


class Transformers:
    """`AutoModelForCausalLM`, greedy, on the CPU."""

    @staticmethod
    def engine_version() -> str:
        return transformers.__version__

    def start(self, folder: str, options: dict[str, Any]) -> dict[str, Any]:
        self.folder = folder
        self.model = self._fresh(folder)
        return {"device": str(self.model.device)}

    def answers(self, prompts: list[list[int]], max_tokens: int, cache: bool) -> list[dict[str, Any]]:
        return [self._answer(prompt, max_tokens) for prompt in prompts]

    def refit(self, parts: list[str], finished: bool, version: str) -> dict[str, Any]:
        sent = {name: tensor for part in parts for name, tensor in loaded(part)}
        if not finished:
            # A state_dict is handed over whole: of a sender that died, there is none.
            return {}
        state: Mapping[str, torch.Tensor] = sent
        ties = self._ties()
        if self._converted():
            state = self._through_a_twin(sent)
        else:
            state = sent | {name: sent[of] for name, of in ties.items() if name not in sent and of in sent}
        self.model.load_state_dict(state, strict=True)
        return {}

    def digests(self) -> dict[str, list[Any]]:
        named = dict(self.model.named_buffers(remove_duplicate=False)) | dict(
            self.model.named_parameters(remove_duplicate=False)
        )
        return {name: digest(tensor) for name, tensor in named.items()}

    def forget(self) -> None:
        pass

    def weight_version(self) -> str | None:
        return None

    def _fresh(self, folder: str) -> Any:
        model, info = AutoModelForCausalLM.from_pretrained(
            folder, dtype="auto", attn_implementation="eager", output_loading_info=True
        )
        off = {key: sorted(map(str, value)) for key, value in info.items() if value}
        if off:
            said = "; ".join(f"{key}: {', '.join(value)}" for key, value in off.items())
            raise RuntimeError(f"from_pretrained: {said}")
        return model.eval()

    def _ties(self) -> dict[str, str]:
        """Parameters that are another one under a second name, and so are in no checkpoint."""
        if not self.model.config.tie_word_embeddings:
            return {}
        ties = getattr(self.model, "_tied_weights_keys", None) or {}
        return dict(ties) if isinstance(ties, Mapping) else {}

    def _converted(self) -> bool:
        """Whether this model keeps other tensors than its checkpoint has."""
        stored = {one.name for one in read(self.folder)}
        return bool(self.model.state_dict().keys() - stored - self._ties().keys())

    def _through_a_twin(self, sent: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        place = tempfile.mkdtemp(prefix="patchhost-twin-")
        try:
            shutil.copy(os.path.join(self.folder, "config.json"), place)
            save_file(dict(sent), os.path.join(place, "model.safetensors"), metadata={"format": "pt"})
            twin: dict[str, torch.Tensor] = self._fresh(place).state_dict()
            return twin
        finally:
            shutil.rmtree(place, ignore_errors=True)

    @torch.inference_mode()
    def _answer(self, prompt: list[int], max_tokens: int) -> dict[str, Any]:
        ids = torch.tensor([prompt])
        made = self.model(input_ids=ids, use_cache=True)
        told = made.logits[0].float().log_softmax(-1)
        of_prompt = told[:-1].gather(1, ids[0, 1:, None])[:, 0].tolist()
        tokens, logprobs = [], []
        for _ in range(max_tokens):
            last = made.logits[0, -1].float().log_softmax(-1)
            token = int(last.argmax())
            tokens.append(token)
            logprobs.append(float(last[token]))
            made = self.model(input_ids=torch.tensor([[token]]), past_key_values=made.past_key_values, use_cache=True)
        return {"tokens": tokens, "logprobs": logprobs, "prompt": of_prompt, "cached": 0}
