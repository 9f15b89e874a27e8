"""Reviews: what a component is, whether it may run, and who signed it. The program does it; here are its answers.

A component is a path, the name of a bundled patch, or a `PatchSpec` (whose settings are used, and whose sha256 must be
met).
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ._program import ask, option
from .errors import Findings, Refused, UsageError
from .spec import PatchSpec, Setting

Component = PatchSpec | str | os.PathLike[str]
Path = str | os.PathLike[str]
Settings = Mapping[str, Setting] | Iterable[tuple[str, Setting]]


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding. `severity` is `error` (it refuses), `warn` or `info`; `where` is empty where it is about the
    whole."""

    id: str
    slug: str
    severity: str
    message: str
    fix: str
    where: str = ""

    def __str__(self) -> str:
        at = f" in {self.where}" if self.where else ""
        return f"{self.id} {self.slug}: {self.message}{at}; fix: {self.fix}"


@dataclass(frozen=True, slots=True)
class AuditReport:
    """What an audit found in one component.

    findings: all of them; errors: those that refuse it. digest: `sha256:…` of its bytes. probe: what it answered, where
    it was asked (`None` without `probe=True`, and where the audit refused it before). json: everything that the program
    says about it (`report`, `verdict`, `notes`, `diff`, `probe`, `interface`).
    """

    component: str
    digest: str
    hooks: tuple[str, ...]
    imports: tuple[str, ...]
    findings: tuple[Finding, ...]
    json: dict[str, Any] = field(repr=False, hash=False)

    @property
    def errors(self) -> tuple[Finding, ...]:
        return tuple(one for one in self.findings if one.severity == "error")

    @property
    def accepted(self) -> bool:
        return not self.errors

    @property
    def probe(self) -> dict[str, Any] | None:
        return self.json.get("probe")

    def raise_for_findings(self) -> AuditReport:
        """Raises `Findings` (with this report in `.report`) where something refuses it; else gives itself."""
        if not self.errors:
            return self
        why = "\n       ".join(str(one) for one in self.errors)
        raise _findings(f"component `{self.component}`", why, self.errors[0].fix, self)


def audit(
    component: Component,
    *,
    probe: bool = False,
    settings: Settings = (),
    policy: Path | None = None,
    lock: Path | None = None,
    diff: Path | None = None,
) -> AuditReport:
    """Says what a component is and what is wrong with it, without running it: imports, code, data, tools, trust.

    probe: also start it, where nothing refuses it, and ask it (golden vectors, properties, bounds).
    settings: what it is asked with, and what the lock must have; those of a `PatchSpec` come first.
    policy, lock: files; by default `patchhost.toml` and `patchhost.lock` in this folder, where they are.
    diff: an older version; what changed since then is in `.json["diff"]`.

    Findings do not raise: see `AuditReport.errors` and `raise_for_findings`. Raises `UsageError` where a file cannot be
    read, and `Refused` where a `PatchSpec` has another sha256.
    """
    spec = PatchSpec.of(component)
    options = option("probe", probe) + _settings(spec, settings) + _trust(policy, lock) + option("diff", diff)
    _, answer = ask(("audit",), options, (spec.component,))
    made = _report(answer["files"][0])
    _meets(spec, made.digest)
    return made


def probe(
    component: Component, *, settings: Settings = (), policy: Path | None = None, lock: Path | None = None
) -> AuditReport:
    """Audits a component, starts it and asks it. What it answered is in `.probe`, what is wrong with it in `.errors`.

    Raises `Findings` where it was refused before it could be asked.
    """
    made = audit(component, probe=True, settings=settings, policy=policy, lock=lock)
    return made if made.probe is not None else made.raise_for_findings()


def lock(
    *components: Component,
    settings: Settings = (),
    policy: Path | None = None,
    lock: Path | None = None,
    note: str | None = None,
    by: str | None = None,
    name: str | None = None,
    limits: Mapping[str, str | int] | None = None,
    allow_downgrade: bool = False,
) -> list[dict[str, Any]]:
    """Audits components and writes them to the lock. Where there is a lock, only what it has is loaded.

    settings: for each of them; those of a `PatchSpec` come first. note, by: that these bytes were reviewed, and by
    whom.
    name: name of the entry, for one component only. limits: its own, for example `{"memory_bytes": "32MiB"}`.

    Gives what was written, for each: `entry`, `changes`, `findings`, `trust`. They are written one after the other:
    where one is refused (`Findings`, `Refused`), those before it stay in the lock.
    """
    if not components or (name is not None and len(components) > 1):
        why = "no component is given" if not components else f"one name is given for {len(components)} components"
        raise UsageError("a lock", why, 'name them: patchhost.lock("X.wasm", note="…", by="…")')
    shared = _trust(policy, lock) + option("note", note) + option("by", by) + option("name", name)
    shared += option("allow-downgrade", allow_downgrade)
    for key, value in (limits or {}).items():
        shared += option("limit", f"{key}={value}")
    specs = [PatchSpec.of(component) for component in components]
    for spec in specs:
        if spec.sha256 is not None:
            audit(spec, settings=settings, policy=policy, lock=lock)
    written = []
    for spec in specs:
        code, answer = ask(("lock",), _settings(spec, settings) + shared, (spec.component,))
        if code:
            _refused(f"locking `{spec.component}`", answer)
        _meets(spec, answer["entry"]["digest"])
        written.append(answer)
    return written


