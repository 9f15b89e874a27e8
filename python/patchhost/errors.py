"""Every error of patchhost, in one tree. Each has three parts: what was refused, why, and what to do next.

Errors come from three places (this package, the Rust extension, and the `patchhost` program), and look the same from
all of them. All of them pickle, so they cross process pools and Ray.
"""

from __future__ import annotations

from typing import Any, ClassVar


class Error(Exception):
    """Base of all errors. `what`, `why` and `next` are texts for people; `kind` is one of the words of `KINDS`."""

    default_kind: ClassVar[str] = "internal"

    what: str
    why: str
    next: str
    kind: str

    def __init__(self, what: str, why: str, next: str, kind: str = "") -> None:
        kind = kind or self.default_kind
        # Not super(): OSError would read the four texts as errno, strerror and file names.
        BaseException.__init__(self, what, why, next, kind)
        self.what, self.why, self.next, self.kind = what, why, next, kind

    def __str__(self) -> str:
        return f"refused: {self.what}\n  why: {self.why}\n  next: {self.next}"

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.what, self.why, self.next, self.kind), self.__dict__.copy()


class Refused(Error):
    """The gate, the audit, the lock, a digest or the policy says no. Nothing ran, or nothing of it counts."""

    default_kind = "refused"


class Findings(Refused):
    """Findings that refuse a component. `report` holds all of them (see `patchhost.AuditReport`)."""

    report: Any = None


class PatchError(Error):
    """A patch trapped, hit a limit, or gave an answer that cannot be right."""

    default_kind = "patch"


class ContractError(PatchError):
    """A scale of a patch breaks the contract of its own scheme. The patch is wrong or hostile."""

    default_kind = "contract"


class RefitError(Error):
    """A tensor of a refit is lost, doubled, unknown, misshapen or narrowed. The old weights stay as they were."""

    default_kind = "refit"


class NonFiniteError(RefitError):
    """A weight is NaN or infinite. The message has the tensor, the index and the block."""

    default_kind = "non-finite"


class SwapError(Error):
    """A candidate cannot be staged, swapped in, moved or taken back."""

    default_kind = "swap"


class TensorError(Error, ValueError):
    """A tensor that cannot be read or written here: its kind, place, dtype, shape or strides."""

    default_kind = "tensor"


class UsageError(Error, ValueError):
    """An argument has a wrong type or value, or a call came at the wrong time."""

    default_kind = "usage"


class HostError(Error, OSError):
    """The machine or the installation failed: no file, no space, no program."""

    default_kind = "host"


class ForkedError(Error, RuntimeError):
    """An object of the parent process was used after a fork. Load again in the child: `PatchSet.reload()`."""

    default_kind = "forked"


class InternalError(Error, RuntimeError):
    """An error of patchhost itself. Please report it."""

    default_kind = "internal"


class DetachedWarning(UserWarning):
    """A tensor with `requires_grad` was read. It was detached (not copied). Said once in each process."""


KINDS: dict[str, type[Error]] = {
    cls.default_kind: cls
    for cls in (
        Refused,
        PatchError,
        ContractError,
        RefitError,
        NonFiniteError,
        SwapError,
        TensorError,
        UsageError,
        HostError,
        ForkedError,
        InternalError,
    )
}


def make(kind: str, what: str, why: str, next: str) -> Error:
    """The error of this kind. A kind that is not in `KINDS` gives an `InternalError` that keeps the word."""
    return KINDS.get(kind, InternalError)(what, why, next, kind)
