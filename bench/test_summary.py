"""The tables that are made of a report's numbers, on numbers made up here."""

import json

import pytest

import pairs
import quiet
import report
import summary

SEEN = quiet.Seen(load=0.1, load_own=0.0, others=0.01, steal=0.0, arithmetic=1.03, memory=1.10)
BUSY = quiet.Seen(load=0.1, load_own=0.0, others=1.50, steal=0.0, arithmetic=1.03, memory=1.10)


def row(engine, values, number=0, **more):
    return {"engine": engine, "peer": "x", "failed": "", "about": {}, "peak": 100 << 20, "large_pages": None, "once": [],
            "set": number, "tokens": None, "values": values, **more}


def made(seen=SEEN, rounds=5):
    """A report in which patchhost is 1.2 times as fast as ggml, reads at half the rate, and decodes at twice llama.cpp's speed."""
    product = lambda factor: {f"{n}x{n} M={m}": [factor * n * m * 1e-6] * rounds for n in (2048, 4096) for m in (1, 8, 64)}
    read = {f"{n}x{n} M=1": [2048e-6 * 0.5] * rounds for n in (2048, 4096)}
    linear = {t: [
        row("patchhost block FP8", product(1.0)), row("ggml Q8_0", product(1.2)), row("torch f32", product(1.5)),
        row("reading, small pages", read), row("reading, large pages", read, large_pages=64 << 20),
    ] for t in ("1", "2")}
    times = lambda factor: {key: [{"prefill_s": factor, "decode_s": factor}] * rounds for key in ("prefill 16", "decode 1", "decode 8")}
    decode = {t: [
        row("patchhost fp8_block (W8A8)", times(1.0)), row("llama.cpp Q8_0", times(2.0)),
        row("vLLM f32", {"prefill 16": "it fell over"}, failed="it fell over"),
    ] for t in ("1", "2")}
    record = {t: quiet.record(SEEN, [seen] * rounds) for t in ("1", "2")}
    part = {"quiet": record, "rounds": rounds, "when": "2026-12-02 03:20 UTC, medians of 5 rounds."}
    return json.loads(json.dumps({
        "processor": "a processor", "cores": 2, "versions": {"patchhost": "abc"},
        "linear": {**part, "results": linear, "bytes_read": 2048 * 2048},
        "decode": {"dense": {**part, "results": decode, "parameters": 197e6, "jobs": {
            "prefill 16": ["prefill", 16], "decode 1": ["decode", 64], "decode 8": ["decode", 256]}}},
    }))


def test_ratios_are_taken_within_rounds_and_sets():
    rows = [row("a", {"k": [1.0, 2.0]}), row("b", {"k": [2.0, 6.0]}), row("a", {"k": [9.0, 9.0]}, 1), row("c", {"k": [9.0, 18.0]}, 1)]
    assert pairs.ratios(rows, "a", "b", "k", pairs.per_second) == [2.0, 3.0]
    assert pairs.ratios(rows, "a", "c", "k", pairs.per_second) == [1.0, 2.0]
    assert pairs.ratios(rows, "a", "none", "k", pairs.per_second) == []
    assert pairs.ratios(rows, "a", "b", "other", pairs.per_second) == []


def test_what_was_measured_once_has_one_ratio():
    rows = [row("a", {"k": [1.0, 2.0, 3.0]}), row("b", {"k": [8.0]}, once=["k"])]
    assert pairs.ratios(rows, "a", "b", "k", pairs.per_second) == [4.0]


def test_the_table():
    lines = summary.text(made()).splitlines()
    assert "| work | 1 thread | 2 threads |" in lines
    assert "| product in block FP8, 1 row, W of 2048², 4096², against ggml Q8_0 | 1.20, 1.20 | 1.20, 1.20 |" in lines
    assert "| the same, 64 rows | 1.20, 1.20 | 1.20, 1.20 |" in lines
    assert "| 64 rows, against torch in f32 | 1.50, 1.50 | 1.50, 1.50 |" in lines
    assert "| block FP8, 1 row, against reading as many bytes on small pages | 0.50, 1.00 | 0.50, 1.00 |" in lines
    assert "| decoding 1 and 8 sequences, dense 197M, against llama.cpp Q8_0 | 2.00, 2.00 | 2.00, 2.00 |" in lines
    assert not any("vLLM" in line for line in lines)
    assert not any("BUSY" in line for line in lines)
    assert "| product in block FP8, 1 row, W of 2048², 4096², against ggml Q8_0 | 1.20 | 1.20 |" in summary.text(made(), short=True)


def test_the_full_report_has_quartiles_and_marks():
    text = report.markdown(made())
    assert "(1.20, 1.20-1.20)" in text and "A quiet machine: 10 rounds" in text and "64 MiB of them large" in text
    assert "0.50 of reading on small pages" in text
    busy = report.markdown(made(BUSY))
    # In the head, and at each table.
    assert busy.count("MADE ON A BUSY MACHINE") == 1 + 2 + 1


def test_a_report_of_before_says_that_nobody_looked():
    old = made()
    for part in (old["linear"], old["decode"]["dense"]):
        del part["quiet"]
    assert "before the noise probe" in report.markdown(old) and "No ground for claims" in summary.text(old)


def test_writing(tmp_path):
    results, target = tmp_path / "R.json", tmp_path / "doc.md"
    results.write_text(json.dumps(made()))
    target.write_text("before\n<!-- peers:begin -->\nold\n<!-- peers:end -->\nbetween\n<!-- peers:begin short -->\n<!-- peers:end -->\nafter\n")
    for _ in range(2):
        summary.main([str(results), "--into", str(target)])
        text = target.read_text()
        assert "old" not in text and text.startswith("before\n") and text.endswith("after\n") and text.count("| work |") == 2
        assert "between" in text and "| 1.20, 1.20 |" in text and "| 1.20 |" in text


@pytest.mark.parametrize("of, why", [(made(BUSY), "other processes used 1.50 cores"), (made(rounds=3), "3 rounds, and claims need 5")])
def test_no_claims_from_a_busy_machine_or_few_rounds(tmp_path, of, why):
    results, target = tmp_path / "R.json", tmp_path / "doc.md"
    results.write_text(json.dumps(of))
    target.write_text("<!-- peers:begin -->\nold\n<!-- peers:end -->\n")
    with pytest.raises(SystemExit) as error:
        summary.main([str(results), "--into", str(target)])
    assert why in str(error.value) and "next:" in str(error.value) and "old" in target.read_text()
    summary.main([str(results), "--into", str(target), "--anyway"])
    assert "old" not in target.read_text()
    assert ("MADE ON A BUSY MACHINE" in target.read_text()) == ("1.50" in why)


def test_a_file_without_marks_is_left_alone(tmp_path):
    results, target = tmp_path / "R.json", tmp_path / "doc.md"
    results.write_text(json.dumps(made()))
    target.write_text("nothing\n")
    with pytest.raises(SystemExit, match="peers:begin"):
        summary.main([str(results), "--into", str(target)])
