"""Is this machine quiet enough for claims? What the drivers of bench/peers and bench/serving ask before they measure, and in every
round. `python bench/quiet.py` tells it of this moment.

Four things are looked at:

- the load average of one minute, less what the driver's own processes explain;
- processor time that others took: all that /proc/stat counts, less that of the driver's own processes;
- steal: time that the hypervisor gave to other machines;
- a probe: one process per core, all at once and each pinned to its core, repeats a fixed loop of arithmetic, and after that a fixed
  sweep over memory. On a quiet machine the 90th percentile of their times is close to the 10th. (The minimum may be one lucky moment:
  beside a neighbor who keeps the other half of a real core busy, all loops but a few take 1.7 times as long.) All cores at once,
  since the system would move other work to the core that is not probed; and all in the same part for the same time, since two
  virtual cores are often one real one, on which arithmetic is slower beside arithmetic than beside a sweep or alone.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

# Seconds of each part of the probe: some dozens of repetitions.
SECONDS = 0.4
LOOP = 20_000
SWEEP = 32 << 20


@dataclass(frozen=True)
class Limits:
    """The most that a quiet machine may show."""

    # Load average beyond what our own processes explain: before the first round, and while we measure, when the explanation is not
    # exact to the last digit.
    load_before: float = 0.5
    load_during: float = 1.0
    # Cores that others used, and that the hypervisor took away.
    others: float = 0.10
    steal: float = 0.05
    # Spread of the probe: 90th percentile / 10th percentile.
    arithmetic: float = 1.25
    memory: float = 1.50

    @classmethod
    def of(cls, pairs):
        """Others for some of them, as `NAME=VALUE`: what a command line says."""
        made = {}
        for pair in pairs or ():
            name, _, value = pair.partition("=")
            try:
                made[name] = float(value)
                known = name in cls.__dataclass_fields__ and math.isfinite(made[name])
            except ValueError:
                known = False
            if not known:
                raise SystemExit(f"error: `--limits {pair}` cannot be followed\n  why: it is not NAME=NUMBER with a NAME of "
                                 f"{', '.join(cls.__dataclass_fields__)}\n  next: say, for instance, --limits memory=1.5")
        return cls(**made)


@dataclass
class Seen:
    """What was seen at one moment or during one round."""

    load: float
    load_own: float
    others: float
    steal: float
    arithmetic: float
    memory: float
    # Medians of the probe on its slowest core, in milliseconds: whether the machine was as fast in each round.
    arithmetic_ms: float = 0.0
    memory_ms: float = 0.0
    during: bool = False
    seconds: float = 0.0

    def reasons(self, limits=Limits()):
        """Why this was no quiet moment, each with the number and its limit; nothing if it was one."""
        found = []
        load, most = self.load - self.load_own, limits.load_during if self.during else limits.load_before
        if load > most:
            own = f" beyond our own {self.load_own:.2f}" if self.load_own else ""
            found.append(f"the load average of one minute is {load:.2f}{own} (limit {most:.2f})")
        if self.others > limits.others:
            found.append(f"other processes used {self.others:.2f} cores (limit {limits.others:.2f})")
        if self.steal > limits.steal:
            found.append(f"the hypervisor took {self.steal:.2f} cores away (limit {limits.steal:.2f})")
        for name, value, limit in (("arithmetic", self.arithmetic, limits.arithmetic), ("memory", self.memory, limits.memory)):
            if value > limit:
                found.append(f"the probe's {name} has a 90th percentile of {value:.2f} times its 10th (limit {limit:.2f})")
        return found

    def words(self):
        """The numbers in one line."""
        return (f"load {self.load:.2f}, of it our own {self.load_own:.2f}; others {self.others:.2f} cores, steal {self.steal:.2f}; "
                f"probe: arithmetic {self.arithmetic:.2f} at {self.arithmetic_ms:.2f} ms, memory {self.memory:.2f} at {self.memory_ms:.2f} ms")


def refusal(seen, limits=Limits()):
    """Why nothing is measured, in three parts: what, why, next."""
    return (f"error: nothing was measured, because this machine is busy\n"
            f"  why: {'; '.join(seen.reasons(limits))}\n"
            "  next: end what runs beside this (`top` shows it) or wait with --wait SECONDS; --busy measures all the same, "
            "and marks the report as no ground for claims")


# The probe.


def percentile(values, share):
    """The value that so large a share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)]


