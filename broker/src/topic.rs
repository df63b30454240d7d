//! Topic patterns: which Topic Names a dataset takes, and which of their levels become columns.
//!
//! A pattern is a Topic Filter whose wildcards may have names:
//!
//! | in a pattern | matches | as a column |
//! | --- | --- | --- |
//! | `site` | that level, byte for byte | no |
//! | `+` | any one level, an empty one too | no |
//! | `{device}` | as `+` | `device` |
//! | `#` at the end | the parent and every level below it | no |
//! | `{rest...}` at the end | as `#` | `rest`: the levels below, `/` between them; empty for the parent |
//!
//! As for every Topic Filter, a wildcard in the first level does not match a Topic Name that starts with `$`
//! `[MQTT-4.7.2-1]`.

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use thiserror::Error;

/// Which Topic Names are taken, and which of their levels are captured. See the [module](self) for the syntax.
///
/// ```
/// # use forebay_broker::topic::TopicPattern;
/// let pattern = TopicPattern::parse("site/{site}/{device}/temp")?;
/// assert_eq!(pattern.captures(), ["site", "device"]);
/// assert!(pattern.matches("site/berlin/th-1/temp"));
/// assert_eq!(pattern.captures_of("site/berlin/th-1/temp"), Some(vec![5..11, 12..16]));
/// # Ok::<(), forebay_broker::topic::PatternError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TopicPattern {
    text: String,
    levels: Vec<Level>,
    captures: Vec<String>,
}

/// What one level of a pattern matches; `captured` says whether it is a column.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Level {
    Literal(String),
    One { captured: bool },
    Rest { captured: bool },
}

/// Why a pattern is refused. Every message names the pattern and says what to write.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum PatternError {
    /// An empty pattern `[MQTT-4.7.3-1]`.
    #[error("topic pattern \"\" is empty: write \"#\" to take every topic [MQTT-4.7.3-1]")]
    Empty,
    /// More bytes than a Topic Name can have `[MQTT-4.7.3-3]`.
    #[error("topic pattern {pattern:?} is longer than 65,535 bytes: no topic can match it [MQTT-4.7.3-3]")]
    TooLong {
        /// Its first bytes.
        pattern: String,
    },
    /// U+0000 `[MQTT-4.7.3-2]`.
    #[error("topic pattern {pattern:?} contains U+0000: no topic can match it [MQTT-4.7.3-2]")]
    NullCharacter {
        /// The pattern.
        pattern: String,
    },
    /// `#` or `{name...}` before the last level `[MQTT-4.7.1-1]`.
    #[error("topic pattern {pattern:?}: {level:?} takes all that follows, so it must be the last level [MQTT-4.7.1-1]")]
    RestNotLast {
        /// The pattern.
        pattern: String,
        /// The level.
        level: String,
    },
    /// A wildcard or a capture with something beside it in its level `[MQTT-4.7.1-1] [MQTT-4.7.1-2]`.
    #[error(
        "topic pattern {pattern:?}: level {level:?} mixes text with a wildcard or braces; write \"+\", \"#\" or \
         \"{{name}}\" as a whole level between slashes [MQTT-4.7.1-2]"
    )]
    NotAWholeLevel {
        /// The pattern.
        pattern: String,
        /// The level.
        level: String,
    },
    /// A capture that cannot be a column.
    #[error(
        "topic pattern {pattern:?}: capture {name:?} cannot name a column; use letters, digits and \"_\", not starting \
         with a digit, as in \"{{device_id}}\""
    )]
    CaptureName {
        /// The pattern.
        pattern: String,
        /// The name.
        name: String,
    },
    /// The same name twice.
    #[error("topic pattern {pattern:?} captures {name:?} twice: give each capture a name of its own")]
    CaptureRepeated {
        /// The pattern.
        pattern: String,
        /// The name.
        name: String,
    },
}

impl TopicPattern {
    /// Reads a pattern as it stands in a configuration.
    ///
    /// # Errors
    /// [`PatternError`], which names the pattern and says what to write.
    pub fn parse(pattern: &str) -> Result<Self, PatternError> {
        check_text(pattern)?;
        let mut captures = Vec::new();
        let mut levels = Vec::new();
        for text in pattern.split('/') {
            if matches!(levels.last(), Some(Level::Rest { .. })) {
                return Err(rest_not_last(pattern, levels.len()));
            }
            let (level, capture) = parse_level(pattern, text)?;
            if let Some(name) = capture {
                if captures.contains(&name) {
                    let pattern = pattern.to_owned();
                    return Err(PatternError::CaptureRepeated { pattern, name });
                }
                captures.push(name);
            }
            levels.push(level);
        }
        Ok(Self { text: pattern.to_owned(), levels, captures })
    }

    /// The pattern as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Names of the captures, in the order of their levels. All differ.
    pub fn captures(&self) -> &[String] {
        &self.captures
    }

    /// The Topic Filter `[MQTT-4.7.1-1]` that takes the same topics, to subscribe with.
    pub fn filter(&self) -> String {
        let levels: Vec<&str> = self.levels.iter().map(Level::wildcard).collect();
        levels.join("/")
    }

