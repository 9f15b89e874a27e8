//! Candidate → Verified → Audited → Compiled → Patch. Every step consumes the one before, so the order cannot be
//! broken, and the bytes that were audited are the bytes that are compiled.

use super::live::Home;
use super::lock::GuestsLock;
use super::{Patch, StageError};
use crate::abi::{Guest, linker_for};
use crate::audit::{self, AuditOptions, Report};
use crate::base::Digest;
use crate::base::Grants;
use crate::base::{Hook, text};
use crate::isolate::{NotStarted, Remote};
use crate::sandbox::{Fault, Granted, Limits, Sandbox, State};
use std::borrow::Cow;
use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use wasmtime::component::InstancePre;

const SETTINGS: usize = 64;
const SETTING_BYTES: usize = 4 << 10;

/// Where the bytes came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// Inside this binary.
    Bundled,
    /// A file of the user, or bytes from elsewhere.
    User,
}

/// What a digest is compared with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verification {
    /// The lock inside this binary.
    Lock,
    /// The digest that the user gave.
    Sha256(Digest),
    /// Nothing: whoever named the file answers for it.
    Unpinned,
}

/// Bytes, read once.
#[derive(Debug, Clone)]
pub struct Candidate {
    name: String,
    bytes: Cow<'static, [u8]>,
    digest: Digest,
    origin: Origin,
    path: Option<PathBuf>,
}

impl Candidate {
    /// Reads a file, once and bounded.
    pub fn from_file(path: &Path) -> Result<Self, StageError> {
        let name = text::clean(&path.display().to_string(), 200);
        let limit = audit::Caps::default().bytes as u64;
        let mut bytes = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes));
        if let Err(error) = read {
            return Err(StageError::Unreadable { name, error });
        }
        if bytes.len() as u64 > limit {
            let size = std::fs::metadata(path).map_or(bytes.len() as u64, |meta| meta.len());
            return Err(StageError::TooLarge { name, size, limit });
        }
        Ok(Self { path: Some(path.to_path_buf()), ..Self::new(name, bytes.into(), Origin::User) })
    }

    /// Takes bytes from elsewhere.
    pub fn from_bytes(name: &str, bytes: impl Into<Cow<'static, [u8]>>) -> Result<Self, StageError> {
        let (name, bytes) = (text::clean(name, 200), bytes.into());
        let (size, limit) = (bytes.len() as u64, audit::Caps::default().bytes as u64);
        if size > limit {
            return Err(StageError::TooLarge { name, size, limit });
        }
        Ok(Self::new(name, bytes, Origin::User))
    }

    pub(super) fn bundled(name: &str, bytes: &'static [u8]) -> Self {
        Self::new(name.to_owned(), Cow::Borrowed(bytes), Origin::Bundled)
    }

    fn new(name: String, bytes: Cow<'static, [u8]>, origin: Origin) -> Self {
        let digest = Digest::of(&bytes);
        Self { name, bytes, digest, origin, path: None }
    }

    /// Name or path, as messages show it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Digest of the bytes.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Where the bytes came from.
    pub fn origin(&self) -> Origin {
        self.origin
    }

    /// The file that it was read from; none: it came in another way.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The name without folders and `.wasm`: how settings and the lock call it.
    pub fn stem(&self) -> String {
        let stem = Path::new(&self.name).file_stem();
        stem.map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
    }

    /// Whether the bytes end where a section ends: what is still being written mostly does not.
    pub fn is_whole(&self) -> bool {
        wasmparser::Parser::new(0).parse_all(&self.bytes).all(|section| section.is_ok())
    }

    /// How a candidate of this origin is verified where the user says nothing: bundled ones by the lock.
    pub fn default_verification(&self) -> Verification {
        match self.origin {
            Origin::Bundled => Verification::Lock,
            Origin::User => Verification::Unpinned,
        }
    }

    /// Compares the digest.
    pub fn verify(self, verification: &Verification) -> Result<Verified, StageError> {
        let lock = GuestsLock::embedded();
        let found = self.digest;
        let expected = match verification {
            Verification::Unpinned => None,
            Verification::Sha256(expected) => Some((*expected, "`--sha256`")),
            Verification::Lock => {
                let not_locked = |why: String| StageError::NotLocked { name: self.name.clone(), why };
                let lock = lock.as_ref().map_err(|error| not_locked(format!("guests.lock: {error}")))?;
                let entry = lock.get(&self.name);
                let entry = entry.ok_or_else(|| not_locked(format!("guests.lock has no entry `{}`", self.name)))?;
                Some((entry.sha256, "guests.lock"))
            }
        };
        if let Some((expected, pinned_by)) = expected
            && expected != found
        {
            return Err(StageError::DigestMismatch { name: self.name, pinned_by, expected, found });
        }
        let stem = Path::new(&self.name).file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        let bundled = lock.ok().and_then(|lock| lock.get(stem).cloned());
        let note = bundled.filter(|entry| entry.sha256 != found).map(|entry| {
            format!("`{}` has the name of a bundled patch but other bytes (bundled: {})", self.name, entry.sha256)
        });
        Ok(Verified { pinned_by: expected.map(|(_, by)| by), candidate: self, note })
    }
}

