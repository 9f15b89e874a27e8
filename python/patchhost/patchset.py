"""`PatchSet`: patches that passed gate, audit and start, and what they decide and compute for tensors."""

from __future__ import annotations

import ctypes
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from . import _checks, _native, _tensors
from ._configs import architecture_of, config_text
from ._native import NativeSet, Scheme
from ._program import find_or_none
from ._streams import MOST_TENSORS, Infos, batches, blocks_of, check_process, info, infos, once, pairs
from .errors import Refused, TensorError, UsageError
from .roles import role_of
from .spec import PatchSpec

_MOST_DECIDED = 1 << 17
_CODES = ("float8_e4m3fn", "uint8")


class Decision(NamedTuple):
    """What becomes of one tensor: `reason` in the patch's words, and its `scheme`, which is `None` where it is kept."""

    reason: str
    scheme: Scheme | None

    @property
    def quantized(self) -> bool:
        return self.scheme is not None


class Quantized(NamedTuple):
    """One tensor in block FP8.

    codes: float8_e4m3fn, shape of the weight. scale: float32, [ceil(rows / block rows), ceil(cols / block cols)], with
    the number of matrices in front for a 3-D weight; `codes × scale` are the values. `saturated`: values beyond the
    largest code; `flushed`: values that became zero; `non_finite`: NaN and infinity (0 where the scheme refuses them).
    `squared_error` and `squared_sum` are over the values that were measured.
    """

    codes: Any
    scale: Any
    scale_name: str
    scheme: Scheme
    saturated: int
    flushed: int
    non_finite: int
    squared_error: float
    squared_sum: float

    @property
    def relative_rmse(self) -> float | None:
        """Root of squared error over squared sum; `None` where nothing was measured, or all is zero."""
        return (self.squared_error / self.squared_sum) ** 0.5 if self.squared_sum > 0 else None


