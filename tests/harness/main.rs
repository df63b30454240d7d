//! The agent under test: the same `main` as the binary `forebay`.

use std::process::ExitCode;

fn main() -> ExitCode {
    forebay_agent::main()
}
