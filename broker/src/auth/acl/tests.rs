//! The rules of mosquitto 2.0, one by one, and a slow model that decides the same.

use proptest::prelude::*;

use super::*;

#[test]
fn nobody_may_publish_anywhere_unless_a_rule_says_so() {
    for acl in [Acl::default(), acl(""), acl("# only\r\n\r\n  # comments"), acl("user ann\ntopic write a")] {
        assert!(!acl.may_write(None, "c", "a"));
        assert!(!acl.may_write(Some("bob"), "c", "a"));
        assert!(!acl.may_write(Some("ann"), "c", "b"));
    }
}

#[test]
fn a_section_is_for_its_user_and_rules_before_any_are_for_clients_without_a_name() {
    let acl =
        acl("topic write open/#\nuser plant 7\ntopic write p7/#\nuser bob\ntopic b\nuser  plant 7 \ntopic write more");

    assert!(acl.may_write(None, "c", "open/x") && !acl.may_write(None, "c", "p7/x"));
    assert!(acl.may_write(Some("plant 7"), "c", "p7/x") && acl.may_write(Some("plant 7"), "c", "more"));
    assert!(!acl.may_write(Some("plant 7"), "c", "open/x") && !acl.may_write(Some("plant 7"), "c", "b"));
    assert!(acl.may_write(Some("bob"), "c", "b") && !acl.may_write(Some("BOB"), "c", "b"));
}

#[test]
fn only_write_and_readwrite_grant_and_no_word_means_readwrite() {
    let acl =
        acl("topic read r\ntopic write w\ntopic readwrite rw\ntopic plain\ntopic deny d\ntopic write  two words ");

    let may = ["r", "w", "rw", "plain", "d", "two words"].map(|topic| acl.may_write(None, "c", topic));

    assert_eq!(may, [false, true, true, true, false, true]);
}

#[test]
fn a_deny_in_the_own_section_wins_over_a_grant_wherever_it_stands() {
    for text in ["topic write a/#\ntopic deny a/b", "topic deny a/b\ntopic write a/#"] {
        let acl = acl(&format!("{text}\npattern write a/b"));
        assert!(acl.may_write(None, "c", "a/c") && !acl.may_write(None, "c", "a/b"));
    }
}

#[test]
fn the_own_section_is_asked_before_the_patterns() {
    let acl =
        acl("pattern deny a/#\npattern write b\npattern deny b/c\npattern write b/#\nuser ann\ntopic write a/ann");

    assert!(acl.may_write(Some("ann"), "c", "a/ann"), "a grant of the section beats a deny pattern");
    assert!(!acl.may_write(Some("ann"), "c", "a/x") && !acl.may_write(Some("bob"), "c", "a/ann"));
    assert!(acl.may_write(Some("bob"), "c", "b") && acl.may_write(None, "c", "b/d"));
    assert!(!acl.may_write(Some("bob"), "c", "b/c"), "a deny pattern beats an earlier grant pattern");
}

#[test]
fn names_stand_in_the_places_of_a_pattern() {
    let acl = acl("pattern write d/%u/%c/#\npattern write x-%c%u-y/+\npattern write %%u/100%");

    assert!(acl.may_write(Some("ann"), "c1", "d/ann/c1/t") && acl.may_write(Some("ann"), "c1", "d/ann/c1"));
    assert!(!acl.may_write(Some("ann"), "c1", "d/bob/c1/t") && !acl.may_write(Some("ann"), "c1", "d/ann/c2/t"));
    assert!(!acl.may_write(Some("ann"), "c1", "d/%u/%c/t"));
    assert!(acl.may_write(Some("ann"), "c1", "x-c1ann-y/z") && !acl.may_write(Some("ann"), "c1", "x-annc1-y/z"));
    assert!(acl.may_write(Some("%c"), "%u", "d/%c/%u/t"), "a name is text, whatever it looks like");
    assert!(acl.may_write(Some("ann"), "c1", "%ann/100%"));
}

