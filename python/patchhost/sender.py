"""Who sends an update, and whether that process still lives: for updates whose sender dies in the middle."""

from __future__ import annotations

import os
from typing import Any


def me() -> dict[str, Any]:
    """This process, as another one on the same machine can look for it: pid, start time, and where the pid counts."""
    pid = os.getpid()
    return {"pid": pid, "started": _started(pid), "where": _where()}


def gone(sender: Any) -> bool:
    """Whether the process of `me()` is known to be dead. `False` where it cannot be seen from here (another machine or
    container), and where nothing was said."""
    if not isinstance(sender, dict) or not sender.get("where") or sender.get("where") != _where():
        return False
    pid = sender.get("pid")
    if not isinstance(pid, int) or isinstance(pid, bool) or pid < 1:
        return False
    started = _started(pid)
    return started is None or started != sender.get("started")


def _started(pid: int) -> int | None:
    """Start time in clock ticks since the boot; `None` for a process that is not there, or that is dead and not yet waited
    for."""
    try:
        with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return None if fields[0] in ("Z", "X") else int(fields[19])


def _where() -> str | None:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None
