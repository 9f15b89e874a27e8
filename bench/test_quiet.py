"""The decision whether a machine is quiet. Needs pytest and nothing else: `python -m pytest bench`."""

import os
import subprocess
import sys
import time

import pytest

import quiet

QUIET = quiet.Seen(load=0.1, load_own=0.0, others=0.01, steal=0.0, arithmetic=1.03, memory=1.10)


def changed(**what):
    return quiet.Seen(**{**vars(QUIET), **what})


def test_a_quiet_machine_has_no_reasons():
    assert QUIET.reasons() == []


@pytest.mark.parametrize("what, word", [
    ({"load": 1.5}, "load average of one minute is 1.50 (limit 0.50)"),
    ({"others": 0.9}, "other processes used 0.90 cores (limit 0.10)"),
    ({"steal": 0.2}, "took 0.20 cores away (limit 0.05)"),
    ({"arithmetic": 1.6}, "arithmetic has a 90th percentile of 1.60 times its 10th (limit 1.25)"),
    ({"memory": 2.0}, "memory has a 90th percentile of 2.00 times its 10th (limit 1.50)"),
])
def test_each_sign_is_a_reason_with_its_number_and_limit(what, word):
    reasons = changed(**what).reasons()
    assert len(reasons) == 1 and word in reasons[0]


def test_our_own_load_is_no_reason():
    assert changed(load=2.0, load_own=1.9).reasons() == []
    assert changed(load=3.5, load_own=1.9, during=True).reasons()
    # While we measure, the explanation is less exact, and the limit wider.
    assert changed(load=2.7, load_own=1.9).reasons()
    assert changed(load=2.7, load_own=1.9, during=True).reasons() == []


def test_a_refusal_says_what_why_and_next():
    lines = quiet.refusal(changed(load=3.0, others=1.0)).split("\n")
    assert lines[0].startswith("error: nothing was measured")
    assert lines[1].strip().startswith("why: the load average of one minute is 3.00") and "1.00 cores" in lines[1]
    assert lines[2].strip().startswith("next: ") and "--busy" in lines[2] and "--wait" in lines[2]