    /// Whether the pattern takes `topic`. Allocates nothing.
    pub fn matches(&self, topic: &str) -> bool {
        self.walk(topic, |_| {})
    }

    /// Where the captures stand in `topic`, in bytes, one range for each of [`captures`](Self::captures) and in their
    /// order; `None` when the pattern does not take it.
    pub fn captures_of(&self, topic: &str) -> Option<Vec<Range<u16>>> {
        let mut ranges = Vec::with_capacity(self.captures.len());
        self.walk(topic, |range| ranges.push(range)).then_some(ranges)
    }

    /// Matches level by level and tells where each capture stands.
    fn walk(&self, topic: &str, mut captured: impl FnMut(Range<u16>)) -> bool {
        let Ok(end) = u16::try_from(topic.len()) else {
            return false; // [MQTT-4.7.3-3]
        };
        let starts_with_wildcard = !matches!(self.levels.first(), Some(Level::Literal(_)));
        if topic.starts_with('$') && starts_with_wildcard {
            return false; // [MQTT-4.7.2-1]
        }
        let mut start = 0;
        let mut rest = Some(topic);
        for level in &self.levels {
            if let Level::Rest { captured: named } = level {
                if *named {
                    captured(start.min(end)..end);
                }
                return true;
            }
            let Some(remaining) = rest else {
                return false;
            };
            let (text, after) = match remaining.split_once('/') {
                Some((text, after)) => (text, Some(after)),
                None => (remaining, None),
            };
            // No longer than the topic, so it fits; the slash after the last level is counted, hence saturating.
            let stop = start.saturating_add(text.len() as u16);
            match level {
                Level::Literal(literal) if literal != text => return false,
                Level::One { captured: true } => captured(start..stop),
                _ => {}
            }
            start = stop.saturating_add(1);
            rest = after;
        }
        rest.is_none()
    }
}

impl FromStr for TopicPattern {
    type Err = PatternError;

    fn from_str(pattern: &str) -> Result<Self, PatternError> {
        Self::parse(pattern)
    }
}

impl fmt::Display for TopicPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.text)
    }
}

impl Level {
    fn wildcard(&self) -> &str {
        match self {
            Self::Literal(text) => text,
            Self::One { .. } => "+",
            Self::Rest { .. } => "#",
        }
    }
}

fn check_text(pattern: &str) -> Result<(), PatternError> {
    if pattern.is_empty() {
        return Err(PatternError::Empty);
    }
    if pattern.len() > usize::from(u16::MAX) {
        let pattern = pattern.chars().take(40).collect();
        return Err(PatternError::TooLong { pattern });
    }
    if pattern.contains('\0') {
        let pattern = pattern.to_owned();
        return Err(PatternError::NullCharacter { pattern });
    }
    Ok(())
}

/// One level, and the name of its capture.
fn parse_level(pattern: &str, text: &str) -> Result<(Level, Option<String>), PatternError> {
    match text {
        "+" => return Ok((Level::One { captured: false }, None)),
        "#" => return Ok((Level::Rest { captured: false }, None)),
        _ => {}
    }
    let Some(inner) = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')) else {
        if text.contains(['+', '#', '{', '}']) {
            return Err(PatternError::NotAWholeLevel { pattern: pattern.to_owned(), level: text.to_owned() });
        }
        return Ok((Level::Literal(text.to_owned()), None));
    };
    let (name, level) = match inner.strip_suffix("...") {
        Some(name) => (name, Level::Rest { captured: true }),
        None => (inner, Level::One { captured: true }),
    };
    if !is_identifier(name) {
        return Err(PatternError::CaptureName { pattern: pattern.to_owned(), name: name.to_owned() });
    }
    Ok((level, Some(name.to_owned())))
}

fn is_identifier(name: &str) -> bool {
    name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && name.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}

