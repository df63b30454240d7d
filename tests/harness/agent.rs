//! A `forebay run` of its own directory and port. Dropped, it is killed by its process id; nothing outlives a test.

use std::ffi::OsStr;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::log::LogGuard;

/// How long the agent may take to listen; recovery of a large spool in a debug build on a busy machine included.
const START_MAX: Duration = Duration::from_secs(60);

/// How long sealing what waits may take.
const DRAIN_MAX: Duration = Duration::from_secs(120);
/// How often the status is asked while draining.
const POLL_EVERY: Duration = Duration::from_millis(20);

/// How an agent is started.
#[derive(Clone, Debug)]
pub struct AgentConfig {
    dir: PathBuf,
    toml: String,
    wrapper: Vec<String>,
    env: Vec<(String, String)>,
}

impl AgentConfig {
    /// Everything under `dir`, a free loopback port, defaults for the rest.
    pub fn in_dir(dir: &Path) -> Self {
        Self { dir: dir.to_owned(), toml: String::new(), wrapper: Vec::new(), env: Vec::new() }
    }

    /// Adds sections or array tables to the configuration.
    #[must_use]
    pub fn with(mut self, toml: &str) -> Self {
        self.toml.push_str(toml);
        self.toml.push('\n');
        self
    }

    /// Starts the agent under another program, such as `strace -o FILE`.
    #[must_use]
    pub fn under(mut self, wrapper: &[&str]) -> Self {
        self.wrapper = wrapper.iter().map(|&word| word.to_owned()).collect();
        self
    }

    /// Sets an environment variable of the agent and of commands.
    #[must_use]
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.to_owned(), value.to_owned()));
        self
    }

    /// What was set with [`env`](Self::env), for a test that starts the agent itself.
    pub fn env_vars(&self) -> impl Iterator<Item = (&str, &str)> {
        self.env.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Where the agent keeps its data.
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// Writes the configuration file as an editor does, in place, and answers its path. Every start and every command does
    /// so; a running agent takes notice of a text that is another.
    pub fn write(&self) -> Result<PathBuf> {
        fs::create_dir_all(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        let path = self.dir.join("forebay.toml");
        let text = format!(
            "gateway = \"gw-test\"\ndata_dir = '{}'\n[log]\nformat = \"json\"\nlevel = \"info\"\n[[listener]]\n\
             bind = \"127.0.0.1:0\"\n{}",
            self.data_dir().display(),
            self.toml
        );
        if !fs::read_to_string(&path).is_ok_and(|there| there == text) {
            fs::write(&path, text).with_context(|| format!("write {}", path.display()))?;
        }
        Ok(path)
    }
}

/// A running agent.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    log: LogGuard,
    mqtt_addr: SocketAddr,
    data_dir: PathBuf,
}

impl Agent {
    /// Starts `program run` and waits until it says where it listens.
    pub fn start_program(program: &Path, config: &AgentConfig) -> Result<Self> {
        let file = config.write()?;
        let mut words = config.wrapper.iter().map(OsStr::new).chain([program.as_os_str()]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words).arg("run").arg("--config").arg(file);
        command.env_remove("RUST_LOG").envs(config.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().with_context(|| format!("start {}", program.display()))?;
        let stderr = child.stderr.take().context("take the agent's standard error")?;
        let log = LogGuard::start(stderr)?;
        let listening = log.wait_for("the line that says where it listens", START_MAX, listening_addr);
        match listening {
            Ok(mqtt_addr) => Ok(Self { child, log, mqtt_addr, data_dir: config.data_dir() }),
            Err(error) => {
                let _ = child.kill();
                let _ = child.wait();
                Err(error)
            }
        }
    }

    /// Where devices connect.
    pub fn mqtt_addr(&self) -> SocketAddr {
        self.mqtt_addr
    }

    /// Process id of what was started.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The agent's log.
    pub fn log(&self) -> &LogGuard {
        &self.log
    }

    /// SIGKILL, as the out-of-memory killer does it.
    pub fn kill(mut self) -> Result<()> {
        self.child.kill().context("kill the agent")?;
        self.child.wait().context("wait for the killed agent")?;
        self.check_log()
    }

    /// SIGTERM; waits for the agent to drain and end.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.signal(Signal::TERM)?;
        let status = self.child.wait().context("wait for the agent")?;
        self.check_log()?;
        Ok(status)
    }

    /// SIGTERM, for a story in which something is for a person to put right: answers the lines that say so.
    pub fn stop_with_errors(mut self) -> Result<Vec<String>> {
        self.signal(Signal::TERM)?;
        self.child.wait().context("wait for the agent")?;
        self.log.join();
        Ok(self.log.errors())
    }

