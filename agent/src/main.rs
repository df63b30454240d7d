//! The binary `forebay`; everything is in the library, so that a test can embed it.

use std::process::ExitCode;

/// musl's own gives large blocks back to the kernel at once, and asks for them again for each batch.
#[cfg(target_env = "musl")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    forebay_agent::main()
}
