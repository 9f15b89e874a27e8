//! patchhost: patches for inference engines as sandboxed, audited, digest-pinned components.
//!
//! This is the list of what the library is for others; everything else is private. `ARCHITECTURE.md` has the picture.
//!
//! ```
//! use patchhost::patch::{Reviewing, Sandbox, Terms, resolve};
//!
//! // Bytes → admitted → audited → compiled → a patch that answers. A run loads by its gate (`trust::Gate`) instead.
//! let fp8 = Reviewing::default().start(resolve("fp8_block")?, &Terms::default(), Sandbox::new(1)?)?;
//! assert_eq!(fp8.info().name, "fp8_block");
//! assert!(fp8.block_quant().is_some());
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

/// Static review of a component: what `patchhost audit` finds without running it.
pub mod audit {
    #[doc(inline)]
    pub use patchhost_patch::audit::{
        AuditOptions, AuditPolicy, Caps, Facts, Finding, Level, Report, Severity, catalogue, diff, inspect,
        inspect_with,
    };
}

/// Words that everything else uses: digests, hooks, grants, exit codes.
pub mod base {
    #[doc(inline)]
    pub use patchhost_patch::base::{Code, Digest, Dir, DirMode, Exit, Function, Grants, Hook, Wasi};
}

/// The bundled model, safetensors files, versions and deltas of weights, exports for other engines.
pub mod checkpoint {
    #[doc(inline)]
    pub use patchhost_app::checkpoint::{bundled, export, versions, write};
}

/// The command line.
#[cfg(feature = "cli")]
pub mod cmd {
    #[doc(inline)]
    pub use patchhost_app::cmd::{command, main};
}

/// Two quantizations of one model, compared: bits, effects, verl's rollout metrics.
pub mod compare {
    #[doc(inline)]
    pub use patchhost_app::compare::{
        Class, CompareError, Only, State, Subset, TensorRow, Totals, Trainer, Unit, compare_unit, decide, layer_of,
        of_file, of_model, rollout_corr, token_logprobs, totals,
    };
}

/// Patches in child processes.
pub mod isolate {
    #[doc(inline)]
    pub use patchhost_patch::isolate::Isolation;
}

/// A model whose patches change while it runs: refits, swaps, shadow and canary over any refit target.
pub mod live {
    #[doc(inline)]
    pub use patchhost_app::live::{
        CanaryUnit, LastRefit, Live, LiveError, LiveModel, LiveOptions, LiveStatus, Refitted, Seen, SettingsFor,
        ShadowReport, Staged, SwapOutcome, Swapped, TensorFinding, Update, WatchError, Watcher,
    };
}

/// What the host itself answers.
pub mod native {
    #[doc(inline)]
    pub use patchhost_patch::native::Formulas;
}

/// The life of a patch: candidate, admission, audit, code, patch; sets, the board and its ledger.
pub mod patch {
    #[doc(inline)]
    pub use patchhost_patch::patch::{
        Actor, Admission, Admitted, Applicability, AttachError, Attached, Attachments, Attempt, Audited, Board,
        BoardStatus, Cache, CallStats, CanaryUnit, Candidate, Compared, Compiled, Description, Digest, Facts, Failure,
        Function, Generation, Grants, Hook, HookOptions, HostIdentity, Info, Ledger, LedgerError, LedgerOptions,
        Limits, Mode, OnFailure, Origin, Patch, PatchSet, Phase, Proved, Published, RefitTarget, Requested, Reviewing,
        Rules, Sandbox, SetError, ShadowPolicy, Site, Snapshot, Stage, StageError, SwapError, SwapErrorKind,
        SwapRequest, Target, TargetError, TensorFinding, Terms, Trial, Verdict, When, bundled, ledger, resolve,
    };
}

/// Questions to a candidate: golden vectors, properties, bounds.
pub mod probe {
    #[doc(inline)]
    pub use patchhost_app::probe::{Check, ProbeOptions, ProbeReport, Verdict, before_activation, examine, run};
}

/// Recorded calls of patches, and asking them again.
pub mod record {
    #[doc(inline)]
    pub use patchhost_patch::record::{Recorder, Recording, RecordingError, Replay, ReplayReport};
}

/// The HTTP server.
#[cfg(feature = "serve")]
pub mod serve {
    #[doc(inline)]
    pub use patchhost_app::serve::*;
}

/// The trainer in this process.
#[cfg(feature = "train")]
pub mod train {
    #[doc(inline)]
    pub use patchhost_app::train::*;
}

/// Who said that a component may run: policy, lock, signatures, revocations.
pub mod trust {
    #[doc(inline)]
    pub use patchhost_patch::trust::{
        Gate, LockFile, Places, Policy, PolicyError, PublicKey, Revocations, Revoked, SecretKey, Signatures,
        TrustError, TrustErrorKind,
    };
}
