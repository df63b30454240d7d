//! Forebay, the agent: an acknowledgement means the message is on disk.
//!
//! Reading order: [`cli`] what people type, [`config`] what they write, [`supervisor`] what starts and stops, [`reload`] with [`watch`] what
//! becomes of it when it changes, [`ingest`] where broker and storage meet, [`doors`] with [`access`] who comes in, [`source`] brokers
//! that we subscribe to, [`route`] topic to dataset, [`sealing`] and [`upstream`] what becomes of it, [`control`]
//! with [`status`], [`mod@sync`], [`pull`], [`bundle`], [`tail`], [`verify`] and [`dead_letters`] what can be asked, [`service`] what systemd
//! hears, [`manifest`] what a node is told of a dataset, [`store`] the data directory, [`clock`], [`telemetry`].

pub mod access;
pub mod bundle;
pub mod cli;
pub mod clock;
pub mod config;
pub mod control;
pub mod dead_letters;
mod demo;
pub mod doors;
pub mod ingest;
pub mod manifest;
pub mod pull;
pub mod reload;
pub mod route;
pub mod sealing;
pub mod service;
pub mod source;
pub mod status;
pub mod store;
pub mod supervisor;
pub mod sync;
pub mod tail;
pub mod telemetry;
pub mod upstream;
pub mod verify;
pub mod watch;

/// Runs the command line of this process and answers its exit code.
pub fn main() -> std::process::ExitCode {
    cli::main()
}