#[test]
fn in_a_topic_rule_the_places_are_plain_text() {
    let acl = acl("user ann\ntopic write d/%u/%c");
    assert!(acl.may_write(Some("ann"), "c1", "d/%u/%c") && !acl.may_write(Some("ann"), "c1", "d/ann/c1"));
}

#[test]
fn a_pattern_with_a_user_name_says_nothing_about_a_client_without_one() {
    let acl = acl("pattern deny %u/x\npattern deny a/%u\npattern write +/x\npattern write u/%u");
    assert!(acl.may_write(None, "c", "a/x"));
    assert!(!acl.may_write(None, "c", "u/") && !acl.may_write(None, "c", "u/%u"));
    assert!(!acl.may_write(Some("a"), "c", "a/x"));
    assert!(acl.may_write(Some(""), "c", "u/"), "an empty user name is one");
}

#[test]
fn a_name_with_a_wildcard_is_refused_by_every_pattern() {
    let acl = acl("pattern write d/%u/%c\npattern write open\nuser +\ntopic write own");
    for (user, client_id) in [(Some("+"), "c"), (Some("#"), "c"), (Some("ann"), "+"), (None, "a#b")] {
        for topic in ["d/x/y", "d/+/c", "d/ann/+", "open"] {
            assert!(!acl.may_write(user, client_id, topic), "{user:?} {client_id} {topic}");
        }
    }
    assert!(acl.may_write(Some("+"), "#", "own"), "the own section has no places");
    assert!(acl.may_write(Some("ann"), "c", "open"));
}

#[test]
fn a_name_with_a_slash_is_granted_nothing_by_a_pattern_that_mentions_it() {
    let acl = acl("pattern write d/%c\npattern write u/%u/#\npattern write open");
    assert!(!acl.may_write(None, "a/alarm", "d/a/alarm") && !acl.may_write(Some("a/b"), "c", "u/a/b/t"));
    assert!(acl.may_write(Some("a/b"), "c", "d/c") && acl.may_write(Some("a/b"), "c/d", "open"));
}

#[test]
fn a_deny_pattern_that_mentions_a_name_with_a_slash_denies_all() {
    let acl = acl("pattern write #\npattern deny %c/secret\nuser ann\ntopic write own");
    assert!(!acl.may_write(None, "a/b", "a/b/secret") && !acl.may_write(None, "a/b", "x"));
    assert!(acl.may_write(None, "a", "x") && !acl.may_write(None, "a", "a/secret"));
    assert!(acl.may_write(Some("ann"), "a/b", "own"));

    let acl = Acl::parse("pattern write #\npattern deny %u/%c").unwrap();
    assert!(acl.may_write(None, "a/b", "x"), "it says nothing about a client without a user name");
}

#[test]
fn mqtt_4_7_2_1_a_leading_wildcard_does_not_take_a_topic_that_starts_with_a_dollar_sign() {
    let acl = acl("topic write #\ntopic write +/x\ntopic write $a/#\npattern write +/y");
    assert!(!acl.may_write(None, "c", "$b/x") && !acl.may_write(None, "c", "$b/y"));
    assert!(acl.may_write(None, "c", "$a/x") && acl.may_write(None, "c", "a/$b"));
}

#[test]
fn wildcards_take_levels_as_in_every_topic_filter() {
    let acl = acl("topic write a/+/c\ntopic write r/#\ntopic write e//f\ntopic write +/+");
    for topic in ["a/b/c", "a//c", "r", "r/", "r/s/t", "e//f", "x/y", "/y"] {
        assert!(acl.may_write(None, "c", topic), "{topic}");
    }
    for topic in ["a/b/c/d", "rs", "e/f/g", "x", "/x/y", "A/b/c", ""] {
        assert!(!acl.may_write(None, "c", topic), "{topic}");
    }
}

