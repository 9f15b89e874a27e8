"""Engines asked in rounds, with a look at the machine in each. See README.md."""

import subprocess
import sys

import common
import quiet
from worker import Failed, Worker

# Session ids of the workers that run: their processor time is our own.
LIVE = set()


def say(text):
    """A line for who waits."""
    print(text, file=sys.stderr, flush=True)


class Row:
    """One engine of one group: its worker and what it answered."""

    def __init__(self, engine, options, places, threads):
        self.engine, self.worker, self.failed = engine, None, ""
        self.answers, self.once, self.about, self.peak, self.marks = {}, set(), {}, 0, {}
        self.slow = options.slow
        try:
            takes_threads = engine.peer == "patchhost"
            command = engine.command(places, threads) if takes_threads else engine.command(places)
            log = options.data / "logs" / f"{''.join(c if c.isalnum() else '-' for c in engine.name)}-{threads}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            self.worker = Worker(command, threads, log, options.limit, LIVE)
            self.about = self.worker.about
        except (Failed, OSError, RuntimeError, subprocess.CalledProcessError) as error:
            self.failed = common.reason(error).removeprefix("Failed: ")
        say(f"  {engine.name}, {threads} threads: {self.failed or self.about}")

    def ask(self, key, job, keep=True):
        """One job, and how long it took; nothing if the engine has failed at it before."""
        if self.failed or isinstance(self.answers.get(key), str) or not self.engine.takes(job):
            return
        try:
            answer = self.worker.ask({**job, **self.engine.job})
        except Failed as error:
            self.answers[key] = str(error)
            say(f"  {self.engine.name}: {key}: {error}")
            if self.worker.process.poll() is not None:
                self.failed = str(error)
            return
        # By the worker's own clock: what it did before, such as compiling, is not meant.
        if not keep and sum(answer.get("seconds", [answer.get("prefill_s", 0), answer.get("decode_s", 0)])) > self.slow:
            self.once.add(key)
        if keep or key in self.once:
            self.answers.setdefault(key, []).append(answer)

    def begin(self):
        """A round begins."""
        self.marks = {key: len(value) for key, value in self.answers.items() if isinstance(value, list)}

    def forget(self):
        """What the round gave does not count."""
        for key, value in self.answers.items():
            if isinstance(value, list):
                del value[self.marks.get(key, 0):]

    def stop(self):
        """Ends the worker."""
        if self.worker:
            self.peak = self.worker.peak_memory()
            self.worker.stop()

    def result(self, seconds):
        """For the report: per job the rate or time of each round."""
        values = {k: v if isinstance(v, str) else [seconds(a) for a in v] for k, v in self.answers.items()}
        pages = [a["large_pages"] for v in self.answers.values() if isinstance(v, list) for a in v if a.get("large_pages") is not None]
        return {
            "engine": self.engine.name, "peer": self.engine.peer, "failed": self.failed, "about": self.about,
            "peak": self.peak, "large_pages": max(pages, default=None), "values": values, "once": sorted(self.once),
        }


def round_of(rows, jobs, turn):
    """Each engine once for each job; who comes first rotates: A B C, then B C A, and so on."""
    for row in rows:
        row.begin()
    for key, job in jobs.items():
        for i in range(len(rows)):
            row = rows[(turn + i) % len(rows)]
            if key not in row.once:
                row.ask(key, job)


def rounds_of(rows, jobs, options, watch):
    """As many rounds as asked. A noisy one is measured again, --again times in all; what is noisy after that stays and marks the
    report. Gives what was seen in the rounds that count, and in those that were dropped."""
    seen, dropped = [], []
    while len(seen) < options.rounds:
        watch.restart()
        round_of(rows, jobs, len(seen))
        now = watch.look(during=True)
        reasons = now.reasons(watch.limits)
        again = reasons and not options.busy and len(dropped) < options.again
        (dropped if again else seen).append(now)
        if again:
            for row in rows:
                row.forget()
        say(f"  round {len(seen)} of {options.rounds}, {now.seconds:.0f} s: {now.words()}"
            + (f" NOISY{', again' if again else ''}: {'; '.join(reasons)}" if reasons else ""))
    return seen, dropped


def measure(chosen, options, places, threads, jobs, seconds, watch):
    """Asks all engines for all jobs, in rounds. No more than --at-once are loaded; the first engine, which all are compared with, is
    in every such set. Gives the rows, and what the machine was like."""
    reference, rest = chosen[0], chosen[1:]
    size = max(1, options.at_once - 1)
    sets = [rest[i:i + size] for i in range(0, len(rest), size)] or [[]]
    made, seen, dropped = [], [], []
    for number, group in enumerate(sets):
        rows = [Row(engine, options, places, threads) for engine in [reference, *group]]
        for key, job in jobs.items():
            # Engines that may be slow enough to be measured once show it here, and for that they need the whole job.
            if (short := {} if options.all else job.get("warm", {})) is not None:
                for row in rows:
                    row.ask(key, {**job, "repeats": 1, **short}, keep=False)
        new = rounds_of(rows, jobs, options, watch)
        seen, dropped = seen + new[0], dropped + new[1]
        tokens = {row.engine.name: first_tokens(row) for row in rows}
        for row in rows:
            row.stop()
        made += [{**row.result(seconds), "set": number, "tokens": tokens[row.engine.name]} for row in rows]
    return made, quiet.record(options.before, seen, options.busy, dropped, watch.limits)


def first_tokens(row):
    """What the engine generated for the single prompt."""
    answers = row.answers.get("decode 1")
    return answers[0].get("tokens") if isinstance(answers, list) and answers else None
