"""patchhost inside SGLang 0.5.23: `update_weights_from_tensor` proves a whole update before the first layer is touched.

```
python -m sglang.launch_server --model-path MODEL --custom-weight-loader patchhost.sglang.load
engine.update_weights_from_tensor(bucket, load_format="patchhost.sglang.load")     # once for each bucket
```

SGLang hands a custom loader one bucket at a time and ignores what it returns. So buckets are held; the checkpoint
folder of the server says which tensors one update has, and when all are here they are proved and loaded in one go.

Where a custom loader raises, SGLang's scheduler ends, and the server with it. The plug-in (`plugin`, found by the entry
point group `sglang.srt.plugins` where patchhost is installed) therefore hooks three methods by SGLang's own
`HookRegistry`: a refusal becomes the answer `success: false`, and the server goes on with its old weights.

`PATCHHOST_PATCHES` and the other variables of `patchhost.settings` configure it. Nothing of SGLang is imported before
it is used.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any
from weakref import WeakKeyDictionary

from .errors import Error, HostError, InternalError, RefitError, Refused
from .expect import Expectation, Form, forms_of_folder, refuse_missing
from .refitter import Refitter, Update
from .settings import settings
from .versions import check

LOADER = "patchhost.sglang.load"
UPDATER = "sglang.srt.model_executor.model_runner_components.weight_updater.WeightUpdater"
MANAGER = "sglang.srt.managers.scheduler_components.weight_updater.SchedulerWeightUpdaterManager"
FOLDER = "PATCHHOST_SGLANG_MODEL"
"variable that names the checkpoint folder where SGLang's own setting is no folder of this machine"

_SCALES = "_scale_inv"
_QUIET = ("rotary_emb.inv_freq",)
_hooked: ContextVar[bool] = ContextVar("patchhost_sglang_hooked", default=False)
_replicas: WeakKeyDictionary[Any, Replica] = WeakKeyDictionary()


def load(model: Any, named_tensors: Iterable[tuple[str, Any]]) -> None:
    """Takes one bucket of an update. With the last one the update is proved and loaded; `pending` says what is missing.

    When the first tensor of the open update comes again, its sender has begun anew: the older update is given up.

    Raises `Refused`, `UsageError`, `RefitError`, `NonFiniteError`, `ContractError`, `PatchError`, `HostError`: nothing
    was loaded, and the update is given up. Raises `InternalError` where SGLang failed in the middle of loading: the
    model then holds a mixture, and must not serve.
    """
    replica = _replicas.get(model)
    if replica is None:
        replica = _replicas[model] = Replica(model)
    replica.take(list(named_tensors))


def pending(model: Any) -> list[str]:
    """Names that the open update of this model still needs; empty where none is open."""
    replica = _replicas.get(model)
    return [] if replica is None else replica.missing()


def status() -> list[dict[str, Any]]:
    """What each model of this process holds: the refitter's status, and how many tensors its open update waits for."""
    return [{**replica.refitter.status(), "missing": len(replica.missing())} for replica in _replicas.values()]


def plugin() -> None:
    """The entry point of the group `sglang.srt.plugins`: registers hooks on `update_weights_from_tensor`,
    `begin_weight_update` and `end_weight_update`. Raises `Refused` for an unknown version of SGLang."""
    check("sglang")
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType

    HookRegistry.register(f"{UPDATER}.update_weights_from_tensor", _answered, HookType.AROUND)
    HookRegistry.register(f"{MANAGER}.begin_weight_update", _began, HookType.AROUND)
    HookRegistry.register(f"{MANAGER}.end_weight_update", _ended, HookType.AROUND)


