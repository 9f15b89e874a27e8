"""The engine's side: a process that imports an engine once and forks one child for each engine that is started.

Run as `python -m patchhost.verify.child KIND SOCKET`. A fork costs milliseconds where a new process costs the import
(half a minute for vLLM), and yet each engine is a process of its own: a fresh load shares nothing with the load before,
a crash ends one engine only, and the system takes its memory back.

Nothing in the first process may start a thread (torch's pools, vLLM's engine): threads do not survive a fork.
"""

from __future__ import annotations

import importlib
import json
import os
import select
import shutil
import signal
import socket
import sys
import traceback
from typing import Any, NoReturn, Protocol

MODULES = {
    "vllm-stock": ("vllm_drivers", "Stock"),
    "vllm-folder": ("vllm_drivers", "Folder"),
    "vllm-layerwise": ("vllm_drivers", "Layerwise"),
    "vllm-patchhost": ("vllm_drivers", "Patchhost"),
    "transformers": ("transformers_driver", "Transformers"),
}


class Driver(Protocol):
    """The engine in this process. Values are plain: they travel as JSON."""

    @staticmethod
    def engine_version() -> str: ...

    def start(self, folder: str, options: dict[str, Any]) -> dict[str, Any]: ...

    def answers(self, prompts: list[list[int]], max_tokens: int, cache: bool) -> list[dict[str, Any]]: ...

    def refit(self, parts: list[str], finished: bool, version: str) -> dict[str, Any]: ...

    def digests(self) -> dict[str, list[Any]]: ...

    def forget(self) -> None: ...

    def weight_version(self) -> str | None: ...


def serve(driver: Driver, link: socket.socket) -> None:
    """Answers calls, one line of JSON each, until the kit goes away."""
    with link.makefile("rwb") as lines:
        for line in lines:
            call = json.loads(line)
            try:
                answer = {"value": getattr(driver, call["name"])(*call["arguments"])}
            except Exception as error:
                traceback.print_exc()
                answer = {"error": message(error)}
            lines.write(json.dumps(answer).encode() + b"\n")
            lines.flush()


def message(error: BaseException) -> str:
    """An error in one line, with its kind."""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:600]}" if text else type(error).__name__


def main(kind: str, place: str) -> int:
    module, name = MODULES[kind]
    # Only the two lines below are for the kit; whatever an engine prints goes to the log.
    kit = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(place)
    try:
        # The modules of the drivers import their engine at the top, so all of it is here before the first fork.
        driver: type[Driver] = getattr(importlib.import_module(f"{__package__}.{module}"), name)
    except BaseException as error:
        traceback.print_exc()
        print(json.dumps({"error": message(error)}), file=kit, flush=True)
        return 4
    listening.listen()
    print(json.dumps({"version": driver.engine_version()}), file=kit, flush=True)
    children: set[int] = set()
    while True:
        ready, _, _ = select.select([listening, sys.stdin], [], [], 0.2)
        children = {pid for pid in children if os.waitpid(pid, os.WNOHANG) == (0, 0)}
        if sys.stdin in ready:
            # The kit is gone. An engine that is busy, for ever perhaps, would not notice.
            for pid in children:
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(os.path.dirname(place), ignore_errors=True)
            return 0
        if listening in ready:
            link, _ = listening.accept()
            pid = os.fork()
            if pid == 0:
                listening.close()
                _child(driver, link)
            children.add(pid)
            link.close()


def _child(driver: type[Driver], link: socket.socket) -> NoReturn:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        link.sendall(json.dumps({"pid": os.getpid()}).encode() + b"\n")
        serve(driver(), link)
    finally:
        # Not sys.exit: the clean-up of an engine whose tensors are on the meta device can hang.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