def test_a_look_tells_our_own_time_from_that_of_others(monkeypatch):
    """In ten seconds the machine was busy for 15 seconds, 12 of them for us, and half a second was stolen."""
    ticks, now = os.sysconf("SC_CLK_TCK"), [100.0]
    busy, own, stolen = [0.0], [0.0], [0.0]
    monkeypatch.setattr(quiet.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(quiet, "machine_ticks", lambda: (busy[0] * ticks, stolen[0] * ticks))
    monkeypatch.setattr(quiet, "own_ticks", lambda sessions: own[0] * ticks)
    monkeypatch.setattr(quiet.os, "getloadavg", lambda: (1.5, 0, 0))
    watch = quiet.Watch(prober=lambda: (1.01, 1.02, 2.5, 7.0))
    now[0], busy[0], own[0], stolen[0] = 110.0, 15.0, 12.0, 0.5
    seen = watch.look(during=True)
    assert (seen.others, seen.steal, seen.seconds) == (0.3, 0.05, 10.0)
    # Ten seconds of 1.2 cores, in an average of one minute.
    assert seen.load_own == 0.18 and (seen.arithmetic, seen.memory) == (1.01, 1.02)
    now[0], own[0], busy[0] = 700.0, 912.0, 915.0
    watch.restart()
    # 590 seconds of 1.53 cores that nobody looked at, such as starting engines, are known as well.
    assert 1.4 < watch.own_load < 1.6


def watch_of(seen):
    """A watch that sees one thing after the other."""
    watch = quiet.Watch(prober=lambda: (1.0, 1.0, 2.5, 7.0))
    shown = iter(seen)
    watch.look = lambda during=False: next(shown)
    return watch


@pytest.fixture
def no_sleep(monkeypatch):
    monkeypatch.setattr(quiet.time, "sleep", lambda _: None)


def test_a_busy_machine_ends_the_program(no_sleep):
    with pytest.raises(SystemExit, match="nothing was measured"):
        watch_of([changed(load=4.0)]).before()


def test_the_flag_measures_all_the_same(no_sleep):
    assert watch_of([changed(load=4.0)]).before(busy=True).load == 4.0


def test_waiting_ends_as_soon_as_it_is_quiet(no_sleep):
    said = []
    assert watch_of([changed(load=4.0), changed(load=2.0), QUIET]).before(wait=60, say=said.append) == QUIET
    assert len(said) == 2 and "4.00" in said[0]


def test_a_report_of_quiet_rounds_is_a_ground_for_claims():
    made = quiet.record(QUIET, [changed(during=True)] * 3)
    assert not made["busy"] and made["noisy"] == [] and made["why"] == []
    assert quiet.mark([made]).startswith("A quiet machine: 3 rounds")


def test_rounds_that_turn_noisy_halfway_mark_the_report():
    made = quiet.record(QUIET, [QUIET, changed(others=0.8), QUIET])
    assert made["busy"] and made["noisy"] == [2]
    assert made["why"] == ["round 2: other processes used 0.80 cores (limit 0.10)"]
    text = quiet.mark([made])
    assert "MADE ON A BUSY MACHINE" in text and "round 2: other processes used 0.80 cores" in text and "1 noisy." in text


def test_a_busy_start_marks_the_report_though_its_rounds_were_quiet():
    assert quiet.record(changed(load=2.0), [QUIET], flag=True)["busy"]
    # The flag alone marks nothing: the machine may have been quiet.
    assert not quiet.record(QUIET, [QUIET], flag=True)["busy"]


def test_rounds_that_were_measured_again_are_told():
    assert "1 noisy round was measured again" in quiet.mark([quiet.record(QUIET, [QUIET], dropped=[changed(steal=1.0)])])


def test_a_report_without_a_word_is_no_ground_for_claims():
    assert "No ground for claims" in quiet.mark([]) and quiet.busy([])


def test_other_limits():
    limits = quiet.Limits.of(["memory=2.5", "others=1"])
    assert changed(memory=2.0, others=0.9).reasons(limits) == []
    for wrong in ("memory", "speed=1", "memory=much", "memory=nan"):
        with pytest.raises(SystemExit, match="why:"):
            quiet.Limits.of([wrong])


def test_spread():
    assert quiet.percentile(range(1, 11), 0.9) == 9
    # One lucky and one unlucky repetition in twenty do not count.
    assert quiet.spread([0.1, 9.0, 2.0, 2.0, *[1.0] * 16]) == 2.0


def test_the_load_average_is_followed_as_the_kernel_does():
    average = 0.0
    for _ in range(60):
        average = quiet.follow(average, 2.0, 1.0)
    assert 1.2 < average < 1.3
    assert quiet.follow(2.0, 0.0, 600) < 0.01


def test_ticks_of_the_machine():
    assert quiet.machine_ticks("cpu  10 20 30 400 50 6 7 8 0 0\ncpu0 1 2 3\n") == (10 + 20 + 30 + 6 + 7, 8)


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_time_of_workers_is_our_own():
    """A child that works in a session of its own counts as ours while it lives, and after it was waited for."""
    code = "import time\nend = time.process_time() + 0.4\nwhile time.process_time() < end: pass\nprint(flush=True)\ninput()"
    started = quiet.own_ticks(set())
    child = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)
    child.stdout.readline()
    least = 0.3 * os.sysconf("SC_CLK_TCK")
    alive = quiet.own_ticks({child.pid}) - started
    assert alive >= least
    child.communicate(b"\n")
    assert quiet.own_ticks(set()) - started >= alive


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_the_probe_runs_on_every_core():
    started = time.monotonic()
    arithmetic, memory, *middles = quiet.probe(seconds=0.02)
    assert arithmetic >= 1 and memory >= 1 and all(ms > 0 for ms in middles) and time.monotonic() - started < 60
