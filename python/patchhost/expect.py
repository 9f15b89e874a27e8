"""What a model loads in one weight update: names, shapes, dtypes and roles, and what else must hold of a whole stream."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from difflib import get_close_matches

from ._safetensors import forms_of_folder
from .errors import RefitError
from .roles import role_of

__all__ = ["Expectation", "Form", "SERVES", "forms_of_folder", "refuse_missing"]

Form = tuple[str, tuple[int, ...]]
"dtype (a name of torch without `torch.`) and shape"

SERVES = "send every tensor of the model once in each update; the old weights keep serving"


class Expectation:
    """The tensors of one update. `forms`: name → (dtype, shape) of what must come; `None` until the first update, which
    then declares them. A plug-in that knows its model better (what is loaded where) makes a subclass.
    """

    def __init__(self, forms: Mapping[str, Form] | None = None, *, where: str = "the model") -> None:
        self.forms = None if forms is None else dict(forms)
        self.where = where

    @property
    def takes_scales(self) -> bool:
        """Whether the engine takes FP8 codes with scales. Where it does not, what a patch quantizes is widened again
        before it is loaded: the values are those of FP8, the dtype is the one that came."""
        return False

    def role(self, name: str, shape: Iterable[int]) -> str:
        """What a tensor is for, as one of `patchhost.roles.ROLES`."""
        return role_of(name, tuple(shape))

    def one(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Looks at one tensor when it comes. Raises `RefitError` where no update can hold it."""
        if self.forms is None:
            return
        known = self.forms.get(name)
        if known is None:
            near = get_close_matches(name, self.forms, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            raise RefitError(f"tensor `{name}`", f"{self.where} has no tensor of this name{hint}", SERVES)
        if tuple(shape) != known[1]:
            why = f"its shape is {list(shape)}, that in {self.where} is {list(known[1])}"
            raise RefitError(f"tensor `{name}`", why, "send it whole and in its own shape; the old weights keep serving")

    def whole(self, came: Mapping[str, Form]) -> list[str]:
        """Looks at all that came. Gives remarks; raises `RefitError` where something is missing."""
        if self.forms is not None:
            missing = [name for name in self.forms if name not in came]
            if missing:
                refuse_missing(missing, self.where)
        return []

    def nbytes(self) -> int | None:
        """Bytes of one whole update, where it is known."""
        if self.forms is None:
            return None
        return sum(math.prod(shape) * _SIZES.get(dtype, 4) for dtype, shape in self.forms.values())


_SIZES = {"bfloat16": 2, "float16": 2, "float32": 4, "float64": 8, "int64": 8, "int32": 4, "uint8": 1, "bool": 1}
_SIZES |= {"float8_e4m3fn": 1, "float8_e8m0fnu": 1}


def refuse_missing(missing: list[str], where: str) -> None:
    """Raises the error for tensors that did not come."""
    more = f" ({len(missing) - 1} more are missing: {', '.join(missing[1:4])}{', …' if len(missing) > 4 else ''})"
    why = f"it did not come, and {where} has it" + (more if len(missing) > 1 else "")
    raise RefitError(f"tensor `{missing[0]}`", why, SERVES)