/// Bytes that are the ones meant.
#[derive(Debug)]
pub struct Verified {
    candidate: Candidate,
    pinned_by: Option<&'static str>,
    note: Option<String>,
}

impl Verified {
    /// The bytes.
    pub fn candidate(&self) -> &Candidate {
        &self.candidate
    }

    /// The bytes themselves.
    pub fn bytes(&self) -> &[u8] {
        &self.candidate.bytes
    }

    /// What pinned the digest, if anything did.
    pub fn pinned_by(&self) -> Option<&'static str> {
        self.pinned_by
    }

    /// Something that the user may want to know and that is not wrong.
    pub fn note(&self) -> Option<&str> {
        self.note.as_deref()
    }

    /// Applies the rules of `patchhost audit`, with nothing granted.
    pub fn audit(self) -> Result<Audited, StageError> {
        self.audit_with(&AuditOptions::default())
    }

    /// Applies the rules of `patchhost audit`. What is granted there is what the component gets.
    pub fn audit_with(self, options: &AuditOptions) -> Result<Audited, StageError> {
        let report = audit::inspect_with(&self.candidate.bytes, options);
        if report.errors() > 0 {
            return Err(StageError::Audit { name: self.candidate.name, report: Box::new(report) });
        }
        Ok(Audited { candidate: self.candidate, report, grants: options.grants.clone() })
    }
}

/// Bytes that no rule forbids.
#[derive(Debug, Clone)]
pub struct Audited {
    candidate: Candidate,
    report: Report,
    grants: Grants,
}

impl Audited {
    /// Name or path, as messages show it.
    pub fn name(&self) -> &str {
        &self.candidate.name
    }

    /// What the audit found.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The hooks that the component exports.
    pub fn hooks(&self) -> &[Hook] {
        &self.report.hooks
    }

    /// Digest of what would run with these settings and limits, before anything is compiled.
    pub fn generation(&self, settings: &[(String, String)], limits: &Limits) -> Digest {
        super::live::generation(&self.candidate.digest, settings, limits, &granted(&self.report.imports, &self.grants))
    }

