//! `forebay demo`.
use std::process::ExitCode;
use anyhow::Result;
use crate::config::LogFormat;
/// x
#[derive(Debug, clap::Args)]
pub struct Args {}
/// x
pub fn run(_: &Args, _: Option<LogFormat>, _: Option<&str>) -> Result<ExitCode> { Ok(ExitCode::SUCCESS) }
