"""The `patchhost` program of this installation: where it is, and one JSON object of each run of it.

Reviews and ledgers are the program's own code; here its answers become objects and exceptions.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from .errors import Error, Findings, HostError, InternalError, PatchError, Refused, UsageError

VARIABLE = "PATCHHOST_PROGRAM"
_NAME = "patchhost.exe" if sys.platform == "win32" else "patchhost"
_EXITS: dict[int, type[Error]] = {1: Refused, 2: UsageError, 3: PatchError, 4: HostError}
_found: dict[str, str] = {}


def find() -> str:
    """Path of the program. In this order: the file that PATCHHOST_PROGRAM names, the script that was installed with
    this package, and the file beside the Python interpreter. PATH is not searched. Its version must be that of this
    package. Raises `HostError`."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen in _found:
        return _found[chosen]
    wanted = _wanted()
    seen = []
    for path in [chosen] if chosen else _places():
        version = _version_of(path)
        if version == wanted:
            # Threads that come here at once find the same; a lock could be held while another thread forks.
            _found[chosen] = os.path.abspath(path)
            return _found[chosen]
        if version is not None:
            seen.append(f"{path} is {version}")
    if chosen:
        why = f"{VARIABLE} names {chosen}, " + (
            f"which is version {seen[0].rsplit(' ', 1)[-1]}; this package is {wanted}"
            if seen
            else "which is not that program"
        )
        raise HostError("the patchhost program", why, f"set {VARIABLE} to the program of version {wanted}, or unset it")
    why = "; ".join(seen) + f"; this package is {wanted}" if seen else "it is not where this package was installed"
    advice = f"install the wheel of patchhost {wanted} again, or set {VARIABLE} to the program of this version"
    raise HostError("the patchhost program", why, advice)


def find_or_none() -> str | None:
    """The same; `None` where there is none. What needs it is then refused by the extension, in its own words. A wrong
    PATCHHOST_PROGRAM raises all the same."""
    try:
        return find()
    except HostError:
        if os.environ.get(VARIABLE):
            raise
        return None


def ask(verb: Sequence[str], options: Sequence[str] = (), positional: Sequence[str] = ()) -> tuple[int, Any]:
    """Runs `patchhost VERB --format json OPTIONS -- POSITIONAL` without a shell. Gives the exit code (0, or 1 with an
    object that is no error) and the object. Raises by the exit code: 1 `Refused`, 2 `UsageError`, 3 `PatchError`, 4
    `HostError`."""
    path = find()
    for word in (*options, *positional):
        if "\0" in word:
            raise UsageError(f"patchhost {' '.join(verb)}", f"{word!r:.100} has a NUL character", "give another text")
    command = [path, *verb, "--format", "json", *options, "--", *positional]
    try:
        done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False)
    except OSError as error:
        why = f"{path}: {error.strerror or error}"
        raise HostError(
            f"patchhost {' '.join(verb)}", why, "look at its permissions and the limits of this machine"
        ) from error
    return done.returncode, _answer(verb, done)


def option(name: str, value: Any) -> list[str]:
    """`--name=value`: one word, so that no value becomes an option. Nothing where it is None or False, `--name` where
    True."""
    if value is None or value is False:
        return []
    if value is True:
        return [f"--{name}"]
    return [f"--{name}={os.fspath(value) if isinstance(value, os.PathLike) else value}"]


def _answer(verb: Sequence[str], done: subprocess.CompletedProcess[bytes]) -> Any:
    what = f"patchhost {' '.join(verb)}"
    said = done.stderr.decode("utf-8", "replace").strip()
    try:
        answer = json.loads(done.stdout)
    except ValueError:
        answer = None
    if done.returncode == 0 and answer is not None:
        return answer
    if isinstance(answer, dict) and isinstance(answer.get("error"), str):
        raise _error(done.returncode, answer)
    if done.returncode == 1 and answer is not None:
        return answer
    text = said.removeprefix("error: ").split("\n\nUsage:")[0].strip() or "it printed nothing"
    cls = _EXITS.get(done.returncode)
    if cls is None:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
        raise InternalError(
            what, f"it ended with {how}: {text[-2000:]}", "please report this: it is an error of patchhost"
        )
    raise cls(what, text[-2000:], f"`{what} --help` lists what it takes")


def _error(exit_code: int, answer: dict[str, Any]) -> Error:
    """`what`, `why` and `next` as the program gives them; older ones give one text only, which is not taken apart."""
    cls = _EXITS.get(exit_code, InternalError)
    parts = answer.get("what"), answer.get("why"), answer.get("next")
    what, why, next_ = (part if isinstance(part, str) else "" for part in parts)
    if not (what and why and next_):
        what, why, next_ = answer["error"], "the program says it in one text, above", "do as it says"
    if cls is not Refused or not ("findings" in answer or "report" in answer):
        return cls(what, why, next_)
    found = Findings(what, why, next_)
    found.report = answer
    return found


def _wanted() -> str:
    from ._native import __version__

    return __version__


def _places() -> Iterator[str]:
    yield from _of_distribution()
    import sysconfig

    for scheme in dict.fromkeys((sysconfig.get_default_scheme(), sysconfig.get_preferred_scheme("user"))):
        yield os.path.join(sysconfig.get_path("scripts", scheme), _NAME)
    yield os.path.join(os.path.dirname(os.path.abspath(sys.executable)), _NAME)


def _of_distribution() -> Iterator[str]:
    from importlib import metadata

    try:
        files = metadata.distribution("patchhost").files or []
    except metadata.PackageNotFoundError:
        return
    for file in files:
        if file.name == _NAME:
            yield os.path.normpath(str(file.locate()))


def _version_of(path: str) -> str | None:
    """What `--version` says, where it is this program."""
    if not os.path.isfile(path) or not os.access(path, os.X_OK):
        return None
    try:
        done = subprocess.run(
            [os.path.abspath(path), "--version"], stdin=subprocess.DEVNULL, capture_output=True, check=False, timeout=60
        )
    except (OSError, subprocess.SubprocessError):
        return None
    words = done.stdout.decode("utf-8", "replace").split()
    return words[1] if done.returncode == 0 and len(words) == 2 and words[0] == "patchhost" else None
