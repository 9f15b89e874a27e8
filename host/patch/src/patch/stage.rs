//! Admitted → Audited → Compiled → Patch. Every step consumes the one before, so the order cannot be broken: the bytes that
//! were audited are the bytes that are compiled, and settings, limits and grants are those that were let in.

use super::live::Home;
use super::{Candidate, Facts, Origin, Patch, Site, StageError};
use crate::abi::{Guest, linker_for};
use crate::audit::Report;
use crate::base::{Digest, Grants, Hook, Wasi, text};
use crate::isolate::{NotStarted, Remote};
use crate::sandbox::{Fault, Granted, Limits, State};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use wasmtime::component::InstancePre;

const SETTINGS: usize = 64;
const SETTING_BYTES: usize = 4 << 10;

/// What a patch runs with, as it was let in.
#[derive(Debug, Clone)]
pub(super) struct With {
    pub(super) settings: Vec<(String, String)>,
    pub(super) limits: Limits,
    pub(super) grants: Grants,
}

/// Bytes that no rule forbids, let in by somebody.
#[derive(Debug, Clone)]
pub struct Audited {
    candidate: Candidate,
    report: Report,
    with: With,
    facts: Facts,
}

impl Audited {
    pub(super) fn new(
        candidate: Candidate,
        report: Report,
        grants: Grants,
        settings: Vec<(String, String)>,
        limits: Limits,
        facts: Facts,
    ) -> Self {
        Self { candidate, report, with: With { settings, limits, grants }, facts }
    }

    /// The same, where WASI reaches nothing.
    pub(super) fn with_nothing_behind_wasi(mut self) -> Self {
        if let Some(wasi) = &mut self.with.grants.wasi {
            *wasi = Wasi::default();
        }
        self
    }

    /// Name or path, as messages show it.
    pub fn name(&self) -> &str {
        self.candidate.name()
    }

    /// What the audit found.
    pub fn report(&self) -> &Report {
        &self.report
    }

    /// The hooks that the component exports.
    pub fn hooks(&self) -> &[Hook] {
        &self.report.hooks
    }

    /// What it may reach.
    pub fn grants(&self) -> &Grants {
        &self.with.grants
    }

    /// What it may use.
    pub fn limits(&self) -> &Limits {
        &self.with.limits
    }

    /// Who vouches for it.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Digest of what would run, known before anything is compiled.
    pub fn generation(&self) -> Digest {
        let With { settings, limits, grants } = &self.with;
        super::live::generation(self.candidate.digest(), settings, limits, &granted(&self.report.imports, grants))
    }

    /// Compiles the audited bytes (or finds them compiled in the sandbox's cache), and links them. A panic of the compiler
    /// is an error like any other.
    pub fn compile(self, site: impl Into<Site>) -> Result<Compiled, StageError> {
        let site = site.into();
        let Self { candidate, report, with, .. } = self;
        if site.isolation().is_some() {
            return Ok(Compiled { candidate, report, with, code: Code::Elsewhere, site });
        }
        let compiled = catch_unwind(AssertUnwindSafe(|| {
            let (sandbox, trusted) = (site.sandbox(), candidate.origin() == Origin::Bundled);
            let component = sandbox.component(candidate.bytes(), candidate.digest().as_bytes(), trusted)?;
            linker_for(sandbox, &component, &with.grants)?.instantiate_pre(&component)
        }));
        let why = match compiled {
            Ok(Ok(pre)) => {
                return Ok(Compiled { candidate, report, with, code: Code::Here(pre), site });
            }
            Ok(Err(error)) => text::clean(&format!("{error:#}"), 512),
            Err(_) => "the compiler panicked; the host is unharmed".to_owned(),
        };
        Err(StageError::Compile { name: candidate.name().to_owned(), why })
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
    with: With,
    code: Code,
    site: Site,
}

impl Compiled {
    /// Starts it: instantiate, `describe`, `configure`. The exports were compared with the interface by the audit.
    pub fn ready(self) -> Result<Arc<Patch>, StageError> {
        let Self { candidate, report, with, code, site } = self;
        let (name, digest) = (candidate.name().to_owned(), *candidate.digest());
        let With { settings, limits, grants } = &with;
        check_settings(settings).map_err(|why| StageError::Settings { name: name.clone(), why })?;
        let hooks = &report.hooks;
        let fault = |fault: Fault| StageError::Start {
            name: name.clone(),
            call: fault.function.name(),
            cause: fault.cause,
            why: fault.why,
        };
        let state = report.has_state();
        let home = match (code, site.isolation().cloned()) {
            (Code::Here(pre), _) => {
                let granted = Granted::open(grants)
                    .map_err(|e| StageError::Grants { name: name.clone(), why: text::clean(&e.to_string(), 400) })?;
                let sandbox = site.sandbox().clone();
                let guest = Guest::start(sandbox, pre, hooks, state, settings.clone(), limits.clone(), granted);
                Home::Here(Arc::new(guest.map_err(fault)?))
            }
            (Code::Elsewhere, Some(isolation)) => {
                let bytes = candidate.bytes();
                let started =
                    Remote::start(isolation, bytes, *digest.as_bytes(), hooks, state, settings, limits, grants);
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
        Ok(Arc::new(Patch::new(home, digest, &report, with, &site)))
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
