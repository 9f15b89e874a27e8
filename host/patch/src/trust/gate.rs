//! The gate that every component of a user's run goes through, whoever brings it: revocations, digest, signatures, lock.
//! What comes out carries the limits and grants that a reviewer bound to these bytes and settings.

use super::judge::Judgement;
use super::{LOCK_FILE, LockFile, Policy, REVOKED_FILE, Revocation, Revocations, TrustError, TrustPolicy};
use crate::audit::{AuditOptions, AuditPolicy, Severity};
use crate::base::Digest;
use crate::patch::{Admission, Admitted, Candidate, Limits, StageError, Terms};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// Policy, lock, signatures and revocations together. The lock and the revocations are read whenever something is
/// admitted, so that `patchhost lock` and `patchhost revoke` hold for a running host without a restart; the policy is
/// read once. Without a policy and a lock everything is admitted, with nothing granted.
#[derive(Debug)]
pub struct Gate {
    pub(super) policy: TrustPolicy,
    pub(super) policy_digest: Digest,
    pub(super) limits: Limits,
    audit: AuditPolicy,
    pub(super) places: Places,
    /// A lock was there once, or is asked for: from then on there must be one.
    locked: AtomicBool,
    now: fn() -> SystemTime,
}

/// Where things lie.
#[derive(Debug, Clone, Default)]
pub struct Places {
    /// The policy file, where somebody named it.
    pub policy: Option<PathBuf>,
    /// The lock file, whether it is there or not; none: none is looked for.
    pub lock: Option<PathBuf>,
    /// Somebody named the lock file on the command line.
    pub lock_named: bool,
    /// The file of revocations, whether it is there or not.
    pub revocations: Option<PathBuf>,
    /// A folder of further signatures.
    pub signatures: Option<PathBuf>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(&Policy::default(), Places::default())
    }
}

impl Places {
    /// Relative to the folder of the policy file, or to the working directory where there is none. `lock`: as somebody
    /// named it.
    pub fn of(policy: &TrustPolicy, policy_file: Option<&Path>, lock: Option<&Path>) -> Self {
        let base = policy_file.and_then(Path::parent).filter(|parent| !parent.as_os_str().is_empty());
        let below = |path: &Path| base.map_or_else(|| path.to_path_buf(), |base| base.join(path));
        let or = |path: &Option<PathBuf>, name: &str| below(path.as_deref().unwrap_or(Path::new(name)));
        Self {
            policy: None,
            lock: Some(lock.map_or_else(|| or(&policy.lock, LOCK_FILE), Path::to_path_buf)),
            lock_named: lock.is_some(),
            revocations: Some(or(&policy.revocations, REVOKED_FILE)),
            signatures: policy.signatures.as_deref().map(below),
        }
    }
}

impl Gate {
    /// A gate. Nothing is read yet.
    pub fn new(policy: &Policy, places: Places) -> Self {
        Self {
            policy: policy.trust.clone(),
            policy_digest: policy.digest(),
            limits: policy.limits.clone(),
            audit: policy.audit.clone(),
            locked: AtomicBool::new(places.lock_named || policy.trust.require_lock),
            places,
            now: SystemTime::now,
        }
    }

    /// A gate for the verbs that write the lock: there need be none yet.
    pub fn for_writing(policy: &Policy, places: Places) -> Self {
        Self { locked: AtomicBool::new(false), ..Self::new(policy, places) }
    }

    /// The same at another time.
    #[must_use]
    pub fn at(self, now: fn() -> SystemTime) -> Self {
        Self { now, ..self }
    }

    /// From here on there must be a lock.
    pub fn require_lock(&self) {
        self.locked.store(true, Ordering::Release);
    }

    /// What somebody should know about the lock, although it holds.
    pub fn remark(&self) -> Option<String> {
        let (lock, _) = self.state().ok()?.lock?;
        lock.is_unsealed().then(|| {
            let path = self.places.lock.as_deref().unwrap_or(Path::new(LOCK_FILE));
            let what = crate::base::file::shown("lock file", path);
            format!(
                "{what} was written by patchhost 0.1: it has no seals, so a review note changed by hand or a missing file of \
                 revocations is not noticed; the next `patchhost lock`, `grant` or `revoke` seals it"
            )
        })
    }

    /// Changes the lock: only with the revocations that it knows, and it knows those that there are afterwards.
    pub fn update_lock<T>(&self, change: impl FnOnce(&mut LockFile) -> Result<T, TrustError>) -> Result<T, TrustError> {
        LockFile::update(self.lock_path(), |lock| {
            let path = self.revocations_path();
            let all = Revocations::read(&path)?.all;
            not_lifted(lock, &all, &path)?;
            let result = change(lock)?;
            lock.knows(&all);
            Ok(result)
        })
    }

    /// Takes the file of revocations as it stands for what the lock knows: somebody lifted one on purpose. Gives how many
    /// there are; none: there is no lock.
    pub fn accept_revocations(&self) -> Result<Option<usize>, TrustError> {
        if LockFile::read(self.lock_path())?.is_none() {
            return Ok(None);
        }
        LockFile::update(self.lock_path(), |lock| {
            let all = Revocations::read(&self.revocations_path())?.all;
            lock.knows(&all);
            Ok(Some(all.len()))
        })
    }

