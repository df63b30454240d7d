//! How commands reach a running agent: a unix socket in the data directory, one JSON request a connection, answers as
//! JSON lines.
//!
//! ```text
//! {"command":"status"}                                                  one line: Status
//! {"command":"verify","dataset":null}                                   one line: VerifyReport
//! {"command":"tail","filter":"temperature","lines":10,"follow":true}    a line a message
//! {"command":"dead-letters","dataset":null,"seqs":[]}                     one line: a list of DeadLetterLine
//! {"command":"sync"}                                                    a line each time: SyncReport, until it is done
//! {"command":"reload"}                                                  one line: ReloadReport
//! {"command":"export","dir":"/mnt/usb/b","upstream":null}                one line: Exported
//! {"command":"replay-dead-letters","dataset":null,"seqs":[7]}             one line: Done; so does drop-dead-letters
//! ```
//!
//! A request that cannot be answered gets `{"error":"..."}`. The socket is for its owner only (0600).

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, oneshot};
use tracing::{debug, warn};

use crate::bundle::{self, Which};
use crate::config::Config;
use crate::dead_letters::{self, Selection};
use crate::status::Shared;
use crate::sync::Sync;
use crate::tail::{Tail, TailRequest};
use crate::verify;

/// A request is one line of at most so many bytes. Beyond: refused.
const REQUEST_BYTES_MAX: u64 = 16 * 1024;
/// Connections at once. Beyond: they wait.
const CONNECTIONS_MAX: usize = 16;
/// How long a client may take to send its request.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// How often a followed log is looked at.
const FOLLOW_EVERY: Duration = Duration::from_millis(100);

/// What a command may ask.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "kebab-case")]
pub enum ControlRequest {
    /// What the agent knows of itself.
    Status,
    /// Verify the spool and one dataset, or all.
    Verify {
        /// Name of the dataset.
        dataset: Option<String>,
    },
    /// The newest messages.
    Tail(TailRequest),
    /// Deliver everything now.
    Sync,
    /// Read the configuration again.
    Reload,
    /// Seal what waits and write a bundle.
    Export {
        /// An absolute path.
        dir: PathBuf,
        /// Which upstream, and which receipt.
        #[serde(flatten)]
        which: Which,
    },
    /// List dead letters.
    DeadLetters(Selection),
    /// Store dead letters again.
    ReplayDeadLetters(Selection),
    /// Forget dead letters.
    DropDeadLetters(Selection),
}

/// The answer to a request that cannot be answered.
#[derive(Debug, Serialize, Deserialize)]
pub struct ControlError {
    /// Why.
    pub error: String,
}

/// Takes the socket over: whatever lies there is left from an agent that was killed, since the data directory is locked.
pub fn bind(config: &Config) -> Result<UnixListener> {
    let path = config.control_socket();
    if let Err(error) = std::fs::remove_file(&path)
        && error.kind() != io::ErrorKind::NotFound
    {
        return Err(error).with_context(|| format!("remove {}", path.display()));
    }
    let listener = UnixListener::bind(&path).with_context(|| format!("listen on {}", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("protect {}", path.display()))?;
    Ok(listener)
}

/// Answers requests until the agent stops.
pub async fn serve(listener: UnixListener, shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let mut answering = tokio::task::JoinSet::new();
    loop {
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        while answering.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = Arc::clone(&shared);
                answering.spawn(async move {
                    if let Err(problem) = answer(stream, &shared).await {
                        debug!(problem = format!("{problem:#}"), "Control connection ended.");
                    }
                    drop(permit);
                });
            }
            Err(error) => {
                warn!(%error, "The control socket cannot accept.");
                tokio::time::sleep(REQUEST_TIMEOUT).await;
            }
        }
    }
}

async fn answer(stream: UnixStream, shared: &Arc<Shared>) -> Result<()> {
    let (reading, mut writing) = stream.into_split();
    let mut line = String::new();
    let mut reading = BufReader::new(reading.take(REQUEST_BYTES_MAX));
    tokio::time::timeout(REQUEST_TIMEOUT, reading.read_line(&mut line)).await??;
    let outcome = match serde_json::from_str(&line) {
        Ok(ControlRequest::Status) => respond(shared, |shared| shared.status()).await,
        Ok(ControlRequest::Verify { dataset }) => {
            respond(shared, move |shared| verify::run(&shared.running().config, &shared.spool, dataset.as_deref()))
                .await
        }
        Ok(ControlRequest::Tail(request)) => {
            let is_followed = request.follow;
            match make(shared, move |shared| Tail::start(&shared.running().config, &shared.spool, &request)).await {
                Ok(tail) => return follow(tail, is_followed, &mut reading, &mut writing).await,
                Err(error) => Err(error),
            }
        }
        Ok(ControlRequest::Sync) => match make(shared, |shared| Ok(Sync::start(shared))).await {
            Ok(sync) => return tell(sync, &mut writing).await,
            Err(error) => Err(error),
        },
        Ok(ControlRequest::Reload) => reload(shared).await,
        Ok(ControlRequest::Export { dir, which }) => {
            respond(shared, move |shared| bundle::export_from(shared, &dir, &which)).await
        }
        Ok(ControlRequest::DeadLetters(which)) => {
            respond(shared, move |shared| dead_letters::list(&shared.spool, &which)).await
        }
        Ok(ControlRequest::ReplayDeadLetters(which)) => {
            respond(shared, move |shared| {
                dead_letters::replay(&shared.running().config, &shared.spool, &shared.writer, &which)
            })
            .await
        }
        Ok(ControlRequest::DropDeadLetters(which)) => {
            respond(shared, move |shared| dead_letters::drop(&shared.spool, &which)).await
        }
        Err(error) => Err(anyhow::Error::from(error).context("read the request")),
    };
    let answer = match outcome {
        Ok(answer) => answer,
        Err(error) => serde_json::to_string(&ControlError { error: format!("{error:#}") })?,
    };
    writing.write_all(format!("{answer}\n").as_bytes()).await?;
    Ok(())
}