def spread(seconds):
    """90th percentile / 10th percentile."""
    return percentile(seconds, 0.9) / percentile(seconds, 0.1)


def arithmetic():
    """A fixed number of operations that touch no memory to speak of."""
    value = 1
    for i in range(LOOP):
        value = (value * 1103515245 + i) & 0x7FFFFFFF
    return value


def repeated(work, seconds):
    """How long each repetition took, as many as begin in so many seconds. The first three warm up; the last may have been alone."""
    made, end = [], time.perf_counter() + seconds
    while len(made) < 6 or time.perf_counter() < end:
        started = time.perf_counter()
        work()
        made.append(time.perf_counter() - started)
    return made[3:-1]


def probe_core(core, seconds):
    """Both parts on one core: says that it is ready for each, begins at a word, and prints its seconds in the end."""
    os.sched_setaffinity(0, {core})
    source, target = bytearray(SWEEP), bytearray(SWEEP)

    def sweep():
        target[:] = source

    sweep()
    made = {}
    for name, work in (("arithmetic", arithmetic), ("memory", sweep)):
        print("ready", flush=True)
        sys.stdin.readline()
        made[name] = repeated(work, seconds)
    print(json.dumps(made))


def cores():
    """The cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


def probe(seconds=SECONDS):
    """The worst spread of any core, and the slowest median in milliseconds: (arithmetic, memory, arithmetic, memory)."""
    command = [sys.executable, "-S", str(Path(__file__).resolve()), "--seconds", str(seconds), "--core"]
    running = [
        subprocess.Popen([*command, str(core)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for core in cores()
    ]
    for _ in ("arithmetic", "memory"):
        # All are ready, and now all begin.
        for one in running:
            one.stdout.readline()
        for one in running:
            one.stdin.write("go\n")
            one.stdin.flush()
    made = [json.loads(one.communicate()[0]) for one in running]
    worst = lambda what, name: max(what(m[name]) for m in made)
    middle = lambda seconds: 1e3 * percentile(seconds, 0.5)
    return tuple(worst(what, name) for what in (spread, middle) for name in ("arithmetic", "memory"))


# Whose processor time it was.


def machine_ticks(text=None):
    """Ticks of all cores so far: (busy, stolen)."""
    text = Path("/proc/stat").read_text() if text is None else text
    user, nice, system, _idle, _wait, irq, soft, steal = map(int, text.split("\n", 1)[0].split()[1:9])
    return user + nice + system + irq + soft, steal


def own_ticks(sessions):
    """Ticks so far of this process, of what it has waited for, and of all processes of `sessions`."""
    total = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            fields = (folder / "stat").read_text().rsplit(")", 1)[1].split()
        except OSError:
            continue
        # Of proc(5): session is field 6, utime to cstime are 14 to 17; the first here is field 3.
        if folder.name == str(os.getpid()) or int(fields[3]) in sessions:
            total += sum(map(int, fields[11:15]))
    return total


class Watch:
    """Looks at the machine: once before, and once for every round. `sessions()` gives the session ids of the driver's workers."""

    def __init__(self, sessions=lambda: (), limits=Limits(), prober=probe):
        self.sessions, self.limits, self.prober = sessions, limits, prober
        self.tick = os.sysconf("SC_CLK_TCK")
        # What the kernel's load average has of us: the same average over our own use.
        self.own_load = 0.0
        self.mark()

    def mark(self):
        """What comes is counted from here."""
        self.at, self.machine, self.own = time.monotonic(), machine_ticks(), own_ticks(set(self.sessions()))

    def restart(self):
        """Cores that were used since the last mark, ours and others' and stolen, and the seconds; and counts anew from here."""
        at, machine, own = self.at, self.machine, self.own
        self.mark()
        seconds = max(self.at - at, 1e-3)
        cores_of = lambda ticks: max(0.0, ticks / self.tick / seconds)
        mine = cores_of(self.own - own)
        self.own_load = follow(self.own_load, mine, seconds)
        return mine, max(0.0, cores_of(self.machine[0] - machine[0]) - mine), cores_of(self.machine[1] - machine[1]), seconds

    def look(self, during=False):
        """What was seen since the last mark; the probe runs after that, and is our own work."""
        _, others, steal, seconds = self.restart()
        load = os.getloadavg()[0]
        own_load = min(self.own_load, load)
        probed = [round(value, 3) for value in self.prober()]
        self.restart()
        return Seen(round(load, 2), round(own_load, 2), round(others, 3), round(steal, 3), *probed, during, round(seconds, 1))

    def before(self, wait=0, busy=False, say=lambda text: print(text, file=sys.stderr, flush=True)):
        """A look over three seconds. Ends the program if the machine is busy, not quiet within `wait` seconds, and not `busy`."""
        end = time.monotonic() + wait
        while True:
            self.restart()
            time.sleep(3)
            seen = self.look()
            if busy or not seen.reasons(self.limits):
                return seen
            if time.monotonic() >= end:
                raise SystemExit(refusal(seen, self.limits))
            say(f"  not quiet yet: {'; '.join(seen.reasons(self.limits))}")
            time.sleep(min(10, max(0, end - time.monotonic())))


