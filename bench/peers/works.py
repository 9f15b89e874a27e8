"""The three kinds of work: which jobs there are, and what is kept of the answers."""

import datetime

import checkpoints
import common
import engines
import report
from measure import Row, measure

SHAPES = [(4096, 4096), (14336, 4096)]
# Outputs x inputs of y = x W^T, and rows of x.
MATRICES = [(2048, 2048), (2048, 4096), (4096, 2048), (4096, 4096)]
ROWS = [1, 2, 4, 8, 16, 32, 64, 128]
# Name, sequences, tokens of a prompt, tokens to generate.
GENERATIONS = [
    ("prefill 16", 1, 16, 1), ("prefill 512", 1, 512, 1), ("prefill 2048", 1, 2048, 1), ("decode 1", 1, 16, 65), ("decode 8", 8, 16, 33),
]


def selected(all_engines, options):
    """The engines that the options choose, the reference among them in any case."""
    reference = all_engines[0]
    wanted = [
        e for e in all_engines[1:]
        if e.peer in options.peers and (options.all or not e.more)
        and (not options.engines or any(t.lower() in e.name.lower() for t in options.engines))
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


def quantize(options, places, watch, save):
    """Seconds per matrix, and whether all who should make the same bytes do."""
    jobs = {
        f"{rows}x{cols}": {"input": matrix(options.data, rows, cols), "rows": rows, "cols": cols, "repeats": 3}
        for rows, cols in SHAPES
    }
    chosen = selected(engines.quantize(), options)
    made, records = {}, {}
    for threads in options.threads:
        seconds = lambda answer: common.median(answer["seconds"])
        made[threads], records[threads] = measure(chosen, options, places, threads, jobs, seconds, watch)
        save({"results": made, "quiet": records, "equal": {}, "rounds": options.rounds, "when": when(options)})
    save({"equal": equal_bytes(options, places, chosen, jobs)})


def equal_bytes(options, places, chosen, jobs):
    """Which engines give the bytes of verl's recipe in torch eager: codes and scales."""
    found, reference = {}, None
    order = sorted(chosen, key=lambda e: "eager" not in e.name)
    for engine in order:
        if "memcpy" in engine.name or "mse" in engine.name or engine.job.get("keep"):
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


def linear(options, places, watch, save):
    """Seconds per product, and per reading of as many bytes as the copies of a matrix have."""
    jobs = {}
    for n, k in MATRICES[::3] if options.quick else MATRICES:
        for m in [1, 8, 64] if options.quick else ROWS:
            size = common.BYTES_SMALL_M if m <= 16 else common.BYTES_LARGE_M
            jobs[f"{n}x{k} M={m}"] = {"m": m, "k": k, "n": n, "bytes": size, "repeats": 2}
    chosen = selected(engines.linear(), options)
    made, records = {}, {}
    for threads in options.threads:
        seconds = lambda answer: common.median(answer["seconds"])
        made[threads], records[threads] = measure(chosen, options, places, threads, jobs, seconds, watch)
        save({"results": made, "quiet": records, "bytes_read": common.BYTES_SMALL_M, "rounds": options.rounds, "when": when(options)})


def decode(options, places, watch, save):
    """Tokens per second of every checkpoint."""
    made = {}
    for name in options.models:
        folder = options.data / name
        checkpoints.make(name, folder)
        jobs = {}
        for key, count, length, new in GENERATIONS:
            if options.quick and length > 512:
                continue
            found = common.prompts(folder, count, length)
            jobs[key] = {
                "prompts": [ids for ids, _ in found], "texts": [text for _, text in found], "new": new,
                "per": key.split()[0], "tokens": count * (length if new == 1 else new - 1),
                # Before the first round: a few tokens, and no second long prompt.
                "warm": {"new": min(new, 5)} if length <= 512 else None,
            }

        def rates(answer):
            # The first of the answers' times that counts for the job; see report.rate.
            return {"prefill_s": answer["prefill_s"], "decode_s": answer["decode_s"]}

        counts = {key: (job["per"], job["tokens"]) for key, job in jobs.items()}
        chosen = selected(engines.decode(folder), options)
        results, records = {}, {}
        for threads in options.threads:
            results[threads], records[threads] = measure(chosen, options, places, threads, jobs, rates, watch)
            made[name] = {
                "results": results, "quiet": records, "jobs": counts, "parameters": checkpoints.parameters(folder),
                "rounds": options.rounds, "when": when(options),
            }
            save(made)


def when(options):
    """When a part was measured, and how often."""
    now = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    return f"{now}, medians of {options.rounds} rounds. {options.note}".strip()
