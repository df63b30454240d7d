//! What others see of a source: a number for each question, and one line when something is wrong.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// Topics that are counted one by one. Beyond: together, as [`OTHER_TOPICS`].
const TOPICS_MAX: usize = 1_000;
/// A connection that lived for so long had no problem.
const SOUND: Duration = Duration::from_secs(60);
/// Stands for the topics that are not counted one by one; no Topic Name has a wildcard `[MQTT-3.3.2-2]`.
pub const OTHER_TOPICS: &str = "#";

/// One source of a status.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceReport {
    /// Its name in the configuration.
    pub name: String,
    /// Where the broker is.
    pub url: String,
    /// Our Client Identifier there.
    pub client_id: String,
    /// The broker has accepted our CONNECT.
    pub connected: bool,
    /// It has answered our SUBSCRIBE.
    pub subscribed: bool,
    /// Connections made since the agent started.
    pub connections: u64,
    /// How often the broker had lost our session, and what it had queued with it.
    #[serde(default)]
    pub sessions_lost: u64,
    /// How long the broker keeps our session while we are away, if it said so, seconds.
    #[serde(default)]
    pub session_expiry_secs: Option<u32>,
    /// Messages that came since the agent started, those included that were stored already.
    pub messages: u64,
    /// The same by topic; those beyond the first thousand are counted under `#`.
    pub topics: BTreeMap<String, u64>,
    /// What keeps messages from coming or makes fewer of them come, and what to do.
    pub problem: Option<String>,
    /// Only a person can help.
    pub needs_help: bool,
}

/// What a broker sends us at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reception {
    /// It has not answered our SUBSCRIBE.
    Away {
        /// Only a person can help.
        needs_help: bool,
    },
    /// A message is not on disk yet, or not here as a whole.
    Receiving,
    /// Nothing for so long, counted from its SUBACK or the last bytes, whichever was later.
    Silent(Duration),
}

/// A source's state, written by its task and read by everybody.
#[derive(Debug)]
pub struct Progress {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    report: SourceReport,
    /// When the broker answered our SUBSCRIBE, or a message came after that.
    quiet_since: Option<Instant>,
    /// Messages that are not on disk yet.
    open: usize,
    /// The problem that was told last, as long as no connection has outlived it.
    told: Option<String>,
    subscribed_at: Option<Instant>,
}

impl Progress {
    /// Of a source that is not connected.
    #[must_use]
    pub fn new(name: &str, url: &str, client_id: &str) -> Self {
        let report = SourceReport {
            name: name.to_owned(),
            url: url.to_owned(),
            client_id: client_id.to_owned(),
            ..SourceReport::default()
        };
        Self { state: Mutex::new(State { report, quiet_since: None, open: 0, told: None, subscribed_at: None }) }
    }

    /// What there is to say.
    #[must_use]
    pub fn report(&self) -> SourceReport {
        self.state().report.clone()
    }

    /// What comes at this moment.
    #[must_use]
    pub fn reception(&self, now: Instant) -> Reception {
        let state = self.state();
        match state.quiet_since {
            // What a session has queued may come before the SUBACK.
            _ if state.report.connected && state.open > 0 => Reception::Receiving,
            None => Reception::Away { needs_help: state.report.needs_help },
            Some(since) => Reception::Silent(now.saturating_duration_since(since)),
        }
    }

    /// Name, and what keeps messages from coming or makes fewer of them come.
    #[must_use]
    pub fn problem(&self) -> Option<(String, String)> {
        let state = self.state();
        state.report.problem.as_ref().map(|problem| (state.report.name.clone(), problem.clone()))
    }

    /// Messages that came since the agent started.
    #[must_use]
    pub fn messages(&self) -> u64 {
        self.state().report.messages
    }

    pub(super) fn connected(&self, is_session_lost: bool, session_expiry_secs: Option<u32>) {
        let mut state = self.state();
        state.report.connected = true;
        state.report.connections += 1;
        state.report.sessions_lost += u64::from(is_session_lost);
        state.report.session_expiry_secs = session_expiry_secs;
    }

    pub(super) fn subscribed(&self, problem: Option<String>, now: Instant) {
        let mut state = self.state();
        state.report.subscribed = true;
        state.report.needs_help = problem.is_some();
        state.report.problem = problem;
        state.quiet_since = Some(now);
        state.subscribed_at = Some(now);
    }