#[test]
fn a_line_that_cannot_work_is_refused_with_what_to_write() {
    let lines = [
        ("topics a", "line 2: \"topics\" begins no rule: write `user NAME`, `topic [read|write|readwrite|deny] TOPIC`"),
        ("user", "line 2: there is no name after `user`"),
        ("user \t", "line 2: there is no name after `user`"),
        ("topic", "line 2: there is no topic: write `topic write TOPIC`"),
        ("topic write ", "line 2: there is no topic: write `topic write TOPIC`"),
        ("pattern deny", "line 2: there is no topic: write `pattern write TOPIC`"),
        ("topic writes a", "\"writes\" is no access: write `read`, `write`, `readwrite` or `deny`"),
        ("topic write a/b+", "level \"b+\" of the topic mixes text with a wildcard"),
        ("topic write a # why", "level \"a # why\" of the topic mixes text"),
        ("pattern write %c#", "level \"%c#\" of the topic mixes text"),
        ("topic read #/a", "`#` takes all that follows, so it must be the last"),
        ("topic write a\0", "U+0000"),
    ];
    for (line, expected) in lines {
        let message = Acl::parse(&format!("# first\n{line}\n")).unwrap_err().to_string();
        assert!(message.contains(expected), "{line:?} gives: {message}");
    }
    let too_long = format!("topic {}", "x".repeat(65_536));
    assert_eq!(Acl::parse(&too_long), Err(AclError::Line { line: 1, problem: RuleProblem::TopicTooLong }));
}

#[test]
fn a_file_beyond_its_bounds_is_refused() {
    let too_long = "#".repeat(FILE_BYTES_MAX + 1);
    assert_eq!(Acl::parse(&too_long), Err(AclError::TooLong { bytes: FILE_BYTES_MAX + 1 }));
    assert!(Acl::parse(&too_long[1..]).is_ok());

    let rules = "topic read a\n".repeat(RULES_MAX);
    assert!(Acl::parse(&rules).is_ok());
    let problem = RuleProblem::TooManyRules;
    assert_eq!(Acl::parse(&(rules + "topic b")), Err(AclError::Line { line: RULES_MAX + 1, problem }));
}

proptest! {
    #[test]
    fn parsing_never_panics(text in prop_oneof![any::<String>(), "(user|topic|pattern|deny|[ \t\r\n#+/%uc$a]){0,40}"]) {
        let acl = Acl::parse(&text);
        acl.unwrap_or_default().may_write(Some(&text), &text, &text);
    }

    #[test]
    fn the_answer_is_that_of_a_slow_model(
        rules in prop::collection::vec(rule(), 0..10),
        user in prop::option::of(name()),
        client_id in name(),
        topics in prop::collection::vec(filter("[ab$]|ab|", ""), 1..8),
    ) {
        let (without, with): (Vec<_>, Vec<_>) = rules.iter().partition(|rule| rule.user.is_none());
        let text: Vec<String> = without.into_iter().chain(with).map(ModelRule::text).collect();
        let acl = Acl::parse(&text.join("\n")).unwrap();
        for topic in topics {
            let expected = model(&rules, user.as_deref(), &client_id, &topic);
            let found = acl.may_write(user.as_deref(), &client_id, &topic);
            prop_assert_eq!(found, expected, "{:?} {:?} {} {}", text, user, client_id, topic);
        }
    }

    #[test]
    fn no_name_is_granted_by_patterns_what_it_is_not_named_in(
        patterns in prop::collection::vec(filter("[ab]|%u|%c|a%u", "#"), 1..6),
        client_id in "[ab+#/$]{0,3}",
        topic in filter("[ab$]|ab|", ""),
    ) {
        // Every grant here mentions the Client Identifier as a whole level, so such a level must be in the topic.
        let text: Vec<String> = patterns.iter().map(|pattern| format!("pattern write a/%c/{pattern}")).collect();
        let acl = Acl::parse(&text.join("\n")).unwrap();
        if acl.may_write(Some("a"), &client_id, &topic) {
            prop_assert_eq!(topic.split('/').nth(1), Some(&*client_id));
        }
    }
}

