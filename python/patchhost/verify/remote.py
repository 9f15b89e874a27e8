"""Engines in child processes, seen from the kit: they can crash, hang or be killed, and the kit goes on."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import UsageError
from . import stream as streams
from .engine import Answer, Engine, EngineError, Held, Outcome
from .stream import Stream

_START_S, _CALL_S = 600.0, 180.0
BACKENDS = {"vllm": ("stock", "folder", "layerwise", "patchhost"), "transformers": ("transformers",)}
_LEVELS = {"patchhost": "full"}


class Remote(Engine):
    """An engine of `patchhost.verify.child`. name: `vllm` or `transformers`. backend: how weights come in.

    options: `compiled` (vLLM compiles the model, as in production; else it runs eagerly), `max_model_len`.
    python: the interpreter that has the engine.
    """

    def __init__(
        self, name: str, backend: str = "", *, options: dict[str, Any] | None = None, python: str = sys.executable
    ) -> None:
        backend = backend or BACKENDS.get(name, ("",))[0]
        if backend not in BACKENDS.get(name, ()):
            known = "; ".join(f"{one}: {', '.join(ways)}" for one, ways in BACKENDS.items())
            raise UsageError(f"engine {name!r}, backend {backend!r}", "the kit has no such engine", f"one of: {known}")
        self.name, self.backend = name, backend
        self.default_level = _LEVELS.get(backend, "reload")
        self._kind = name if name == backend else f"{name}-{backend}"
        self._options, self._python = dict(options or {}), python
        self._folder = ""
        self._first: subprocess.Popen[bytes] | None = None
        self._link: socket.socket | None = None
        self._lines: Any = None
        self._pid = 0
        self._sent = 0

    def start(self, folder: str) -> None:
        self.stop()
        if self._first is None or self._first.poll() is not None:
            self._import()
        self._link = socket.socket(socket.AF_UNIX)
        self._link.settimeout(_START_S)
        self._link.connect(self._socket)
        self._lines = self._link.makefile("rb")
        self._pid = self._line("start")["pid"]
        try:
            self._call("start", str(folder), self._options)
        except EngineError:
            self.stop()
            raise
        self._link.settimeout(_CALL_S)

    def answers(self, prompts: Sequence[Sequence[int]], max_tokens: int, cache: bool = False) -> list[Answer]:
        made = self._call("answers", [list(prompt) for prompt in prompts], max_tokens, cache)
        return [
            Answer(tuple(one["tokens"]), tuple(one["logprobs"]), tuple(one["prompt"]), one["cached"]) for one in made
        ]

    def refit(self, stream: Stream, version: str) -> Outcome:
        self._sent += 1
        place = Path(self._folder, f"sent{self._sent}")
        place.mkdir()
        try:
            parts = []
            for number, part in enumerate(stream.parts()):
                parts.append(str(place / f"part{number:03}.safetensors"))
                streams.write(parts[-1], part)
            self._call("refit", parts, stream.finished, version)
        except EngineError as error:
            return Outcome(False, error.why)
        finally:
            shutil.rmtree(place, ignore_errors=True)
        if not stream.finished:
            return Outcome(False, "the session was left open")
        return Outcome(True)

    def digests(self) -> dict[str, Held]:
        return {name: Held(one[0], tuple(one[1]), one[2]) for name, one in self._call("digests").items()}

    def forget(self) -> None:
        self._call("forget")

    def weight_version(self) -> str | None:
        version: str | None = self._call("weight_version")
        return version

    def alive(self) -> bool:
        return self._link is not None

    def stop(self) -> None:
        if self._link is not None:
            self._lines.close()
            self._link.close()
            self._link = self._lines = None
        if self._pid:
            # Its only use was this run, and an engine whose update broke off may never end by itself.
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
                # The next engine may need the memory of this one.
                for _ in range(100):
                    os.kill(self._pid, 0)
                    time.sleep(0.05)
            self._pid = 0

    def close(self) -> None:
        self.stop()
        if self._first is not None:
            self._first.stdin.close()  # type: ignore[union-attr]
            try:
                self._first.wait(10)
            except subprocess.TimeoutExpired:
                self._first.kill()
                self._first.wait()
            self._first = None
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = ""

    def __enter__(self) -> Remote:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def log(self, lines: int = 12) -> str:
        """The last lines that the engine printed."""
        try:
            text = Path(self._folder, "log").read_text("utf-8", "replace")
        except OSError:
            return ""
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def _import(self) -> None:
        """Starts the process that imports the engine."""
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder = tempfile.mkdtemp(prefix="patchhost-verify-")
        self._socket = os.path.join(self._folder, "engine")
        # Models of a few megabytes: one thread is fastest, and sums have one order.
        environment = {"OMP_NUM_THREADS": "1"} | os.environ
        root = str(Path(__file__).parents[2])
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH", "")]))
        with open(os.path.join(self._folder, "log"), "wb") as log:
            self._first = subprocess.Popen(
                [self._python, "-m", f"{__package__}.child", self._kind, self._socket],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment,
            )
        line = self._first.stdout.readline()  # type: ignore[union-attr]
        said = json.loads(line) if line else {"error": f"it printed nothing:\n{self.log()}"}
        if "error" in said:
            error = said["error"]
            self._first.wait()
            advice = f"install {self.name} for {self._python}"
            if "No module named" not in error:
                advice = f"try `{self._python} -c 'import {self.name}'`"
            self.close()
            raise EngineError(f"{self.name} cannot be imported", error, advice)
        self.version = said["version"]

    def _call(self, name: str, *arguments: Any) -> Any:
        if self._link is None:
            raise EngineError(f"{name} of {self.name}", "the engine is not running", "start it")
        try:
            self._link.sendall(json.dumps({"name": name, "arguments": arguments}).encode() + b"\n")
        except OSError as error:
            raise self._died(name, f"its process is gone ({error})") from error
        answer = self._line(name)
        if "error" in answer:
            raise EngineError(f"{name} of {self.name}", answer["error"], "the message is the engine's own")
        return answer["value"]

    def _line(self, name: str) -> dict[str, Any]:
        try:
            line = self._lines.readline()
        except TimeoutError as error:
            raise self._died(name, "it did not answer in time, and was ended") from error
        except OSError as error:
            raise self._died(name, f"its process is gone ({error})") from error
        if not line:
            raise self._died(name, "its process died; the last it printed: " + " | ".join(self.log(4).splitlines()))
        made: dict[str, Any] = json.loads(line)
        return made

    def _died(self, name: str, why: str) -> EngineError:
        self.stop()
        return EngineError(f"{name} of {self.name}", why, "the kit starts it again for the next case")
