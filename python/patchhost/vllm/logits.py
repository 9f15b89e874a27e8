"""`LogitsMask`: patches of the hook `logits-mask` inside vLLM, by the entry point `vllm.logits_processors`."""

from __future__ import annotations

from typing import Any

import torch
from vllm.logger import init_logger
from vllm.tokenizers import cached_tokenizer_from_config
from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessor

from ..settings import settings

logger = init_logger(__name__)


class LogitsMask(LogitsProcessor):
    """Sets logits of token ids that a patch forbids to minus infinity: padding of the vocabulary, ids without a token, ids
    that the run must not sample. The ranges are asked once, when the engine starts: the hook answers by row and
    vocabulary, not by request. Without a `logits-mask` patch it does nothing."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        found = settings(vllm_config)
        config = vllm_config.model_config.hf_config
        rows = int(vllm_config.model_config.get_vocab_size())
        self._forbidden: torch.Tensor | None = None
        if not found.patches:
            return
        patches = found.load(host=("vllm", _version()), config=config)
        if not any("logits-mask" in patch.get("hooks", ()) and not patch.get("reason") for patch in patches.patches):
            return
        ranges = patches.masked(rows=rows, vocabulary=_vocabulary(vllm_config.model_config, rows))
        ids = [id_ for run in ranges for id_ in run]
        if ids:
            self._forbidden = torch.tensor(ids, dtype=torch.long, device=device)

    def is_argmax_invariant(self) -> bool:
        """Whether the most likely token stays what it was: only where nothing is masked."""
        return self._forbidden is None

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Nothing depends on a request."""

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        """logits: [rows, vocabulary], changed in place."""
        if self._forbidden is not None:
            logits.index_fill_(-1, self._forbidden, float("-inf"))
        return logits


def _vocabulary(model_config: Any, rows: int) -> int:
    """Ids that the tokenizer has. An engine without one (`skip_tokenizer_init`) takes every row for a token."""
    if model_config.skip_tokenizer_init:
        logger.warning("patchhost: the engine has no tokenizer, so padding of the vocabulary is not masked")
        return rows
    return min(rows, len(cached_tokenizer_from_config(model_config)))


def _version() -> str:
    import vllm

    return str(vllm.__version__).split("+")[0]
