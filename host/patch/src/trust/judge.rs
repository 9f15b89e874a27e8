//! What policy, signatures and lock say about one candidate.

use super::command::{LockCommand, limit_words};
use super::gate::State;
use super::lock::{Entry, Setting};
use super::verdict::{Judge, Verdict};
use super::{Gate, Revocation, Revoked, Signature, Signatures, Summary, TrustError, limits};
use crate::audit::trust_rules::{BAD_SIGNATURE, DIGEST_MISMATCH, NO_REVIEW, NOT_IN_LOCK, REVOKED, found, found_as};
use crate::audit::{Finding, Severity, inspect};
use crate::base::text::clean;
use crate::base::{Digest, Grants};
use crate::patch::{Candidate, Facts, Limits, Origin};
use std::ffi::OsString;
use std::path::PathBuf;

/// Everything about one candidate.
#[derive(Debug, Clone)]
pub struct Judgement {
    /// PH705 to PH714.
    pub findings: Vec<Finding>,
    /// Lock and signatures in short.
    pub summary: Summary,
    /// What the lock has for these bytes and settings.
    pub entry: Option<Entry>,
    /// What it may use.
    pub limits: Limits,
    /// What it may reach.
    pub grants: Grants,
    /// For the ledger.
    pub facts: Facts,
    /// The signatures that are about these bytes, good or not.
    pub signatures: Vec<Signature>,
}

/// How the lock stands to a candidate.
enum Locked<'a> {
    /// There is no lock.
    NoLock,
    /// It needs none: it comes with the host, and nothing was set.
    Bundled,
    /// The lock has it as it is.
    As(&'a Entry),
    /// It has not.
    No(Finding),
}

/// The finding for a revoked digest.
pub(super) fn revoked_digest(digest: &Digest, revoked: &[Revocation]) -> Option<Finding> {
    let one = revoked.iter().find(|revoked| revoked.what == Revoked::Digest(*digest))?;
    let message = format!("{digest} is revoked: {}", clean(&one.reason, 300));
    Some(found(
        &REVOKED,
        message,
        "use another version; a revocation is lifted only by taking it out of its file by hand",
    ))
}

/// The finding for a component that would run as another generation than the one that was locked.
pub(super) fn other_generation(entry: &Entry, generation: &Digest) -> Finding {
    let name = clean(&entry.name, 80);
    let message = format!("the lock has `{name}` as {}, it would run as {generation}", entry.generation);
    found(&DIGEST_MISMATCH, message, format!("review it, then lock it anew with `patchhost lock`: entry `{name}`"))
}

impl Gate {
    pub(super) fn judge_in(
        &self,
        state: &State,
        candidate: &Candidate,
        settings: Option<&[(String, String)]>,
    ) -> Judgement {
        let digest = candidate.digest();
        let mut findings: Vec<Finding> = revoked_digest(digest, &state.revoked).into_iter().collect();
        let locked = self.locked(state, candidate, settings);
        let signatures = self.signatures(state, candidate, &mut findings);
        let vouched = candidate.origin() == Origin::Bundled;
        let hooks = || inspect(candidate.bytes()).hooks;
        let judge = Judge { policy: &self.policy, revoked: &state.revoked, hooks: &hooks, vouched, now: self.now() };
        let Verdict { good, findings: mut about } = judge.judge(candidate.bytes(), &signatures);
        findings.append(&mut about);
        let entry = match &locked {
            Locked::As(entry) => {
                findings.extend(self.review(entry));
                Some((*entry).clone())
            }
            Locked::No(finding) => {
                findings.push(finding.clone());
                None
            }
            Locked::NoLock | Locked::Bundled => None,
        };
        let lock_state = match &locked {
            Locked::NoLock => super::LockState::NoLock,
            Locked::Bundled => super::LockState::Bundled,
            Locked::As(entry) => super::LockState::Locked { name: entry.name.clone(), generation: entry.generation },
            Locked::No(finding) if finding.id == NOT_IN_LOCK.id => super::LockState::NotInLock,
            Locked::No(_) => super::LockState::Differs,
        };
        let bad = findings
            .iter()
            .any(|f| f.severity == Severity::Error && f.id != NOT_IN_LOCK.id && f.id != DIGEST_MISMATCH.id);
        let summary = Summary {
            lock: lock_state,
            signers: good.iter().map(|signed| signed.name.clone()).collect(),
            signatures: signatures.len(),
            threshold: self.policy.threshold,
            required: self.policy.require_signature && !vouched,
            refused: bad,
        };
        let facts = Facts {
            lock: entry.as_ref().and_then(|_| state.lock.as_ref().map(|(_, digest)| *digest)),
            entry: entry.as_ref().map(|entry| clean(&entry.name, 120)),
            signers: good.iter().map(|signed| clean(&signed.name, 120)).collect(),
        };
        let (limits, grants) = match &entry {
            Some(entry) => (entry.limits.clone(), entry.grants.clone()),
            None => (self.limits.clone(), Grants::default()),
        };
        Judgement { findings, summary, entry, limits, grants, facts, signatures }
    }

