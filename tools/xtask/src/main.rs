//! Development tasks of patchhost. `cargo xtask guests` builds the patches in `guests/` and locks their bytes.

mod compile;
mod guests;
mod lock;
mod provenance;
mod source;
mod toolchain;

use anyhow::{Context, Result};
use clap::{Parser, Subcommand};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

#[derive(Parser)]
#[command(name = "xtask", about = "Development tasks of patchhost")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Build guests/<name>.wasm and guests/evil/<name>.wasm and write guests/guests.lock
    Guests {
        /// Change nothing: rebuild aside and prove that the committed files are what the sources say
        #[arg(long)]
        check: bool,
        /// Print which tools and sources a build would be made of, as TOML
        #[arg(long, conflicts_with = "check")]
        describe: bool,
        /// Build from nothing into this folder, and change nothing else
        #[arg(long, value_name = "DIR", conflicts_with_all = ["check", "describe"])]
        into: Option<PathBuf>,
    },
}

fn main() -> ExitCode {
    let Args { task: Task::Guests { check, describe, into } } = Args::parse();
    let done = repository().and_then(|root| match into {
        Some(folder) => guests::build_into(&root, &folder),
        None if describe => guests::describe(&root),
        None if check => guests::check(&root),
        None => guests::build(&root),
    });
    match done {
        Ok(guests::Verdict::Good) => ExitCode::SUCCESS,
        Ok(guests::Verdict::Differs) => ExitCode::from(1),
        Err(e) if e.is::<toolchain::Missing>() => {
            eprintln!("error: {e}");
            ExitCode::from(2)
        }
        Err(e) => {
            eprintln!("error: {e:#}");
            ExitCode::from(1)
        }
    }
}

/// The repository that this program was built from or, where it moved, the one around the current directory.
fn repository() -> Result<PathBuf> {
    let here = std::env::current_dir().context("cannot tell the current directory")?;
    let built_from = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut places = here.ancestors().chain(built_from.ancestors());
    let found = places.find(|dir| dir.join("guests/Cargo.toml").is_file() && dir.join("wit").is_dir());
    let root = found.context("no guests/Cargo.toml and wit/ here or above; run this inside the repository")?;
    root.canonicalize().with_context(|| format!("cannot resolve {}", root.display()))
}