    /// Compiles the audited bytes (or finds them compiled in the sandbox's cache), and links them. A panic of the compiler
    /// is an error like any other.
    pub fn compile(self, sandbox: &Sandbox) -> Result<Compiled, StageError> {
        let Self { candidate, report, grants } = self;
        if sandbox.isolation().is_some() {
            return Ok(Compiled { candidate, report, grants, code: Code::Elsewhere, sandbox: sandbox.clone() });
        }
        let compiled = catch_unwind(AssertUnwindSafe(|| {
            let trusted = candidate.origin == Origin::Bundled;
            let component = sandbox.component(&candidate.bytes, candidate.digest.as_bytes(), trusted)?;
            linker_for(sandbox, &component, &grants)?.instantiate_pre(&component)
        }));
        let why = match compiled {
            Ok(Ok(pre)) => {
                let code = Code::Here(pre);
                return Ok(Compiled { candidate, report, grants, code, sandbox: sandbox.clone() });
            }
            Ok(Err(error)) => text::clean(&format!("{error:#}"), 512),
            Err(_) => "the compiler panicked; the host is unharmed".to_owned(),
        };
        Err(StageError::Compile { name: candidate.name, why })
    }
}

/// Where the machine code is.
enum Code {
    /// In this process, linked.
    Here(InstancePre<State>),
    /// In child processes, which compile it themselves.
    Elsewhere,
}

/// Machine code, linked, not yet running.
pub struct Compiled {
    candidate: Candidate,
    report: Report,
    grants: Grants,
    code: Code,
    sandbox: Sandbox,
}

impl Compiled {
    /// Starts it: instantiate, `describe`, `configure`. The exports were compared with the interface by the audit.
    pub fn ready(self, settings: &[(String, String)], limits: Limits) -> Result<Arc<Patch>, StageError> {
        let Self { candidate: Candidate { name, digest, bytes, .. }, report, grants, code, sandbox } = self;
        check_settings(settings).map_err(|why| StageError::Settings { name: name.clone(), why })?;
        let hooks = &report.hooks;
        let fault = |fault: Fault| StageError::Start {
            name: name.clone(),
            call: fault.function.name(),
            cause: fault.cause,
            why: fault.why,
        };
        let state = report.has_state();
        let recorder = sandbox.recorder().cloned();
        let guest = match (code, sandbox.isolation().cloned()) {
            (Code::Here(pre), _) => {
                let granted = Granted::open(&grants)
                    .map_err(|e| StageError::Grants { name: name.clone(), why: text::clean(&e.to_string(), 400) })?;
                let guest = Guest::start(sandbox, pre, hooks, state, settings.to_vec(), limits.clone(), granted);
                Home::Here(Arc::new(guest.map_err(fault)?))
            }
            (Code::Elsewhere, Some(isolation)) => {
                let started =
                    Remote::start(isolation, &bytes, *digest.as_bytes(), hooks, state, settings, &limits, &grants);
                Home::Child(Arc::new(started.map_err(|error| match error {
                    NotStarted::Fault(f) => fault(f),
                    NotStarted::NotCompiled(why) => StageError::Compile { name: name.clone(), why },
                })?))
            }
            (Code::Elsewhere, None) => {
                let why = "it was to run in a child process, and there are none".to_owned();
                return Err(StageError::Compile { name, why });
            }
        };
        Ok(Arc::new(Patch::new(guest, digest, &report, grants, settings, &limits, recorder.as_ref())))
    }
}

/// What it may reach: interfaces of the host, and grants.
pub(super) fn granted(imports: &[String], grants: &Grants) -> Vec<String> {
    let interfaces = imports.iter().filter(|name| !name.starts_with("wasi:"));
    interfaces.cloned().chain(grants.lines()).collect()
}

/// `identity.configure`: at most 64 pairs of at most 4 KiB.
fn check_settings(settings: &[(String, String)]) -> Result<(), String> {
    if settings.len() > SETTINGS {
        return Err(format!("{} settings; the interface allows {SETTINGS}", settings.len()));
    }
    match settings.iter().find(|(key, value)| key.len() + value.len() > SETTING_BYTES) {
        Some((key, value)) => {
            let bytes = key.len() + value.len();
            Err(format!("setting `{}` has {bytes} bytes; the interface allows {SETTING_BYTES}", text::clean(key, 64)))
        }
        None => Ok(()),
    }
}
