//! A Kamu node as far as an edge agent sees one: push ingest, provisioning, Smart Transfer Protocol. A program of its own,
//! so that a test can kill it and start it again on the same directory and port.
//!
//! It answers as `kamu 0.265.0` was seen to answer, and can be told to misbehave (`faults`). What it says it has committed
//! survives SIGKILL: every file appears by a rename, `refs/head` last. It does not survive a power cut; nothing is synced.
//!
//! Reading order: `router` (paths), `auth`, `refusal` (what is not 200), `log`, `faults`, `store` (datasets on disk),
//! `source` (what a snapshot says), `graphql`, `rows` (bodies to columns), `ledger`, `ingest`, `objects`, `push`.

mod auth;
mod faults;
mod graphql;
mod ingest;
mod ledger;
mod log;
mod objects;
mod push;
mod refusal;
mod router;
mod rows;
mod source;
mod store;

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use axum::{Extension, Router};
use clap::Parser;
use hyper::server::conn::http1;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::crypto::ring;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::faults::{Cut, Faults};
use crate::log::Log;
use crate::store::Store;

/// First byte of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

/// A stub of a Kamu node, for tests.
#[derive(Debug, Parser)]
struct Args {
    /// Where datasets live: DIR/ACCOUNT/DATASET
    #[arg(long)]
    dir: PathBuf,
    /// Loopback port; 0 is any
    #[arg(long, default_value_t = 0)]
    port: u16,
    /// No account in the paths
    #[arg(long)]
    single_tenant: bool,
    /// Account of the token
    #[arg(long, default_value = "acme")]
    account: String,
    /// The token that is accepted
    #[arg(long, default_value = "ka_stub")]
    token: String,
    /// Certificate chain and key, PEM; serves https and wss
    #[arg(long, num_args = 2, value_names = ["CERT", "KEY"])]
    tls: Option<Vec<PathBuf>>,
    /// 403 once the account's data would be larger
    #[arg(long)]
    quota_bytes: Option<u64>,
    /// How often a push is asked for its progress
    #[arg(long, default_value_t = 10_000)]
    progress_every_ms: u64,
}

/// What every request may need.
#[derive(Debug)]
struct Node {
    account: String,
    token: String,
    is_multi_tenant: bool,
    scheme: &'static str,
    addr: SocketAddr,
    quota_bytes: Option<u64>,
    progress_every: Duration,
    store: Store,
    faults: Faults,
    log: Log,
}

#[tokio::main]
async fn main() -> Result<()> {
    let args = Args::parse();
    let tls = args.tls.as_deref().map(tls_acceptor).transpose()?;
    let store = Store::open(&args.dir).with_context(|| format!("open {}", args.dir.display()))?;
    let listener = TcpListener::bind(("127.0.0.1", args.port)).await.context("listen")?;
    let addr = listener.local_addr()?;
    let node = Arc::new(Node {
        account: if args.single_tenant { "kamu".to_owned() } else { args.account },
        token: args.token,
        is_multi_tenant: !args.single_tenant,
        scheme: if tls.is_some() { "https" } else { "http" },
        addr,
        quota_bytes: args.quota_bytes,
        progress_every: Duration::from_millis(args.progress_every_ms.max(1)),
        store,
        faults: Faults::default(),
        log: Log::default(),
    });
    let router = router::router(node);
    let mut stdout = std::io::stdout();
    writeln!(stdout, "listening {addr}")?;
    stdout.flush()?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        tokio::spawn(accept(stream, tls.clone(), router.clone()));
    }
}

async fn accept(stream: TcpStream, tls: Option<TlsAcceptor>, router: Router) {
    // Control calls come in the clear even here: a test should not need TLS to plan a fault.
    let mut first = [0];
    let is_handshake = stream.peek(&mut first).await.is_ok() && first == [TLS_HANDSHAKE];
    match tls.filter(|_| is_handshake) {
        None => serve(stream, router).await,
        Some(tls) => {
            if let Ok(stream) = tls.accept(stream).await {
                serve(stream, router).await;
            }
        }
    }
}

/// One connection, until it ends or a fault cuts it.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, router: Router) {
    let cut = Cut::default();
    let service = TowerToHyperService::new(router.layer(Extension(cut.clone())));
    let connection = http1::Builder::new().serve_connection(TokioIo::new(stream), service).with_upgrades();
    tokio::select! {
        _ = connection => {}
        () = cut.fired() => {}
    }
}

fn tls_acceptor(files: &[PathBuf]) -> Result<TlsAcceptor> {
    let [chain, key] = files else {
        anyhow::bail!("--tls takes a certificate and a key");
    };
    let named = |path: &Path| format!("read {}", path.display());
    let certificates = CertificateDer::pem_file_iter(chain).with_context(|| named(chain))?;
    let certificates = certificates.collect::<Result<Vec<_>, _>>().with_context(|| named(chain))?;
    let key = PrivateKeyDer::from_pem_file(key).with_context(|| named(key))?;
    let config = ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(certificates, key)?;
    Ok(TlsAcceptor::from(Arc::new(config)))
}
