"""The table "beside other engines" from the numbers of a report, and where it stands in docs/performance.md and README.md.

    python bench/peers/summary.py bench/peers/RESULTS.json                      # print it
    python bench/peers/summary.py bench/peers/RESULTS.json --into docs/performance.md README.md

A file has the table between `<!-- peers:begin -->` and `<!-- peers:end -->`; `<!-- peers:begin short -->` asks for ranges instead
of each shape. Nothing is written from a report of a busy machine, or of less than five rounds: --anyway writes it with that mark.
"""

import argparse
import json
import re
import statistics
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

import pairs  # noqa: E402
import quiet  # noqa: E402

ROUNDS = 5
OURS, OURS_BF16 = "patchhost block FP8", "patchhost bf16"
DECODER = "patchhost fp8_block (W8A8)"
NAMES = {"qwen3moe_165m": "Qwen3-MoE", "moe_1024": "Mixtral", "dense": "dense"}
QUANTIZER = "patchhost, fp8_block in the sandbox"
COPY = "patchhost, memcpy of as many bytes"
BLOCK = re.compile(r"(<!-- peers:begin( short)? -->\n).*?(<!-- peers:end -->)", re.DOTALL)


class Line:
    """One line of the table: a text, and per number of threads the ratios of each case, each a list over rounds."""

    def __init__(self, text, cells, short=True):
        self.text, self.cells, self.short = text, cells, short

    def empty(self):
        """Whether nothing was measured for it."""
        return not any(case for cases in self.cells.values() for case in cases)


def digits(value):
    """Two decimals, one where a number is large."""
    return f"{value:.2f}" if value < 3 else f"{value:.1f}"


def each(cases):
    """The medians of all cases; a dash where there is none."""
    return ", ".join(digits(statistics.median(case)) if case else "-" for case in cases)


def span(cases):
    """From the smallest median to the largest."""
    found = sorted(statistics.median(case) for case in cases if case)
    if not found:
        return "-"
    low, high = digits(found[0]), digits(found[-1])
    return low if low == high else f"{low}-{high}"


def shapes_of(results):
    """The weights that were measured, in order, and the rows of x."""
    keys = dict.fromkeys(k for rows in results.values() for r in rows for k in r["values"])
    parsed = [pairs.matrix(k) for k in keys]
    return list(dict.fromkeys((n, k) for n, k, _ in parsed)), sorted({m for *_, m in parsed})


def products(part):
    """Products against ggml, torch and reading."""
    results = part["results"]
    shapes, sizes = shapes_of(results)
    named = ", ".join(f"{n}x{k}" if n != k else f"{n}²" for n, k in shapes)

    def line(text, ours, theirs, rows, short=True):
        keys = [f"{n}x{k} M={m}" for m in rows for n, k in shapes]
        cells = {t: [pairs.ratios(r, ours, theirs, key, pairs.per_second) for key in keys] for t, r in results.items()}
        return Line(text, cells, short)

    lines = []
    for m in (m for m in sizes if m <= 32):
        what = f"product in block FP8, 1 row, W of {named}, against ggml Q8_0" if m == 1 else f"the same, {m} rows"
        lines.append(line(what, OURS, "ggml Q8_0", [m], short=m in (1, 8)))
    many = [m for m in sizes if m > 32]
    if many:
        lines.append(line(f"the same, {' and '.join(map(str, many))} rows", OURS, "ggml Q8_0", many))
        lines.append(line(f"{' and '.join(map(str, many))} rows, against torch in f32", OURS, "torch f32", many))
    for m in (1, 8):
        lines.append(line(f"product in bf16, {m} row{'s' if m > 1 else ''}, against ggml BF16", OURS_BF16, "ggml BF16", [m], short=False))
    for pages in pairs.READING:
        keys = [f"{n}x{k} M=1" for n, k in shapes]
        cells = {t: [pairs.of_reading(part, r, key, pages) for key in keys] for t, r in results.items()}
        lines.append(Line(f"block FP8, 1 row, against reading as many bytes on {pages} pages", cells, short=pages == "large"))
    return lines


def generation(part):
    """Prefill and decoding against llama.cpp and vLLM."""
    lines = []
    for theirs, short in (("llama.cpp Q8_0", True), ("vLLM f32", True)):
        for kind in ("decode", "prefill"):
            for model, found in part.items():
                keys = [key for key in found["jobs"] if key.startswith(kind)]
                cells = {
                    t: [pairs.ratios(rows, DECODER, theirs, key, pairs.rate(found)) for key in keys]
                    for t, rows in found["results"].items()
                }
                sizes = [key.split()[1] for key in keys]
                listed = " and ".join(filter(None, [", ".join(sizes[:-1]), sizes[-1] if sizes else ""]))
                what = f"decoding {listed} sequences" if kind == "decode" else f"prefill of {listed} tokens"
                name = f"{NAMES.get(model, model)} {found['parameters'] / 1e6:.0f}M"
                lines.append(Line(f"{what}, {name}, against {theirs}", cells, short))
    return lines


