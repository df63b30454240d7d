//! A stub of a Kamu node as a process (`forebay-stub-node`). It can be killed and started again on the same directory and
//! port. Dropped, it is killed by its process id; nothing outlives a test.
//!
//! Control calls are a few lines of HTTP/1.1 over a plain socket; the stub takes them on its TLS port too.

use std::ffi::{OsStr, OsString};
use std::fs::{self, OpenOptions};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::server::free_port;
use crate::tls::TlsFiles;

/// How long an answer may take; reaching it means that the stub hangs.
const ANSWER_MAX: Duration = Duration::from_secs(60);

/// How a stub is started.
#[derive(Clone, Debug)]
pub struct NodeConfig {
    dir: PathBuf,
    account: String,
    token: String,
    scheme: &'static str,
    flags: Vec<OsString>,
}

impl NodeConfig {
    /// Everything under `dir`, multi-tenant, account `acme`, token `ka_stub`, plain HTTP.
    pub fn in_dir(dir: &Path) -> Self {
        let (account, token) = ("acme".to_owned(), "ka_stub".to_owned());
        Self { dir: dir.to_owned(), account, token, scheme: "http", flags: Vec::new() }
    }

    /// No account in the paths; on disk and in control calls it is `kamu`.
    #[must_use]
    pub fn single_tenant(mut self) -> Self {
        "kamu".clone_into(&mut self.account);
        self.flag("--single-tenant")
    }

    /// Whose token it is.
    #[must_use]
    pub fn account(mut self, account: &str) -> Self {
        account.clone_into(&mut self.account);
        self.flag("--account").flag(account)
    }

    /// The token that is accepted.
    #[must_use]
    pub fn token(mut self, token: &str) -> Self {
        token.clone_into(&mut self.token);
        self.flag("--token").flag(token)
    }

    /// Serves https and wss.
    #[must_use]
    pub fn tls(mut self, files: &TlsFiles) -> Self {
        self.scheme = "https";
        self.flag("--tls").flag(&files.cert).flag(&files.key)
    }

    /// 403 once the data would be larger.
    #[must_use]
    pub fn quota_bytes(self, bytes: u64) -> Self {
        self.flag("--quota-bytes").flag(bytes.to_string())
    }

    /// How often a push is asked for its progress; ten seconds otherwise, as on a node.
    #[must_use]
    pub fn progress_every(self, every: Duration) -> Self {
        self.flag("--progress-every-ms").flag(every.as_millis().to_string())
    }

    fn flag(mut self, word: impl AsRef<OsStr>) -> Self {
        self.flags.push(word.as_ref().to_owned());
        self
    }
}

/// A stub, running or killed.
#[derive(Debug)]
pub struct StubNode {
    program: PathBuf,
    config: NodeConfig,
    child: Child,
    addr: SocketAddr,
}

/// What was answered.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// Status line and headers.
    pub head: String,
    /// The body.
    pub body: Vec<u8>,
}

impl Answer {
    /// The body as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    /// The body as JSON.
    pub fn json(&self) -> Result<Value> {
        serde_json::from_slice(&self.body).with_context(|| format!("understand the answer {}", self.text()))
    }
}

impl StubNode {
    /// Starts `program` on a free port and waits until it listens.
    pub fn start_program(program: &Path, config: &NodeConfig) -> Result<Self> {
        fs::create_dir_all(&config.dir).with_context(|| format!("make {}", config.dir.display()))?;
        // Outside of the ports that the kernel gives away, so that it is free after a kill, too.
        let (child, addr) = spawn(program, config, free_port()?)?;
        Ok(Self { program: program.to_owned(), config: config.clone(), child, addr })
    }

