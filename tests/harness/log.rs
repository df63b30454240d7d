//! The log of an agent under test: JSON lines from its standard error. An ERROR line fails the test that owns it.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Lines kept for the report of a failure. Beyond, the oldest is forgotten; ERROR lines are kept apart.
const LINES_MAX: usize = 2_000;

/// Collects the lines of one process.
#[derive(Debug)]
pub struct LogGuard {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<String>,
    errors: Vec<String>,
    ended: bool,
}

impl LogGuard {
    /// Reads `lines` on a thread until they end.
    pub fn start(lines: impl Read + Send + 'static) -> Result<Self> {
        let shared = Arc::new(Shared::default());
        let collector = Arc::clone(&shared);
        let reader = thread::Builder::new()
            .name("log-guard".to_owned())
            .spawn(move || collector.collect(lines))
            .context("start the log reader")?;
        Ok(Self { shared, reader: Some(reader) })
    }

    /// The first line, past or to come, from which `find` makes something.
    pub fn wait_for<T>(&self, what: &str, timeout: Duration, find: impl Fn(&Value) -> Option<T>) -> Result<T> {
        let mut state = self.shared.lock();
        let mut seen = 0;
        loop {
            let unseen = state.lines.get(seen..).unwrap_or_default();
            if let Some(found) =
                unseen.iter().filter_map(|line| serde_json::from_str(line).ok()).find_map(|line| find(&line))
            {
                return Ok(found);
            }
            seen = state.lines.len();
            if state.ended {
                bail!("the agent ended before {what}; its log:\n{}", tail(&state.lines));
            }
            let waited = self.shared.changed.wait_timeout(state, timeout).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if waited.1.timed_out() {
                bail!("{what} did not come within {timeout:?}; the agent's log:\n{}", tail(&state.lines));
            }
        }
    }

    /// Every ERROR line so far, and every line that is not JSON (a panic message).
    pub fn errors(&self) -> Vec<String> {
        self.shared.lock().errors.clone()
    }

    /// The last lines, for the message of a failed assertion.
    pub fn tail(&self) -> String {
        tail(&self.shared.lock().lines)
    }

    /// Waits for the end of the log. Call it when the process has ended.
    pub fn join(&mut self) {
        if let Some(reader) = self.reader.take() {
            let _ = reader.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn collect(&self, lines: impl Read) {
        for line in BufReader::new(lines).lines().map_while(std::result::Result::ok) {
            let mut state = self.lock();
            if is_error(&line) {
                state.errors.push(line.clone());
            }
            if state.lines.len() < LINES_MAX {
                state.lines.push(line);
            }
            self.changed.notify_all();
        }
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

fn is_error(line: &str) -> bool {
    match serde_json::from_str::<Value>(line) {
        Ok(line) => line.get("level").and_then(Value::as_str) == Some("ERROR"),
        Err(_) => !line.trim().is_empty(),
    }
}

fn tail(lines: &[String]) -> String {
    let from = lines.len().saturating_sub(40);
    lines[from..].iter().fold(String::new(), |mut text, line| {
        let _ = writeln!(text, "  {line}");
        text
    })
}
