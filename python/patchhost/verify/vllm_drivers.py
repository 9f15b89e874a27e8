"""vLLM in this process, driven by its public offline API. Imported by the engine's process only (see `child`).

Four ways in, as users have them: `reload_weights` with a stream (stock) or with a folder (folder), a weight transfer
backend that does what vLLM's own `nccl` and `ipc` backends do between start and finish (layerwise), and patchhost's
backend.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

# One process, so that a stream needs no transport and fork is safe; before vLLM is imported.
os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# A plug-in that mends vLLM would hide what stock vLLM does. Set VLLM_PLUGINS to test vLLM with plug-ins of yours.
os.environ.setdefault("VLLM_PLUGINS", "")

# Some of these are for the first engine: what is not loaded before the fork is loaded by each one again.
import torch
import vllm
import vllm.model_executor.models.registry
import vllm.v1.engine.core
import vllm.v1.worker.gpu_model_runner
from vllm import LLM, SamplingParams
from vllm.config import WeightTransferConfig
from vllm.distributed.weight_transfer.base import (
    WeightTransferEngine,
    WeightTransferInitInfo,
    WeightTransferUpdateInfo,
)
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.model_executor.model_loader.reload import finalize_layerwise_reload, initialize_layerwise_reload

from .tensors import digest, loaded

LAYERWISE = "patchhost_verify_layerwise"


def stream(parts: list[str], finished: bool) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors as a trainer hands them to `load_weights`. A sender that dies shows as a lost connection."""
    for part in parts:
        yield from loaded(part)
    if not finished:
        raise ConnectionError("the sender is gone before the end of its stream")


class Stock:
    """`LLM.collective_rpc("reload_weights")` of stock vLLM."""

    backend: str | None = None

    @staticmethod
    def engine_version() -> str:
        return vllm.__version__

    def start(self, folder: str, options: dict[str, Any]) -> dict[str, Any]:
        transfer = {"weight_transfer_config": WeightTransferConfig(backend=self.backend)} if self.backend else {}
        self.llm = LLM(
            model=folder,
            skip_tokenizer_init=True,
            enforce_eager=not options.get("compiled", False),
            enable_prefix_caching=True,
            max_model_len=options.get("max_model_len"),
            block_size=32,
            max_num_seqs=8,
            disable_log_stats=True,
            seed=0,
            **transfer,
        )
        if self.backend:
            self.llm.init_weight_transfer_engine({"init_info": {}})
        return {"device": str(next(iter(self._model().parameters())).device)}

    def answers(self, prompts: list[list[int]], max_tokens: int, cache: bool) -> list[dict[str, Any]]:
        params = SamplingParams(
            temperature=0.0,
            max_tokens=max_tokens,
            ignore_eos=True,
            detokenize=False,
            logprobs=0,
            prompt_logprobs=None if cache else 0,
            skip_reading_prefix_cache=not cache,
        )
        asked = [{"prompt_token_ids": prompt} for prompt in prompts]
        made = []
        for answer in self.llm.generate(asked, params, use_tqdm=False):
            completion = answer.outputs[0]
            tokens = list(completion.token_ids)
            told = [step[token].logprob for step, token in zip(completion.logprobs, tokens, strict=True)]
            of_prompt = [
                step[token].logprob
                for step, token in zip(answer.prompt_logprobs or [], answer.prompt_token_ids, strict=False)
                if step is not None
            ]
            made.append(
                {"tokens": tokens, "logprobs": told, "prompt": of_prompt, "cached": answer.num_cached_tokens or 0}
            )
        return made

    def refit(self, parts: list[str], finished: bool, version: str) -> dict[str, Any]:
        self.llm.collective_rpc("reload_weights", kwargs={"weights_iterator": stream(parts, finished)})
        return {}

    def digests(self) -> dict[str, list[Any]]:
        model = self._model()
        named = dict(model.named_buffers(remove_duplicate=False)) | dict(model.named_parameters(remove_duplicate=False))
        return {name: digest(tensor) for name, tensor in named.items()}

    def forget(self) -> None:
        self.llm.reset_prefix_cache()

    def weight_version(self) -> str | None:
        return None

    def _model(self) -> torch.nn.Module:
        return self.llm.apply_model(lambda model: model)[0]


class Folder(Stock):
    """`reload_weights` of stock vLLM from a folder that the trainer wrote."""

    def refit(self, parts: list[str], finished: bool, version: str) -> dict[str, Any]:
        if not finished:
            # The trainer died while it wrote.
            os.truncate(parts[-1], os.path.getsize(parts[-1]) // 2)
        self.llm.collective_rpc("reload_weights", kwargs={"weights_path": os.path.dirname(parts[0])})
        return {}


class Layerwise(Stock):
    """start, update and finish of a weight transfer backend, with vLLM's own layerwise reload behind it."""

    backend = LAYERWISE
    _open = False

    def start(self, folder: str, options: dict[str, Any]) -> dict[str, Any]:
        self.register()
        return super().start(folder, options)

    def register(self) -> None:
        WeightTransferEngineFactory.register_engine(LAYERWISE, _LayerwiseEngine)

    def refit(self, parts: list[str], finished: bool, version: str) -> dict[str, Any]:
        if self._open:
            self.leave()
        self.llm.start_weight_update()
        self._open = True
        for part in parts:
            self.llm.update_weights({"update_info": {"path": part}})
        if finished:
            self.llm.finish_weight_update(version)
            self._open = False
        return {}

    def leave(self) -> None:
        """Closes a session that a dead or refused sender left open: vLLM has one at a time, and no call to abort."""
        self._open = False
        try:
            self.llm.finish_weight_update()
        except Exception as error:
            print(f"finish of the session left open: {error}", flush=True)

    def weight_version(self) -> str | None:
        return self.llm.get_weight_version()


class Patchhost(Layerwise):
    """patchhost's own backend: it proves a whole stream before it touches a weight."""

    backend = "patchhost"

    def register(self) -> None:
        import patchhost.vllm

        patchhost.vllm.register()

    def leave(self) -> None:
        self._open = False
        try:
            self.llm.update_weights({"update_info": {"abort": True}})
        except Exception as error:
            print(f"abort of the session left open: {error}", flush=True)


@dataclass
class _Init(WeightTransferInitInfo):
    """Nothing: the parts are files."""


@dataclass
class _Update(WeightTransferUpdateInfo):
    """One part of a stream."""

    path: str = ""


class _LayerwiseEngine(WeightTransferEngine):
    """vLLM's `nccl` backend with the network left out: a part comes as a file."""

    init_info_cls, update_info_cls = _Init, _Update

    def init_transfer_engine(self, init_info: _Init) -> None:
        pass

    def start_weight_update(self) -> None:
        initialize_layerwise_reload(self.model)

    def receive_weights(self, update_info: _Update) -> None:
        self.model.load_weights(loaded(update_info.path))

    def finish_weight_update(self) -> None:
        finalize_layerwise_reload(self.model, self.model_config)

    def shutdown(self) -> None:
        pass
