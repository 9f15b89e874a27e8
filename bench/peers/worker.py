"""The driver's side of a worker: start it, ask it with a time limit, and know what memory it took."""

import json
import os
import queue
import signal
import subprocess
import threading
from pathlib import Path


class Failed(Exception):
    """A worker did not start or did not answer; the text goes into the table."""


class Worker:
    """One process that answers one JSON line per job."""

    def __init__(self, command, threads, log, limit, live=None):
        environment = dict(os.environ, PEERS_THREADS=str(threads), TOKENIZERS_PARALLELISM="false")
        # Every OpenMP and BLAS of every engine; none may take more threads than asked.
        for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS"):
            environment[name] = str(threads)
        # Idle threads must sleep soon: the next engine needs the cores.
        environment.update(KMP_BLOCKTIME="1", HF_HUB_OFFLINE="1", TORCHINDUCTOR_COMPILE_THREADS="1")
        self.log = Path(log)
        self.limit = limit
        self.process = subprocess.Popen(
            [str(c) for c in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self.log.open("w"),
            env=environment, text=True, start_new_session=True, cwd=Path(__file__).parent,
        )
        # Sessions that count as the driver's own work as long as they live.
        self.live = set() if live is None else live
        self.live.add(self.process.pid)
        self.lines = queue.Queue()
        threading.Thread(target=self.read, daemon=True).start()
        self.about = self.answer()["about"]

    def read(self):
        """Lines as they come; none at the end."""
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put(None)

    def answer(self):
        """The next answer."""
        try:
            line = self.lines.get(timeout=self.limit)
        except queue.Empty:
            self.stop()
            raise Failed(f"no answer within {self.limit} s") from None
        if line is None:
            code = self.process.wait()
            raise Failed(f"ended with status {code}: {self.last_words()}")
        answer = json.loads(line)
        if error := answer.get("error"):
            raise Failed(error)
        return answer

    def ask(self, job):
        """One job."""
        try:
            self.process.stdin.write(json.dumps(job) + "\n")
            self.process.stdin.flush()
        except OSError:
            pass
        return self.answer()

    def last_words(self):
        """The last line of its log."""
        lines = [line.strip() for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        return lines[-1][:200] if lines else "it said nothing"

    def peak_memory(self):
        """Largest resident size so far of the process and its children, in bytes."""
        pids, total = [self.process.pid], 0
        for pid in pids:
            try:
                status = Path(f"/proc/{pid}/status").read_text()
                total += next(int(l.split()[1]) for l in status.splitlines() if l.startswith("VmHWM")) * 1024
                for task in Path(f"/proc/{pid}/task").iterdir():
                    pids += [int(p) for p in (task / "children").read_text().split()]
            except (OSError, StopIteration):
                continue
        return total

    def stop(self):
        """Ends it and what it started."""
        if self.process.poll() is None:
            try:
                self.process.stdin.close()
                self.process.wait(5)
            except (OSError, subprocess.TimeoutExpired):
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        self.process.wait()
        self.live.discard(self.process.pid)