class PatchSet:
    """Patches, loaded. Immutable, and callable from many threads; calls release the GIL.

    It does not survive a fork: in the child its methods raise `ForkedError`, and `reload()` makes a new one. It pickles
    as what it was loaded from; unpickling loads again, and raises `Refused` where the digest is another one.
    """

    __slots__ = ("_args", "_decided", "_native", "_pid", "_tables", "digest", "specs")

    specs: tuple[PatchSpec, ...]
    digest: str
    _native: NativeSet
    _pid: int
    _args: dict[str, Any]
    _tables: list[tuple[Scheme, Any]]
    _decided: dict[tuple[str, str, tuple[int, ...]], Scheme | None]

    def __init__(self) -> None:
        raise UsageError(
            "PatchSet()", "a set is loaded, not made", 'call PatchSet.load("fp8_block", config=model.config)'
        )

    @classmethod
    def load(
        cls,
        *specs: PatchSpec | str | os.PathLike[str],
        host: tuple[str, str] | None = None,
        architecture: str | None = None,
        config: Any = None,
        policy: str | os.PathLike[str] | None = None,
        lock: str | os.PathLike[str] | None = None,
        locked: bool = False,
        isolate: bool = False,
        threads: int | None = None,
    ) -> PatchSet:
        """Loads patches: each goes through the gate, the audit and its start.

        host: name and version of the engine that will use the results, `("vllm", "0.32.0")`. A patch lists the engines
            that it is for (its `targets`), and is not applied to others. Default: `("patchhost", its version)`, which
            is right where Python code uses the results, and which every bundled patch names.
        architecture: `architectures[0]` of the model; taken from `config` where it is left out.
        config: a `PretrainedConfig`, a mapping, a model folder, or a path of a config.json. Patches may read it.
        policy, lock: files; by default `patchhost.toml` and `patchhost.lock` in this folder, where they are.
        locked: load only what the lock has, and fail where there is none.
        isolate: run each patch in child processes.
        threads: of the kernels, for the whole process: the first load decides. Default: one for each core.

        Raises `Refused` (gate, audit, lock, digest; or no patch applies), `PatchError`, `UsageError`, `HostError`.
        """
        made = tuple(PatchSpec.of(spec) for spec in specs)
        text = config_text(config)
        args: dict[str, Any] = {
            "host": _host(host),
            "architecture": architecture_of(text) if architecture is None else _checks.text("`architecture`", architecture),
            "config": text,
            "policy": _checks.path("`policy` of PatchSet.load", policy),
            "lock": _checks.path("`lock` of PatchSet.load", lock),
            "locked": bool(locked),
            "isolate": bool(isolate),
            "threads": threads,
        }
        _start(threads)
        engine, version = args["host"]
        native = NativeSet(
            [(spec.component, spec.sha256, spec.settings) for spec in made],
            engine,
            version,
            args["architecture"],
            text,
            args["policy"],
            args["lock"],
            args["locked"],
            args["isolate"],
        )
        self = object.__new__(cls)
        self.specs, self.digest = made, native.digest
        self._native, self._pid, self._args, self._tables, self._decided = native, os.getpid(), args, [], {}
        _someone_applies(self.patches)
        return self

    def reload(self) -> PatchSet:
        """Loads the same again: for a child after a fork. Raises `Refused` where the digest is another one (a file
        changed)."""
        return _reload(self.specs, self._args, self.digest)

    def __reduce__(self) -> tuple[Any, ...]:
        return _reload, (self.specs, self._args, self.digest)

    def __repr__(self) -> str:
        return f"<PatchSet {', '.join(spec.component for spec in self.specs) or 'of no patch'} {self.digest[:19]}>"

    @property
    def native(self) -> NativeSet:
        """The extension's object, for the modules of this package. Raises `ForkedError` in a child."""
        check_process(self._pid, "a PatchSet")
        return self._native

    @property
    def host(self) -> tuple[str, str]:
        """Name and version of the engine that the patches were compared with."""
        name, version = self._args["host"]
        return name, version

    @property
    def architecture(self) -> str:
        """`architectures[0]` of the model; empty where nothing said it."""
        return str(self._args["architecture"])

    @property
    def patches(self) -> list[dict[str, Any]]:
        """For each patch: name, version, sha256, generation, hooks, state, reason (why it does not apply), settings."""
        rows: list[dict[str, Any]] = json.loads(self.native.patches())
        return rows

    def stats(self) -> Any:
        """Calls, fuel and time of each function of each patch."""
        return json.loads(self.native.stats())

    def decide(self, tensors: Infos) -> dict[str, Decision]:
        """Asks which tensors become FP8. No values are read.

        tensors: names with tensors (any device, `meta` too) or with pairs `(dtype, shape)`; a mapping or an iterable.
        """
        asked = infos(tensors)
        answers = self.native.decide(asked)
        return {one[0]: Decision(*answer) for one, answer in zip(asked, answers, strict=True)}

    def scales(
        self, name: str, amax: Any, *, rows: int, cols: int, scheme: Scheme | None = None, first_block: int = 0
    ) -> Any:
        """Asks for the patch's numbers for blocks of a tensor [rows, cols], by their largest magnitudes.

        amax: float32, contiguous, any shape, in row-major order of the blocks from `first_block` on. Gives float32 of
        the same shape. scheme: by default what the patch decides for a bfloat16 tensor of this name and shape.

        What a number means is `scheme.cast`: with `divide` and `reciprocal` it is the scale that is stored; with
        `multiply` values are multiplied by it, and its reciprocal is stored. `patchhost.device.cast` takes these
        numbers as they are. They are not proved: only a cast can do that.
        """
        rows, cols = _checks.number("rows", rows), _checks.number("cols", cols)
        first_block = _checks.number("first_block", first_block)
        scheme = self._scheme(name, ("bfloat16", (rows, cols))) if scheme is None else _checks.scheme(scheme)
        raw = _tensors.read(f"amax of {_checks.named(name)}", amax)
        if raw[1] != "float32" or not _tensors.is_contiguous(raw):
            why = f"its dtype is {raw[1]} and its strides are {list(raw[3])}; a contiguous float32 tensor is needed"
            raise TensorError(f"amax of tensor `{_tensors.shown(name)}`", why, "convert it: amax.float().contiguous()")
        count = _tensors.bytes_of("uint8", raw[2])
        blocks = blocks_of(rows, scheme.block[0]) * blocks_of(cols, scheme.block[1])
        if first_block + count > blocks:
            why = f"blocks {first_block} to {first_block + count} are asked for, and [{rows}, {cols}] has {blocks}"
            raise UsageError(f"scales of tensor `{_tensors.shown(name)}`", why, "give rows, cols and first_block of the same tensor")
        out = _tensors.empty_like_kind(amax, raw[2], "float32")
        if count:
            self.native.scales(name, rows, cols, scheme, first_block, raw[0], count, _tensors.address_of(out))
        return out

    def scale_table(self, what: Scheme | str, tensor: Any = None) -> Any:
        """All scales that an elementwise patch can give to bfloat16 weights: a `patchhost.table.ScaleTable`, made once
        for each scheme. With it a tensor is quantized where it is, on any device, without a call for each tensor.

        what: a scheme; or a name, with `tensor` (or its `(dtype, shape)`) for which the patch decides.
        Raises `Refused`, `ContractError` or `PatchError` where the answers are no such table.
        """
        from .table import ScaleTable

        scheme = self._scheme(what, tensor) if isinstance(what, str) else _checks.scheme(what)
        for known, table in self._tables:
            if known == scheme:
                return table
        infinity = None if scheme.edges == "strict" else self._at_infinity(scheme)
        table = ScaleTable(self.native.scale_table(scheme), scheme, infinity=infinity)
        self._tables.append((scheme, table))
        return table

    def quantize(
        self,
        name: str,
        weight: Any,
        *,
        out: Any = None,
        scale_out: Any = None,
        scheme: Scheme | None = None,
        measure: str = "nothing",
    ) -> Quantized | None:
        """Quantizes one weight on the CPU; every scale is proved against its contract. `None`: the patch keeps the
        tensor.

        weight: [rows, cols] or [n, rows, cols], bfloat16, float16 or float32, any strides. out, scale_out: memory for
        the codes (float8_e4m3fn, or uint8) and scales (float32), contiguous; new where left out. scheme: instead of
        asking the patch, which is asked once about each name, dtype and shape. measure: the squared error of `nothing`, a `sample` or `all` values.

        Raises `TensorError`, `NonFiniteError`, `ContractError`, `PatchError`. After an error `out` holds anything.
        """
        if scheme is None and (scheme := self._scheme_of(name, weight)) is None:
            return None
        _checks.scheme(scheme)
        if measure not in ("nothing", "sample", "all"):
            raise UsageError("the measure of a cast", f"it is {measure!r:.100}", "give `nothing`, `sample` or `all`")
        raw = _tensors.read(_checks.named(name), weight)
        shape = raw[2]
        if len(shape) not in (2, 3):
            why = f"it has {len(shape)} dimensions; a matrix, or a stack of them, is quantized"
            raise TensorError(f"tensor `{_tensors.shown(name)}`", why, "leave it out, or give its matrices one by one")
        grid = (*shape[:-2], blocks_of(shape[-2], scheme.block[0]), blocks_of(shape[-1], scheme.block[1]))
        # What is made here is right as it is.
        if out is None:
            codes = _tensors.address_of(out := _tensors.empty_like_kind(weight, shape, "float8_e4m3fn"))
        else:
            codes = _tensors.writable(f"{name}: out", out, shape, _CODES, raw)
        if scale_out is None:
            scales = _tensors.address_of(scale_out := _tensors.empty_like_kind(weight, grid, "float32"))
        else:
            scales = _tensors.writable(f"{name}: scale_out", scale_out, grid, ("float32",), raw, _tensors.read(name, out))
        report = (0, 0, 0, 0.0, 0.0)
        if 0 not in shape:
            report = self.native.quantize(name, raw, scheme, codes, scales, measure)
        return Quantized(out, scale_out, name + scheme.scale_suffix, scheme, *report)

    def _scheme_of(self, name: str, weight: Any) -> Scheme | None:
        """What the patch decided about the tensor. Its first answer counts: the host holds every later one against it."""
        check_process(self._pid, "this PatchSet")
        asked = info(name, weight)
        key = (asked[0], asked[1], tuple(asked[2]))
        try:
            return self._decided[key]
        except KeyError:
            ((_, scheme),) = self.native.decide([asked])
        if len(self._decided) < _MOST_DECIDED:
            self._decided[key] = scheme
        return scheme

    def quantize_stream(
        self, tensors: Mapping[str, Any] | Iterable[tuple[str, Any]], *, batch: int = MOST_TENSORS
    ) -> Iterator[tuple[str, Any]]:
        """Quantizes a stream of named tensors: gives (name, codes) and (name + suffix, scale) for what becomes FP8, and
        what is kept as it came, in the order of arrival.

        At most `batch` tensors or 256 MB (and one tensor) are held at a time. They must not change while they are held:
        for a source that uses its memory again for the next tensor, give `batch=1`. Raises `UsageError` where two
        tensors have one name, or a tensor already has the name of a scale.
        """
        if isinstance(batch, bool) or not isinstance(batch, int) or batch < 1:
            raise UsageError("the batch of a stream", f"it is {batch!r:.100}", "give a number of tensors, 1 or more")
        seen: set[str] = set()
        for group in batches(pairs(tensors), batch):
            decisions = self.native.decide(
                [(name, dtype, shape, role_of(name, shape)) for name, _, dtype, shape in group]
            )
            for (name, tensor, _, _), (_, scheme) in zip(group, decisions, strict=True):
                once(seen, name)
                if scheme is None:
                    yield name, tensor
                    continue
                once(seen, name + scheme.scale_suffix)
                made = self.quantize(name, tensor, scheme=scheme)
                assert made is not None
                yield name, made.codes
                yield made.scale_name, made.scale

    @staticmethod
    def dequantize(codes: Any, scale: Any, *, block: tuple[int, int] = (128, 128), dtype: Any = "bfloat16") -> Any:
        """`codes × scale`, rounded to `dtype` (bfloat16, float16 or float32): [rows, cols] or [n, rows, cols].

        codes: float8_e4m3fn, or uint8 of the same bytes. scale: float32, one for each block. Both contiguous, on the
        CPU.
        """
        word = _tensors.dtype_name(dtype)
        if word not in ("bfloat16", "float16", "float32"):
            raise TensorError("dequantize", f"{word!r:.100} is asked for", "ask for bfloat16, float16 or float32")
        block = _checks.block(block)
        raw, by = _tensors.read("codes", codes), _tensors.read("scale", scale)
        if len(raw[2]) not in (2, 3) or min(block) < 1:
            why = f"codes have the shape {list(raw[2])}, and a block is {block[0]}x{block[1]}"
            raise TensorError("dequantize", why, "give [rows, cols] or [n, rows, cols], and a block of 1x1 or more")
        *outer, rows, cols = raw[2]
        grid = (*outer, blocks_of(rows, block[0]), blocks_of(cols, block[1]))
        for name, tensor, dtypes, shape in (("codes", raw, _CODES, raw[2]), ("scale", by, ("float32",), grid)):
            if tensor[1] not in dtypes or tensor[2] != shape or not _tensors.is_contiguous(tensor):
                why = f"it is {tensor[1]} {list(tensor[2])} with strides {list(tensor[3])}"
                raise TensorError(f"dequantize: {name}", why, f"give {' or '.join(dtypes)}, {list(shape)}, contiguous")
        out = _tensors.empty_like_kind(codes, raw[2], word)
        address, each = _tensors.address_of(out), _tensors.bytes_of(word, (rows, cols))
        for i in range(outer[0] if outer and rows * cols else rows * cols > 0):
            at = (raw[0] + i * rows * cols, by[0] + i * 4 * grid[-2] * grid[-1])
            _native.dequantize(*at, rows, cols, *block, word, address + i * each)
        return out

    def map_loader(self, registry: Infos, checkpoint: Infos) -> Any:
        """Asks where the tensors of a checkpoint go among those of a model (`registry`). Both as in `decide`."""
        return json.loads(self.native.map_loader(infos(registry), infos(checkpoint)))

    def admit_lora(self, peft_config: Any, adapter: Infos, registry: Infos) -> dict[str, Any]:
        """Asks whether an adapter fits a model. peft_config: a `PeftConfig`, a mapping, or JSON text. adapter,
        registry: as in `decide`. Gives `rank`, `scaling` and `places` (target, slot, expert, side)."""
        # An adapter's tensors have no role of their own.
        tensors = infos(adapter, role="other")
        plan: dict[str, Any] = json.loads(self.native.admit_lora(config_text(peft_config), infos(registry), tensors))
        return plan

    def masked(self, rows: int, vocabulary: int) -> list[range]:
        """Token ids that are never sampled, of an embedding with `rows` rows and a tokenizer of `vocabulary` ids."""
        sizes = [_checks.number("rows and vocabulary", size, 2**32 - 1) for size in (rows, vocabulary)]
        return [range(first, end) for first, end in self.native.masked(*sizes)]

    def _at_infinity(self, scheme: Scheme) -> float:
        """The answer to an infinite amax, which the table of finite ones does not have."""
        amax, out = ctypes.c_float(float("inf")), ctypes.c_float()
        rows, cols = scheme.block
        self.native.scales("infinity", rows, cols, scheme, 0, ctypes.addressof(amax), 1, ctypes.addressof(out))
        return out.value

    def _scheme(self, name: str, tensor: Any) -> Scheme:
        reason, scheme = self.decide([(name, tensor)])[name]
        if scheme is None:
            raise UsageError(f"tensor `{_tensors.shown(name)}`", f"the patch keeps it: {reason}", "ask for a tensor that is quantized")
        return scheme