def verify(
    component: Component,
    *,
    signers: Iterable[Path] = (),
    threshold: int | None = None,
    policy: Path | None = None,
    lock: Path | None = None,
) -> dict[str, Any]:
    """Verifies the signatures of a component (in `X.wasm.sig`) against the policy's signers.

    signers: public keys (`ed25519:…`, or files of them) in the place of the policy's. threshold: so many different ones
    must have signed. Gives `digest`, `signed`, `threshold`, `signers`. Raises `Findings` where too few have signed.
    """
    spec = PatchSpec.of(component)
    options = [word for signer in _paths(signers) for word in option("signer", signer)]
    code, answer = ask(("verify",), options + option("threshold", threshold) + _trust(policy, lock), (spec.component,))
    if code:
        _refused(f"the signatures of `{spec.component}`", answer)
    _meets(spec, answer["digest"])
    return dict(answer)


def sign(component: Path, *, key: Path, not_after: Any = None, comment: str | None = None) -> dict[str, Any]:
    """Signs a component: the signature goes to `X.wasm.sig`, beside those of others.

    key: the file of the secret key. not_after: a `datetime.date` or text (`2026-12-31`); it counts until this day ends.
    Gives `digest`, `key` (the public one), `file`, `signatures`.
    """
    options = option("key", key) + option("not-after", not_after) + option("comment", comment)
    return dict(ask(("sign",), options, (PatchSpec.of(component).component,))[1])


def verify_refit(
    model: Path | None = None,
    *components: Component,
    settings: Settings = (),
    policy: Path | None = None,
    lock: Path | None = None,
    locked: bool = False,
) -> dict[str, Any]:
    """Proves in the program's own engine that a refit of a model equals a fresh load, for every combination of layout
    passes.

    model: a Hugging Face folder; `None`: the model that the program carries. settings: as `--set` takes them:
    `KEY`, or `NAME.KEY` where several patches are loaded; those of a `PatchSpec` are used where it is the only one.
    Gives the program's report (`equal`, `combinations`). Raises `Refused` where they differ.
    """
    specs = [PatchSpec.of(component) for component in components]
    if len(specs) > 1 and any(spec.settings for spec in specs):
        why = f"{len(specs)} components are given, and settings of a PatchSpec do not say which patch they belong to"
        raise UsageError("verify_refit", why, 'give them as settings={"fp8_block.profile": "deepseek"}')
    if any(spec.sha256 for spec in specs) and not all(spec.sha256 for spec in specs):
        why = "some components have a sha256 and some have none; they belong together by their order"
        raise UsageError("verify_refit", why, "give all of them, or none")
    options = _trust(policy, lock) + option("locked", locked)
    for spec in specs:
        options += option("component", spec.component) + option("sha256", spec.sha256)
    options += _settings(specs[0] if len(specs) == 1 else None, settings)
    code, answer = ask(("verify-refit",), options, () if model is None else _paths((model,)))
    if code:
        _refused(f"the refit of `{model or 'the bundled model'}`", answer)
    return dict(answer)


def _trust(policy: Path | None, lock: Path | None) -> list[str]:
    return option("policy", policy) + option("lock", lock)


def _paths(paths: Iterable[Path]) -> list[str]:
    if isinstance(paths, (str, os.PathLike)):
        raise UsageError("a list of paths", f"it is one path, {os.fspath(paths)!r:.100}", "give a list: [path]")
    return [os.fsdecode(path) for path in paths]


def _settings(spec: PatchSpec | None, more: Settings) -> list[str]:
    own = spec.settings if spec else ()
    added = PatchSpec("settings", settings=more).settings
    merged = {**dict(own), **dict(added)}
    return [word for key, value in merged.items() for word in option("set", f"{key}={value}")]


def _meets(spec: PatchSpec, digest: str) -> None:
    found = digest.removeprefix("sha256:")
    if spec.sha256 is not None and found != spec.sha256:
        why = f"its bytes have sha256 {found}, and {spec.sha256} is demanded"
        raise Refused(f"component `{spec.component}`", why, "use the file that was reviewed, or review this one")


def _report(one: dict[str, Any]) -> AuditReport:
    report = one["report"]
    names = {"id", "slug", "severity", "message", "fix", "where"}
    findings = tuple(Finding(**{k: str(v) for k, v in f.items() if k in names}) for f in report["findings"])
    return AuditReport(
        component=one["file"],
        digest=report["digest"],
        hooks=tuple(report.get("hooks") or ()),
        imports=tuple(str(i) for i in report.get("imports") or ()),
        findings=findings,
        json=one,
    )


def _findings(what: str, why: str, next: str, report: Any) -> Findings:
    error = Findings(what, why, next)
    error.report = report
    return error


def _refused(what: str, answer: Any) -> None:
    """The verb printed what it found, and no error beside it."""
    listed = answer.get("findings") if isinstance(answer, dict) else None
    errors = [f for f in listed or [] if f.get("severity") == "error"]
    why = "\n       ".join(f"{f.get('id')} {f.get('slug')}: {f.get('message')}" for f in errors)
    next_ = errors[0].get("fix") if errors else None
    raise _findings(what, why or "the report says no", next_ or "read the report: the error's .report", answer)
