//! The ACL file: where each client may publish, in mosquitto's form.
//!
//! ```text
//! # a comment, on a line of its own
//! topic write public/#                 before any `user`: for clients without a user name
//! user plant 7                         a section; a name may contain blanks, and may come again
//! topic write plant/7/#
//! topic deny  plant/7/secret
//! pattern write devices/%u/%c/#        for everybody, wherever it stands; %u user name, %c Client Identifier
//! ```
//!
//! Access is `read`, `write`, `readwrite` or `deny`; without it a line means `readwrite`. Nobody reads from this
//! broker, so `read` is checked and grants nothing. Words are separated by blanks, tabs among them.
//!
//! # Who decides
//! The first that has something to say, as in mosquitto 2.0 (`mosquitto_acl_check_default`): a `deny` of the client's
//! own section, a grant there, a `deny` among the patterns, a grant there. Otherwise the answer is no. These of
//! mosquitto's habits follow from that or are kept beside it:
//!
//! - A grant in a user's own section is stronger than a `deny` pattern.
//! - Rules before any `user` are for clients without a user name, not for everybody.
//! - A pattern with `%u`, even a `deny`, says nothing about a client without a user name. In `topic` %u is plain text.
//! - When there are patterns, a user name or Client Identifier with `+` or `#` is refused all that its own section does
//!   not grant, also by patterns that do not mention it.
//! - A wildcard in the first level never takes a topic that begins with `$` `[MQTT-4.7.2-1]`.
//!
//! Two things are stricter than there. A name with `/` would stand for more than one level (Client Identifier
//! `a/alarm` in `devices/%c`): a pattern that mentions it grants nothing, and if it is a `deny`, all is denied. And
//! `topic write`, which mosquitto takes for a grant of the topic called "write", is refused as a line without a topic.
//!
//! What mosquitto decides before it asks the file is not here: it keeps `$SYS...` for itself, whatever a rule says.

use std::collections::HashMap;

use thiserror::Error;

use super::{FILE_BYTES_MAX, is_blank, trim};

/// Rules of one file. Each message is compared with those of its user and with all patterns.
pub const RULES_MAX: usize = 100_000;
/// Bytes of a topic in a rule `[MQTT-4.7.3-3]`.
const TOPIC_BYTES_MAX: usize = u16::MAX as usize;

/// Where each client may publish. The default grants nothing to anybody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Acl {
    anonymous: Rules,
    users: HashMap<String, Rules>,
    patterns: Rules,
    /// There is a pattern, if only one to read.
    has_patterns: bool,
}

/// Rules that are asked together: every `deny` before every grant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Rules {
    deny: Vec<Rule>,
    grant: Vec<Rule>,
}

/// A Topic Filter; of a pattern, with the places of names in it.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Rule {
    filter: Box<str>,
    mentions_user: bool,
    mentions_client_id: bool,
}

/// Why an ACL file is refused.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum AclError {
    /// More than [`FILE_BYTES_MAX`].
    #[error("the ACL file has {bytes} bytes; {FILE_BYTES_MAX} are the most")]
    TooLong {
        /// Of the file.
        bytes: usize,
    },
    /// A line that cannot be used.
    #[error("line {line}: {problem}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong, and what to do.
        problem: RuleProblem,
    },
}

/// What is wrong with a line of an ACL file.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum RuleProblem {
    /// Not a line that mosquitto knows either.
    #[error(
        "{word:?} begins no rule: write `user NAME`, `topic [read|write|readwrite|deny] TOPIC` or the same with \
         `pattern`; a comment begins with `#`"
    )]
    Keyword {
        /// How the line begins.
        word: String,
    },
    /// `user` alone.
    #[error("there is no name after `user`; rules for clients without a user name stand before the first `user`")]
    NoUser,
    /// `topic`, `topic write`.
    #[error("there is no topic: write `{keyword} write TOPIC`")]
    NoTopic {
        /// `topic` or `pattern`.
        keyword: &'static str,
    },
    /// Between `topic` and a topic stands something else.
    #[error("{word:?} is no access: write `read`, `write`, `readwrite` or `deny` before the topic")]
    Access {
        /// What stands there.
        word: String,
    },
    /// A wildcard with something beside it in its level `[MQTT-4.7.1-1] [MQTT-4.7.1-2]`.
    #[error("level {level:?} of the topic mixes text with a wildcard; `+` and `#` stand alone between slashes")]
    NotAWholeLevel {
        /// The level.
        level: String,
    },
    /// `#` before the last level `[MQTT-4.7.1-1]`.
    #[error("`#` takes all that follows, so it must be the last level of the topic")]
    RestNotLast,
    /// No topic is that long.
    #[error("the topic is longer than {TOPIC_BYTES_MAX} bytes")]
    TopicTooLong,
    /// U+0000 `[MQTT-4.7.3-2]`.
    #[error("the line contains U+0000; no topic and no user name can")]
    NullCharacter,
    /// More than [`RULES_MAX`].
    #[error("there are more than {RULES_MAX} rules; a `pattern` with %u or %c is one rule for many devices")]
    TooManyRules,
}

