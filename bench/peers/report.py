"""The measurements as Markdown. `python report.py RESULTS.json` writes the tables anew."""

import json
import statistics
import sys
from pathlib import Path


def difference(reference, files):
    """How two results of (codes, scales) differ, in words."""
    if reference == files:
        return "equal"
    (codes, scales), (other_codes, other_scales) = reference, files
    if len(codes) != len(other_codes) or len(scales) != len(other_scales):
        return "other sizes"
    count = sum(a != b for a, b in zip(codes, other_codes)) if codes != other_codes else 0
    words = [scales[i:i + 4] != other_scales[i:i + 4] for i in range(0, len(scales), 4)]
    return f"{count} of {len(codes)} codes and {sum(words)} of {len(words)} scales differ"


def cell(value, ratio, once, digits):
    """A number, and in brackets how many times patchhost's speed is that of this engine."""
    text = f"{value:.{digits}f}" + ("*" if once else "")
    return text if ratio is None else f"{text} ({ratio:.2f})"


def paired(rows, row, key, speed):
    """Median over rounds of patchhost's speed divided by this engine's, both from the same rounds."""
    reference = next(r for r in rows if r["set"] == row["set"])
    mine, theirs = row["values"].get(key), reference["values"].get(key)
    if reference is row or not isinstance(mine, list) or not isinstance(theirs, list) or not mine or not theirs:
        return None
    if key in row["once"] or key in reference["once"]:
        return statistics.median(map(speed, theirs)) / statistics.median(map(speed, mine))
    return statistics.median(speed(t) / speed(m) for t, m in zip(theirs, mine))


def best_of_sets(rows):
    """Each engine once: the reference is in every set, and its rounds are joined."""
    seen = {}
    for row in rows:
        name = row["engine"]
        if name not in seen:
            seen[name] = {**row, "values": {k: v for k, v in row["values"].items()}}
            continue
        for key, value in row["values"].items():
            old = seen[name]["values"].get(key)
            seen[name]["values"][key] = old + value if isinstance(old, list) and isinstance(value, list) else value
        seen[name]["peak"] = max(seen[name]["peak"], row["peak"])
    return list(seen.values())


def value_cells(rows, row, keys, speed, shown, digits):
    """The cells of one engine."""
    cells = []
    for key in keys:
        values = row["values"].get(key)
        if row["failed"] and not isinstance(values, list):
            cells.append("-")
        elif isinstance(values, str):
            cells.append("failed")
        elif not values:
            cells.append("-")
        else:
            original = next(r for r in rows if r["engine"] == row["engine"])
            ratio = paired(rows, original, key, lambda v: speed(key, v))
            middle = statistics.median(shown(key, v) for v in values)
            cells.append(cell(middle, ratio, key in row["once"], digits))
    return cells


def failures(rows):
    """Why rows or cells are empty."""
    lines = []
    for row in best_of_sets(rows):
        texts = {row["failed"]} | {v for v in row["values"].values() if isinstance(v, str)}
        lines += [f"- {row['engine']}: {text}" for text in texts if text]
    return lines


def mib(size):
    """Bytes as MiB."""
    return f"{size / 2**20:.0f}" if size else "-"


def table(head, rows):
    """A Markdown table."""
    line = lambda cells: "| " + " | ".join(str(c) for c in cells) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def quantize(part):
    """Engines down, shapes and threads across."""
    results = part["results"]
    threads = list(results)
    shapes = list(dict.fromkeys(k for rows in results.values() for r in rows for k in r["values"]))
    head = ["engine", *[f"{s}, {t}T, ms" for s in shapes for t in threads], "peak MiB"]
    lines = []
    names = list(dict.fromkeys(r["engine"] for rows in results.values() for r in rows))
    for name in names:
        by_threads = {t: next((r for r in best_of_sets(results[t]) if r["engine"] == name), None) for t in threads}
        cells = []
        for shape in shapes:
            for t in threads:
                row = by_threads[t]
                cells += value_cells(results[t], row, [shape], lambda k, v: 1 / v, lambda k, v: v * 1e3, 1)
        lines.append([name, *cells, mib(max(r["peak"] for r in by_threads.values()))])
    notes = [f"- {name} against verl's recipe in torch eager, bit by bit: "
             + "; ".join(f"{k} {v}" for k, v in found.items()) for name, found in part["equal"].items()]
    return ["## Block FP8 quantization, bf16 to 128x128 blocks", "", part["when"], "", table(head, lines), "",
            *notes, *(f for t in threads for f in failures(results[t])), ""]


