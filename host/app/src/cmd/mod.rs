//! The command line: one file per verb, and here the table of them.

#[macro_use]
mod output;

mod admin_client;
mod args;
mod audit;
mod compare;
mod environment;
mod explain;
mod export;
mod failure;
mod grant;
mod help;
mod keygen;
#[cfg(any(feature = "serve", feature = "train"))]
mod live;
mod lock;
mod log;
mod logits;
mod lora;
mod patches;
mod quantize;
mod rebuild;
mod record;
mod refit;
mod replay;
mod revoke;
mod rollback;
mod run;
#[cfg(feature = "serve")]
mod serve;
mod session;
mod sign;
mod staging;
mod startup;
mod status;
mod swap;
#[cfg(feature = "train")]
mod train;
mod trust_args;
mod verify;
mod verify_engine;
mod verify_refit;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, FromArgMatches, Parser, Subcommand};

use failure::{Failure, Result, UsageError};

const ABOUT: &str = "Runs inference-engine patches as sandboxed, audited, digest-pinned WASI components inside an embedded inference runtime";

const EXIT_CODES: &str = "Exit codes: 0 good; 1 refused (by policy, audit, digest or coverage); 2 usage or unreadable \
input; 3 a patch failed; 4 the host failed.\nPATCHHOST_LOG=info (or debug, off) sets what is logged to standard error; only errors by default.\n\
PATCHHOST_CACHE=DIR (or off) says where compiled components are kept; by default in $XDG_CACHE_HOME/patchhost/aot.";

/// Runs inference-engine patches as sandboxed WASI components inside an embedded inference runtime.
#[derive(Debug, Parser)]
#[command(name = "patchhost", version, about = ABOUT, after_help = EXIT_CODES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: args::Global,
    #[command(subcommand)]
    verb: Verb,
}

/// What a verb is told besides its own arguments.
struct Call {
    format: args::Format,
    /// `--format sarif`: only verbs with this trait in the table get it.
    sarif: bool,
    /// A clock that runs since `main`.
    startup: startup::Startup,
}

/// What is special about a verb.
#[derive(Debug, Clone, Copy, Default)]
struct Traits {
    /// It works for others until it is told to stop: then nobody who hangs up, on standard output or on a connection,
    /// may end it, as SIGPIPE would.
    stays: bool,
    /// It can answer in SARIF.
    sarif: bool,
}

