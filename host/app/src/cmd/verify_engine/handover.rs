//! `patchhost verify-engine vllm …`: the kit in Python, which drives an engine in its own process.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use crate::base::Code;
use crate::base::text::clean;
use crate::certify::KitError;
use crate::cmd::Call;
use crate::cmd::args::Format;
use crate::cmd::environment::variable;
use crate::cmd::failure::{Failure, Result};

/// What follows is for the kit in Python.
#[derive(Debug, clap::Args)]
#[command(disable_help_flag = true)]
pub struct Args {
    /// Its arguments; --help shows them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
    rest: Vec<OsString>,
}

const MODULE: &str = "patchhost.verify";

/// Runs `python3 -m patchhost.verify TARGET …`, and ends as it does.
pub fn run(target: &str, args: Args, call: &Call) -> Result {
    let python = variable("PATCHHOST_PYTHON").unwrap_or_else(|| "python3".to_owned());
    let failed = |why: String| {
        let next = "install the package `patchhost` for that Python (pip install patchhost), or name another one in \
                    PATCHHOST_PYTHON";
        KitError::usage(format!("{} -m {MODULE} {target}", clean(&python, 200)), why, next)
    };
    // Its own error would be a traceback.
    let found = Command::new(&python)
        .args(["-c", "import importlib.util, sys; sys.exit(importlib.util.find_spec('patchhost.verify') is None)"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|e| failed(format!("this Python cannot be started: {e}")))?;
    if !found.success() {
        return Err(failed(format!("this Python has no module {MODULE}")).into());
    }
    let mut command = Command::new(&python);
    command.args(["-m", MODULE, target]).args(&args.rest);
    if call.format == Format::Json && !args.rest.iter().any(|word| word == "--format") {
        command.args(["--format", "json"]);
    }
    let status = command.status().map_err(|e| failed(e.to_string()))?;
    match status.code() {
        Some(0) => Ok(()),
        Some(1) => Err(Failure::said(Code::Refused)),
        Some(2) => Err(Failure::said(Code::Usage)),
        Some(3) => Err(Failure::said(Code::Patch)),
        Some(_) => Err(Failure::said(Code::Host)),
        None => {
            let what = format!("{} -m {MODULE} {target}", clean(&python, 200));
            Err(KitError::host(what, format!("it ended by a signal ({status})"), "look at what it printed").into())
        }
    }
}
