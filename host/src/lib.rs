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
///
/// ```
/// let component = patchhost::patch::resolve("fp8_block")?;
/// let report = patchhost::audit::inspect(component.bytes());
/// assert_eq!(report.errors(), 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
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
        Class, CompareError, Only, Pair, State, Subset, TensorRow, Totals, Trainer, Unit, compare_unit, decide, judge,
        layer_of, of_file, of_model, rollout_corr, token_logprobs, totals,
    };
}

/// Patches in child processes.
pub mod isolate {
    #[doc(inline)]
    pub use patchhost_patch::isolate::Isolation;
}

/// A model whose patches change while it runs: refits, swaps, shadow and canary over any refit target.
///
/// ```
/// use patchhost::checkpoint::bundled;
/// use patchhost::live::{LiveModel, LiveOptions};
/// use patchhost::patch::{Actor, Attachments, Description, Ledger, Phase, Reviewing, Rules, Sandbox, Terms, resolve};
/// use patchhost_runtime::engine::{Engine, EngineOptions};
///
/// let (engine, sandbox) = (Engine::new(bundled::CONFIG, EngineOptions::default())?, Sandbox::new(1)?);
/// let mut start = Attachments::new(Description::patchhost(&engine.info().architecture));
/// start.attach(Reviewing::default().start(resolve("moe_loader")?, &Terms::default(), &sandbox)?, Phase::EngineUp)?;
/// let live = LiveModel::new(engine, &start, sandbox, Rules::default(), Ledger::in_memory(), LiveOptions::default())?;
/// let loaded = live.load(bundled::checkpoint()?, &Actor::new("example"), &|_, _, _| {})?;
/// assert_eq!(loaded.refit, 1);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub mod live {
    #[doc(inline)]
    pub use patchhost_app::live::{
        CanaryUnit, LastRefit, Live, LiveError, LiveModel, LiveOptions, LiveStatus, Prepared, Refitted, Seen,
        SettingsFor, ShadowReport, Staged, Staging, StagingStep, SwapOutcome, Swapped, TensorFinding, Update,
        WatchError, Watcher,
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
        Actor, AddressSpaceError, Admission, Admitted, Applicability, AttachError, Attached, Attachments, Attempt,
        Audited, Board, BoardStatus, Cache, CallStats, CanaryUnit, Candidate, Compared, Compiled, Description, Digest,
        Digests, Facts, Failure, Function, Generation, Grants, Handed, Hook, HookOptions, HostIdentity, Info, Ledger,
        LedgerError, LedgerOptions, Limits, Mode, NotADigest, OnFailure, Origin, Patch, PatchSet, Phase, Proved,
        Receipt, ReceiptError, RefitTarget, Requested, Reviewing, Rules, Sandbox, SetError, ShadowPolicy, Site,
        Snapshot, Stage, StageError, SwapError, SwapErrorKind, SwapRequest, Target, TargetError, TensorFinding,
        TensorReceipt, Terms, Trial, Verdict, When, bundled, ledger, resolve,
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

/// What a model folder brings that is text, in child processes: tokenizers tried, chat templates rendered.
#[cfg(any(feature = "cli", feature = "serve", feature = "train", feature = "text"))]
pub mod text {
    #[doc(inline)]
    pub use patchhost_app::text::{Renders, open};
}

/// The trainer in this process.
#[cfg(feature = "train")]
pub mod train {
    #[doc(inline)]
    pub use patchhost_app::train::*;
}

/// Who said that a component may run: policy, lock, signatures, revocations.
///
/// ```
/// use patchhost::patch::{Terms, resolve};
/// use patchhost::trust::{Gate, Places, Policy};
///
/// let policy = Policy::parse("[trust]\nrequire_lock = true\n")?;
/// let gate = Gate::new(&policy, Places::default());
/// let refused = resolve("fp8_block")?.admit(&gate, &Terms::default()).unwrap_err();
/// assert!(refused.to_string().contains("only locked patches may be loaded here"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub mod trust {
    #[doc(inline)]
    pub use patchhost_patch::trust::{
        Gate, LockFile, Places, Policy, PolicyError, PublicKey, Revocations, Revoked, SecretKey, Signatures,
        TrustError, TrustErrorKind,
    };
}
