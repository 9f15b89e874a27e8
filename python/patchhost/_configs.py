"""Configurations of models and adapters as JSON text."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Any

from ._tensors import shown
from .errors import UsageError


def config_text(given: Any) -> str:
    """JSON of a config: `None` (`{}`), a mapping, an object with `to_dict()` (a `PretrainedConfig` or `PeftConfig`),
    JSON text, a path of a JSON file, or a model folder. Keys are sorted, so that equal configs are equal texts."""
    if given is None:
        return "{}"
    if isinstance(given, str) and given.lstrip().startswith("{"):
        return _text(_parsed(given, "config"))
    if isinstance(given, (str, os.PathLike)):
        path = os.fsdecode(given)
        path = os.path.join(path, "config.json") if os.path.isdir(path) else path
        try:
            with open(path, encoding="utf-8") as file:
                return _text(_parsed(file.read(), path))
        except (OSError, ValueError) as error:
            why = f"{shown(path)}: {getattr(error, 'strerror', None) or error}"
            raise UsageError("config", why, "give a model folder, a path of a config.json, or model.config") from error
    if isinstance(given, Mapping):
        return _text(dict(given))
    if callable(getattr(given, "to_dict", None)):
        return _text(given.to_dict())
    why = f"it is of type {type(given).__name__}"
    raise UsageError("config", why, "give model.config, a mapping, a model folder, or a path of a config.json")


def architecture_of(text: str) -> str:
    """`architectures[0]` of a config, or an empty text."""
    names = json.loads(text).get("architectures")
    return names[0] if isinstance(names, list) and names and isinstance(names[0], str) else ""


def _parsed(text: str, what: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UsageError(what, f"it is not JSON: {error}", "give the config.json of a model") from error
    if not isinstance(value, dict):
        raise UsageError(what, f"it is a JSON {type(value).__name__}, not an object", "give the config.json of a model")
    return value


def _text(config: dict[str, Any]) -> str:
    try:
        return json.dumps(config, sort_keys=True, allow_nan=False, default=_plain)
    except (TypeError, ValueError, RecursionError) as error:
        raise UsageError(
            "config", f"it cannot become JSON: {error}", "give numbers, texts, lists and mappings"
        ) from error


def _plain(value: Any) -> Any:
    """What configs of transformers and PEFT hold besides JSON: nested configs, dtypes, sets, enums."""
    if callable(getattr(value, "to_dict", None)):
        return value.to_dict()
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if type(value).__module__ == "torch" and type(value).__name__ == "dtype":
        return str(value).removeprefix("torch.")
    if hasattr(value, "value"):
        return value.value
    raise TypeError(f"a value of type {type(value).__name__}")
