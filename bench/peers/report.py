"""The measurements as Markdown. `python report.py RESULTS.json` writes the tables anew."""

import json
import statistics
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

import pairs  # noqa: E402
import quiet  # noqa: E402


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


def cell(value, found, once, digits):
    """A number, and in brackets how many times patchhost's speed is that of this engine, with the quartiles."""
    text = f"{value:.{digits}f}" + ("*" if once else "")
    if not found:
        return text
    low, middle, high = pairs.quartiles(found)
    return f"{text} ({middle:.2f})" if len(found) < 2 else f"{text} ({middle:.2f}, {low:.2f}-{high:.2f})"


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


def value_cells(rows, row, keys, speed, shown, digits, reference=None):
    """The cells of one engine."""
    reference = reference or rows[0]["engine"]
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
            found = pairs.ratios(rows, reference, row["engine"], key, speed) if row["engine"] != reference else []
            cells.append(cell(statistics.median(shown(key, v) for v in values), found, key in row["once"], digits))
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
                cells += value_cells(results[t], row, [shape], pairs.per_second, lambda k, v: v * 1e3, 1) if row else ["-"]
        lines.append([name, *cells, mib(max(r["peak"] for r in by_threads.values() if r))])
    notes = [f"- {name} against verl's recipe in torch eager, bit by bit: "
             + "; ".join(f"{k} {v}" for k, v in found.items()) for name, found in part["equal"].items()]
    return ["## Block FP8 quantization, bf16 to 128x128 blocks", "", part["when"], "", quiet.mark(list_of(part)), "",
            table(head, lines), "", *notes, *(f for t in threads for f in failures(results[t])), ""]


def list_of(part):
    """What the machine was like in a part."""
    return list(part.get("quiet", {}).values())


def bandwidths(part, rows):
    """What reading alone gives: GB/s on each kind of pages."""
    found = []
    for pages, name in pairs.READING.items():
        row = pairs.row_of(best_of_sets(rows), name)
        seconds = [s for key in (row["values"] if row else ()) for s in pairs.numbers(row, key)]
        if seconds:
            large = f", {mib(row['large_pages'])} MiB of them large" if row.get("large_pages") else ""
            found.append(f"{part['bytes_read'] / statistics.median(seconds) / 1e9:.1f} GB/s on {pages} pages{large}")
    return f"Reading alone: {'; '.join(found)}. " if found else ""


def linear(part):
    """Shapes down, engines across."""
    out = ["## y = x Wᵀ, ms per product, weights from memory", "", part["when"], ""]
    for threads, rows in part["results"].items():
        joined = [r for r in best_of_sets(rows) if r["engine"] not in pairs.READING.values()]
        keys = list(dict.fromkeys(k for r in joined for k in r["values"]))
        head = ["W (N x K), rows of x", *[r["engine"] for r in joined], "patchhost block FP8 is"]
        lines = []
        for key in keys:
            # bf16 is compared with bf16.
            cells = [
                value_cells(rows, r, [key], pairs.per_second, lambda k, v: v * 1e3, 2,
                            "patchhost bf16" if r["engine"] == "ggml BF16" else None)[0] for r in joined
            ]
            n, k, m = pairs.matrix(key)
            own = pairs.numbers(joined[0], key)
            rate = "-"
            if own:
                shares = [
                    f"{statistics.median(found):.2f} of reading on {pages} pages"
                    for pages in pairs.READING if (found := pairs.of_reading(part, rows, key, pages) if m == 1 else [])
                ]
                rate = ", ".join([f"{2 * m * n * k / statistics.median(own) / 1e9:.0f} GFLOP/s", *shares])
            lines.append([key, *cells, rate])
        record = part.get("quiet", {}).get(threads)
        out += [f"{threads} thread(s). {bandwidths(part, rows)}Peak MiB: "
                + ", ".join(f"{r['engine']} {mib(r['peak'])}" for r in joined) + ".", "",
                quiet.mark([record] if record else []), "", table(head, lines), "", *failures(rows), ""]
    return out


def common_prefix(a, b):
    """How many first tokens two generations share."""
    return next((i for i, (x, y) in enumerate(zip(a, b)) if x != y), min(len(a), len(b)))


def oracle_of(rows):
    """The name and the tokens of an engine in f32."""
    for name in ("transformers f32", "vLLM f32"):
        for row in rows:
            if row["engine"] == name and row["tokens"]:
                return name, row["tokens"][0]
    return "-", None


def decode(part):
    """Checkpoints and threads down, engines below each."""
    out = ["## Generation, tokens per second", ""]
    for model, found in part.items():
        keys, rate = list(found["jobs"]), pairs.rate(found)
        lines, notes, name = [], [], "-"
        for threads, rows in found["results"].items():
            name, oracle = oracle_of(rows)
            for row in best_of_sets(rows):
                same = "-"
                if oracle and row["tokens"]:
                    same = f"{common_prefix(row['tokens'][0], oracle)} of {len(oracle)}"
                load = row["about"].get("about", row["about"]).get("load_s")
                lines.append([threads, row["engine"], *value_cells(rows, row, keys, rate, rate, 1),
                              "-" if load is None else f"{load:.1f}", mib(row["peak"]), same])
            notes += [f"{line} ({threads}T)" for line in failures(rows)]
        head = ["threads", "engine", *[f"{k} tok/s" for k in keys], "load s", "peak MiB", f"same first tokens as {name}"]
        out += [f"### {model}, {found['parameters'] / 1e6:.0f}M parameters", "", found["when"], "", quiet.mark(list_of(found)), "",
                table(head, lines), "", *notes, ""]
    return out


def markdown(made):
    """The report."""
    found = pairs.records(made)
    out = ["# patchhost and its peers, side by side", ""]
    if quiet.busy(found):
        out += [quiet.mark(found), ""]
    large = f" Large pages: `{made['pages']}`." if "pages" in made else ""
    out += [
        f"{made['processor']}, {made['cores']} cores.{large}", "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in made["versions"].items()) + ".", "",
        "In a round every engine is asked once, in turn. In brackets: how many times patchhost (the first row; its bf16 beside ggml's) "
        "is as fast as this engine: the median and the quartiles over rounds of the ratio within a round; below 1 the engine is "
        "ahead. `*`: measured once, because it is slow. How it was measured: README.md. The short form: `summary.py`.", "",
    ]
    for part, render in (("quantize", quantize), ("linear", linear), ("decode", decode)):
        if part in made:
            out += render(made[part])
    return "\n".join(out).rstrip() + "\n"


if __name__ == "__main__":
    source = Path(sys.argv[1])
    source.with_suffix(".md").write_text(markdown(json.loads(source.read_text())))