impl Acl {
    /// Reads the text of an ACL file.
    ///
    /// # Errors
    /// [`AclError`], which names the line and says what to write.
    pub fn parse(text: &str) -> Result<Self, AclError> {
        if text.len() > FILE_BYTES_MAX {
            return Err(AclError::TooLong { bytes: text.len() });
        }
        let mut acl = Self::default();
        let mut section = None;
        let mut rules = 0;
        for (position, line) in text.lines().enumerate() {
            let at_line = |problem| AclError::Line { line: position + 1, problem };
            match parse_line(line).map_err(at_line)? {
                Line::Empty => {}
                Line::User(name) => section = Some(name),
                Line::Rule { .. } if rules == RULES_MAX => return Err(at_line(RuleProblem::TooManyRules)),
                Line::Rule { is_pattern, access, topic } => {
                    rules += 1;
                    acl.add(section, is_pattern, access, topic);
                }
            }
        }
        Ok(acl)
    }

    /// Whether this client may publish to the topic. Allocates nothing.
    pub fn may_write(&self, user: Option<&str>, client_id: &str, topic: &str) -> bool {
        let own = match user {
            Some(user) => self.users.get(user),
            None => Some(&self.anonymous),
        };
        let takes = |rule: &Rule| matches(&rule.filter, topic, str::eq);
        if let Some(verdict) = own.and_then(|rules| rules.verdict(takes, takes)) {
            return verdict;
        }
        let has_wildcard = |name: &str| name.contains(['+', '#']);
        if !self.has_patterns || user.is_some_and(has_wildcard) || has_wildcard(client_id) {
            return false;
        }
        let names = Names { user, client_id };
        self.patterns.verdict(|rule| names.deny(rule, topic), |rule| names.take(rule, topic)).unwrap_or(false)
    }

    fn add(&mut self, user: Option<&str>, is_pattern: bool, access: Access, topic: &str) {
        self.has_patterns |= is_pattern;
        if access == Access::Read {
            return;
        }
        let rules = match user {
            _ if is_pattern => &mut self.patterns,
            None => &mut self.anonymous,
            Some(user) => self.users.entry(user.to_owned()).or_default(),
        };
        let rule = Rule {
            filter: topic.into(),
            mentions_user: is_pattern && topic.contains("%u"),
            mentions_client_id: is_pattern && topic.contains("%c"),
        };
        let same_access = if access == Access::Deny { &mut rules.deny } else { &mut rules.grant };
        same_access.push(rule);
    }
}

impl Rules {
    fn verdict(&self, denies: impl Fn(&Rule) -> bool, grants: impl Fn(&Rule) -> bool) -> Option<bool> {
        if self.deny.iter().any(denies) { Some(false) } else { self.grant.iter().any(grants).then_some(true) }
    }
}

/// What stands for %u and %c.
#[derive(Clone, Copy)]
struct Names<'a> {
    user: Option<&'a str>,
    client_id: &'a str,
}