def _host(given: Any) -> tuple[str, str]:
    if given is None:
        return "patchhost", _native.__version__
    if isinstance(given, tuple) and len(given) == 2 and all(isinstance(part, str) and part for part in given):
        return _checks.text("`host`", given[0]), _checks.text("`host`", given[1])
    why = f"it is {given!r:.100}; it is the name and the version of an engine"
    raise UsageError("`host` of PatchSet.load", why, 'give a pair: host=("vllm", vllm.__version__)')


_started: dict[int, int | None] = {}


def _start(threads: int | None) -> None:
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int) or threads < 1):
        raise UsageError("`threads` of PatchSet.load", f"it is {threads!r:.100}", "give a number of threads, 1 or more")
    pid = os.getpid()
    if pid not in _started or (threads is not None and threads != _started[pid]):
        # The first call in a process wins; the extension refuses another number.
        _native.start(find_or_none(), threads)
        _started[pid] = threads


def _someone_applies(patches: list[dict[str, Any]]) -> None:
    reasons = [f"{patch['name']}: {patch['reason']}" for patch in patches if patch.get("reason")]
    if patches and len(reasons) == len(patches):
        advice = "give the engine and the model that they are for: host=(name, version), config=…"
        raise Refused("a patch set", "none of its patches applies: " + "; ".join(reasons), advice)


def _reload(specs: tuple[PatchSpec, ...], args: dict[str, Any], digest: str) -> PatchSet:
    made = PatchSet.load(*specs, **args)
    if made.digest != digest:
        why = f"loaded again, its digest is {made.digest}; it was {digest}: a file, a setting or the version differs"
        raise Refused("a patch set", why, "load the same files in both processes, or give each PatchSpec its sha256")
    return made
