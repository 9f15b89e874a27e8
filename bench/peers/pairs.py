"""Ratios within rounds: what report.py and summary.py have in common."""

import statistics

READING = {"small": "reading, small pages", "large": "reading, large pages"}


def row_of(rows, name):
    """The first row of an engine."""
    return next((r for r in rows if r["engine"] == name), None)


def numbers(row, key):
    """The values of a row's rounds; none if it has none."""
    found = row["values"].get(key) if row else None
    return found if isinstance(found, list) else []


def ratios(rows, ours, theirs, key, speed):
    """Speed of `ours` divided by that of `theirs`, round by round, from a set that both were in. `ours` and `theirs` are names, or
    pairs of a name and another key. Where one was measured once, there is one ratio."""
    (ours, our_key), (theirs, their_key) = (name if isinstance(name, tuple) else (name, key) for name in (ours, theirs))
    there = row_of(rows, theirs)
    here = there and next((r for r in rows if r["engine"] == ours and r["set"] == there["set"]), None)
    mine, other = numbers(here, our_key), numbers(there, their_key)
    if not mine or not other:
        return []
    if our_key in here["once"] or their_key in there["once"] or len(mine) != len(other):
        return [statistics.median(speed(our_key, v) for v in mine) / statistics.median(speed(their_key, v) for v in other)]
    return [speed(our_key, a) / speed(their_key, b) for a, b in zip(mine, other)]


def quartiles(values):
    """First quartile, median, third quartile."""
    if len(values) < 2:
        return values[0], values[0], values[0]
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high


def per_second(_, seconds):
    """Work that takes so long."""
    return 1 / seconds


def matrix(key):
    """Outputs, inputs and rows of a product."""
    return tuple(int(x) for x in key.replace(" M=", "x").split("x"))


def of_reading(part, rows, key, pages, ours="patchhost block FP8"):
    """How much of the read bandwidth a product of one row takes, round by round."""
    n, k, _ = matrix(key)
    return [r * n * k / part["bytes_read"] for r in ratios(rows, ours, READING[pages], key, per_second)]


def rate(found):
    """The speed of a generation: tokens of the job per second of its kind."""
    def speed(key, value):
        per, tokens = found["jobs"][key]
        return tokens / value[f"{per}_s"]

    return speed


def records(made, *paths):
    """What the machine was like in all parts of a report, or in some: ("linear",), ("decode", "dense")."""
    parts = []
    for work in ("quantize", "linear"):
        if work in made and (not paths or (work,) in paths):
            parts.append(made[work])
    for model, part in made.get("decode", {}).items():
        if not paths or ("decode", model) in paths or ("decode",) in paths:
            parts.append(part)
    found = [list(part.get("quiet", {}).values()) for part in parts]
    # A part without a record is one of before.
    return [] if not all(found) else [r for part in found for r in part]
