//! Writing a decision down: audit and start a component, and put what was found and decided into the lock.

use super::gate::State;
use super::lock::{AuditRecord, Change, Entry, Review, Setting, changes, config_digest};
use super::{Gate, Judgement, LOCK_FILE, TrustError, limits};
use crate::audit::trust_rules::{DOWNGRADE, found};
use crate::audit::{AuditOptions, Severity};
use crate::base::{Code, Day, Digest, Dir, Exit, Grants, VERSION, Wasi, text::clean};
use crate::patch::{Audited, Candidate, Limits, Patch, Reviewing, Sandbox, StageError, Terms};
use patchhost_runtime::error::Refusal;
use semver::Version;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// How often a lock that others write too is tried.
const TRIES: usize = 32;

/// What a reviewer decided about a component.
#[derive(Debug, Clone, Default)]
pub struct Decision {
    /// Name of the entry; none: the stem of the file.
    pub name: Option<String>,
    /// Its settings; none: those of the entry for the same bytes.
    pub settings: Option<Vec<(String, String)>>,
    /// `NAME=NUMBER`; the others stay as the entry for the same bytes has them, or are the policy's.
    pub limits: Vec<String>,
    /// What changes about its grants.
    pub grants: GrantChange,
    /// Who reviewed it, and what he says.
    pub review: Option<(String, String)>,
    /// A lower version than the entry's is meant.
    pub allow_downgrade: bool,
    /// The entry's bytes must be these: `grant` accepts no new ones.
    pub same_bytes: bool,
}

/// What changes about grants. They belong to the bytes: for new ones everything begins at nothing.
#[derive(Debug, Clone, Default)]
pub struct GrantChange {
    /// Take everything back first.
    pub none: bool,
    /// WASI with nothing behind it.
    pub inert: bool,
    /// Folders of the host that the component may see.
    pub dirs: Vec<Dir>,
    /// Names of environment variables that the component may read.
    pub env: Vec<String>,
    /// Whether the component gets the real clocks.
    pub clocks: bool,
    /// Whether the component gets real random numbers.
    pub random: bool,
}

/// What was written.
#[derive(Debug)]
pub struct Recorded {
    pub entry: Entry,
    /// What it has that the one before had not.
    pub changes: Vec<Change>,
    /// There was no lock before: from here on only locked patches are loaded.
    pub began: bool,
    /// Lock and signatures.
    pub judgement: Judgement,
    /// Warnings and notes of the audit.
    pub findings: Vec<crate::audit::Finding>,
}

