"""Measures patchhost and its peers side by side and writes one report. See README.md.

    python bench/peers/run.py --out bench/peers/RESULTS.md
    python bench/peers/run.py --work decode --models dense --peers patchhost llamacpp --threads 2 --rounds 3
"""

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path

import checkpoints
import common
import engines
import report
from worker import Failed, Worker

HERE = Path(__file__).parent
SHAPES = [(4096, 4096), (14336, 4096)]
# Outputs x inputs of y = x W^T, and rows of x.
MATRICES = [(2048, 2048), (2048, 4096), (4096, 2048), (4096, 4096)]
ROWS = [1, 8, 64, 128]


def arguments():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="the report (Markdown); the numbers go beside it as JSON")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="checkpoints, GGUF files and logs")
    parser.add_argument("--patchhost", type=Path, default=HERE.parents[1] / "target/release/examples/peers")
    parser.add_argument("--no-build", action="store_true", help="take patchhost's worker as it is")
    parser.add_argument("--vllm-python", type=Path, default=HERE / "venv-vllm/bin/python")
    parser.add_argument("--work", nargs="*", choices=["quantize", "linear", "decode"],
                        default=["quantize", "linear", "decode"])
    parser.add_argument("--models", nargs="*", choices=list(checkpoints.SHAPES), default=list(checkpoints.SHAPES))
    parser.add_argument("--peers", nargs="*", choices=engines.PEERS, default=engines.PEERS)
    parser.add_argument("--engines", nargs="*", metavar="TEXT", help="only engines whose name contains one of these")
    parser.add_argument("--threads", nargs="*", type=int, default=[1, 2])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--at-once", type=int, default=5, help="workers that are loaded at the same time")
    parser.add_argument("--limit", type=float, default=600, help="seconds that a start or an answer may take")
    parser.add_argument("--slow", type=float, default=20, help="what takes longer is measured once")
    parser.add_argument("--keep", action="store_true", help="what --out has of other work and models stays in it")
    parser.add_argument("--note", default="", help="a sentence for the head of the report")
    return parser.parse_args()


class Row:
    """One engine of one group: its worker and what it answered."""

    def __init__(self, engine, options, places, threads):
        self.engine, self.worker, self.failed = engine, None, ""
        self.answers, self.once, self.about, self.peak = {}, set(), {}, 0
        self.slow = options.slow
        try:
            takes_threads = engine.peer == "patchhost"
            command = engine.command(places, threads) if takes_threads else engine.command(places)
            log = options.data / "logs" / f"{''.join(c if c.isalnum() else '-' for c in engine.name)}-{threads}.log"
            log.parent.mkdir(parents=True, exist_ok=True)
            self.worker = Worker(command, threads, log, options.limit)
            self.about = self.worker.about
        except (Failed, OSError, RuntimeError, subprocess.CalledProcessError) as error:
            self.failed = common.reason(error).removeprefix("Failed: ")
        print(f"  {engine.name}, {threads} threads: {self.failed or self.about}", file=sys.stderr, flush=True)

    def ask(self, key, job, keep=True):
        """One job, and how long it took; nothing if the engine has failed at it before."""
        if self.failed or isinstance(self.answers.get(key), str):
            return
        try:
            answer = self.worker.ask({**job, **self.engine.job})
        except Failed as error:
            self.answers[key] = str(error)
            print(f"  {self.engine.name}: {key}: {error}", file=sys.stderr, flush=True)
            if self.worker.process.poll() is not None:
                self.failed = str(error)
            return
        # By the worker's own clock: what it did before, such as compiling, is not meant.
        if not keep and sum(answer.get("seconds", [answer.get("prefill_s", 0), answer.get("decode_s", 0)])) > self.slow:
            self.once.add(key)
        if keep or key in self.once:
            self.answers.setdefault(key, []).append(answer)

    def stop(self):
        """Ends the worker."""
        if self.worker:
            self.peak = self.worker.peak_memory()
            self.worker.stop()

    def result(self, seconds):
        """For the report: per job the rate or time of each round."""
        values = {k: v if isinstance(v, str) else [seconds(a) for a in v] for k, v in self.answers.items()}
        return {
            "engine": self.engine.name, "peer": self.engine.peer, "failed": self.failed, "about": self.about,
            "peak": self.peak, "values": values, "once": sorted(self.once),
        }


