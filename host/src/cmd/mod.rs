//! The command line: one file per verb.

#[macro_use]
mod output;

mod admin_client;
mod args;
mod audit;
mod compare;
mod explain;
mod export;
mod failure;
mod grant;
mod keygen;
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
mod serve;
mod session;
mod sign;
mod startup;
mod status;
mod swap;
mod train;
mod trust_args;
mod verify;
mod verify_refit;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub use failure::{EXIT_HOST, EXIT_PATCH, EXIT_REFUSED, EXIT_USAGE};

const EXIT_CODES: &str = "Exit codes: 0 good; 1 refused (by policy, audit, digest or coverage); 2 usage or unreadable \
input; 3 a patch failed; 4 the host failed.\nPATCHHOST_LOG=info (or debug, off) sets what is logged to standard error; only errors by default.\n\
PATCHHOST_CACHE=DIR (or off) says where compiled components are kept; by default in $XDG_CACHE_HOME/patchhost/aot.";

/// Runs inference-engine patches as sandboxed WASI components inside an embedded inference runtime.
#[derive(Debug, Parser)]
#[command(name = "patchhost", version, about, after_help = EXIT_CODES, max_term_width = 110)]
struct Cli {
    #[command(flatten)]
    global: args::Global,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Run(run::Args),
    Serve(Box<serve::Args>),
    Explain(explain::Args),
    Compare(compare::Args),
    Export(export::Args),
    Quantize(quantize::Args),
    Logits(logits::Args),
    Refit(Box<refit::Args>),
    VerifyRefit(verify_refit::Args),
    Swap(swap::Args),
    Rollback(rollback::Args),
    Status(status::Args),
    Train(Box<train::Args>),
    Patches(patches::Args),
    Log(log::Args),
    Audit(audit::Args),
    Lock(Box<lock::Args>),
    Grant(Box<grant::Args>),
    Revoke(revoke::Args),
    Keygen(keygen::Args),
    Sign(sign::Args),
    Verify(verify::Args),
    Rebuild(rebuild::Args),
    Replay(replay::Args),
}

impl Verb {
    /// Whether it works for others until it is told to stop: then nobody who hangs up, on standard output or on a
    /// connection, may end it, as SIGPIPE would.
    fn stays(&self) -> bool {
        matches!(self, Verb::Serve(_) | Verb::Train(_))
    }
}

/// Parses the command line, runs the verb and turns its error into the exit code.
pub fn main() -> ExitCode {
    let startup = startup::Startup::begin();
    if let Some(code) = crate::sandbox::trial::child().or_else(crate::isolate::child) {
        return code;
    }
    let cli = Cli::parse();
    if !cli.verb.stays() {
        // `patchhost audit X.wasm | head` ends quietly, as other programs do.
        sigpipe::reset();
    }
    let filter = tracing_subscriber::EnvFilter::try_from_env("PATCHHOST_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    if let Some(threads) = cli.global.threads {
        // Fails only if the pool exists already, which nothing before this line can have caused.
        let _ = rayon::ThreadPoolBuilder::new().num_threads(threads).build_global();
    }
    let (format, sarif) = match cli.global.format {
        args::AnyFormat::Text => (args::Format::Text, false),
        args::AnyFormat::Json => (args::Format::Json, false),
        args::AnyFormat::Sarif => (args::Format::Text, true),
    };
    if sarif && !matches!(cli.verb, Verb::Audit(_)) {
        let error = failure::UsageError::new("--format sarif", "only `audit` writes SARIF", "use --format json");
        return failure::report(&error.into(), format);
    }
    let result = match cli.verb {
        Verb::Run(args) => run::run(args, format, &startup),
        Verb::Serve(args) => serve::run(*args, format),
        Verb::Explain(args) => explain::run(args, format),
        Verb::Compare(args) => compare::run(args, format),
        Verb::Export(args) => export::run(args, format),
        Verb::Quantize(args) => quantize::run(args, format),
        Verb::Logits(args) => logits::run(args, format),
        Verb::Refit(args) => refit::run(&args, format),
        Verb::Swap(args) => swap::run(args, format),
        Verb::Rollback(args) => rollback::run(args, format),
        Verb::Status(args) => status::run(args, format),
        Verb::Train(args) => train::run(*args, format),
        Verb::Patches(args) => patches::run(args, format),
        Verb::Log(args) => log::run(args, format),
        Verb::Audit(args) => audit::run(args, format, sarif),
        Verb::Lock(args) => lock::run(*args, format),
        Verb::Grant(args) => grant::run(*args, format),
        Verb::Revoke(args) => revoke::run(args, format),
        Verb::Keygen(args) => keygen::run(args, format),
        Verb::Sign(args) => sign::run(args, format),
        Verb::Verify(args) => verify::run(args, format),
        Verb::Rebuild(args) => rebuild::run(args, format),
        Verb::Replay(args) => replay::run(&args, format),
        Verb::VerifyRefit(args) => verify_refit::run(args, format),
    };
    match result.and_then(|()| output::complete()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => failure::report(&e, format),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        super::Cli::command().debug_assert();
    }
}