async fn respond<T: Serialize + Send + 'static>(
    shared: &Arc<Shared>,
    answer: impl FnOnce(&Arc<Shared>) -> Result<T> + Send + 'static,
) -> Result<String> {
    Ok(serde_json::to_string(&make(shared, answer).await?)?)
}

async fn reload(shared: &Shared) -> Result<String> {
    let reloads = shared.reloads.as_ref().context("this agent does not read its configuration again")?;
    let (asking, answer) = oneshot::channel();
    reloads.send(asking).await.ok().context("the agent is stopping")?;
    Ok(serde_json::to_string(&answer.await.context("the agent is stopping")?)?)
}

/// Answers that read the disk are made off the threads that serve devices.
async fn make<T: Send + 'static>(
    shared: &Arc<Shared>,
    answer: impl FnOnce(&Arc<Shared>) -> Result<T> + Send + 'static,
) -> Result<T> {
    let shared = Arc::clone(shared);
    tokio::task::spawn_blocking(move || answer(&shared)).await?
}

async fn tell(mut sync: Sync, writing: &mut (impl AsyncWrite + Unpin)) -> Result<()> {
    loop {
        let report = sync.next().await?;
        writing.write_all(format!("{}\n", serde_json::to_string(&report)?).as_bytes()).await?;
        if report.done {
            return Ok(());
        }
    }
}

async fn follow(
    mut tail: Tail,
    follow: bool,
    reading: &mut (impl AsyncRead + Unpin),
    writing: &mut (impl AsyncWrite + Unpin),
) -> Result<()> {
    loop {
        let (read, lines) = tokio::task::spawn_blocking(move || {
            let lines = tail.read();
            (tail, lines)
        })
        .await?;
        tail = read;
        let lines = lines?;
        for line in &lines {
            writing.write_all(format!("{}\n", serde_json::to_string(line)?).as_bytes()).await?;
        }
        if !tail.is_behind() {
            if !follow {
                return Ok(());
            }
            tokio::select! {
                () = tokio::time::sleep(FOLLOW_EVERY) => {}
                // Nothing more is to be said, so this is the end of the connection.
                _ = reading.read_u8() => return Ok(()),
            }
        }
    }
}

/// The side of the commands.
pub mod client {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::os::unix::net::UnixStream;

    use anyhow::{Context as _, Result, bail};
    use serde::de::DeserializeOwned;

    use super::{ControlError, ControlRequest};
    use crate::config::Config;

    /// The lines of an answer.
    pub struct Answers {
        lines: std::io::Lines<BufReader<UnixStream>>,
    }

    /// Asks a running agent; `None` when none runs on this data directory.
    pub fn ask(config: &Config, request: &ControlRequest) -> Result<Option<Answers>> {
        let path = config.control_socket();
        let Ok(mut stream) = UnixStream::connect(&path) else { return Ok(None) };
        let line = format!("{}\n", serde_json::to_string(request)?);
        stream.write_all(line.as_bytes()).with_context(|| format!("write to {}", path.display()))?;
        Ok(Some(Answers { lines: BufReader::new(stream).lines() }))
    }

    impl Answers {
        /// The next line, if there is one.
        pub fn next_line<T: DeserializeOwned>(&mut self) -> Result<Option<T>> {
            let Some(line) = self.lines.next() else { return Ok(None) };
            let line = line.context("read the agent's answer")?;
            if let Ok(ControlError { error }) = serde_json::from_str(&line) {
                bail!("{error}");
            }
            serde_json::from_str(&line).map(Some).context("understand the agent's answer")
        }

        /// The only line.
        pub fn one<T: DeserializeOwned>(mut self) -> Result<T> {
            self.next_line()?.context("the agent gave no answer")
        }
    }
}
