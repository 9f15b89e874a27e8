"""Reviews are the program's answers: reports, locks, signatures and ledgers as objects, refusals as exceptions."""

import os
import pathlib
import pickle
import shutil
import stat
import sys

import pytest

from patchhost import AuditReport, Findings, HostError, Ledger, PatchSpec, Refused, UsageError, _program, review

ROOT = pathlib.Path(__file__).parents[2]
GOOD = ROOT / "guests" / "fp8_block.wasm"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """An empty folder: no policy and no lock is found by chance."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(GOOD, tmp_path / "X.wasm")
    return tmp_path


def three_parts(error):
    assert error.what and error.why and error.next
    return str(error)


def test_an_audit():
    report = review.audit("fp8_block")
    assert isinstance(report, AuditReport) and report.accepted and not report.errors and report.probe is None
    assert report.hooks == ("block-quant",) and report.imports == () and report.digest.startswith("sha256:")
    assert report.raise_for_findings() is report and report.json["report"]["size"] > 0
    assert {one.severity for one in report.findings} <= {"info", "warn", "error"} and str(report.findings[0])
    assert review.audit(pathlib.Path("X.wasm")).digest == report.digest
    assert pickle.loads(pickle.dumps(report)) == report
    asked = review.probe(PatchSpec("fp8_block", settings={"profile": "deepseek"}))
    assert asked.accepted and asked.probe["profile"] == "deepseek"


def test_findings_are_raised_on_demand():
    bad = ROOT / "guests" / "evil" / "any_wasi.wasm"
    report = review.audit(bad)
    assert report.errors and not report.accepted
    with pytest.raises(Findings) as caught:
        report.raise_for_findings()
    assert caught.value.report is report and report.errors[0].id in three_parts(caught.value)
    assert pickle.loads(pickle.dumps(caught.value)).report == report
    with pytest.raises(Findings):
        review.probe(bad)


@pytest.mark.parametrize("content", [b"", b"root:x:0:0:root:/root:/bin/sh\n", b"\0asm\1\0\0\0"])
def test_what_is_no_component_is_an_error_of_the_report(content):
    with open("passwd", "wb") as file:
        file.write(content)
    report = review.audit("passwd")
    assert not report.accepted and report.errors[0].id == "PH001" and report.errors[0].fix
    with pytest.raises(Findings, match="PH001"):
        report.raise_for_findings()


def test_what_a_spec_demands_is_met():
    digest = review.audit("X.wasm").digest
    assert review.audit(PatchSpec("X.wasm", digest)).digest == digest
    for call in (review.audit, review.lock):
        with pytest.raises(Refused, match="0000") as caught:
            call(PatchSpec("X.wasm", "0" * 64))
        three_parts(caught.value)
    assert not os.path.exists("patchhost.lock")


def test_files_that_cannot_be_read():
    with pytest.raises(UsageError) as caught:
        review.audit("nothing.wasm")
    assert "nothing.wasm" in three_parts(caught.value)
    with pytest.raises(UsageError):
        review.audit("X.wasm", policy="no.toml")
    with pytest.raises(UsageError):
        review.audit("X\0.wasm")


@pytest.mark.parametrize("name", ["-X.wasm", "--rules", "a b;touch pwned $(touch pwned).wasm", "é ü.wasm"])
def test_a_path_is_never_an_option_or_a_command(name):
    shutil.copy(GOOD, name)
    assert review.audit(name).component and review.audit(name).hooks == ("block-quant",)
    assert review.lock(name, name="entry", note="--help", by="-x")[0]["entry"]["review"]["note"] == "--help"
    assert not os.path.exists("pwned")


def test_a_lock():
    written = review.lock("X.wasm", settings={"profile": "deepseek"}, note="read", by="me")
    assert written[0]["entry"]["digest"] == review.audit("X.wasm", settings={"profile": "deepseek"}).digest
    assert os.path.exists("patchhost.lock")
    two = review.lock("fp8_block", PatchSpec("moe_loader"), lock="other.lock")
    assert [one["entry"]["name"] for one in two] == ["fp8_block", "moe_loader"]
    with pytest.raises(UsageError):
        review.lock()
    with pytest.raises(UsageError):
        review.lock("X.wasm", "fp8_block", name="one")
    with pytest.raises(Refused) as caught:
        review.lock(ROOT / "guests" / "evil" / "any_wasi.wasm")
    three_parts(caught.value)


def test_signatures():
    _program.ask(("keygen",), ("--out=me.key",))
    _program.ask(("keygen",), ("--out=other.key",))
    signed = review.sign("X.wasm", key="me.key", comment="-- looked at it")
    assert signed["signatures"] == 1 and os.path.exists("X.wasm.sig")
    assert review.verify("X.wasm", signers=["me.key.pub"])["good"]
    with pytest.raises(Refused) as caught:
        review.verify("X.wasm", signers=["other.key.pub"])
    three_parts(caught.value)
    with pytest.raises(UsageError):
        review.verify("X.wasm")
    with pytest.raises(UsageError, match="list"):
        review.verify("X.wasm", signers="me.key.pub")


def test_a_refit_is_verified():
    assert review.verify_refit(None, PatchSpec("fp8_block", settings={"profile": "deepseek"}))["equal"]
    with pytest.raises(UsageError):
        review.verify_refit("no-such-model")


def test_a_ledger(folder):
    train = ("--steps=1", "--ledger=run.jsonl", "--threads=1", "--component=fp8_block")
    _program.ask(("train",), train)
    ledger = Ledger("run.jsonl")
    records = ledger.records()
    assert [record["seq"] for record in records] == list(range(len(records))) and "run.jsonl" in repr(ledger)
    assert ledger.records(event="refit") and len(ledger.records(last=1)) == 1 and ledger.records(last=0) == []
    good = ledger.verify()
    assert good["records"] == len(records) and ledger.verify(head=good["head"]["hash"])["head"] == good["head"]
    with pytest.raises(Refused) as caught:
        ledger.verify(head="0" * 64)
    three_parts(caught.value)
    text = (folder / "run.jsonl").read_text()
    (folder / "run.jsonl").write_text(text.replace('"train"', '"brain"', 1))
    with pytest.raises(Refused, match="seq"):
        ledger.verify()
    assert len(ledger.records()) == len(records)
    with pytest.raises(UsageError):
        Ledger("nothing.jsonl").records()
    for wrong in (-1, True, "3"):
        with pytest.raises(UsageError):
            ledger.records(last=wrong)
    with pytest.raises(UsageError):
        Ledger("")


def script(path, text):
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_the_program_is_the_one_of_this_version(folder, monkeypatch):
    monkeypatch.setenv("PATH", str(folder))
    script(folder / "patchhost", "print('patchhost 0.0.1')")
    for name, word in [("nothing", "not that program"), ("patchhost", "0.0.1")]:
        monkeypatch.setenv("PATCHHOST_PROGRAM", str(folder / name))
        monkeypatch.setattr(_program, "_found", {})
        with pytest.raises(HostError) as caught:
            review.audit("X.wasm")
        assert word in three_parts(caught.value)
    monkeypatch.delenv("PATCHHOST_PROGRAM")
    monkeypatch.setattr(_program, "_places", lambda: iter([str(folder / "patchhost")]))
    with pytest.raises(HostError, match=r"is 0\.0\.1"):
        _program.find()
    assert _program.find_or_none() is None


@pytest.mark.parametrize(
    ("code", "said", "cls"),
    [
        (1, '{"error": "text", "exit": 1, "what": "a", "why": "b", "next": "c"}', "Refused"),
        (1, '{"error": "text", "exit": 1}', "Refused"),
        (3, '{"error": "text", "exit": 3, "what": "a", "why": "b", "next": "c"}', "PatchError"),
        (4, "", "HostError"),
        (2, "", "UsageError"),
        (101, "", "InternalError"),
        (0, "no json", "InternalError"),
    ],
)
def test_exits_become_errors(folder, monkeypatch, code, said, cls):
    path = script(folder / "fake", f"import sys\nprint({said!r})\nsys.stderr.write('error: words')\nsys.exit({code})")
    monkeypatch.setattr(_program, "find", lambda: path)
    with pytest.raises(_program.Error) as caught:
        _program.ask(("audit",))
    assert type(caught.value).__name__ == cls
    three_parts(caught.value)
    if '"what"' in said:
        assert (caught.value.what, caught.value.why, caught.value.next) == ("a", "b", "c")
    elif said.startswith("{"):
        assert caught.value.what == "text"