fn rest_not_last(pattern: &str, levels_before: usize) -> PatternError {
    let level = pattern.split('/').nth(levels_before - 1).unwrap_or_default();
    PatternError::RestNotLast { pattern: pattern.to_owned(), level: level.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_levels_are_captured_in_their_order() {
        let pattern = pattern("site/{site}/{device}/temp");
        assert_eq!(pattern.captures(), ["site", "device"]);
        assert_eq!(captured(&pattern, "site/berlin/th-1/temp"), Some(vec!["berlin", "th-1"]));
        assert_eq!(captured(&pattern, "site/é/ü/temp"), Some(vec!["é", "ü"]));
        assert_eq!(captured(&pattern, "site/berlin/temp"), None);
        assert_eq!(captured(&pattern, "site/berlin/th-1/temp/max"), None);
        assert_eq!(captured(&pattern, "site/berlin/th-1/humidity"), None);
    }

    #[test]
    fn a_single_level_wildcard_matches_one_level_even_an_empty_one() {
        for text in ["a/+/b", "a/{x}/b"] {
            let pattern = pattern(text);
            assert!(pattern.matches("a/1/b"));
            assert!(pattern.matches("a//b"));
            assert!(!pattern.matches("a/1/2/b"));
            assert!(!pattern.matches("a/b"));
        }
        assert!(pattern("+/+").matches("/finance"));
        assert!(!pattern("+").matches("/finance"));
        assert_eq!(captured(&pattern("a/{x}/b"), "a//b"), Some(vec![""]));
    }

    #[test]
    fn a_multi_level_wildcard_matches_its_parent_and_all_below() {
        for text in ["a/#", "a/{rest...}"] {
            let pattern = pattern(text);
            assert!(pattern.matches("a"));
            assert!(pattern.matches("a/"));
            assert!(pattern.matches("a/b/c"));
            assert!(!pattern.matches("ab"));
            assert!(!pattern.matches("b/a"));
        }
        let pattern = pattern("a/{rest...}");
        assert_eq!(captured(&pattern, "a"), Some(vec![""]));
        assert_eq!(captured(&pattern, "a/"), Some(vec![""]));
        assert_eq!(captured(&pattern, "a/b//c"), Some(vec!["b//c"]));
    }

    #[test]
    fn everything_is_captured_by_a_pattern_of_one_name() {
        assert_eq!(captured(&pattern("{rest...}"), "a/b"), Some(vec!["a/b"]));
        assert_eq!(captured(&pattern("{rest...}"), "/"), Some(vec!["/"]));
        assert_eq!(captured(&pattern("{x}"), "a"), Some(vec!["a"]));
    }

    #[test]
    fn mqtt_4_7_2_1_a_leading_wildcard_does_not_match_a_topic_that_starts_with_a_dollar_sign() {
        for text in ["#", "+/info", "{rest...}", "{x}/info"] {
            assert!(!pattern(text).matches("$SYS/info"), "{text}");
        }
        assert!(pattern("$SYS/#").matches("$SYS/info"));
        assert!(pattern("#").matches("a/$SYS"));
        assert!(pattern("{x}/{y}").matches("a/$SYS"));
    }

    #[test]
    fn literals_are_case_sensitive_and_empty_levels_count() {
        assert!(!pattern("ACCOUNTS").matches("Accounts"));
        assert!(pattern("/finance").matches("/finance"));
        assert!(!pattern("/finance").matches("finance"));
        assert!(!pattern("finance/").matches("finance"));
        assert!(pattern("a b/c").matches("a b/c"));
    }

    #[test]
    fn the_filter_of_a_pattern_is_what_to_subscribe_to() {
        assert_eq!(pattern("site/{site}/+/{rest...}").filter(), "site/+/+/#");
        assert_eq!(pattern("/a//b").filter(), "/a//b");
        assert_eq!(pattern("{x}/#").to_string(), "{x}/#");
    }

    #[test]
    fn the_longest_topic_is_matched_and_a_longer_one_is_not() {
        let longest = "a/".repeat(32_767) + "b";
        let pattern = pattern("a/{rest...}");
        assert_eq!(captured(&pattern, &longest), Some(vec![&longest[2..]]));
        assert!(!pattern.matches(&(longest + "c")));
        let one_level = "x".repeat(65_535);
        let pattern = TopicPattern::parse("{x}").unwrap();
        assert_eq!(captured(&pattern, &one_level), Some(vec![&*one_level]));
    }

    #[test]
    fn a_pattern_that_cannot_work_is_refused_with_what_to_write() {
        let messages = [
            ("", "topic pattern \"\" is empty: write \"#\""),
            ("a/#/b", "\"a/#/b\": \"#\" takes all that follows, so it must be the last"),
            ("{all...}/b", "\"{all...}/b\": \"{all...}\" takes all that follows"),
            ("a/b#", "level \"b#\" mixes text with a wildcard"),
            ("a/b+", "level \"b+\" mixes text with a wildcard"),
            ("a/x{y}", "level \"x{y}\" mixes text"),
            ("a/{y", "level \"{y\" mixes text"),
            ("a/{}", "capture \"\" cannot name a column"),
            ("a/{...}", "capture \"\" cannot name a column"),
            ("a/{b c}", "capture \"b c\" cannot name a column"),
            ("a/{1st}", "capture \"1st\" cannot name a column"),
            ("a/{x}{y}", "capture \"x}{y\" cannot name a column"),
            ("{x}/{x}", "captures \"x\" twice"),
            ("{x}/{x...}", "captures \"x\" twice"),
            ("a\0", "contains U+0000"),
        ];
        for (text, expected) in messages {
            let message = TopicPattern::parse(text).unwrap_err().to_string();
            assert!(message.contains(expected), "{text:?} gives: {message}");
        }
        let too_long = TopicPattern::parse(&"x".repeat(65_536)).unwrap_err();
        assert!(matches!(too_long, PatternError::TooLong { .. }));
    }

    fn pattern(text: &str) -> TopicPattern {
        TopicPattern::parse(text).unwrap()
    }

    fn captured<'a>(pattern: &TopicPattern, topic: &'a str) -> Option<Vec<&'a str>> {
        let ranges = pattern.captures_of(topic)?;
        let text = |range: Range<u16>| &topic[usize::from(range.start)..usize::from(range.end)];
        Some(ranges.into_iter().map(text).collect())
    }
}
