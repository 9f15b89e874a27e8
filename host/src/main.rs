//! The `patchhost` binary.

use std::process::ExitCode;

fn main() -> ExitCode {
    patchhost::cmd::main()
}