/// Nothing was written.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The component did not pass a stage.
    #[error(transparent)]
    Stage(#[from] StageError),
    /// The lock, or an argument.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

impl Exit for RecordError {
    fn exit(&self) -> Code {
        match self {
            Self::Stage(e) => e.exit(),
            Self::Trust(e) => e.exit(),
        }
    }

    fn parts(&self) -> Refusal {
        match self {
            Self::Stage(e) => e.parts(),
            Self::Trust(e) => e.parts(),
        }
    }
}

impl GrantChange {
    fn apply(&self, before: Grants) -> Grants {
        let mut wasi = before.wasi.filter(|_| !self.none);
        let Self { dirs, env, clocks, random, inert, .. } = self;
        if *inert || !dirs.is_empty() || !env.is_empty() || *clocks || *random {
            let wasi = wasi.get_or_insert_with(Wasi::default);
            for dir in dirs {
                wasi.dirs.retain(|old| old.guest != dir.guest);
                wasi.dirs.push(dir.clone());
            }
            for name in env {
                if !wasi.env.contains(name) {
                    wasi.env.push(name.clone());
                }
            }
            wasi.clocks |= clocks;
            wasi.random |= random;
        }
        Grants { wasi }
    }

    fn is_nothing(&self) -> bool {
        !self.none && self.apply(Grants::default()).is_none()
    }
}

impl Gate {
    /// The lock file that this gate reads and writes.
    pub fn lock_path(&self) -> &Path {
        self.places.lock.as_deref().unwrap_or(Path::new(LOCK_FILE))
    }

    /// Audits and starts a component as decided, and writes its entry.
    pub fn record(
        &self,
        read: &dyn Fn() -> Result<Candidate, StageError>,
        decision: &Decision,
        sandbox: &Sandbox,
    ) -> Result<Recorded, RecordError> {
        for _ in 0..TRIES {
            let state = self.state()?;
            let candidate = read()?;
            let name = decision.name.clone().unwrap_or_else(|| candidate.stem());
            let old = state.lock.as_ref().and_then(|(lock, _)| lock.get(&name)).cloned();
            let (entry, judgement, findings) = self.make(&state, candidate, &name, old.as_ref(), decision, sandbox)?;
            let put = self.update_lock(|lock| {
                // Somebody else may have decided about it meanwhile: then everything is looked at again.
                let unchanged = lock.get(&name) == old.as_ref();
                if unchanged {
                    lock.put(entry.clone());
                }
                Ok(unchanged)
            })?;
            if put {
                let (changes, began) = (changes(old.as_ref(), &entry), state.lock.is_none());
                return Ok(Recorded { entry, changes, began, judgement, findings });
            }
        }
        let what = crate::base::file::shown("lock file", self.lock_path());
        let why = format!("others changed the same entry {TRIES} times meanwhile");
        Err(TrustError::refused(what, why, "try again when they are done").into())
    }

    fn make(
        &self,
        state: &State,
        candidate: Candidate,
        name: &str,
        old: Option<&Entry>,
        decision: &Decision,
        sandbox: &Sandbox,
    ) -> Result<(Entry, Judgement, Vec<crate::audit::Finding>), RecordError> {
        if name.is_empty() || clean(name, 120) != name {
            let why = "a name is 1 to 120 printable characters";
            return Err(TrustError::usage(format!("name `{}`", clean(name, 120)), why, "give a plain --name").into());
        }
        let digest = *candidate.digest();
        if decision.same_bytes
            && let Some(old) = old.filter(|old| old.digest != digest || !old.is_untouched())
        {
            let why = match old.digest == digest {
                true => "its entry was changed by hand".to_owned(),
                false => {
                    format!("grants belong to the bytes: the lock has it with {}, the file is {digest}", old.digest)
                }
            };
            let next = self.accept(&candidate, &old.pairs(), None);
            return Err(TrustError::refused(format!("grant to `{}`", clean(name, 120)), why, next).into());
        }
        // What somebody changed by hand is nothing to build on.
        let same = old.filter(|old| old.digest == digest && old.is_untouched());
        let (own, limits_set) = self.limits_of(same, &decision.limits)?;
        let grants = decision.grants.apply(same.map(|old| old.grants.clone()).unwrap_or_default());
        let settings = match &decision.settings {
            Some(settings) => settings.clone(),
            None => same.map(Entry::pairs).unwrap_or_default(),
        };
        let file = self.file_of(&candidate);
        let size = candidate.bytes().len() as u64;
        let terms =
            Terms { limits: Some(own.clone()), grants: Some(grants.clone()), ..Terms::settings(settings.clone()) };
        let (audited, judgement) = self.vet(state, candidate, &terms)?;
        let report = audited.report().clone();
        let generation = audited.generation();
        if let Some(finding) = super::judge::revoked_digest(&generation, &state.revoked) {
            return Err(StageError::Trust { name: name.to_owned(), why: finding.line(), next: finding.fix }.into());
        }
        let patch = audited.compile(sandbox)?.ready()?;
        let version = clean(&patch.info().version, 60);
        no_downgrade(name, old, &version, decision)?;
        let entry = Entry {
            name: name.to_owned(),
            file,
            digest,
            size,
            generation,
            config: config_digest(&settings),
            seal: None,
            version,
            interface: VERSION.to_owned(),
            hooks: hooks(&patch),
            imports: report.imports.clone(),
            features: report.facts.proposals.keys().map(|name| (*name).to_owned()).collect(),
            settings: settings.into_iter().map(|(key, value)| Setting(key, value)).collect(),
            policy: self.policy_digest,
            limits_set,
            limits: own,
            grants,
            audit: AuditRecord::of(&report),
            review: self.review_of(decision, same, &digest),
            signatures: judgement.signatures.clone(),
        };
        Ok((entry.sealed(), judgement, report.findings))
    }

    /// Revocations and signatures as for every component, and the audit with these grants; the lock is not asked, since what
    /// it will say is being decided: the component is let in for review.
    fn vet(&self, state: &State, candidate: Candidate, terms: &Terms) -> Result<(Audited, Judgement), StageError> {
        let alone = State { lock: None, revoked: state.revoked.clone() };
        let mut judgement = self.judge_in(&alone, &candidate, None);
        let bad: Vec<_> = judgement.findings.iter().filter(|f| f.severity == Severity::Error).collect();
        if let Some(first) = bad.first() {
            let why = bad.iter().map(|finding| finding.line()).collect::<Vec<_>>().join("\n       ");
            return Err(StageError::Trust { name: candidate.name().to_owned(), why, next: first.fix.clone() });
        }
        let digest = *candidate.digest();
        judgement.signatures.retain(|signature| signature.digest == digest);
        let audit = AuditOptions { more: judgement.findings.clone(), ..self.audit_options() };
        Ok((candidate.admit(&Reviewing { audit }, terms)?.audit()?, judgement))
    }

    fn limits_of(&self, same: Option<&Entry>, given: &[String]) -> Result<(Limits, Vec<String>), TrustError> {
        let mut names = same.map(|old| old.limits_set.clone()).unwrap_or_default();
        let mut own =
            same.map_or_else(|| self.limits.clone(), |old| limits::with_own(&self.limits, &old.limits, &names));
        for text in given {
            let set = limits::set(&mut own, text);
            let name = set.map_err(|why| {
                TrustError::usage(
                    format!("--limit {}", clean(text, 80)),
                    why,
                    "write for example --limit memory_bytes=32MiB",
                )
            })?;
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.sort();
        Ok((own, names))
    }

    fn review_of(&self, decision: &Decision, same: Option<&Entry>, digest: &Digest) -> Option<Review> {
        let new = decision.review.as_ref().map(|(who, note)| Review {
            who: clean(who, 120),
            date: Day::of(self.now()),
            note: clean(note, 1_000),
            digest: *digest,
        });
        // A review is about bytes; for the same bytes the old one stays.
        new.or_else(|| same.and_then(|old| old.review.clone()))
    }

    /// How the lock names a file: relative to itself where the file lies below.
    fn file_of(&self, candidate: &Candidate) -> String {
        let Some(path) = candidate.path() else { return candidate.name().to_owned() };
        let absolute = |path: &Path| std::path::absolute(path).unwrap_or_else(|_| path.to_path_buf());
        let lock = absolute(self.lock_path());
        let base = lock.parent().map(PathBuf::from).unwrap_or_default();
        let path = absolute(path);
        path.strip_prefix(&base).unwrap_or(&path).display().to_string()
    }
}

fn hooks(patch: &Arc<Patch>) -> Vec<String> {
    patch.hooks().iter().map(|hook| hook.name().to_owned()).collect()
}

fn no_downgrade(name: &str, old: Option<&Entry>, version: &str, decision: &Decision) -> Result<(), StageError> {
    let Some(old) = old.filter(|_| !decision.allow_downgrade) else { return Ok(()) };
    let (Ok(before), Ok(now)) = (Version::parse(&old.version), Version::parse(version)) else { return Ok(()) };
    if now >= before {
        return Ok(());
    }
    let finding =
        found(&DOWNGRADE, format!("{now} < {before}, which the lock has"), "if it is meant, add --allow-downgrade");
    Err(StageError::Trust { name: name.to_owned(), why: finding.line(), next: finding.fix })
}

impl Decision {
    /// Nothing is decided but that somebody reviewed it.
    pub fn only_review(&self) -> bool {
        self.review.is_some() && self.settings.is_none() && self.limits.is_empty() && self.grants.is_nothing()
    }
}
