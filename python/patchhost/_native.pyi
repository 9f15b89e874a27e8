"""The Rust half of patchhost: sandbox, gate, proof, kernels, board and ledger. Private; the package wraps it.

Conventions of every call:
- A tensor is a `Raw` tuple: `(address, dtype, shape, strides, owner)`. `address` is that of its first element, `dtype` a
  name of torch without `torch.` (`bfloat16`, `float16`, `float32`, `float8_e4m3fn`, `float8_e8m0fnu`, `int64`, `uint8`, or
  any other name), `strides` count elements, `owner` keeps the memory alive for as long as the other side needs it.
- An information about a tensor without its data is an `Info` tuple: `(name, dtype, shape, role)`. Roles: `embedding`,
  `norm`, `attention`, `mlp`, `expert`, `shared-expert`, `router`, `lm-head`, `buffer`, `other`.
- Reports are JSON texts, the same as those of the program's `--format json`.
- Errors are instances of the classes in `patchhost.errors`, made with `what`, `why`, `next` and `kind`.
- Long calls release the GIL. After a fork, every call on an object of the parent raises `ForkedError`.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias, final

Raw: TypeAlias = tuple[int, str, Sequence[int], Sequence[int], Any]
Info: TypeAlias = tuple[str, str, Sequence[int], str]

__version__: str

def start(program: str | None, threads: int | None) -> None:
    """Which file the `patchhost` program is (children are made of it) and how many threads the kernels use. The first
    call wins; later ones with other values raise. Without it, the first load starts with `None, None`."""

def threads() -> int: ...
def bundled() -> list[tuple[str, str]]:
    """Names and digests of the patches that this build carries."""

@final
class Scheme:
    """How one tensor is quantized, as the patch declared it."""

    block: tuple[int, int]
    scale_suffix: str
    needs: str
    "`amax`, `moments` or `rows`: what the patch must see of the values."
    profile: str
    rule: str
    "Why, in the patch's words."
    format: str
    "`f32` or `ue8m0`: the values that a stored scale may take."
    cast: str
    "`divide`, `reciprocal` or `multiply`: what the patch's numbers mean."
    edges: str
    "`strict`, `propagate-nan` or `ignore-nan`."
    floor: tuple[float, float, float]
    "eps, zero_below, zero_scale."
    contract: tuple[str, float | None]
    "`amax`, `pow2` or `clip`, with the share of values that may saturate."
    round_bf16: bool
    def __eq__(self, other: object) -> bool: ...
    def __repr__(self) -> str: ...

@final
class NativeSet:
    """Patches that passed the gate, the audit and their start. Immutable; calls from many threads."""

    def __new__(
        cls,
        specs: Sequence[tuple[str, str | None, Sequence[tuple[str, str]]]],
        engine: str,
        engine_version: str,
        architecture: str,
        config: str,
        policy: str | None,
        lock: str | None,
        locked: bool,
        isolate: bool,
    ) -> NativeSet:
        """`specs`: component (a path or the name of a bundled patch), the SHA-256 that it must have, settings."""

    digest: str
    "Digest of the set of those that apply (`sha256:…`)."
    def patches(self) -> str:
        """JSON: a list of {name, version, sha256, generation, hooks, state, reason, settings}."""
    def stats(self) -> str:
        """JSON: calls, fuel and time of each function of each patch."""
    def decide(self, tensors: Sequence[Info]) -> list[tuple[str, Scheme | None]]:
        """For each tensor, in order: why, and the scheme where it is quantized."""
    def scales(
        self, name: str, rows: int, cols: int, scheme: Scheme, first_block: int, amax: int, count: int, out: int
    ) -> None:
        """Asks for `count` scales: addresses of f32 values. Not proved: only a cast can."""
    def scale_table(self, scheme: Scheme) -> bytes:
        """The numbers for all 32,640 finite non-negative bf16 values of amax, as f32 little endian, indexed by
        `bits >> 16`. Asked twice under other names and places: a patch whose answers depend on them is refused. Each
        entry is proved against the scheme's contract; entries that no value of amax can use without breaking it are
        refused by value."""
    def quantize(
        self, name: str, source: Raw, scheme: Scheme, codes: int, scales: int, measure: str
    ) -> tuple[int, int, int, float, float]:
        """Casts `source` ([rows, cols] or [n, rows, cols]) to e4m3 codes, and writes f32 scales; both row-major and
        contiguous. `measure`: `nothing`, `sample` or `all`. Gives saturated, flushed, non_finite, squared_error,
        squared_sum. On an error the content of both is undefined."""
    def map_loader(self, registry: Sequence[Info], checkpoint: Sequence[Info]) -> str:
        """JSON: for each tensor of the checkpoint where it goes."""
    def admit_lora(self, peft_config: str, registry: Sequence[Info], adapter: Sequence[Info]) -> str:
        """JSON: {rank, scaling, places: [{target, slot, expert, side}]}."""
    def masked(self, rows: int, vocabulary: int) -> list[tuple[int, int]]:
        """Ranges of token ids that are never sampled; ends are exclusive."""

def dequantize(
    codes: int, scales: int, rows: int, cols: int, block_rows: int, block_cols: int, dtype: str, out: int
) -> None:
    """codes × scale, rounded to `dtype`, row-major."""

def read_receipt(json: str, what: str) -> str:
    """Reads a receipt and gives it as JSON in one line. Refuses one that was changed; `what`: how errors call it."""

def receipt_difference(first: str, second: str) -> list[str]:
    """How two receipts differ, in lines for people; empty where they agree."""

@final
class NativeBoard:
    """The live set of one model, with the probe, the failure policy, shadow, canary and the ledger of the program."""

    def __new__(cls, patches: NativeSet, ledger: str | None, actor: str) -> NativeBoard: ...
    def stage(
        self, component: str, sha256: str | None, settings: Sequence[tuple[str, str]], tensors: Sequence[tuple[str, Raw, str]]
    ) -> str:
        """JSON of what was staged: {name, version, sha256, generation, applicability, already, remarks}. `tensors`: name,
        data and role of what the candidate is probed with; they are not kept."""
    def swap(self, to: str, step: int | None, mode: str, percent: int | None, expected: str | None) -> str:
        """`step`: the trainer's step with whose refit it lands; none: the next one. `mode`: `live`, `shadow`, `canary`."""
    def set_mode(self, mode: str, percent: int | None, step: int | None) -> str: ...
    def rollback(self, step: int | None, reason: str | None) -> str: ...
    def cancel(self, why: str) -> bool: ...
    def status(self) -> str: ...
    def report(self) -> str | None:
        """JSON of the last comparison of a shadow or canary."""
    def recent(self, count: int) -> str:
        """JSON: the last records of the ledger."""
    def health(self) -> str: ...
    def refit(
        self, step: int | None, version: str | None, manifest: str | None, duplicates: str, allow_narrowing: bool, digest: bool
    ) -> NativeRefit:
        """Begins a refit. One at a time: another begin raises until this one ended. `manifest`: JSON {tensors: {name:
        {dtype, shape, sha256}}}, dtypes in the words of safetensors. `duplicates`: `refuse` or `last`. `digest`: the receipt has a
        SHA-256 of every tensor, and the ledger one of everything that is handed on."""

@final
class NativeRefit:
    """One refit. Nothing is handed on before `prove` succeeded; nothing is live before `commit`."""

    def add(self, name: str, tensor: Raw, role: str) -> None:
        """A whole tensor, contiguous. It is read in place until the refit ends, so it must not change."""
    def prove(self, progress: Callable[[str, int, int], object] | None) -> str:
        """Everything arrived, in the right type and shape, finite, decided, quantized and proved. JSON of the report."""
    def outputs(self) -> list[tuple[str, str, list[int], int, Any]]:
        """(name, dtype, shape, address, owner) in the order of arrival; a quantized tensor is followed by its scale."""
    def blocks(self) -> list[tuple[str, str, int, int]]:
        """For each scale among the outputs: its name, the tensor that it is of, rows and columns of a block."""
    def commit(self) -> str:
        """Written to the ledger, and live from now on; a swap that was to land has landed. JSON; `receipt` in it is the
        whole receipt."""
    def abandon(self, why: str) -> None:
        """Forgets it; what was live stays. Does nothing after commit."""