    /// Sends a signal and returns.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = i32::try_from(self.pid()).ok().and_then(Pid::from_raw).context("the agent's process id")?;
        kill_process(pid, signal).context("signal the agent")
    }

    /// SIGSTOP; waits until every thread has stopped.
    pub fn freeze(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let tasks = format!("/proc/{}/task", self.pid());
        let has_stopped = |stat: &str| stat.rsplit_once(')').is_some_and(|(_, rest)| rest.starts_with(" T"));
        let deadline = now() + DRAIN_MAX;
        loop {
            let threads = fs::read_dir(&tasks).with_context(|| format!("list {tasks}"))?;
            let mut stats = threads.map(|thread| fs::read_to_string(thread?.path().join("stat")));
            if stats.all(|stat| stat.is_ok_and(|stat| has_stopped(&stat))) {
                return Ok(());
            }
            ensure!(now() < deadline, "the agent has not stopped after {DRAIN_MAX:?}");
            thread::sleep(POLL_EVERY);
        }
    }

    /// Changes files of a running agent, which sees the whole change at once.
    pub fn change<T>(&self, change: impl FnOnce() -> T) -> Result<T> {
        self.freeze()?;
        let changed = change();
        self.signal(Signal::CONT)?;
        Ok(changed)
    }

    /// SIGHUP; waits until the configuration has been read again, and answers how that went.
    pub fn reload(&self) -> Result<Value> {
        self.reload_with(|| ())
    }

    /// The same with files that are changed before: the agent does not take notice of them by itself meanwhile.
    pub fn reload_with<T>(&self, change: impl FnOnce() -> T) -> Result<Value> {
        let before = self.status()?["reload"].clone();
        self.change(|| {
            change();
            self.signal(Signal::HUP)
        })??;
        self.reloaded_since(&before)
    }

    /// Waits for a reload after the one that `status` told of, and answers how it went.
    pub fn reloaded_since(&self, before: &Value) -> Result<Value> {
        let deadline = now() + DRAIN_MAX;
        loop {
            let reload = self.status()?["reload"].clone();
            if reload != *before {
                return Ok(reload);
            }
            ensure!(now() < deadline, "no reload after {DRAIN_MAX:?}; the agent's log:\n{}", self.log.tail());
            thread::sleep(POLL_EVERY);
        }
    }

    /// What `forebay status` knows.
    pub fn status(&self) -> Result<Value> {
        let socket = self.ask("{\"command\":\"status\"}\n")?;
        let mut answer = String::new();
        BufReader::new(socket).read_line(&mut answer).context("read the status")?;
        serde_json::from_str(&answer).with_context(|| format!("understand the status {answer}"))
    }

    /// Has everything sealed and delivered, as `forebay sync --once` does, and answers the last report.
    pub fn sync(&self) -> Result<Value> {
        let mut lines = BufReader::new(self.ask("{\"command\":\"sync\"}\n")?).lines();
        let last = lines.by_ref().last().context("the agent answers")??;
        serde_json::from_str(&last).with_context(|| format!("understand the report {last}"))
    }

    fn ask(&self, request: &str) -> Result<UnixStream> {
        let path = self.data_dir.join("forebay.sock");
        let mut socket = UnixStream::connect(&path).with_context(|| format!("connect to {}", path.display()))?;
        socket.set_read_timeout(Some(START_MAX))?;
        socket.write_all(request.as_bytes())?;
        Ok(socket)
    }

    /// Waits until at least `messages` are stored and every one is a row or a dead letter. The batch age must be short.
    /// Only QoS 0 needs the number: what was acknowledged is stored.
    pub fn drain(&self, messages: u64) -> Result<()> {
        let deadline = now() + DRAIN_MAX;
        loop {
            let status = self.status()?;
            let stored =
                status.pointer("/spool/log_end").and_then(Value::as_u64).context("the status says what is stored")?;
            let waiting =
                status.pointer("/spool/waiting").and_then(Value::as_u64).context("the status says what waits")?;
            if waiting == 0 && stored >= messages {
                return Ok(());
            }
            ensure!(
                now() < deadline,
                "{stored} messages are stored and {waiting} wait after {DRAIN_MAX:?}; the agent's log:\n{}",
                self.log.tail()
            );
            thread::sleep(POLL_EVERY);
        }
    }

    fn check_log(&mut self) -> Result<()> {
        self.log.join();
        let errors = self.log.errors();
        ensure!(
            errors.is_empty(),
            "the agent logged errors:\n{}\nits last lines:\n{}",
            errors.join("\n"),
            self.log.tail()
        );
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs `program COMMAND --config FILE` to its end.
pub fn command(program: &Path, config: &AgentConfig, args: &[&str]) -> Result<Output> {
    let file = config.write()?;
    let mut command = Command::new(program);
    command.args(args).arg("--config").arg(file).env_remove("RUST_LOG").stdin(Stdio::null());
    command.envs(config.env.iter().map(|(name, value)| (name, value)));
    command.output().with_context(|| format!("run {} {}", program.display(), args.join(" ")))
}

#[expect(clippy::disallowed_methods, reason = "a test gives up on an agent that hangs")]
fn now() -> Instant {
    Instant::now()
}

/// The address in the line that the agent writes for each listener.
fn listening_addr(line: &Value) -> Option<SocketAddr> {
    let message = line.get("message")?.as_str()?;
    if !message.starts_with("Listening") {
        return None;
    }
    line.as_object()?.values().filter_map(Value::as_str).find_map(|value| value.parse().ok())
}
