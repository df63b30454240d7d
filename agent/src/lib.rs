//! Forebay, the agent: an acknowledgement means the message is on disk.
//!
//! Reading order: [`cli`] what people type, [`config`] what they write, [`supervisor`] what starts and stops, [`ingest`]
//! where broker and storage meet, [`route`] topic to dataset, [`sealing`] and [`upstream`] what becomes of it, [`control`]
//! with [`status`], [`mod@sync`], [`bundle`], [`tail`], [`verify`] and [`dead_letters`] what can be asked, [`manifest`] what a
//! node is told of a dataset, [`store`] the data directory, [`clock`], [`telemetry`].

pub mod bundle;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod dead_letters;
mod demo;
pub mod ingest;
pub mod manifest;
pub mod route;
pub mod sealing;
pub mod status;
pub mod store;
pub mod supervisor;
pub mod sync;
pub mod tail;
pub mod telemetry;
pub mod upstream;
pub mod verify;

/// Runs the command line of this process and answers its exit code.
pub fn main() -> std::process::ExitCode {
    cli::main()
}