class FolderExpectation(Expectation):
    """What a checkpoint folder says that one update has. Where the folder holds block FP8 (`weight_scale_inv`), the
    wide weights must come, and a patch has to make codes and scales of exactly those that have scales there."""

    def __init__(self, folder: str) -> None:
        forms = forms_of_folder(folder)
        if not forms:
            advice = "give the folder of the checkpoint that the server was started with"
            raise HostError(f"the checkpoint {folder}", "it has no safetensors file", advice)
        self.scales = {name.removesuffix(_SCALES) for name in forms if name.endswith(_SCALES)}
        self.config = _config(folder)
        self.tied = bool(self.config.get("tie_word_embeddings"))
        wide = {name: form for name, form in forms.items() if not name.endswith((_SCALES, *_QUIET))}
        super().__init__(wide, where=f"the checkpoint {folder}")

    @property
    def takes_scales(self) -> bool:
        return bool(self.scales)

    def one(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        if self.forms is not None and name not in self.forms and self._quiet(name):
            return
        super().one(name, dtype, shape)

    def whole(self, came: Mapping[str, Form]) -> list[str]:
        missing = self.missing(came)
        if missing:
            refuse_missing(missing, self.where)
        return []

    def missing(self, came: Iterable[str]) -> list[str]:
        """Names that must still come."""
        have = set(came)
        return [name for name in self.forms or {} if name not in have and not self._quiet(name)]

    def _quiet(self, name: str) -> bool:
        return name.endswith(_QUIET) or (self.tied and name.split(".")[-2:-1] == ["lm_head"])

    def agrees(self, quantized: set[str]) -> None:
        """Holds what the patches quantize against what the checkpoint has scales for. Raises `RefitError`."""
        for name in sorted(quantized ^ self.scales):
            mine = "quantizes it" if name in quantized else "keeps it"
            why = f"the patch {mine}, and {self.where} has {'no ' if name in quantized else ''}scales for it"
            raise RefitError(f"tensor `{name}`", why, "use a patch whose layers are those of the checkpoint (`keep`)")


class Replica:
    """One model of this process, its patches, and the update that is open."""

    def __init__(self, model: Any) -> None:
        version = check("sglang")
        found = settings()
        if found.require and not _hooked.get():
            why = "its hooks are not in place, so a refusal would end the server (SGLANG_PLUGINS? the server's log?)"
            raise Refused(
                "the plug-in for SGLang", why, "install patchhost with pip, so that its entry points are found"
            )
        folder = _folder()
        expectation = FolderExpectation(folder)
        known = expectation.config.get("architectures") or []
        if known and type(model).__name__ not in known:
            why = f"`{type(model).__name__}` is not the model of {folder} ({', '.join(known)}): a draft model"
            raise Refused("a weight update of this model", why, 'send with selector="target"')
        self._model = model
        self._expectation = expectation
        rank = _rank()
        self.refitter = Refitter(
            found.load(host=("sglang", version), config=expectation.config),
            expectation,
            ledger=found.ledger_file(rank),
            actor=found.actor,
            rank=rank,
            staging_limit=found.staging_limit,
        )
        self._digest = found.digest
        self._update: Update | None = None
        self._first: str | None = None
        self._refused: str | None = None
        self._broken: str | None = None

    def take(self, tensors: list[tuple[str, Any]]) -> None:
        """One bucket."""
        if self._broken is not None:
            raise InternalError("a weight update", self._broken, "start this server anew")
        if not tensors:
            return
        first = tensors[0][0]
        if self._refused is not None:
            if first != self._first:
                why = f"an earlier part of this update was refused: {self._refused}"
                raise RefitError(
                    "a part of an update", why, "begin again with the first tensor; the old weights keep serving"
                )
            self._refused = None
        if self._update is not None and first == self._first:
            self.give_up(f"`{first}` came again: its sender began anew")
        if self._update is None:
            self._first = first
            self._update = self.refitter.update(digest=self._digest)
        try:
            self._update.add_all(tensors)
            if not self.missing():
                self._finish(self._update)
        except InternalError:
            self._update = None
            raise
        except BaseException as error:
            self.give_up(error)
            self._refused = f"{error.what}: {error.why}" if isinstance(error, Error) else str(error)
            raise

    def missing(self) -> list[str]:
        """What the open update still needs."""
        return [] if self._update is None else self._expectation.missing(self._update.names)

    def give_up(self, why: BaseException | str) -> None:
        """Ends the open update; what was live stays."""
        if self._update is not None:
            self._update.abandon(why)
            self._update = None

    def begin(self) -> None:
        """A session of SGLang begins: nothing of an older one counts."""
        self.give_up("another weight-update session began")
        self._refused = None

    def end(self) -> str | None:
        """A session of SGLang ends. Gives what was not loaded, in words."""
        said = self._refused
        missing = self.missing()
        if self._update is not None:
            said = (
                f"{len(missing)} tensors did not come, the first is `{missing[0]}`; nothing was loaded"
                if missing
                else said
            )
            self.give_up(said or "the session ended")
        self._refused = None
        return said

    def _quantized(self, update: Update) -> set[str]:
        patches = self.refitter.board.patches
        if not any("block-quant" in patch["hooks"] and not patch.get("reason") for patch in patches.patches):
            return set()
        decided = patches.decide([(name, update.held(name)) for name in update.names])
        return {name for name, one in decided.items() if one.quantized}

    def _finish(self, update: Update) -> None:
        if self._expectation.takes_scales:
            self._expectation.agrees(self._quantized(update))
        stream = list(update.proved())
        try:
            self._model.load_weights(stream)
        except Exception as error:
            self._broken = f"loading proved weights failed in SGLang: {type(error).__name__}: {error}"[:600]
            update.abandon(self._broken)
            raise InternalError("a weight update", self._broken, "start this server anew; it must not serve") from error
        update.commit()
        self._update = None


def _answered(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """Around `WeightUpdater.update_weights_from_tensor`: a refusal is an answer, not the end of the scheduler."""
    token = _hooked.set(True)
    try:
        answer = original(*args, **kwargs)
    except InternalError:
        raise
    except Error as error:
        return False, str(error)
    finally:
        _hooked.reset(token)
    waiting = sum(len(replica.missing()) for replica in _replicas.values())
    if waiting and answer == (True, "Success"):
        return True, f"patchhost holds this part; {waiting} tensors are still to come, and nothing is loaded yet"
    return answer


def _began(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    answer = original(*args, **kwargs)
    if answer.success:
        for replica in _replicas.values():
            replica.begin()
    return answer


def _ended(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    said = [text for text in (replica.end() for replica in _replicas.values()) if text]
    answer = original(*args, **kwargs)
    return type(answer)(success=False, message=said[0]) if said and answer.success else answer


def _folder() -> str:
    given = os.environ.get(FOLDER)
    where = FOLDER
    if not given:
        where = "SGLang's model_path"
        try:
            from sglang.srt.runtime_context import get_model

            given = get_model().model_path
        except (ImportError, ValueError, AttributeError) as error:
            why = f"SGLang does not say which model this process serves: {error}"
            raise HostError("the checkpoint of this model", why, f"set {FOLDER} to its folder") from error
    if os.path.isdir(given):
        return os.path.abspath(given)
    try:
        from huggingface_hub import snapshot_download

        return str(snapshot_download(given, local_files_only=True))
    except Exception as error:
        why = f"{where} is {given!r:.200}, which is no folder and no downloaded model ({type(error).__name__})"
        raise HostError("the checkpoint of this model", why, f"set {FOLDER} to its folder") from error


def _config(folder: str) -> dict[str, Any]:
    try:
        with open(os.path.join(folder, "config.json"), encoding="utf-8") as file:
            return dict(json.load(file))
    except (OSError, ValueError) as error:
        raise HostError(f"{folder}/config.json", str(error), "give a checkpoint folder with a config.json") from error


def _rank() -> int:
    try:
        from sglang.srt.runtime_context import get_parallel

        return int(get_parallel().tp_rank)
    except Exception:
        # Outside of a scheduler there are no ranks.
        return 0
