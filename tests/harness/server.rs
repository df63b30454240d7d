//! A server that is a stranger's program: a child process on a loopback port that was chosen for it, since it cannot say
//! which one it took. Dropped, it is killed; so is it when asked, to come back on the same port.

use std::ffi::{OsStr, OsString};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};

/// How long a server may take to listen, with a large database to read.
const START_MAX: Duration = Duration::from_secs(30);
/// How long a server may take to end, with a large database to write.
const STOP_MAX: Duration = Duration::from_secs(30);
/// How often it is looked at meanwhile.
const POLL_EVERY: Duration = Duration::from_millis(5);
/// Below the ports that Linux gives to outgoing connections, so that none takes the place of a server that restarts.
const PORTS: std::ops::Range<u16> = 20_000..32_000;

/// A server that runs, or is down and will be started again.
#[derive(Debug)]
pub struct Server {
    program: PathBuf,
    args: Vec<OsString>,
    addr: SocketAddr,
    child: Option<Child>,
}

impl Server {
    /// Starts `program` and waits until it accepts connections on `port`.
    pub fn start<I: AsRef<OsStr>>(program: &Path, args: impl IntoIterator<Item = I>, port: u16) -> Result<Self> {
        let args = args.into_iter().map(|arg| arg.as_ref().to_owned()).collect();
        let addr = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let mut server = Self { program: program.to_owned(), args, addr, child: None };
        server.restart()?;
        Ok(server)
    }

    /// Where it listens, also while it is down.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Its process id, unless it is down.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// SIGKILL: it writes nothing any more.
    pub fn kill(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            child.kill().with_context(|| format!("kill {}", self.program.display()))?;
            child.wait().with_context(|| format!("wait for {}", self.program.display()))?;
        }
        Ok(())
    }

    /// SIGTERM: it ends in its own way.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(Signal::TERM)?;
        let deadline = now() + STOP_MAX;
        while let Some(child) = &mut self.child {
            if child.try_wait()?.is_some() {
                self.child = None;
            } else {
                ensure!(now() < deadline, "{} does not end", self.program.display());
                thread::sleep(POLL_EVERY);
            }
        }
        Ok(())
    }

    /// Sends a signal and returns.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = self.pid().and_then(|pid| i32::try_from(pid).ok()).and_then(Pid::from_raw);
        kill_process(pid.context("the server is down")?, signal).context("signal the server")
    }

    /// Starts it on the same port. A server that still runs is killed first.
    pub fn restart(&mut self) -> Result<()> {
        self.kill()?;
        let mut command = Command::new(&self.program);
        command.args(&self.args).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().with_context(|| format!("start {}", self.program.display()))?);
        self.wait_for(self.addr.port())
    }

    /// Waits until it accepts connections on `port`, too.
    pub fn wait_for(&mut self, port: u16) -> Result<()> {
        let name = self.program.display();
        let child = self.child.as_mut().with_context(|| format!("{name} is down"))?;
        let deadline = now() + START_MAX;
        while TcpStream::connect((Ipv4Addr::LOCALHOST, port)).is_err() {
            if let Some(status) = child.try_wait()? {
                bail!("{name} ended with {status} before it listened on {port}");
            }
            ensure!(now() < deadline, "{name} does not listen on {port}");
            thread::sleep(POLL_EVERY);
        }
        Ok(())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.kill();
    }
}

/// A loopback port on which nobody listens.
pub fn free_port() -> Result<u16> {
    for _ in 0..1_000 {
        let port = fastrand::u16(PORTS);
        if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
            return Ok(port);
        }
    }
    bail!("no port of {PORTS:?} is free")
}

#[expect(clippy::disallowed_methods, reason = "a test gives up on a server that hangs")]
fn now() -> Instant {
    Instant::now()
}