impl Names<'_> {
    /// A `deny` that mentions a name with `/` denies whatever the topic: its place is not one level.
    fn deny(&self, rule: &Rule, topic: &str) -> bool {
        let user_has_slash = rule.mentions_user && self.user.is_some_and(|user| user.contains('/'));
        let client_id_has_slash = rule.mentions_client_id && self.client_id.contains('/');
        self.concern(rule) && (user_has_slash || client_id_has_slash || self.take(rule, topic))
    }

    /// Level by level, so a name with `/` is in no topic.
    fn take(&self, rule: &Rule, topic: &str) -> bool {
        if rule.mentions_user || rule.mentions_client_id {
            self.concern(rule) && matches(&rule.filter, topic, |level, text| self.fill(level, text))
        } else {
            matches(&rule.filter, topic, str::eq)
        }
    }

    fn concern(&self, rule: &Rule) -> bool {
        self.user.is_some() || !rule.mentions_user
    }

    /// Whether `text` is `level` with the names in their places.
    fn fill(&self, level: &str, text: &str) -> bool {
        let (mut level, mut text) = (level, text);
        while let Some((before, name, after)) = self.next_place(level) {
            let Some(rest) = text.strip_prefix(before).and_then(|text| text.strip_prefix(name)) else {
                return false;
            };
            (level, text) = (after, rest);
        }
        level == text
    }

    /// What stands before the first %u or %c, the name that belongs there, and what stands after it.
    fn next_place<'l>(&self, level: &'l str) -> Option<(&'l str, &str, &'l str)> {
        level.match_indices('%').find_map(|(at, _)| {
            let (before, place) = level.split_at(at);
            if let Some(after) = place.strip_prefix("%c") {
                return Some((before, self.client_id, after));
            }
            Some((before, self.user?, place.strip_prefix("%u")?))
        })
    }
}

/// Whether a Topic Filter takes a topic; `same` compares a level without a wildcard.
fn matches(filter: &str, topic: &str, same: impl Fn(&str, &str) -> bool) -> bool {
    if topic.starts_with('$') && filter.starts_with(['+', '#']) {
        return false; // [MQTT-4.7.2-1]
    }
    let mut levels = topic.split('/');
    for level in filter.split('/') {
        if level == "#" {
            return true;
        }
        let Some(text) = levels.next() else {
            return false;
        };
        if level != "+" && !same(level, text) {
            return false;
        }
    }
    levels.next().is_none()
}

/// One line of the file.
enum Line<'a> {
    Empty,
    User(&'a str),
    Rule { is_pattern: bool, access: Access, topic: &'a str },
}

/// What a rule says about writing.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Access {
    /// Nothing.
    Read,
    /// `write` and `readwrite`.
    Write,
    Deny,
}

impl Access {
    fn parse(word: &str) -> Option<Self> {
        match word {
            "read" => Some(Self::Read),
            "write" | "readwrite" => Some(Self::Write),
            "deny" => Some(Self::Deny),
            _ => None,
        }
    }
}

fn parse_line(line: &str) -> Result<Line<'_>, RuleProblem> {
    if line.contains('\0') {
        return Err(RuleProblem::NullCharacter);
    }
    let line = trim(line);
    if line.is_empty() || line.starts_with('#') {
        return Ok(Line::Empty);
    }
    let (word, rest) = split_word(line);
    match word {
        "user" if rest.is_empty() => Err(RuleProblem::NoUser),
        "user" => Ok(Line::User(rest)),
        "topic" => parse_rule("topic", rest),
        "pattern" => parse_rule("pattern", rest),
        _ => Err(RuleProblem::Keyword { word: shown(word) }),
    }
}

fn parse_rule<'a>(keyword: &'static str, text: &'a str) -> Result<Line<'a>, RuleProblem> {
    let (word, rest) = split_word(text);
    let (access, topic) = match Access::parse(word) {
        Some(access) => (access, rest),
        None if rest.is_empty() => (Access::Write, word),
        None => return Err(RuleProblem::Access { word: shown(word) }),
    };
    if topic.is_empty() {
        return Err(RuleProblem::NoTopic { keyword });
    }
    check_filter(topic)?;
    Ok(Line::Rule { is_pattern: keyword == "pattern", access, topic })
}

fn check_filter(filter: &str) -> Result<(), RuleProblem> {
    if filter.len() > TOPIC_BYTES_MAX {
        return Err(RuleProblem::TopicTooLong);
    }
    let mut levels = filter.split('/').peekable();
    while let Some(level) = levels.next() {
        if level.contains(['+', '#']) && level.len() > 1 {
            return Err(RuleProblem::NotAWholeLevel { level: shown(level) });
        }
        if level == "#" && levels.peek().is_some() {
            return Err(RuleProblem::RestNotLast);
        }
    }
    Ok(())
}

/// The first word, and what follows it; no blanks around either.
fn split_word(text: &str) -> (&str, &str) {
    let (word, rest) = text.split_once(is_blank).unwrap_or((text, ""));
    (word, trim(rest))
}

/// As much as a message needs.
fn shown(text: &str) -> String {
    text.chars().take(60).collect()
}

#[cfg(test)]
mod tests;
