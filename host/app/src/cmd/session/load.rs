//! From names on the command line to patches that run. What is independent of each other runs at once: components are
//! verified and audited beside the making of the sandbox, then compiled (or read from the cache), then started. For each
//! component the order stays: nothing of it is compiled, and no machine code of it is read, before its audit is through.

use std::sync::Arc;

use rayon::prelude::*;

use super::super::args::PatchArgs;
use super::super::failure::Result;
use super::super::startup::Startup;
use super::settings::Settings;
use super::{DEFAULT_PATCHES, parse_digest, stem};
use crate::base::{Digest, Hook};
use crate::patch::{Audited, Candidate, Compiled, Patch, Site, Terms, resolve};
use crate::trust::Gate;

/// A component that somebody wants.
struct Wanted<'a> {
    /// As it was named.
    name: &'a str,
    expected: Option<Digest>,
    settings: Vec<(String, String)>,
    /// Nobody named it: it is on by default.
    default: bool,
}

/// Machine code of a component, not yet running.
struct Code<'w> {
    wanted: &'w Wanted<'w>,
    compiled: Compiled,
}

/// What all components of a command have in common.
pub(super) struct Loader<'a> {
    pub(super) gate: &'a Gate,
    pub(super) settings: &'a Settings,
    pub(super) startup: &'a Startup,
}

impl Loader<'_> {
    /// The patches, in the order of the command line and then the default ones, and the sandbox they run in. The first
    /// component that is refused, in that order, is the error.
    pub(super) fn load(
        &self,
        args: &PatchArgs,
        more: &[&str],
        site: impl FnOnce() -> Result<Site> + Send,
    ) -> Result<(Vec<Arc<Patch>>, Site)> {
        let wanted = self.wanted(args, more)?;
        let site = || self.startup.within("sandbox", None, site);
        let audit = || -> Vec<_> { wanted.par_iter().with_max_len(1).map(|wanted| self.pass(wanted)).collect() };
        let (site, passed) = rayon::join(site, audit);
        let site = site?;
        for note in passed.iter().flatten().filter_map(|(_, note)| note.as_ref()) {
            errln!("note: {note}");
        }
        let mut taken: Vec<Hook> = Vec::new();
        let mut kept = Vec::new();
        for (wanted, passed) in wanted.iter().zip(passed) {
            let passed = passed.map(|(passed, _)| passed);
            let hooks = passed.as_ref().map(|audited| audited.hooks().to_vec()).unwrap_or_default();
            // A patch that the user names for the same hook takes the default one's place.
            if !(wanted.default && hooks.iter().any(|hook| taken.contains(hook))) {
                taken.extend(hooks);
                kept.push((wanted, passed));
            }
        }
        let compile = |(wanted, passed)| self.compile(wanted, passed?, &site);
        let compiled: Vec<_> = kept.into_par_iter().with_max_len(1).map(compile).collect();
        let start = |compiled: Result<Code<'_>>| self.start(compiled?);
        // A recording numbers the patches as they start.
        let patches: Vec<Result<_>> = match site.witness() {
            Some(_) => compiled.into_iter().map(start).collect(),
            None => compiled.into_par_iter().with_max_len(1).map(start).collect(),
        };
        Ok((patches.into_iter().collect::<Result<_>>()?, site))
    }

    fn wanted<'n>(&self, args: &'n PatchArgs, more: &[&'n str]) -> Result<Vec<Wanted<'n>>> {
        let mut wanted = Vec::new();
        for (i, name) in args.components.iter().enumerate() {
            let expected = args.sha256.get(i).map(|hex| parse_digest(hex)).transpose()?;
            wanted.push(Wanted {
                name,
                expected,
                settings: self.settings.for_patch(&stem(name), true),
                default: false,
            });
        }
        if !args.no_default_patches {
            for name in DEFAULT_PATCHES.iter().chain(more).copied() {
                let settings = self.settings.for_patch(name, false);
                wanted.push(Wanted { name, expected: None, settings, default: true });
            }
        }
        Ok(wanted)
    }

    /// Verifies and audits a component; gives a note too, if there is something that the user may want to know.
    fn pass(&self, wanted: &Wanted<'_>) -> Result<(Audited, Option<String>)> {
        let what = stem(wanted.name);
        let candidate: Candidate = self.startup.within("read", Some(&what), || resolve(wanted.name))?;
        let terms = Terms { sha256: wanted.expected, ..Terms::settings(wanted.settings.iter().cloned()) };
        let admitted = self.startup.within("verify", Some(&what), || candidate.admit(self.gate, &terms))?;
        let note = admitted.note().map(str::to_owned);
        Ok((self.startup.within("audit", Some(&what), || admitted.audit())?, note))
    }

    fn compile<'w>(&self, wanted: &'w Wanted<'w>, audited: Audited, site: &Site) -> Result<Code<'w>> {
        let what = stem(wanted.name);
        let compiled = self.startup.within("machine code", Some(&what), || audited.compile(site))?;
        Ok(Code { wanted, compiled })
    }

    fn start(&self, code: Code<'_>) -> Result<Arc<Patch>> {
        let Code { wanted, compiled } = code;
        let what = stem(wanted.name);
        let patch = self.startup.within("start", Some(&what), || compiled.ready())?;
        tracing::info!(name = %patch.info().name, digest = %patch.digest(), "patch is ready");
        Ok(patch)
    }
}