    /// Something came, be it a part of a message.
    pub(super) fn bytes(&self, now: Instant) {
        let mut state = self.state();
        if state.quiet_since.is_some() {
            state.quiet_since = Some(now);
        }
    }

    pub(super) fn message(&self, topic: &str) {
        let mut state = self.state();
        state.report.messages += 1;
        let topics = &mut state.report.topics;
        if let Some(count) = topics.get_mut(topic) {
            *count += 1;
        } else {
            let name = if topics.len() < TOPICS_MAX { topic } else { OTHER_TOPICS };
            *topics.entry(name.to_owned()).or_default() += 1;
        }
    }

    pub(super) fn open(&self, open: usize) {
        self.state().open = open;
    }

    /// The connection has ended. Answers whether that has to be told: not if the last one ended the same way, unless this
    /// one was sound for a while.
    pub(super) fn ended(&self, problem: Option<(&str, bool)>, now: Instant) -> bool {
        let mut state = self.state();
        if state.subscribed_at.take().is_some_and(|since| now.saturating_duration_since(since) >= SOUND) {
            state.told = None;
        }
        state.report.connected = false;
        state.report.subscribed = false;
        state.quiet_since = None;
        state.open = 0;
        let Some((problem, needs_help)) = problem else { return false };
        let is_new = state.told.as_deref() != Some(problem);
        state.told = Some(problem.to_owned());
        state.report.problem = Some(problem.to_owned());
        state.report.needs_help = needs_help;
        is_new
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const AWAY: Reception = Reception::Away { needs_help: false };

    #[test]
    fn silence_counts_from_the_suback_and_from_the_last_bytes_and_never_while_connecting() {
        let (progress, start) = (progress(), crate::clock::now());

        progress.connected(false, None);
        progress.bytes(start);
        assert_eq!(progress.reception(start + SECOND * 60), AWAY, "nothing is known before the SUBACK");
        progress.subscribed(None, start + SECOND);
        assert_eq!(progress.reception(start + SECOND * 3), Reception::Silent(SECOND * 2));
        progress.bytes(start + SECOND * 4);
        assert_eq!(progress.reception(start + SECOND * 5), Reception::Silent(SECOND));
        progress.ended(None, start);
        assert_eq!(progress.reception(start + SECOND * 60), AWAY, "nor after the connection was lost");
    }

    #[test]
    fn what_is_not_on_disk_yet_is_neither_silence_nor_absence() {
        let (progress, start) = (progress(), crate::clock::now());
        progress.open(1);
        assert_eq!(progress.reception(start), AWAY, "half a CONNACK");
        progress.connected(false, None);
        assert_eq!(
            progress.reception(start),
            Reception::Receiving,
            "what the session had queued comes before the SUBACK"
        );
        progress.open(0);
        progress.subscribed(None, start);

        progress.open(1);
        assert_eq!(progress.reception(start + SECOND), Reception::Receiving);
        progress.open(0);
        assert_eq!(progress.reception(start + SECOND), Reception::Silent(SECOND));
    }

    #[test]
    fn a_problem_is_told_once_however_often_the_connection_comes_and_goes() {
        let (progress, now) = (progress(), crate::clock::now());

        assert!(progress.ended(Some(("no route", false)), now));
        assert!(!progress.ended(Some(("no route", false)), now));
        assert!(progress.ended(Some(("too large", true)), now));
        assert_eq!(progress.reception(now), Reception::Away { needs_help: true });
        progress.subscribed(None, now);
        assert_eq!(progress.report().problem, None);
        assert!(!progress.ended(Some(("too large", true)), now + SECOND));
        progress.subscribed(None, now);
        assert!(progress.ended(Some(("too large", true)), now + SOUND), "it was sound for a while");
    }

    #[test]
    fn beyond_a_thousand_topics_the_others_are_counted_together() {
        let progress = progress();

        for topic in 0..TOPICS_MAX + 5 {
            progress.message(&topic.to_string());
        }

        let report = progress.report();
        assert_eq!((report.messages, report.topics[OTHER_TOPICS]), (1_005, 5));
    }

    fn progress() -> Progress {
        Progress::new("plant", "mqtt://plant:1883", "gw")
    }
}