def linear(part):
    """Shapes down, engines across."""
    out = ["## y = x Wᵀ, ms per product, weights from memory", "", part["when"], ""]
    for threads, rows in part["results"].items():
        bandwidth = part["bandwidth"].get(threads)
        joined = best_of_sets(rows)
        keys = list(dict.fromkeys(k for r in rows for k in r["values"]))
        head = ["W (N x K), rows of x", *[r["engine"] for r in joined], "patchhost"]
        lines = []
        for key in keys:
            cells = [value_cells(rows, r, [key], lambda k, v: 1 / v, lambda k, v: v * 1e3, 2)[0] for r in joined]
            n, k, m = (int(x) for x in key.replace(" M=", "x").split("x"))
            own = joined[0]["values"].get(key)
            rate = "-"
            if isinstance(own, list) and own:
                seconds = statistics.median(own)
                share = f", {n * k / seconds / bandwidth:.2f} of the read bandwidth" if bandwidth and m == 1 else ""
                rate = f"{2 * m * n * k / seconds / 1e9:.0f} GFLOP/s{share}"
            lines.append([key, *cells, rate])
        read = f"; read bandwidth {bandwidth / 1e9:.1f} GB/s" if bandwidth else ""
        out += [f"{threads} thread(s){read}. Peak MiB: "
                + ", ".join(f"{r['engine']} {mib(r['peak'])}" for r in joined) + ".", "",
                table(head, lines), "", *failures(rows), ""]
    return out


def common_prefix(a, b):
    """How many first tokens two generations share."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def decode(part):
    """Checkpoints and threads down, engines below each."""
    out = ["## Generation, tokens per second", ""]
    for model, found in part.items():
        keys = list(found["jobs"])

        def rate(key, value, jobs=found["jobs"]):
            per, tokens = jobs[key]
            return tokens / value[f"{per}_s"]

        head = ["threads", "engine", *[f"{k} tok/s" for k in keys], "load s", "peak MiB", "same first tokens"]
        lines, notes = [], []
        for threads, rows in found["results"].items():
            oracle = next((r["tokens"][0] for r in rows if r["engine"] == "transformers f32" and r["tokens"]), None)
            for row in best_of_sets(rows):
                same = "-"
                if oracle and row["tokens"]:
                    same = f"{common_prefix(row['tokens'][0], oracle)} of {len(oracle)}"
                load = row["about"].get("about", row["about"]).get("load_s")
                lines.append([threads, row["engine"], *value_cells(rows, row, keys, rate, rate, 1),
                              "-" if load is None else f"{load:.1f}", mib(row["peak"]), same])
            notes += [f"{line} ({threads}T)" for line in failures(rows)]
        out += [f"### {model}, {found['parameters'] / 1e6:.0f}M parameters", "", found["when"], "", table(head, lines), "", *notes, ""]
    return out


def markdown(made):
    """The report."""
    out = [
        "# patchhost and its peers, side by side", "",
        f"{made['processor']}, {made['cores']} cores.", "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in made["versions"].items()) + ".", "",
        "In a round every engine is asked once, in turn. In brackets: how many times patchhost (the first row) is as fast as "
        "this engine, the median over rounds of the ratio within a round; below 1 the engine is ahead. `*`: measured "
        "once, because it is slow. How it was measured: README.md.", "",
    ]
    for part, render in (("quantize", quantize), ("linear", linear), ("decode", decode)):
        if part in made:
            out += render(made[part])
    return "\n".join(out).rstrip() + "\n"


if __name__ == "__main__":
    source = Path(sys.argv[1])
    source.with_suffix(".md").write_text(markdown(json.loads(source.read_text())))