def measure(chosen, options, places, threads, jobs, seconds):
    """Asks all engines for all jobs, in rounds: A B C, then B C A, and so on. No more than --at-once are loaded; the
    first engine, which all are compared with, is in every such set."""
    reference, rest = chosen[0], chosen[1:]
    size = max(1, options.at_once - 1)
    sets = [rest[i:i + size] for i in range(0, len(rest), size)] or [[]]
    made = []
    for number, group in enumerate(sets):
        rows = [Row(engine, options, places, threads) for engine in [reference, *group]]
        for key, job in jobs.items():
            for row in rows:
                row.ask(key, {**job, "repeats": 1}, keep=False)
        for turn in range(options.rounds):
            for key, job in jobs.items():
                for i in range(len(rows)):
                    row = rows[(turn + i) % len(rows)]
                    if key not in row.once:
                        row.ask(key, job)
            print(f"  round {turn + 1} of {options.rounds}, load {os.getloadavg()[0]:.1f}", file=sys.stderr, flush=True)
        tokens = {row.engine.name: first_tokens(row) for row in rows}
        for row in rows:
            row.stop()
        made += [{**row.result(seconds), "set": number, "tokens": tokens[row.engine.name]} for row in rows]
    return made


def first_tokens(row):
    """What the engine generated for the single prompt."""
    answers = row.answers.get("decode 1")
    return answers[0].get("tokens") if isinstance(answers, list) and answers else None


def selected(all_engines, options):
    """The engines that the options choose, the reference among them in any case."""
    reference = all_engines[0]
    wanted = [
        e for e in all_engines[1:]
        if e.peer in options.peers and (not options.engines or any(t.lower() in e.name.lower() for t in options.engines))
    ]
    return [reference, *wanted]


def matrix(data, rows, cols):
    """A file of bf16 weights N(0, 0.02)."""
    path = data / f"{rows}x{cols}.bf16"
    if not path.exists():
        import torch

        torch.manual_seed(rows)
        values = (torch.randn(rows, cols) * 0.02).bfloat16()
        values.view(torch.int16).numpy().tofile(path)
    return str(path)


def quantize(options, places, save):
    """Milliseconds per matrix, and whether all who should make the same bytes do."""
    jobs = {
        f"{rows}x{cols}": {"input": matrix(options.data, rows, cols), "rows": rows, "cols": cols, "repeats": 3}
        for rows, cols in SHAPES
    }
    chosen = selected(engines.quantize(), options)
    made = {t: measure(chosen, options, places, t, jobs, lambda a: common.median(a["seconds"])) for t in options.threads}
    save({"results": made, "equal": equal_bytes(options, places, chosen, jobs), "when": when(options)})


def equal_bytes(options, places, chosen, jobs):
    """Which engines give the bytes of verl's recipe in torch eager: codes and scales."""
    found, reference = {}, None
    order = sorted(chosen, key=lambda e: "eager" not in e.name)
    for engine in order:
        if "memcpy" in engine.name or "mse" in engine.name:
            continue
        row = Row(engine, options, places, options.threads[-1])
        for key, job in jobs.items():
            path = options.data / "dump"
            row.ask(key, {**job, "dump": str(path)})
            if isinstance(row.answers.get(key), list):
                files = [path.with_suffix(s).read_bytes() for s in (".q", ".scales")]
                if "eager" in engine.name:
                    reference = {**(reference or {}), key: files}
                elif reference and key in reference:
                    found.setdefault(engine.name, {})[key] = report.difference(reference[key], files)
        row.stop()
    return found


