"""A server with OpenAI's API as a process of its own."""

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path


class Server:
    """Started on a free port of the loopback interface; its processor time counts as the driver's own (`live`)."""

    def __init__(self, name, command, model, logs, limit, live):
        self.name, self.model, self.limit, self.live = name, model, limit, live
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        self.log = logs / f"{name.split()[0].strip(',')}.log"
        self.process = subprocess.Popen(
            [str(word) for word in command(port)], stdin=subprocess.DEVNULL, stdout=self.log.open("w"), stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        live.add(self.process.pid)
        self.wait()

    def wait(self):
        """Until it says that it is healthy."""
        end = time.monotonic() + self.limit
        while time.monotonic() < end:
            if self.process.poll() is not None:
                break
            try:
                with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                    if answer.status == 200:
                        return
            except (urllib.error.URLError, OSError):
                pass
            time.sleep(0.2)
        self.stop()
        last = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()][-1:]
        raise SystemExit(f"error: {self.name} does not serve\n  why: {' '.join(last)[:300] or 'it said nothing'}\n"
                         f"  next: read {self.log}")

    def warm(self, prompt, new):
        """Two requests that nobody counts."""
        body = {"model": self.model, "prompt": prompt, "max_tokens": new, "temperature": 0, "ignore_eos": True}
        request = urllib.request.Request(
            f"{self.url}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
        for _ in range(2):
            with urllib.request.urlopen(request, timeout=self.limit) as answer:
                usage = json.load(answer)["usage"]
        if usage["completion_tokens"] != new:
            self.stop()
            raise SystemExit(f"error: {self.name} gave {usage['completion_tokens']} tokens instead of {new}\n  why: an end token or its "
                             f"context stopped it\n  next: read {self.log}")

    def peak_memory(self):
        """Largest resident size so far, in bytes."""
        try:
            status = Path(f"/proc/{self.process.pid}/status").read_text()
            return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")) * 1024
        except (OSError, StopIteration):
            return 0

    def stop(self):
        """Ends it."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(10)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.live.discard(self.process.pid)
