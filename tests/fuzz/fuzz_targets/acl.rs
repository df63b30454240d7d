//! Any text as an ACL file, and any client that asks it: no panic, and no name widens what is granted.
//!
//! The input is four texts between NULs: user name (empty for none), Client Identifier, topic, file.
#![no_main]

use forebay_broker::auth::acl::Acl;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    let mut parts = text.splitn(4, '\0');
    let (Some(user), Some(client_id), Some(topic), Some(text)) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return;
    };
    let user = Some(user).filter(|user| !user.is_empty());
    match Acl::parse(text) {
        Ok(acl) => check(&acl, text, user, client_id, topic),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn check(acl: &Acl, text: &str, user: Option<&str>, client_id: &str, topic: &str) {
    let may = acl.may_write(user, client_id, topic);
    assert!(!may || ["topic", "pattern"].iter().any(|keyword| text.contains(keyword)), "granted by nothing");

    // A line more that denies everything: the answer is no, whoever asks.
    if !topic.starts_with('$') {
        let section = user.map(|user| format!("user {user}\n")).unwrap_or_default();
        let denied = Acl::parse(&format!("topic deny #\n{text}\n{section}topic deny #"));
        let is_plain_name = user.is_none_or(|user| user.trim() == user && !user.contains(['\n', '\r', '\x0b']));
        if let Ok(denied) = denied.as_ref()
            && is_plain_name
        {
            assert!(!denied.may_write(user, client_id, topic));
        }
    }

    // Patterns alone: a name with a wildcard is granted nothing, one with a slash nothing that mentions it.
    let patterns = Acl::parse(&only(text, "")).expect("lines of a good file are good");
    if [user.unwrap_or_default(), client_id].iter().any(|name| name.contains(['+', '#'])) {
        assert!(!patterns.may_write(user, client_id, topic));
    }
    let mentions_client_id = Acl::parse(&only(text, "%c")).expect("lines of a good file are good");
    if client_id.contains('/') {
        assert!(!mentions_client_id.may_write(user, client_id, topic));
    }
}

/// The pattern lines that mention `what`.
fn only(text: &str, what: &str) -> String {
    let lines = text.lines().filter(|line| line.starts_with("pattern") && line.contains(what));
    lines.map(|line| format!("{line}\n")).collect()
}
