//! `patchhost verify-engine`: does another engine hold the weights that it was sent?

mod plan;

use super::Call;
use super::failure::Result;

/// Send an engine right and faulty weight updates, and certify which it got right
#[derive(Debug, clap::Args)]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    word: Option<Word>,
}

/// What is done, where it is not a run against a server.
#[derive(Debug, clap::Subcommand)]
enum Word {
    Plan(plan::Args),
}

pub fn run(args: Args, call: &Call) -> Result {
    match args.word {
        Some(Word::Plan(args)) => plan::run(&args, call),
        None => Ok(()),
    }
}
