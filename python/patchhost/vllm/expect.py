"""What a model inside vLLM really loads: from its module classes, its weight loaders and its checkpoint's headers."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.linear import LinearBase
from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead, VocabParallelEmbedding

from .._safetensors import forms_of_folder
from ..errors import Error, RefitError, Refused
from ..expect import SERVES, Expectation, Form, refuse_missing
from ..roles import role_of
from .coverage import Trace, Twin, unfilled

logger = init_logger(__name__)

_COUNTS = {
    "embedding": ("vocab_size",),
    "router": ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"),
}
_QUIET = ("rotary_emb.inv_freq", "rotary_emb.cos_cached", "rotary_emb.sin_cached")
_SCALES = ("_scale_inv", "_scale", "_scale_2", "input_scale", "k_scale", "v_scale")


class ModelExpectation(Expectation):
    """The tensors that a model of this worker loads.

    A twin of the model without memory (`coverage.Twin`) says which parameters a stream fills, so a stream may come under
    any names that vLLM itself takes for this model: those of the checkpoint, or stacked experts. Where vLLM's model
    folder has safetensors files, their headers say which names and shapes a fresh load has, and a missing tensor is
    called by its own name.
    """

    def __init__(self, model: torch.nn.Module, vllm_config: Any, model_config: Any = None) -> None:
        self.model_config = vllm_config.model_config if model_config is None else model_config
        self.config = _text_config(self.model_config.hf_config)
        self.tied = bool(getattr(self.config, "tie_word_embeddings", False))
        self.twin = Twin(vllm_config, self.model_config)
        self._scales = any(name.endswith("_scale_inv") for name in self.twin.parameters)
        forms = _forms(self.model_config)
        if forms is not None and self._scales:
            forms = {name: form for name, form in forms.items() if not name.endswith(_SCALES)}
        super().__init__(forms, where="the checkpoint of this model" if forms else "this model")
        self._roles: dict[str, str] = {}
        self._known: set[frozenset[tuple[str, Form]]] = set()
        self.baseline: Trace | None = None
        self._check_config()
        if forms:
            self._first(forms)

    @property
    def takes_scales(self) -> bool:
        """Whether the layers of this model hold FP8 codes with one scale for each block."""
        return self._scales

    def role(self, name: str, shape: Iterable[int]) -> str:
        """The role of a tensor, by the class of the vLLM module that it is loaded into; by its name where no trace has
        shown that yet."""
        return self._roles.get(name) or role_of(name, tuple(shape))

    def one(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        known = None if self.forms is None else self.forms.get(name)
        if known is not None and tuple(shape) != known[1]:
            why = f"its shape is {list(shape)}, that in {self.where} is {list(known[1])}"
            raise RefitError(f"tensor `{name}`", why, "send it whole and in its own shape; the old weights keep serving")

    def whole(self, came: Mapping[str, Form]) -> list[str]:
        forms = frozenset(came.items())
        if forms in self._known:
            return []
        if not self.takes_scales:
            # What is loaded has the names, shapes and dtypes of what came.
            self.check([(name, torch.empty(shape, dtype=_dtype(dtype), device="meta")) for name, (dtype, shape) in came.items()])
        elif self.forms is not None:
            missing = [name for name in self.forms if name not in came and not self._may_lack(name)]
            if missing:
                refuse_missing(missing, self.where)
        if len(self._known) < 16:
            self._known.add(forms)
        return []

    def check(self, tensors: Iterable[tuple[str, torch.Tensor]]) -> Trace:
        """Holds a stream against what the model loads: every parameter is filled, whole and once, and each tensor is used.
        Raises `RefitError` by the name of the tensor. Nothing of the live model is touched."""
        listed = list(tensors)
        names = [name for name, _ in listed]
        for name, tensor in listed:
            self.one(name, "", tuple(tensor.shape))
        if self.forms is not None:
            self._by_name(names)
        trace = self.twin.trace(listed)
        self._unused(trace, names)
        if self.baseline is None:
            gaps = unfilled(self.twin, trace)
            if gaps:
                more = f" ({len(gaps) - 1} more: {', '.join(gaps[1:4])})" if len(gaps) > 1 else ""
                why = f"the stream leaves a part of it as it was{more}"
                raise RefitError(f"parameter `{gaps[0]}` of vLLM", why, SERVES)
            self.baseline = trace
        self._like_baseline(trace)
        self._learn(trace)
        self._tied_head(dict(listed), trace)
        return trace

    def _tied_head(self, came: Mapping[str, torch.Tensor], trace: Trace) -> None:
        """A head that came for a tied model is not loaded: where it is not the embedding, the sender means another model."""
        heads = [name for name in trace.unused if self.tied and ".lm_head." in f".{name}"]
        embeddings = [name for name, role in self._roles.items() if role == "embedding" and name in came]
        for head in heads:
            for embedding in embeddings:
                a, b = came[head], came[embedding]
                if a.is_meta or b.is_meta or (a.shape == b.shape and torch.equal(a, b.to(a.dtype))):
                    continue
                why = f"config.json ties it to `{embedding}`, and its values are others; vLLM would ignore it"
                raise RefitError(f"tensor `{head}`", why, "leave it out, or set tie_word_embeddings to false in config.json")

    def _by_name(self, names: list[str]) -> None:
        """Where the stream has the checkpoint's own names, what is missing has a name."""
        assert self.forms is not None
        came = set(names)
        if came >= set(self.forms):
            return
        unknown = [name for name in names if name not in self.forms]
        missing = [name for name in self.forms if name not in came and not self._may_lack(name)]
        # Other names altogether (stacked experts): the twin says what is filled.
        if missing and (not unknown or len(missing) < len(self.forms) // 2 and not _stacked(unknown)):
            if unknown:
                super().one(unknown[0], "", ())
            refuse_missing(missing, self.where)

    def _may_lack(self, name: str) -> bool:
        return name.endswith(_QUIET) or (self.tied and name.split(".")[-2:-1] == ["lm_head"])

    def _unused(self, trace: Trace, names: list[str]) -> None:
        for name in trace.unused:
            if name.endswith(_QUIET) or (self.tied and ".lm_head." in f".{name}"):
                continue
            if self.forms is not None and name in self.forms:
                continue
            why = "vLLM loads nothing of it into this model"
            raise RefitError(f"tensor `{name}`", why, "leave it out, or send it under the name of the checkpoint")

    def _like_baseline(self, trace: Trace) -> None:
        assert self.baseline is not None
        for parameter, runs in self.baseline.filled.items():
            if trace.filled.get(parameter) != runs:
                have = sum(end - start for start, end in trace.filled.get(parameter, ()))
                want = sum(end - start for start, end in runs)
                by = sorted({piece.name for piece in self.baseline.pieces if piece.parameter == parameter and piece.name})
                lost = [name for name in by if name not in {p.name for p in trace.pieces if p.parameter == parameter}]
                at = f"tensor `{lost[0]}`" if lost else f"parameter `{parameter}` of vLLM"
                why = f"the stream fills {have} of {want} elements of `{parameter}`"
                raise RefitError(at, why, SERVES)
            if trace.copied[parameter] > self.baseline.copied[parameter]:
                twice = _twice(trace, parameter)
                why = f"a part of `{parameter}` is written twice, so the order of the stream would decide what it holds"
                raise RefitError(f"tensor `{twice}`", why, "send every tensor once; the old weights keep serving")

    def _first(self, forms: Mapping[str, Form]) -> None:
        """The checkpoint's own names, through the twin: what a fresh load fills, and which role each tensor has."""
        meta = [(name, torch.empty(shape, dtype=_dtype(dtype), device="meta")) for name, (dtype, shape) in forms.items()]
        try:
            trace = self.twin.trace(meta)
        except RefitError as error:
            # For example scales that a loader must read: then the first update shows it, with its values.
            logger.warning("patchhost: the headers of the checkpoint alone do not show what is loaded: %s", error.why)
            return
        gaps = [gap for gap in unfilled(self.twin, trace) if not self.takes_scales or "_scale" not in gap]
        if gaps:
            logger.warning("patchhost: a fresh load leaves these as they are (padding?): %s", ", ".join(gaps[:4]))
        if not self.takes_scales:
            self.baseline = trace
        self._learn(trace)

    def _learn(self, trace: Trace) -> None:
        for piece in trace.pieces:
            if piece.name is not None and piece.name not in self._roles:
                self._roles[piece.name] = self._role_in_vllm(piece.name, piece.parameter)

    def _role_in_vllm(self, name: str, parameter: str) -> str:
        """By the class of the module that holds the parameter; where the class leaves it open, by its neighbors."""
        path = parameter.rpartition(".")[0]
        module = self.twin.modules.get(path)
        by_name = role_of(name, ())
        if by_name in ("shared-expert", "other", "buffer"):
            return by_name
        if isinstance(module, ParallelLMHead):
            return "lm-head"
        if isinstance(module, VocabParallelEmbedding):
            return "embedding"
        kind = type(module).__name__
        if kind.endswith("Norm") or "LayerNorm" in kind:
            return "norm"
        if "Experts" in kind or "FusedMoE" in kind:
            return "expert"
        if isinstance(module, LinearBase) or kind.endswith(("Linear", "Gate")):
            parent = self.twin.modules.get(path.rpartition(".")[0])
            if any(isinstance(child, Attention) or "Attention" in type(child).__name__ for child in _children(parent)):
                return "attention"
            # A plain matrix by its class: a name that says embedding, norm or head is wrong about it.
            return "mlp" if by_name in ("embedding", "norm", "lm-head") else by_name
        return by_name

    def _check_config(self) -> None:
        """Sizes of vLLM's modules against config.json: a model whose parts are not what its config says is refused."""
        for path, module in self.twin.modules.items():
            if isinstance(module, VocabParallelEmbedding) and not isinstance(module, ParallelLMHead):
                self._agrees(path, "rows", getattr(module, "org_vocab_size", None), _COUNTS["embedding"])
            routed = getattr(getattr(module, "moe_config", None), "num_logical_experts", None)
            self._agrees(path, "experts", routed, _COUNTS["router"])

    def _agrees(self, path: str, what: str, found: Any, fields: tuple[str, ...]) -> None:
        said = {field: getattr(self.config, field) for field in fields if isinstance(getattr(self.config, field, None), int)}
        if isinstance(found, int) and said and found not in said.values():
            why = f"vLLM's `{path}` has {found} {what}, and config.json says {said}"
            raise Refused("this model", why, "use a config.json that fits the weights")


def _forms(model_config: Any) -> dict[str, Form] | None:
    folder = os.fspath(model_config.model)
    if not os.path.isdir(folder):
        return None
    try:
        return forms_of_folder(folder) or None
    except Error as error:
        logger.warning("patchhost: the checkpoint's headers cannot be read: %s", error)
        return None


def _text_config(config: Any) -> Any:
    getter = getattr(config, "get_text_config", None)
    return getter() if callable(getter) else config


def _children(module: torch.nn.Module | None) -> list[torch.nn.Module]:
    return [] if module is None else list(module.children())


def _stacked(names: list[str]) -> bool:
    return any("experts" in name and not any(part.isdigit() for part in name.split("experts", 1)[1].split("."))
               for name in names)  # fmt: skip


def _twice(trace: Trace, parameter: str) -> str:
    seen: set[tuple[int, tuple[int, ...]]] = set()
    last = parameter
    for piece in trace.pieces:
        if piece.parameter == parameter and piece.name is not None:
            last = piece.name
            if (piece.offset, piece.shape) in seen:
                return piece.name
            seen.add((piece.offset, piece.shape))
    return last


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    return dtype if isinstance(dtype, torch.dtype) else torch.float32