def quantization(part):
    """Quantizing against torch.compile and copying."""
    results = part["results"]
    shapes = list(dict.fromkeys(k for rows in results.values() for r in rows for k in r["values"]))

    def line(text, ours, theirs, short=True):
        return Line(text, {t: [pairs.ratios(rows, ours, theirs, s, pairs.per_second) for s in shapes] for t, rows in results.items()}, short)

    named = " and ".join(shapes)
    return [
        line(f"quantizing {named}, against verl's recipe under torch.compile", QUANTIZER, "verl's recipe, torch.compile"),
        line(f"quantizing {named} into new memory, against copying as many bytes so", QUANTIZER, f"{COPY}, outputs anew"),
        line(f"quantizing {named} into kept memory, against copying as many bytes so", f"{QUANTIZER}, outputs kept", f"{COPY}, outputs kept"),
    ]


def memory(part):
    """Peak memory of generation."""
    found = []
    for model, of in part.items():
        rows = [r for rows in of["results"].values() for r in rows]
        peaks = [max((r["peak"] for r in rows if r["engine"] == name), default=0) for name in (DECODER, "llama.cpp Q8_0")]
        if all(peaks):
            found.append(f"{peaks[0] / 2**20:,.0f} and {peaks[1] / 2**20:,.0f} MiB ({NAMES.get(model, model)})")
    return f"Peak memory of generation, ours and llama.cpp's Q8_0: {', '.join(found)}." if found else ""


def lines_of(made):
    """All lines that something was measured for."""
    makers = {"linear": products, "decode": generation, "quantize": quantization}
    return [line for work, make in makers.items() if work in made for line in make(made[work]) if not line.empty()]


def parts_of(made):
    """The parts of a report, each with its rounds and its time."""
    return [made[work] for work in ("quantize", "linear") if work in made] + list(made.get("decode", {}).values())


def text(made, short=False):
    """The table, with what one must know to read it."""
    lines = [line for line in lines_of(made) if line.short or not short]
    threads = list(dict.fromkeys(t for line in lines for t in line.cells))
    found, parts = pairs.records(made), parts_of(made)
    days = sorted({part["when"].split()[0] for part in parts})
    rounds = min((part.get("rounds", 0) for part in parts), default=0)
    out = []
    if quiet.busy(found):
        out += [quiet.mark(found), ""]
    out += [
        f"{made['processor']}, {made['cores']} cores; patchhost {made['versions'].get('patchhost')}; {' to '.join(days)}; medians of "
        f"{rounds} rounds in turn. A number says how many times as fast patchhost is: **below 1 the other side is ahead**. Made by "
        "`bench/peers/summary.py` from `bench/peers/RESULTS.json`.", "",
        "| work | " + " | ".join(f"{t} thread{'s' if str(t) != '1' else ''}" for t in threads) + " |",
        "|---" * (len(threads) + 1) + "|",
    ]
    show = span if short else each
    for line in lines:
        # Products of many rows have many cases: their range says it.
        shown = span if len(next(iter(line.cells.values()))) > 4 else show
        out.append(f"| {line.text} | " + " | ".join(shown(line.cells.get(t, [])) for t in threads) + " |")
    if peak := memory(made.get("decode", {})):
        out += ["", peak]
    return "\n".join(out) + "\n"


def hindrances(made):
    """Why the report is no ground for claims; nothing if it is one."""
    found, why = pairs.records(made), []
    if quiet.busy(found):
        why += [w for r in found for w in r["why"]] or ["a part of it has no record of what the machine was like"]
    few = sorted({part.get("rounds", 0) for part in parts_of(made)})
    if few and few[0] < ROUNDS:
        why.append(f"a part of it has {few[0]} rounds, and claims need {ROUNDS}")
    if not few:
        why.append("it has no measurement")
    return why


def put(content, made):
    """A file's text with the table between its marks; nothing if it has none."""
    if not BLOCK.search(content):
        return None
    return BLOCK.sub(lambda m: m[1] + text(made, short=bool(m[2])) + m[3], content)


def main(arguments=None):
    """Prints or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="the JSON of a report")
    parser.add_argument("--short", action="store_true", help="ranges instead of each shape")
    parser.add_argument("--into", nargs="*", type=Path, default=[], metavar="FILE", help="files that have the marks")
    parser.add_argument("--anyway", action="store_true", help="write from a report of a busy machine or of few rounds too")
    options = parser.parse_args(arguments)
    made = json.loads(options.results.read_text())
    if not options.into:
        print(text(made, options.short), end="")
        return
    if (why := hindrances(made)) and not options.anyway:
        shown = "; ".join(why[:3]) + (f"; and {len(why) - 3} more" if len(why) > 3 else "")
        raise SystemExit(f"error: nothing was written, because {options.results} is no ground for claims\n  why: {shown}\n"
                         "  next: measure again on a quiet machine, or write it with its mark by --anyway")
    written = {path: put(path.read_text(), made) for path in options.into}
    if missing := [str(path) for path, content in written.items() if content is None]:
        raise SystemExit(f"error: nothing was written\n  why: {', '.join(missing)} has no `<!-- peers:begin -->` and "
                         "`<!-- peers:end -->`\n  next: put both, each on a line of its own, where the table shall stand")
    for path, content in written.items():
        path.write_text(content)


if __name__ == "__main__":
    main()
