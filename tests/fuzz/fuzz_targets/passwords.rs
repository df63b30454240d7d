//! Any text as a password file: no panic, and what is accepted reads the same when written again.
//!
//! Up to the first NUL the input is a password that is tried and set, after it comes the file. Hashes of many
//! iterations are not computed: they would only be slow.
#![no_main]

use std::num::NonZeroU32;

use forebay_broker::auth::password::{PasswordFile, PasswordHash};
use libfuzzer_sys::fuzz_target;

/// A line asks for more if its digits between two `$` are more than these.
const ITERATION_DIGITS_MAX: usize = 2;

fuzz_target!(|data: &[u8]| {
    let mut parts = data.splitn(2, |&byte| byte == 0);
    let (Some(password), Some(text)) = (parts.next(), parts.next()) else {
        return;
    };
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    match PasswordFile::parse(text) {
        Ok(file) => check(file, password),
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});

fn check(mut file: PasswordFile, password: &[u8]) {
    let text = file.to_string();
    assert_eq!(PasswordFile::parse(&text).as_ref(), Ok(&file));
    let users: Vec<String> = file.users().map(str::to_owned).collect();
    for user in &users {
        let hash = file.get(user).expect("a user of the file has a hash");
        assert_eq!(PasswordHash::parse(&hash.to_string()).as_ref(), Ok(hash));
    }
    if is_cheap(&text) {
        assert!(!file.verify("nobody: a colon is in no name", password));
        for user in &users {
            file.verify(user, password);
        }
    }
    for user in ["new", users.first().map_or("new", |user| user)] {
        let existed = file.get(user).is_some();
        let hash = PasswordHash::new(password, NonZeroU32::MIN, b"twelve bytes");
        assert_eq!(file.set(user, hash.clone()), Ok(existed));
        assert!(hash.verify(password));
        assert_eq!(PasswordFile::parse(&file.to_string()).as_ref(), Ok(&file));
    }
    for user in users {
        assert!(file.remove(&user) && file.get(&user).is_none());
        assert_eq!(PasswordFile::parse(&file.to_string()).as_ref(), Ok(&file));
    }
}

fn is_cheap(text: &str) -> bool {
    let is_number = |part: &&str| part.len() > ITERATION_DIGITS_MAX && part.bytes().all(|byte| byte.is_ascii_digit());
    text.len() < 4_096 && !text.split('$').any(|part| is_number(&part))
}