    /// Reads lock and revocations, so that what is wrong with them is said before anything is loaded.
    pub fn check(&self) -> Result<(), TrustError> {
        self.state().map(|_| ())
    }

    /// Whether components must be in a lock.
    pub fn is_locked(&self) -> bool {
        self.locked.load(Ordering::Acquire)
    }

    /// What an audit is made with, where nothing is granted.
    pub fn audit_options(&self) -> AuditOptions {
        AuditOptions { policy: self.audit.clone(), ..AuditOptions::default() }
    }

    /// The limits of patches that have none of their own.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Everything that can be said about a candidate: for reports. `settings`: none: whatever the lock has.
    pub fn judge(&self, candidate: &Candidate, settings: Option<&[(String, String)]>) -> Result<Judgement, TrustError> {
        Ok(self.judge_in(&self.state()?, candidate, settings))
    }

    pub(super) fn now(&self) -> SystemTime {
        (self.now)()
    }

    /// What stands in the files now.
    pub(super) fn state(&self) -> Result<State, TrustError> {
        // The lock first: a revocation that comes meanwhile is one more than the lock knows, never one less.
        let lock = match &self.places.lock {
            None => None,
            Some(path) => LockFile::read(path)?,
        };
        let mut revoked = self.policy.revoked.clone();
        if let Some(path) = &self.places.revocations {
            let file = Revocations::read(path)?.all;
            if let Some((lock, _)) = &lock {
                not_lifted(lock, &file, path)?;
            }
            revoked.extend(file);
        }
        if lock.is_some() {
            self.require_lock();
        } else if self.is_locked() {
            return Err(self.no_lock());
        }
        Ok(State { lock, revoked })
    }

    fn no_lock(&self) -> TrustError {
        let path = self.places.lock.as_deref().unwrap_or(Path::new(LOCK_FILE));
        TrustError::refused(
            crate::base::file::shown("lock file", path),
            "only locked patches may be loaded here (--locked, --lock, require_lock, or it was there before), and there is no such file",
            "lock each patch with `patchhost lock X.wasm`, or bring the file back",
        )
    }
}

/// Refuses revocations that are fewer or others than the lock knows: a file that is gone would lift them all without a word.
pub(super) fn not_lifted(lock: &LockFile, all: &[Revocation], path: &Path) -> Result<(), TrustError> {
    match lock.lifted(all) {
        None => Ok(()),
        Some(why) => Err(TrustError::refused(
            crate::base::file::shown("revocations", path),
            why,
            "restore the file from your version control; or, if a revocation is lifted on purpose, say so: \
             `patchhost lock --accept-revocations`",
        )),
    }
}

/// What stood in the files.
#[derive(Debug)]
pub(super) struct State {
    pub lock: Option<(LockFile, Digest)>,
    pub revoked: Vec<Revocation>,
}

fn refused(candidate: &Candidate, error: &TrustError) -> StageError {
    let why = format!("{}: {}", error.what, error.why);
    StageError::Trust { name: candidate.name().to_owned(), why, next: error.next.clone() }
}

impl Admission for Gate {
    /// Refused where it is revoked, where its digest is another one than asked for, and where policy, lock or signatures
    /// say no. What is let in has the settings, limits and grants that the lock binds to these bytes, and must become the
    /// generation that was locked.
    fn admit(&self, candidate: Candidate, terms: &Terms) -> Result<Admitted, StageError> {
        let state = self.state().map_err(|error| refused(&candidate, &error))?;
        // A revocation comes before everything else: no other word counts for these bytes.
        if let Some(finding) = super::judge::revoked_digest(candidate.digest(), &state.revoked) {
            let why = finding.line();
            return Err(StageError::Trust { name: candidate.name().to_owned(), why, next: finding.fix });
        }
        let judgement = self.judge_in(&state, &candidate, Some(&terms.settings));
        let verified = candidate.verify(terms.sha256)?;
        let name = verified.candidate().name().to_owned();
        let errors: Vec<_> = judgement.findings.iter().filter(|f| f.severity == Severity::Error).collect();
        if let Some(first) = errors.first() {
            let why = errors.iter().map(|finding| finding.line()).collect::<Vec<_>>().join("\n       ");
            let next = first.fix.replace("X.wasm", &crate::base::quoted(name.as_ref()));
            return Err(StageError::Trust { name, why, next });
        }
        let Judgement { findings, entry, limits, grants, facts, .. } = judgement;
        // Where the lock has it, the lock says what it may use and reach.
        let free = entry.is_none();
        let limits = terms.limits.clone().filter(|_| free).unwrap_or(limits);
        let grants = terms.grants.clone().filter(|_| free).unwrap_or(grants);
        let audit = AuditOptions { policy: self.audit.clone(), grants, more: findings };
        let vet = move |generation: &Digest| {
            let refused = super::judge::revoked_digest(generation, &state.revoked).or_else(|| {
                // Only if the lock lists other imports than the bytes have: the other parts were compared before.
                let entry = entry.as_ref().filter(|entry| entry.generation != *generation)?;
                Some(super::judge::other_generation(entry, generation))
            });
            match refused {
                None => Ok(()),
                Some(finding) => Err(StageError::Trust { name: name.clone(), why: finding.line(), next: finding.fix }),
            }
        };
        let settings = terms.settings.clone();
        Ok(Admitted::new(verified, audit, settings, limits, facts, Some(Box::new(vet))))
    }
}