    /// SIGKILL. What it said it has committed must be there after [`restart`](Self::restart).
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context("kill the stub")?;
        self.child.wait().context("wait for the killed stub")?;
        Ok(())
    }

    /// Kills it unless it has ended, and starts it on the same directory and port. Faults and log begin anew.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        (self.child, self.addr) = spawn(&self.program, &self.config, self.addr.port())?;
        Ok(())
    }

    /// Process id of the one that was started last.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The base of its URLs, e.g. `http://127.0.0.1:40123`.
    pub fn url(&self) -> String {
        format!("{}://{}", self.config.scheme, self.addr)
    }

    /// The account of the token.
    pub fn account(&self) -> &str {
        &self.config.account
    }

    /// The token that it accepts.
    pub fn token(&self) -> &str {
        &self.config.token
    }

    /// A dataset as a directory of blocks, data and `refs/head`.
    pub fn dataset_dir(&self, account: &str, dataset: &str) -> PathBuf {
        self.config.dir.join(account).join(dataset)
    }

    /// Adds what is to go wrong, e.g. `{"on": "ingest", "stage": "after-commit", "do": "cut"}`.
    pub fn faults(&self, faults: &[Value]) -> Result<()> {
        let body = Value::from(faults).to_string();
        let answer = self.request("POST", "/_stub/faults", &[], body.as_bytes())?;
        ensure!(answer.status == 200, "faults were answered with {}: {}", answer.status, answer.text());
        Ok(())
    }

    /// Forgets faults and poisons.
    pub fn clear_faults(&self) -> Result<()> {
        let answer = self.request("DELETE", "/_stub/faults", &[], b"")?;
        ensure!(answer.status == 200, "forgetting faults was answered with {}", answer.status);
        Ok(())
    }

    /// `{"requests": [{"method", "path", "status", "bytes", "content_type"}], "requests_seen", "bytes_received"}`.
    pub fn log(&self) -> Result<Value> {
        self.request("GET", "/_stub/log", &[], b"")?.json()
    }

    /// Gateway and seq of every row, in the order of their commits.
    pub fn rows(&self, account: &str, dataset: &str) -> Result<Vec<(String, u64)>> {
        let rows = self.row_objects(&format!("/_stub/rows/{account}/{dataset}"))?;
        let row = |row: &Value| {
            let gateway = row.get("gateway").and_then(Value::as_str).with_context(|| format!("gateway of {row}"))?;
            let seq = row.get("seq").and_then(Value::as_u64).with_context(|| format!("seq of {row}"))?;
            Ok((gateway.to_owned(), seq))
        };
        rows.iter().map(row).collect()
    }

    /// Every row with all its columns, in the order of their commits. A column that is null is absent.
    pub fn rows_all(&self, account: &str, dataset: &str) -> Result<Vec<Value>> {
        self.row_objects(&format!("/_stub/rows/{account}/{dataset}?all=1"))
    }

    /// Creates a dataset from a snapshot (YAML or JSON) and answers the result's `__typename`.
    pub fn create_dataset(&self, snapshot: &str) -> Result<String> {
        let query = "mutation($snapshot: String!) { datasets { createFromSnapshot(snapshot: $snapshot, \
                     snapshotFormat: YAML, datasetVisibility: PRIVATE) { __typename isSuccess message } } }";
        let body = json!({ "query": query, "variables": { "snapshot": snapshot } }).to_string();
        let answer = self.call("POST", "/graphql", Some("application/json"), body.as_bytes())?.json()?;
        let typename = answer.pointer("/data/datasets/createFromSnapshot/__typename").and_then(Value::as_str);
        Ok(typename.with_context(|| format!("understand {answer}"))?.to_owned())
    }

    /// A request with the token, as the agent would send it.
    pub fn call(&self, method: &str, path: &str, content_type: Option<&str>, body: &[u8]) -> Result<Answer> {
        let token = format!("Bearer {}", self.config.token);
        let mut headers = vec![("authorization", token.as_str())];
        headers.extend(content_type.map(|content_type| ("content-type", content_type)));
        self.request(method, path, &headers, body)
    }

    /// A request with these headers only.
    pub fn request(&self, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
        request(self.addr, method, path, headers, body)
    }

    fn row_objects(&self, path: &str) -> Result<Vec<Value>> {
        let answer = self.request("GET", path, &[], b"")?;
        ensure!(answer.status == 200, "{path} was answered with {}", answer.status);
        serde_json::Deserializer::from_slice(&answer.body).into_iter().map(|row| Ok(row?)).collect()
    }
}

impl Drop for StubNode {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One request on a connection of its own. An answer that does not come, or not to its end, is an error.
pub fn request(addr: SocketAddr, method: &str, path: &str, headers: &[(&str, &str)], body: &[u8]) -> Result<Answer> {
    let mut stream = TcpStream::connect(addr).with_context(|| format!("connect to {addr}"))?;
    stream.set_read_timeout(Some(ANSWER_MAX))?;
    stream.set_write_timeout(Some(ANSWER_MAX))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {addr}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    head.push_str(&format!("content-length: {}\r\n\r\n", body.len()));
    stream.write_all(head.as_bytes()).context("write the request")?;
    // Refused before its body was read, a request may still have an answer.
    let written = stream.write_all(body);
    let mut bytes = Vec::new();
    let read = stream.read_to_end(&mut bytes);
    let _ = stream.shutdown(Shutdown::Both);
    match answer(&bytes) {
        Some(answer) => Ok(answer),
        None => {
            written.context("write the body")?;
            read.context("read the answer")?;
            bail!("{method} {path} was not answered: got {} bytes", bytes.len())
        }
    }
}

/// A whole answer with a `content-length`, or one without a body.
fn answer(bytes: &[u8]) -> Option<Answer> {
    let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
    let head = String::from_utf8_lossy(bytes.get(..end)?).into_owned();
    let status = head.split(' ').nth(1)?.parse().ok()?;
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let start = end + 4;
    let body = bytes.get(start..start + length.unwrap_or(0))?.to_vec();
    Some(Answer { status, head, body })
}

fn spawn(program: &Path, config: &NodeConfig, port: u16) -> Result<(Child, SocketAddr)> {
    let log = config.dir.join("stub.log");
    let log =
        OpenOptions::new().create(true).append(true).open(&log).with_context(|| format!("open {}", log.display()))?;
    let mut command = Command::new(program);
    command.arg("--dir").arg(&config.dir).arg("--port").arg(port.to_string()).args(&config.flags);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log);
    let mut child = command.spawn().with_context(|| format!("start {}", program.display()))?;
    match listening(&mut child) {
        Ok(addr) => Ok((child, addr)),
        Err(error) => {
            let _ = child.kill();
            let _ = child.wait();
            Err(error.context(format!("start the stub; {} may say why", config.dir.join("stub.log").display())))
        }
    }
}

/// The address in the first line.
fn listening(child: &mut Child) -> Result<SocketAddr> {
    let stdout = child.stdout.take().context("take the stub's standard output")?;
    let mut line = String::new();
    BufReader::new(stdout).read_line(&mut line)?;
    let addr = line.strip_prefix("listening ").with_context(|| format!("find an address in `{line}`"))?;
    addr.trim().parse().with_context(|| format!("understand the address `{addr}`"))
}
