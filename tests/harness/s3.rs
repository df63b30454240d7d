//! An S3 server of its own directory and port, with one empty bucket. Dropped, it is killed; so is it when asked, to come
//! back on the same port with what it had.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::server::free_port;

/// The bucket that every server has.
pub const BUCKET: &str = "forebay-test";
/// Who may use it.
pub const ACCESS_KEY: &str = "AKIAFOREBAYTEST";
/// With what.
pub const SECRET_KEY: &str = "for-tests-only";
/// The region that requests are signed for. The server accepts any.
pub const REGION: &str = "us-east-1";

/// A running server, or one that was killed and not yet restarted.
#[derive(Debug)]
pub struct S3Server {
    program: PathBuf,
    dir: PathBuf,
    conditional: bool,
    addr: SocketAddr,
    child: Option<Child>,
}

impl S3Server {
    /// Serves `dir`, which need not exist, and waits until it listens.
    pub fn start(program: &Path, dir: &Path) -> Result<Self> {
        Self::start_as(program, dir, true)
    }

    /// The same, as a store that does not implement conditional writes.
    pub fn start_unconditional(program: &Path, dir: &Path) -> Result<Self> {
        Self::start_as(program, dir, false)
    }

    fn start_as(program: &Path, dir: &Path, conditional: bool) -> Result<Self> {
        fs::create_dir_all(dir.join(BUCKET)).with_context(|| format!("create a bucket in {}", dir.display()))?;
        let addr = SocketAddr::from(([127, 0, 0, 1], free_port()?));
        let mut server = Self { program: program.to_owned(), dir: dir.to_owned(), conditional, addr, child: None };
        server.restart()?;
        Ok(server)
    }

    /// SIGKILL: what was acknowledged stays, what was under way does not show.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().context("kill the S3 server")?;
            child.wait().context("wait for the killed S3 server")?;
        }
        Ok(())
    }

    /// Serves the same directory on the same port. A server that still runs is killed first.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let mut command = Command::new(&self.program);
        command.arg("--dir").arg(&self.dir).arg("--port").arg(self.addr.port().to_string());
        command.args(["--access-key", ACCESS_KEY, "--secret-key", SECRET_KEY]);
        if !self.conditional {
            command.arg("--no-conditional");
        }
        command.stdin(Stdio::null()).stdout(Stdio::piped());
        let child = self.child.insert(command.spawn().with_context(|| format!("start {}", self.program.display()))?);
        let mut line = String::new();
        let stdout = child.stdout.take().context("take the S3 server's standard output")?;
        BufReader::new(stdout).read_line(&mut line).context("read where the S3 server listens")?;
        let addr = line.trim().strip_prefix("listening ").context("the S3 server ended before it listened")?;
        let addr = addr.parse().with_context(|| format!("understand the address {addr}"))?;
        ensure!(self.addr == addr, "the S3 server came back on {addr}");
        Ok(())
    }

    /// Its process id, unless it is killed.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// Where it listens, also while it is killed.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The endpoint, as S3 clients call it.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Where `prefix` of the bucket is, as a destination of the agent.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3+http://{}/{BUCKET}/{prefix}", self.addr)
    }

    /// The credentials, as a process takes them from its environment.
    pub fn env(&self) -> [(&'static str, &'static str); 3] {
        [("AWS_ACCESS_KEY_ID", ACCESS_KEY), ("AWS_SECRET_ACCESS_KEY", SECRET_KEY), ("AWS_REGION", REGION)]
    }

    /// The file that holds an object, if the object exists.
    pub fn object_path(&self, key: &str) -> PathBuf {
        self.dir.join(BUCKET).join(key)
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}
