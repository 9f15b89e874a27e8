"""Figures of a run of guidellm, and the report. `python serving_report.py RESULTS.json` writes the table anew."""

import json
import statistics
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent.parent), str(Path(__file__).parent.parent / "peers")]

import pairs  # noqa: E402
import quiet  # noqa: E402

# Of each concurrency: name, head of the column, factor, digits, whether more is better.
FIGURES = [
    ("requests_per_s", "requests/s", 1, 2, True), ("tokens_per_s", "output tokens/s", 1, 0, True),
    ("ttft_p50", "first token ms, median", 1e3, 0, False), ("ttft_p90", "p90", 1e3, 0, False),
    ("tpot_p50", "per token ms, median", 1e3, 2, False), ("tpot_p90", "p90", 1e3, 2, False),
]


def figures(requests, prompt, answer, count):
    """From guidellm's own record of each request. Refuses a run in which a request failed or was not of the asked size."""
    done = requests["successful"]
    wrong = len(requests["errored"] or []) + sum(
        (r["input_metrics"]["text_tokens"], r["output_metrics"]["text_tokens"]) != (prompt, answer) for r in done)
    if wrong or not done:
        raise SystemExit(f"error: {wrong} of {count} requests failed or had other lengths than {prompt} + {answer} tokens\n"
                         "  why: the tokenizers differ, or a server ended early\n  next: read the logs of the servers")
    times = [r["info"]["timings"] for r in done]
    first = [t["first_token_iteration"] - t["request_start"] for t in times]
    each = [(t["last_token_iteration"] - t["first_token_iteration"]) / (answer - 1) for t in times]
    seconds = max(t["request_end"] for t in times) - min(t["request_start"] for t in times)
    return {
        "requests": len(done), "requests_per_s": len(done) / seconds, "tokens_per_s": len(done) * answer / seconds,
        "ttft_p50": statistics.median(first), "ttft_p90": quiet.percentile(first, 0.9),
        "tpot_p50": statistics.median(each), "tpot_p90": quiet.percentile(each, 0.9),
    }


def cells(rounds, server, reference, concurrency):
    """The medians of one server, and how many times as fast the reference is: the median and the quartiles over rounds."""
    made = []
    for key, _, factor, digits, more in FIGURES:
        values = [r[server][concurrency][key] for r in rounds]
        text = f"{statistics.median(values) * factor:.{digits}f}"
        if server != reference:
            theirs = [r[reference][concurrency][key] for r in rounds]
            low, middle, high = pairs.quartiles([(b / a) if more else (a / b) for a, b in zip(values, theirs)])
            text += f" ({middle:.2f})" if len(rounds) < 2 else f" ({middle:.2f}, {low:.2f}-{high:.2f})"
        made.append(text)
    return made


def markdown(made):
    """The report."""
    rounds = made["rounds"]
    names = list(made["peak"])
    lines = []
    for concurrency in sorted(rounds[0][names[0]], key=int):
        for name in names:
            peak = f"{made['peak'][name] / 2**20:.0f}"
            lines.append([concurrency, name, *cells(rounds, name, names[0], concurrency), peak])
    head = ["concurrency", "server", *[title for _, title, *_ in FIGURES], "peak MiB"]
    line = lambda row: "| " + " | ".join(map(str, row)) + " |"
    note = f" {made['note']}" if made["note"] else ""
    return "\n".join([
        "# Serving, side by side", "", quiet.mark([made["quiet"]]), "",
        f"{made['processor']}, {made['cores']} cores, {made['threads']} threads for each server; guidellm runs beside them. {made['when']}, "
        f"medians of {len(rounds)} rounds.{note}", "",
        f"`{made['model']}`, {made['parameters'] / 1e6:.0f}M parameters: prompts of {made['prompt']} tokens, answers of {made['answer']}, "
        f"{made['requests']} requests at each concurrency, greedy, ends ignored, caches of prompts off.", "",
        "Versions: " + ", ".join(f"{k} {v}" for k, v in made["versions"].items()) + ".", "",
        f"In brackets: how many times as good {names[0]} is, the median and the quartiles over rounds; below 1 the other is ahead.", "",
        line(head), line(["---"] * len(head)), *map(line, lines), "",
    ])


if __name__ == "__main__":
    source = Path(sys.argv[1])
    source.with_suffix(".md").write_text(markdown(json.loads(source.read_text())))