/// Makes, out of the table of verbs, the enum that clap parses into, the call of each verb's `run`, its traits, and the
/// groups of `--help`. A row is `Variant = module (traits)`, behind the feature that
/// it needs; the module has `Args` and `run(Args, &Call) -> Result`, and
/// its name is the verb's, with `-` for `_`.
macro_rules! verbs {
    ($($group:literal: [$($(#[$when:meta])? $verb:ident = $room:ident $(($($special:ident),+))?),+ $(,)?])+) => {
        #[derive(Debug, Subcommand)]
        enum Verb {
            $($($(#[$when])? $verb(Box<$room::Args>),)+)+
        }

        impl Verb {
            fn traits(&self) -> Traits {
                match self {
                    $($($(#[$when])? Self::$verb(_) => Traits { $($($special: true,)+)? ..Traits::default() },)+)+
                }
            }

            fn run(self, call: &Call) -> Result {
                match self {
                    $($($(#[$when])? Self::$verb(args) => $room::run(*args, call),)+)+
                }
            }
        }

        /// The groups of `--help`, with the modules of their verbs.
        const GROUPS: &[(&str, &[&str])] = &[$(($group, &[$($(#[$when])? stringify!($room)),+])),+];
    };
}

verbs! {
    "Run": [
        Run = run,
        #[cfg(feature = "serve")]
        Serve = serve (stays),
        #[cfg(feature = "train")]
        Train = train (stays),
        Logits = logits,
    ]
    "Refit and export": [
        Refit = refit,
        VerifyRefit = verify_refit,
        VerifyEngine = verify_engine,
        Explain = explain,
        Compare = compare,
        Quantize = quantize,
        Export = export,
    ]
    "Live": [
        Status = status,
        Swap = swap,
        Rollback = rollback,
        Log = log,
    ]
    "Review and trust": [
        Patches = patches,
        Audit = audit (sarif),
        Lock = lock,
        Grant = grant,
        Revoke = revoke,
        Verify = verify,
        Replay = replay,
    ]
    "Author": [
        Keygen = keygen,
        Sign = sign,
        Rebuild = rebuild,
    ]
}

/// The whole command line as clap has it, with every verb and its arguments.
#[doc(hidden)]
pub fn command() -> clap::Command {
    help::grouped(Cli::command(), GROUPS)
}

/// Most files that are asked for.
#[cfg(target_os = "linux")]
const OPEN_FILES: u64 = 65_536;

/// Files of weights stay open while they are served from, and connections come beside them: more than the 1,024 files that a
/// process begins with on most systems.
#[cfg(target_os = "linux")]
fn raise_open_files() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(OPEN_FILES, |most| most.min(OPEN_FILES));
    if current.is_some_and(|now| now < wanted) {
        // Not allowed: it stays as it is, and a file that cannot be opened says so.
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum });
    }
}

#[cfg(not(target_os = "linux"))]
fn raise_open_files() {}

/// Parses the command line, runs the verb and turns its error into the exit code.
pub fn main() -> ExitCode {
    let startup = startup::Startup::begin();
    if let Some(code) = crate::sandbox::trial::child().or_else(crate::isolate::child).or_else(crate::text::child) {
        return code;
    }
    raise_open_files();
    let mut matches = match command().try_get_matches() {
        Ok(matches) => matches,
        // Help and version, which clap takes for errors.
        Err(text) if !text.use_stderr() => {
            output::printed(text.print());
            return output::complete().map_or_else(|lost| lost.report(args::Format::Text), |()| ExitCode::SUCCESS);
        }
        Err(wrong) => wrong.exit(),
    };
    let Cli { global, verb } =
        Cli::from_arg_matches_mut(&mut matches).unwrap_or_else(|error| error.format(&mut command()).exit());
    let traits = verb.traits();
    if !traits.stays {
        // `patchhost audit X.wasm | head` ends quietly, as other programs do.
        sigpipe::reset();
    }
    let (format, sarif) = match global.format {
        args::AnyFormat::Text => (args::Format::Text, false),
        args::AnyFormat::Json => (args::Format::Json, false),
        args::AnyFormat::Sarif => (args::Format::Text, true),
    };
    let filter = match environment::check() {
        Ok(filter) => filter,
        Err(error) => return Failure::from(error).report(format),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if let Some(threads) = global.threads {
        // Fails only if the pool exists already, which nothing before this line can have caused.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    if sarif && !traits.sarif {
        let error = UsageError::new("--format sarif", "only `audit` writes SARIF", "use --format json");
        return Failure::from(error).report(format);
    }
    let call = Call { format, sarif, startup };
    if let Err(failure) = verb.run(&call) {
        return failure.report(format);
    }
    // As text in any format: standard output does not take it.
    output::complete().map_or_else(|lost| lost.report(args::Format::Text), |()| ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::{GROUPS, command};

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_verb_stands_once_in_the_help_under_its_group() {
        let help = command().render_help().to_string();
        let mut place = 0;
        let mut listed = 0;
        for (group, verbs) in GROUPS {
            let heading = help[place..].find(&format!("\n{group}:\n")).map(|at| place + at);
            place = heading.unwrap_or_else(|| panic!("no heading {group} after byte {place} of\n{help}"));
            for verb in verbs.iter().map(|room| room.replace('_', "-")) {
                let line = format!("\n  {verb} ");
                assert_eq!(help.matches(&line).count(), 1, "{verb} in\n{help}");
                place = help[place..].find(&line).map(|at| place + at).unwrap_or_else(|| panic!("{verb} in\n{help}"));
                listed += 1;
            }
        }
        assert_eq!(listed, command().get_subcommands().count(), "{help}");
    }
}
