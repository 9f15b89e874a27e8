//! `patchhost verify-engine`: does another engine hold the weights that it was sent?

mod handover;
mod own;
mod plan;
mod run;
mod seal;
mod setup;

use super::Call;
use super::failure::{Result, UsageError};
use crate::base::text::clean;

/// Send an engine right and faulty weight updates, and certify which it got right. Exit 0, 1 where one went wrong, 4
/// where the server cannot be reached
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    word: Option<Word>,
    /// The server to try: http://HOST:PORT of vLLM, SGLang or patchhost. Nobody else may use it meanwhile, and its weights
    /// are changed
    #[arg(value_name = "URL")]
    target: Option<String>,
    #[command(flatten)]
    run: run::RunArgs,
}

/// What is done, where it is not a run against a server.
#[derive(Debug, clap::Subcommand)]
enum Word {
    Plan(plan::Args),
    Seal(seal::Args),
    /// Try vLLM in a process of its own, by the kit in Python (python3 -m patchhost.verify vllm)
    Vllm(handover::Args),
    /// Try transformers by the kit in Python (python3 -m patchhost.verify transformers)
    Transformers(handover::Args),
}

/// Runs the verb.
pub fn run(args: Args, call: &Call) -> Result {
    match args.word {
        Some(Word::Plan(args)) => return plan::run(&args, call),
        Some(Word::Seal(args)) => return seal::run(&args, call),
        Some(Word::Vllm(args)) => return handover::run("vllm", args, call),
        Some(Word::Transformers(args)) => return handover::run("transformers", args, call),
        None => {}
    }
    if let Some(target) = args.target.as_deref().filter(|target| !target.contains("://")) {
        let what = format!("verify-engine {}", clean(target, 200));
        let why = "it is neither a URL nor a word of this verb (plan, seal, vllm, transformers)";
        return Err(UsageError::new(what, why, "give the server as http://HOST:PORT").into());
    }
    run::run(&args.run, args.target.as_deref(), call)
}