/// A rule before it becomes text. Each repeats the section that it is in; those without one stand first.
#[derive(Clone, Debug)]
struct ModelRule {
    user: Option<String>,
    is_pattern: bool,
    access: &'static str,
    filter: String,
}

impl ModelRule {
    fn text(&self) -> String {
        let keyword = if self.is_pattern { "pattern" } else { "topic" };
        let section = self.user.as_ref().map(|user| format!("user {user}\n")).unwrap_or_default();
        format!("{section}{keyword} {} {}", self.access, self.filter)
    }
}

/// Decides by making every text that is compared, and by asking every rule for each of the four questions.
fn model(rules: &[ModelRule], user: Option<&str>, client_id: &str, topic: &str) -> bool {
    let own = |rule: &ModelRule, topic: &str| {
        !rule.is_pattern && user == rule.user.as_deref() && model_matches(&rule.filter, topic)
    };
    let pattern = |rule: &ModelRule, topic: &str| {
        let mentioned = |place: &str, name: &str| rule.filter.contains(place) && name.contains('/');
        if !rule.is_pattern || (rule.filter.contains("%u") && user.is_none()) {
            return false;
        }
        if mentioned("%u", user.unwrap_or_default()) || mentioned("%c", client_id) {
            return rule.access == "deny";
        }
        // Names have no `%` in this model, so one after the other is as good as both at once.
        let filter = rule.filter.replace("%u", user.unwrap_or_default()).replace("%c", client_id);
        model_matches(&filter, topic)
    };
    let any = |access: &[&str], takes: &dyn Fn(&ModelRule, &str) -> bool| {
        rules.iter().any(|rule| access.contains(&rule.access) && takes(rule, topic))
    };
    let grants = ["write", "readwrite"];
    if any(&["deny"], &own) {
        return false;
    }
    if any(&grants, &own) {
        return true;
    }
    let names = format!("{}{client_id}", user.unwrap_or_default());
    if names.contains('+') || names.contains('#') || any(&["deny"], &pattern) {
        return false;
    }
    any(&grants, &pattern)
}

fn model_matches(filter: &str, topic: &str) -> bool {
    let filter_levels: Vec<&str> = filter.split('/').collect();
    let topic_levels: Vec<&str> = topic.split('/').collect();
    (filter.starts_with('$') || !topic.starts_with('$')) && model_levels(&filter_levels, &topic_levels)
}

fn model_levels(filter: &[&str], topic: &[&str]) -> bool {
    match (filter, topic) {
        (["#"], _) | ([], []) => true,
        ([level, filter @ ..], [text, topic @ ..]) => (*level == "+" || level == text) && model_levels(filter, topic),
        _ => false,
    }
}

fn rule() -> impl Strategy<Value = ModelRule> {
    let access = prop::sample::select(vec!["read", "write", "readwrite", "deny"]);
    (prop::option::of("[ab]"), any::<bool>(), access, filter("[ab$+]|ab|%u|%c|a%c|%u%cb|", "#"))
        .prop_map(|(user, is_pattern, access, filter)| ModelRule { user, is_pattern, access, filter })
}

/// Levels by a regular expression, perhaps with a last one of another kind; not empty, which would be no topic.
fn filter(level: &'static str, last: &'static str) -> impl Strategy<Value = String> {
    (prop::collection::vec(level, 1..4), any::<bool>()).prop_map(move |(mut levels, with_last)| {
        if with_last && !last.is_empty() {
            levels.push(last.to_owned());
        }
        let text = levels.join("/");
        if text.is_empty() { "/".to_owned() } else { text }
    })
}

fn name() -> impl Strategy<Value = String> {
    prop_oneof![8 => "[ab]|ab|", 1 => "[ab+#/$]{1,3}"]
}

fn acl(text: &str) -> Acl {
    Acl::parse(text).unwrap()
}