def follow(average, value, seconds):
    """A load average of one minute, so many seconds later."""
    kept = math.exp(-seconds / 60)
    return average * kept + value * (1 - kept)


def record(before, rounds, flag=False, dropped=(), limits=Limits()):
    """For the JSON of a report: what was seen, and whether the report is a ground for claims."""
    noisy = [i + 1 for i, seen in enumerate(rounds) if seen.reasons(limits)]
    return {
        "limits": asdict(limits), "before": asdict(before), "rounds": [asdict(seen) for seen in rounds],
        "dropped": [asdict(seen) for seen in dropped], "noisy": noisy, "flag": bool(flag),
        "busy": bool(noisy) or bool(before.reasons(limits)),
        "why": [*before.reasons(limits), *(f"round {i}: {'; '.join(rounds[i - 1].reasons(limits))}" for i in noisy)],
    }


def busy(records):
    """Whether a table from parts with these records is no ground for claims; one without a record is none."""
    return not records or any(r["busy"] for r in records)


def mark(records):
    """The line above a table, from what `record` made for its parts: what the machine was like, and whether the table is worth
    quoting."""
    if not records:
        return "**No ground for claims**: this was measured before the noise probe was there."
    seen = [s for r in records for s in r["rounds"] or [r["before"]]]
    worst = lambda key: max(s[key] for s in seen)
    span = lambda key: f"{min(s[key] for s in seen):.1f} to {max(s[key] for s in seen):.1f}"
    text = (f"{len(seen)} rounds, at worst {worst('others'):.2f} cores used by others, {worst('steal'):.2f} stolen, and a probe of "
            f"{worst('arithmetic'):.2f} (arithmetic, {span('arithmetic_ms')} ms) and {worst('memory'):.2f} (memory, {span('memory_ms')} ms)")
    if again := sum(len(r["dropped"]) for r in records):
        text += f"; {again} noisy round{'s were' if again > 1 else ' was'} measured again"
    if not busy(records):
        return f"A quiet machine: {text}."
    why = next(w for r in records for w in r["why"])
    noisy = sum(len(r["noisy"]) for r in records)
    return f"**MADE ON A BUSY MACHINE, no ground for claims**: {why}. {text}; {noisy} noisy."


def options(parser):
    """The options of every driver that asks."""
    parser.add_argument("--busy", action="store_true",
                        help="measure on a busy machine too; the report and each of its tables say that it was busy")
    parser.add_argument("--wait", type=float, default=180, metavar="SECONDS", help="how long to wait for the machine to be quiet")
    parser.add_argument("--again", type=int, default=3, help="how many noisy rounds of a table are measured again")
    parser.add_argument("--limits", nargs="*", metavar="NAME=VALUE",
                        help=f"other limits than {', '.join(f'{k}={v}' for k, v in asdict(Limits()).items())}; the report has them")


def main():
    """The machine now, or the part of the probe that runs on one core."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--core", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, default=SECONDS, help="of each part of the probe")
    options = parser.parse_args()
    if options.core is not None:
        probe_core(options.core, options.seconds)
        return 0
    watch = Watch(prober=lambda: probe(options.seconds))
    seen = watch.before(busy=True)
    print(seen.words())
    for reason in seen.reasons():
        print(f"busy: {reason}")
    return 1 if seen.reasons() else 0


if __name__ == "__main__":
    sys.exit(main())