    fn locked<'a>(&self, state: &'a State, candidate: &Candidate, settings: Option<&[(String, String)]>) -> Locked<'a> {
        let Some((lock, _)) = &state.lock else { return Locked::NoLock };
        let digest = candidate.digest();
        let stem = candidate.stem();
        let same: Vec<&Entry> = lock.patches.iter().filter(|entry| entry.digest == *digest).collect();
        let fits = |entry: &&&Entry| settings.is_none_or(|settings| entry.pairs() == settings);
        let mut fitting: Vec<&Entry> = same.iter().filter(fits).copied().collect();
        // Of several, which may have other limits, the one that is called like the file.
        fitting.sort_by_key(|entry| entry.name != stem);
        if let Some(entry) = fitting.iter().find(|entry| self.is_as_locked(entry)) {
            return Locked::As(entry);
        }
        if candidate.origin() == Origin::Bundled && settings.is_none_or(<[_]>::is_empty) && fitting.is_empty() {
            return Locked::Bundled;
        }
        let given = settings.unwrap_or_default();
        let name = clean(&stem, 80);
        if let Some(entry) = fitting.first() {
            // The run would be what stands in the lock now, were it as it was locked.
            let message = format!(
                "the lock's entry `{}` is not as it was locked: {}",
                clean(&entry.name, 80),
                self.touched(entry)
            );
            return Locked::No(found(&DIGEST_MISMATCH, message, self.accept(candidate, &entry.pairs(), Some(entry))));
        }
        let nearest = same.iter().find(|entry| entry.name == stem).or(same.first());
        if let Some(entry) = nearest {
            let message = format!(
                "the settings are {}, the lock's entry `{}` has {}",
                settings_text(given),
                clean(&entry.name, 80),
                settings_text(&entry.pairs())
            );
            return Locked::No(found(&DIGEST_MISMATCH, message, self.accept(candidate, given, Some(entry))));
        }
        if let Some(entry) = lock.get(&stem) {
            let message = format!("the lock has `{name}` with {}, the file is {digest}", entry.digest);
            return Locked::No(found(&DIGEST_MISMATCH, message, self.accept(candidate, given, None)));
        }
        let what = if given.is_empty() { String::new() } else { format!(" with {}", settings_text(given)) };
        let message = format!("the lock has no entry for `{name}`, {digest}{what}");
        Locked::No(found(&NOT_IN_LOCK, message, self.accept(candidate, given, None)))
    }

    /// Whether an entry is what somebody locked, and what the policy's limits still are.
    pub(super) fn is_as_locked(&self, entry: &Entry) -> bool {
        entry.is_untouched() && limits::with_own(&self.limits, &entry.limits, &entry.limits_set) == entry.limits
    }

    /// Which part of an entry is not as it was.
    fn touched(&self, entry: &Entry) -> String {
        let policy = limits::with_own(&self.limits, &entry.limits, &entry.limits_set);
        let other = limits::differing(&entry.limits, &policy);
        if let Some(name) = other.first() {
            let value = |limits: &Limits| limits::get(limits, name).unwrap_or_default();
            return format!("limit {name} is {} there, and {} by the policy", value(&entry.limits), value(&policy));
        }
        if super::lock::config_digest(&entry.pairs()) != entry.config {
            return format!("settings {} have another digest than its `config`", settings_text(&entry.pairs()));
        }
        let with = |limits: &Limits, grants: &Grants| Entry {
            limits: limits.clone(),
            grants: grants.clone(),
            ..entry.clone()
        };
        if !entry.grants.is_none() && with(&entry.limits, &Grants::default()).fits() {
            return format!(
                "it was locked without grants, and now has {}",
                clean(&entry.grants.lines().join(", "), 300)
            );
        }
        if entry.fits() {
            return "its `seal` is not that of what stands there: its name, file, versions, audit, review or signatures were \
                    changed by hand"
                .to_owned();
        }
        if with(&self.limits, &entry.grants).fits() {
            return format!(
                "it was locked with the policy's limits, and now has {} of its own",
                clean(&entry.limits_set.join(", "), 300)
            );
        }
        let grants = entry.grants.lines();
        let grants = if grants.is_empty() { "none".to_owned() } else { clean(&grants.join(", "), 300) };
        let own: Vec<String> = entry
            .limits_set
            .iter()
            .filter_map(|name| Some(format!("{name}={}", limits::get(&entry.limits, name)?)))
            .collect();
        let own = if own.is_empty() { "the policy's".to_owned() } else { clean(&own.join(", "), 300) };
        format!(
            "settings, limits ({own}), grants ({grants}) and imports give {}, it says {}",
            entry.identity(),
            entry.generation
        )
    }

    /// The command that accepts a candidate. `like`: with the limits and grants of this entry, which is for the same bytes.
    pub(super) fn accept(&self, candidate: &Candidate, settings: &[(String, String)], like: Option<&Entry>) -> String {
        let component = match (candidate.path(), candidate.origin()) {
            (Some(path), _) => path.as_os_str().to_owned(),
            (None, Origin::Bundled) => candidate.name().into(),
            (None, Origin::User) => format!("{}.wasm", candidate.stem()).into(),
        };
        let stem = candidate.stem();
        let tampered = like.is_some_and(|entry| entry.pairs() == settings);
        let name = like.filter(|entry| tampered && entry.name != stem).map(|entry| entry.name.as_str());
        let places = &self.places;
        let command = LockCommand {
            component,
            name,
            settings,
            limits: like.map(|entry| self.limit_words(entry)).unwrap_or_default(),
            grants: like.map(|entry| &entry.grants),
            lock: places.lock.as_deref().filter(|_| places.lock_named),
            policy: places.policy.as_deref(),
        };
        format!("if it is meant, review it and accept it: {}", command.line())
    }

    /// What the signatures of a candidate are worth, whatever the lock says.
    pub fn signatures_of(&self, candidate: &Candidate) -> Result<Verdict, TrustError> {
        let state = self.state()?;
        let mut findings: Vec<Finding> = revoked_digest(candidate.digest(), &state.revoked).into_iter().collect();
        let signatures = self.signatures(&state, candidate, &mut findings);
        let hooks = || inspect(candidate.bytes()).hooks;
        let judge =
            Judge { policy: &self.policy, revoked: &state.revoked, hooks: &hooks, vouched: false, now: self.now() };
        let mut verdict = judge.judge(candidate.bytes(), &signatures);
        verdict.findings.splice(0..0, findings);
        Ok(verdict)
    }

    /// The limits that a command has to name: of an entry as it was locked its own, else all that are not the policy's.
    fn limit_words(&self, entry: &Entry) -> Vec<(String, String)> {
        let mut words = limit_words(&entry.limits, &self.limits);
        words.retain(|(name, _)| !entry.is_untouched() || entry.limits_set.contains(name));
        words
    }

    /// The signatures about these bytes: beside the file, in the policy's folder, in the lock.
    fn signatures(&self, state: &State, candidate: &Candidate, findings: &mut Vec<Finding>) -> Vec<Signature> {
        let mut places: Vec<PathBuf> = candidate.path().map(Signatures::path_of).into_iter().collect();
        if let Some(folder) = &self.places.signatures {
            places.push(folder.join(format!("{}.sig", candidate.digest().hex())));
            let named = OsString::from(format!("{}.wasm.sig", candidate.stem()));
            // The name came from outside: it must not lead out of the folder.
            places.extend(PathBuf::from(&named).file_name().map(|name| folder.join(name)));
        }
        let mut all: Vec<Signature> = Vec::new();
        for (i, place) in places.iter().enumerate() {
            match Signatures::read(place) {
                // A file of the folder that has only the name in common may be for another version.
                Ok(file) => all.extend(file.all.into_iter().filter(|s| i == 0 || s.digest == *candidate.digest())),
                Err(error) => {
                    let message = format!("{}: {}", error.what, error.why);
                    findings.push(found(&BAD_SIGNATURE, message, error.next));
                }
            }
        }
        let entries = state.lock.iter().flat_map(|(lock, _)| &lock.patches);
        let locked = entries.filter(|entry| entry.digest == *candidate.digest()).flat_map(|entry| &entry.signatures);
        for signature in locked {
            if !all.contains(signature) {
                all.push(signature.clone());
            }
        }
        all
    }

    fn review(&self, entry: &Entry) -> Option<Finding> {
        let severity = if self.policy.require_review { Severity::Error } else { Severity::Info };
        let why = match &entry.review {
            None => "nobody wrote down a review".to_owned(),
            Some(review) if review.digest != entry.digest => {
                format!("the review of {} is about {}", review.date, review.digest)
            }
            Some(review) => {
                let days = self.policy.review_days.filter(|days| review.date.age(self.now()) > *days)?;
                format!("the review of {} is older than {days} days", review.date)
            }
        };
        let fix = "review it, then write it down: `patchhost lock X.wasm --note TEXT`";
        Some(found_as(severity, &NO_REVIEW, why, fix))
    }
}

fn settings_text(settings: &[(String, String)]) -> String {
    if settings.is_empty() {
        return "none".to_owned();
    }
    let all: Vec<String> = settings.iter().map(|(k, v)| Setting(k.clone(), v.clone()).to_string()).collect();
    format!("`{}`", clean(&all.join(" "), 300))
}