def linear(options, places, save):
    """Seconds per product, and the read bandwidth."""
    jobs = {}
    for n, k in MATRICES:
        for m in ROWS:
            size = common.BYTES_SMALL_M if m <= 8 else common.BYTES_LARGE_M
            jobs[f"{n}x{k} M={m}"] = {"m": m, "k": k, "n": n, "bytes": size, "repeats": 2}
    chosen = selected(engines.linear(), options)
    made, bandwidth = {}, {}
    for threads in options.threads:
        made[threads] = measure(chosen, options, places, threads, jobs, lambda a: common.median(a["seconds"]))
        row = Row(chosen[0], options, places, threads)
        row.ask("read", {"read": True, "bytes": common.BYTES_SMALL_M, "repeats": 9})
        if isinstance(row.answers.get("read"), list):
            bandwidth[threads] = common.BYTES_SMALL_M / common.median(row.answers["read"][0]["seconds"])
        row.stop()
        save({"results": made, "bandwidth": bandwidth, "when": when(options)})


def decode(options, places, save):
    """Tokens per second of every checkpoint."""
    made = {}
    for name in options.models:
        folder = options.data / name
        checkpoints.make(name, folder)
        jobs = {}
        for key, count, length, new in [
            ("prefill 16", 1, 16, 1), ("prefill 512", 1, 512, 1), ("decode 1", 1, 16, 65), ("decode 8", 8, 16, 33),
        ]:
            found = common.prompts(folder, count, length)
            jobs[key] = {
                "prompts": [ids for ids, _ in found], "texts": [text for _, text in found], "new": new,
                "per": key.split()[0], "tokens": count * (length if new == 1 else new - 1),
            }

        def rates(answer):
            # The first of the answers' times that counts for the job; see report.rate.
            return {"prefill_s": answer["prefill_s"], "decode_s": answer["decode_s"]}

        chosen = selected(engines.decode(folder), options)
        results = {t: measure(chosen, options, places, t, jobs, rates) for t in options.threads}
        counts = {key: (job["per"], job["tokens"]) for key, job in jobs.items()}
        made[name] = {
            "results": results, "jobs": counts, "parameters": checkpoints.parameters(folder), "when": when(options),
        }
        save(made)


def main():
    """Everything that was asked for, then the report."""
    options = arguments()
    options.data = options.data.resolve()
    options.data.mkdir(parents=True, exist_ok=True)
    if not options.no_build:
        root = HERE.parents[1]
        subprocess.run(["cargo", "build", "--release", "--example", "peers"], cwd=root, check=True)
    # The link of a virtual environment must stay as it is: resolving it would leave the environment.
    python = Path(sys.executable)
    places = engines.Places(options.data, options.patchhost.absolute(), python, options.vllm_python.absolute())
    earlier = options.out.with_suffix(".json") if options.out else None
    made = json.loads(earlier.read_text()) if options.keep and earlier and earlier.exists() else {}
    made |= {"processor": engines.processor(), "cores": os.cpu_count(), "versions": engines.versions(places)}

    def save(work, part):
        # After each part: what is measured must not be lost to what comes later.
        made[work] = {**made.get(work, {}), **part}
        text = report.markdown(json.loads(json.dumps(made)))
        if options.out:
            options.out.write_text(text)
            earlier.write_text(json.dumps(made, indent=1) + "\n")

    for work in options.work:
        print(work, file=sys.stderr, flush=True)
        {"quantize": quantize, "linear": linear, "decode": decode}[work](options, places, lambda part: save(work, part))
    print(report.markdown(json.loads(json.dumps(made))))


def when(options):
    """When and in what company a part was measured."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return f"{now}, medians of {options.rounds} rounds, load {os.getloadavg()[2]:.1f}. {options.note}".strip()


if __name__ == "__main__":
    main()
