//! What an attempt's failure means: for how much it counts, what is done about it, and what a person is told. (pure)
//!
//! | answer | failure | then |
//! | --- | --- | --- |
//! | none: refused, cut, silent, DNS | `Unreachable` | the whole upstream waits, longer each time |
//! | 408, 425, 429, 502, 503, 504 | `Unreachable` | the same, at least as long as `Retry-After` says |
//! | certificate not trusted, a redirect, not a node | `Unreachable` | the same; the words say what to change |
//! | 401 | `Unauthorised` | the token is read again; if it is the same, the upstream waits |
//! | 500 and every other 5xx | `Unknown` | the dataset waits; push ingest counts the tries and then looks for the row |
//! | 403, 404 and every other 4xx | `Refused` | the dataset is quarantined, the others go on |
//! | the chain there is not ours | `Diverged` | the dataset stops; everything is kept |
//! | our own files | `Local` | the dataset stops |

use std::time::Duration;

/// Bytes of a node's answer that are repeated to a person.
const WORDS_MAX: usize = 300;

/// Why an attempt did not succeed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{words}")]
pub struct Failure {
    /// What is done about it.
    pub kind: FailureKind,
    /// One line: what happened, in the other side's words where it had any, and what to change.
    pub words: String,
}

/// What is done about a [`Failure`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailureKind {
    /// The upstream as a whole waits and is tried again.
    Unreachable {
        /// How long it asked us to wait at least.
        retry_after: Option<Duration>,
    },
    /// The upstream does not accept the token.
    Unauthorised,
    /// The dataset waits and is tried again: nobody knows whether the data or the node is at fault.
    Unknown,
    /// The dataset is quarantined: tried again now and then, since only a person can put it right.
    Refused,
    /// Somebody else wrote to the dataset there. It is left alone.
    Diverged,
    /// The gateway's own files.
    Local,
    /// The agent is stopping.
    Stopped,
}

impl Failure {
    /// A failure in words.
    pub fn new(kind: FailureKind, words: impl Into<String>) -> Self {
        Self { kind, words: words.into() }
    }

    /// No answer.
    pub fn unreachable(words: impl Into<String>) -> Self {
        Self::new(FailureKind::Unreachable { retry_after: None }, words)
    }

    /// Our own files.
    pub fn local(problem: impl std::fmt::Display) -> Self {
        Self::new(FailureKind::Local, problem.to_string())
    }

    /// The agent is stopping.
    pub fn stopped() -> Self {
        Self::new(FailureKind::Stopped, "stopped")
    }

    /// The same with more context before its words.
    #[must_use]
    pub fn context(self, what: impl std::fmt::Display) -> Self {
        Self { words: format!("{what}: {}", self.words), ..self }
    }
}

impl Failure {
    /// A 403 or 404 that came without a reason: the node has to be asked for it.
    #[must_use]
    pub fn is_wordless(&self) -> bool {
        [403, 404].iter().any(|status| self.words.ends_with(&format!("was answered with {status}")))
    }
}

impl FailureKind {
    /// Whether the upstream as a whole is held up, and not one dataset.
    #[must_use]
    pub fn is_of_upstream(self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Unauthorised)
    }
}

/// What an HTTP status means when it is not the one that was hoped for. `what` was asked, as in "POST https://…".
#[must_use]
pub fn of_status(what: &str, status: u16, retry_after: Option<&str>, body: &str) -> Failure {
    let kind = match status {
        401 => FailureKind::Unauthorised,
        408 | 425 | 429 | 502 | 503 | 504 => FailureKind::Unreachable { retry_after: seconds(retry_after) },
        300..=399 => FailureKind::Unreachable { retry_after: None },
        500.. => FailureKind::Unknown,
        _ => FailureKind::Refused,
    };
    let mut words = format!("{what} was answered with {status}");
    if let Some(said) = words_of(body) {
        words = format!("{words}: {said}");
    }
    if status == 400 && words.contains("Source '") {
        words += "; set `source_name` to the push source of the node's dataset, or see `forebay provision`";
    }
    if status == 413 {
        words += "; a proxy before the node takes no body of this size: raise its limit, or lower [batch] bytes for what \
                  is still to be sealed";
    }
    Failure::new(kind, words)
}

/// `Retry-After` in seconds; its other form, a date, is rare and would need the node's clock to be right.
fn seconds(text: Option<&str>) -> Option<Duration> {
    text?.trim().parse().ok().map(Duration::from_secs)
}

/// What a body says to a person: its `message` if it is the JSON that Kamu writes, else its first line, if it has any.
#[must_use]
pub fn words_of(body: &str) -> Option<String> {
    let message = serde_json::from_str::<serde_json::Value>(body)
        .ok()
        .and_then(|json| json.get("message")?.as_str().map(str::to_owned));
    let text = message.unwrap_or_else(|| body.to_owned());
    let line = text.lines().find(|line| !line.trim().is_empty())?.trim();
    let words: String = line.chars().filter(|c| !c.is_control()).take(WORDS_MAX).collect();
    (!words.starts_with('<')).then_some(words)
}

/// An error with its causes in one line, each said once.
#[must_use]
pub fn causes(mut error: Option<&(dyn std::error::Error + 'static)>) -> String {
    let mut words = String::new();
    while let Some(cause) = error {
        let more = cause.to_string();
        if words.is_empty() {
            words = more;
        } else if !words.contains(&more) {
            words = format!("{words}: {more}");
        }
        error = cause.source();
    }
    words.replace(['\n', '\r'], " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(status: u16) -> FailureKind {
        of_status("POST x", status, Some("7"), "").kind
    }

    #[test]
    fn a_busy_or_absent_node_is_waited_for_as_long_as_it_says() {
        for status in [408, 425, 429, 502, 503, 504] {
            assert_eq!(
                kind(status),
                FailureKind::Unreachable { retry_after: Some(Duration::from_secs(7)) },
                "{status}"
            );
        }
        assert_eq!(kind(301), FailureKind::Unreachable { retry_after: None });
    }

    #[test]
    fn a_500_accuses_nobody() {
        assert_eq!(kind(500), FailureKind::Unknown);
        assert_eq!(kind(507), FailureKind::Unknown);
    }

    #[test]
    fn what_only_a_person_can_put_right_is_quarantined() {
        for status in [400, 403, 404, 405, 409, 413, 415, 422] {
            assert_eq!(kind(status), FailureKind::Refused, "{status}");
        }
        assert_eq!(kind(401), FailureKind::Unauthorised);
    }

    #[test]
    fn a_403_without_words_has_to_be_asked_about() {
        assert!(of_status("POST x", 403, None, "").is_wordless());
        assert!(!of_status("POST x", 403, None, "{\"message\":\"Quota exceeded\"}").is_wordless());
        assert!(!of_status("POST x", 400, None, "").is_wordless());
    }

    #[test]
    fn the_nodes_own_words_are_repeated_in_one_line() {
        let refused = of_status("POST x", 400, None, "{\"message\":\"Source 'nope' not found\"}");

        assert_eq!(
            refused.words,
            "POST x was answered with 400: Source 'nope' not found; set `source_name` to the push source of the node's \
             dataset, or see `forebay provision`"
        );
        assert_eq!(words_of("Authentication token invalid\n\nmore"), Some("Authentication token invalid".to_owned()));
        assert_eq!(words_of("<html><body>502 Bad Gateway</body></html>"), None);
        assert_eq!(words_of(""), None);
        assert_eq!(words_of(&"x".repeat(5_000)).map(|words| words.len()), Some(WORDS_MAX));
    }
}
