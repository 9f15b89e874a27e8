"""The figures of bench/serving, on requests made up here."""

import pytest

import quiet
import serving_report as report

SEEN = quiet.Seen(load=0.1, load_own=0.0, others=0.01, steal=0.0, arithmetic=1.03, memory=1.10)


def request(start, prompt=128, answer=65):
    """One that waits a tenth of a second for its first token and 10 ms for each further one."""
    timings = {"request_start": start, "first_token_iteration": start + 0.1, "last_token_iteration": start + 0.74, "request_end": start + 0.75}
    return {"input_metrics": {"text_tokens": prompt}, "output_metrics": {"text_tokens": answer}, "info": {"timings": timings}}


def requests(*done, errored=()):
    return {"successful": list(done), "errored": list(errored), "incomplete": []}


def test_figures():
    made = report.figures(requests(request(10.0), request(10.25)), 128, 65, 2)
    assert made["requests"] == 2 and made["requests_per_s"] == pytest.approx(2.0) and made["tokens_per_s"] == pytest.approx(130)
    assert made["ttft_p50"] == pytest.approx(0.1) and made["tpot_p90"] == pytest.approx(0.01)


@pytest.mark.parametrize("run", [
    requests(), requests(request(0.0), errored=[request(0.0)]), requests(request(0.0, prompt=129)), requests(request(0.0, answer=3)),
])
def test_a_run_with_other_requests_than_asked_is_refused(run):
    with pytest.raises(SystemExit, match="next:"):
        report.figures(run, 128, 65, 2)


def test_the_report_has_ratios_in_which_more_is_better_for_us():
    ours = report.figures(requests(request(10.0), request(10.25)), 128, 65, 2)
    theirs = {**ours, "requests_per_s": 1.0, "ttft_p50": 0.2}
    rounds = [{"patchhost": {"8": ours}, "other": {"8": theirs}}] * 3
    text = report.markdown({
        "rounds": rounds, "peak": {"patchhost": 1 << 20, "other": 2 << 20}, "quiet": quiet.record(SEEN, [SEEN] * 3), "processor": "p", "cores": 2,
        "threads": 2, "when": "now", "note": "", "model": "m", "parameters": 1e6, "prompt": 128, "answer": 65, "requests": 2, "versions": {},
    })
    assert "| 8 | other | 1.00 (2.00, 2.00-2.00) |" in text and "200 (2.00, 2.00-2.00)" in text and "A quiet machine" in text
