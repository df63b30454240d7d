//! The binary `forebay`; everything is in the library, so that a test can embed it.

use std::process::ExitCode;

fn main() -> ExitCode {
    forebay_agent::main()
}
