//! An S3 server for tests: one directory, one access key, one loopback port.
//!
//! `s3s` speaks the protocol and checks signatures, `s3s-fs` keeps objects as files, `rules` adds what S3 promises beyond
//! that, conditional writes above all. A write reaches its name by a rename, so that SIGKILL leaves the old object or the
//! new one. The first line on standard output says where it listens; requests are served until the process is killed.

mod listing;
mod rules;

use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use clap::Parser;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use s3s::auth::SimpleAuth;
use s3s::service::{S3ServiceBuilder, SharedS3Service};
use tokio::net::{TcpListener, TcpStream};

use crate::rules::Rules;

#[derive(Debug, Parser)]
struct Args {
    /// What is served: its directories are the buckets
    #[arg(long)]
    dir: PathBuf,
    /// Loopback port; 0 takes a free one
    #[arg(long, default_value_t = 0)]
    port: u16,
    #[arg(long)]
    access_key: String,
    #[arg(long)]
    secret_key: String,
    /// Answers 501 to a conditional write, as stores older than 2024 do
    #[arg(long)]
    no_conditional: bool,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    sweep(&args.dir)?;
    let rules = Rules::new(&args.dir, !args.no_conditional)?;
    let mut builder = S3ServiceBuilder::new(rules.clone());
    builder.set_access(rules);
    builder.set_auth(SimpleAuth::from_single(args.access_key, args.secret_key));
    let service = builder.build().into_shared();

    let listener = TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, args.port))).await.context("listen")?;
    writeln!(std::io::stdout(), "listening {}", listener.local_addr()?).context("say where")?;
    loop {
        let (socket, _) = listener.accept().await.context("accept")?;
        tokio::spawn(serve(socket, service.clone()));
    }
}

/// Removes what a kill left half written: `s3s-fs` keeps checksums of objects in files beside the buckets, which it writes in
/// place, and answers 500 for an object whose file it cannot read. The objects themselves are whole.
fn sweep(dir: &Path) -> Result<()> {
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let path = entry?.path();
        let is_beside = path.is_file() && path.extension().is_some_and(|extension| extension == "json");
        if is_beside && serde_json::from_slice::<serde_json::Value>(&std::fs::read(&path)?).is_err() {
            std::fs::remove_file(&path).with_context(|| format!("remove {}", path.display()))?;
        }
    }
    Ok(())
}

/// Serves one connection to its end. A client that goes away is not our failure.
async fn serve(socket: TcpStream, service: SharedS3Service) {
    let _ = Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(socket), service).await;
}
