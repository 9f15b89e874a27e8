//! The `patchhost` binary, under a name of its own so that the tests of this package can start it.

use std::process::ExitCode;

fn main() -> ExitCode {
    patchhost::cmd::main()
}
