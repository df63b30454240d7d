//! What the stories share in which the agent subscribes to a broker.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use forebay_tests::agent::{Agent, AgentConfig};
use forebay_tests::dataset::Rows;
use forebay_tests::mosquitto::Mosquitto;
use serde_json::Value;

use crate::sealing_soon;

/// How long a story waits for anything: longer than the agent waits between two attempts.
const WAIT_MAX: Duration = Duration::from_secs(600);
const POLL_EVERY: Duration = Duration::from_millis(10);

/// mosquitto's program, or a line that says what is left out.
pub(crate) fn mosquitto() -> Option<PathBuf> {
    let program = Mosquitto::find();
    if program.is_none() {
        println!("SKIPPED: mosquitto is not installed; CI installs it.");
    }
    program
}

/// Everything of the source `plant` to the dataset `messages`, sealed soon. `keys`: more lines of `[[source]]`.
pub(crate) fn subscribing(dir: &Path, url: &str, keys: &str) -> AgentConfig {
    sealing_soon(dir).with(&source(url, keys))
}

/// The section of the source `plant`.
pub(crate) fn source(url: &str, keys: &str) -> String {
    format!("[[source]]\nname = \"plant\"\nurl = \"{url}\"\n{keys}")
}

/// Waits until the status satisfies `is_so`, and answers it.
pub(crate) fn wait_for(agent: &Agent, what: &str, is_so: impl Fn(&Value) -> bool) -> Value {
    let deadline = now() + WAIT_MAX;
    loop {
        let status = agent.status().unwrap();
        if is_so(&status) {
            return status;
        }
        assert!(now() < deadline, "{what} does not happen: {status:#}\n{}", agent.log().tail());
        thread::sleep(POLL_EVERY);
    }
}

/// Waits until the broker has answered SUBSCRIBE.
pub(crate) fn wait_until_subscribed(agent: &Agent) {
    wait_for(agent, "the subscription", |status| status["sources"][0]["subscribed"] == true);
}

/// Waits until a line says what keeps messages from coming, and answers it.
pub(crate) fn wait_for_problem(agent: &Agent) -> String {
    let status = wait_for(agent, "a problem", |status| status["sources"][0]["problem"].is_string());
    status["sources"][0]["problem"].as_str().unwrap().to_owned()
}

/// Waits until `column` of a dataset satisfies `is_enough`. Nothing but the dataset says that a message has arrived for good.
pub(crate) fn wait_for_rows(
    agent: &Agent,
    config: &AgentConfig,
    dataset: &str,
    column: &str,
    is_enough: impl Fn(&[String]) -> bool,
) -> Vec<String> {
    let deadline = now() + WAIT_MAX;
    loop {
        agent.drain(0).unwrap();
        // There is no dataset before its first row.
        let rows = Rows::read(&config.data_dir(), dataset).and_then(|rows| rows.texts(column)).unwrap_or_default();
        if is_enough(&rows) {
            return rows;
        }
        assert!(now() < deadline, "{} rows are not enough: {}", rows.len(), agent.log().tail());
        thread::sleep(POLL_EVERY);
    }
}

/// How often each text is there.
pub(crate) fn counted(texts: Vec<String>) -> BTreeMap<String, u32> {
    let mut counts = BTreeMap::new();
    for text in texts {
        *counts.entry(text).or_default() += 1;
    }
    counts
}

#[expect(clippy::disallowed_methods, reason = "a story gives up on an agent that hangs")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
