//! Known answers and round trips of the password file; `mosquitto_passwd` itself is asked where it is installed.

use std::process::Command;

use proptest::prelude::*;

use super::*;

/// Made by `mosquitto_passwd` 2.0.11: "correct horse", "y" with 1,000 iterations, and "pässword" with `-H sha512`.
const ANN: &str = "ann lee:$7$101$zyh9j51ekVQ4RjXr$\
    HSZHzmR8xOuQsm3A9skBfUodzjNEkCNBQ0u3Dv3HPUuT22vYpCml0cHGvocj07SoHXyZuXChd2Lu0YynVhEuoA==";
const X: &str = "x:$7$1000$S0CdxSrtvMrKtQEB$\
    FiEwcMaHNWv3veIR5v5Tsq83euUH7nGHT+BYvfHlzJoFZqWYDApJ28bC5EMIWUQWLzQzZFgti3rTScwphunFwg==";
const BOB: &str = "bob:$6$RHJT8H7xz320WdPv$\
    VDWJ8gciA1Hbf5N8zr1Wfk1sK6p4yHFmwRTc8TFWXZlM6REFPJPZjGliptu1RQKlRZFDjynHWy/1IxIe1jiqag==";

#[test]
fn lines_that_mosquitto_passwd_wrote_verify_their_passwords_and_no_other() {
    let file = PasswordFile::parse(&format!("{ANN}\n{X}\n{BOB}\n")).unwrap();

    assert!(file.verify("ann lee", b"correct horse"));
    assert!(file.verify("x", b"y"));
    assert!(file.verify("bob", "pässword".as_bytes()));
    for wrong in [&b""[..], b"\0correct horse", b"correct hors", b"y"] {
        assert!(!file.verify("ann lee", wrong));
        assert!(!file.verify("bob", wrong));
        assert!(!file.verify("nobody", wrong));
    }
    assert_eq!(file.users().collect::<Vec<_>>(), ["ann lee", "x", "bob"]);
}

#[test]
fn mosquitto_passwd_of_this_machine_agrees() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("passwords");
    std::fs::write(&path, "").unwrap();
    for (scheme, user) in [("sha512-pbkdf2", "seven"), ("sha512", "six")] {
        let done =
            Command::new("mosquitto_passwd").args(["-H", scheme, "-b"]).arg(&path).args([user, "pass word"]).status();
        match done {
            Err(error) => return eprintln!("!!! SKIPPED: mosquitto_passwd: {error}; install mosquitto !!!"),
            Ok(status) => assert!(status.success()),
        }
    }

    let text = std::fs::read_to_string(&path).unwrap();
    let file = PasswordFile::parse(&text).unwrap();

    assert!(file.verify("seven", b"pass word") && file.verify("six", b"pass word"));
    assert!(!file.verify("seven", b"pass  word") && !file.verify("six", b"pass  word"));
    assert_eq!(file.to_string(), text);
}

#[test]
fn a_password_is_bytes_and_nul_is_one_of_them() {
    let hash = hash(b"a\0b\xff");

    assert!(hash.verify(b"a\0b\xff"));
    assert!(!hash.verify(b"a"));
    assert!(!hash.verify(b"a\0c\xff"));
    assert!(hash.verify(b"a\0b\xff\0"), "HMAC pads its key with NUL");
}

#[test]
fn comments_empty_lines_and_their_places_survive_an_edit() {
    let text = format!("# plant 7\r\n\r\n  {ANN}  \r\n# gateways\n # old\n{X}\n\n# end");
    let mut file = PasswordFile::parse(&text).unwrap();
    assert_eq!(file.to_string(), format!("# plant 7\n\n{ANN}\n# gateways\n# old\n{X}\n\n# end\n"));

    assert!(file.remove("ann lee"));
    assert!(!file.remove("ann lee"));
    assert_eq!(file.set("new", hash(b"p")), Ok(false));
    assert_eq!(file.set("x", hash(b"q")), Ok(true));

    let (new, x) = (file.get("new").unwrap(), file.get("x").unwrap());
    assert_eq!(file.to_string(), format!("# plant 7\n\n# gateways\n# old\nx:{x}\n\n# end\nnew:{new}\n"));
    assert!(file.verify("x", b"q") && file.verify("new", b"p"));
}

#[test]
fn a_line_that_cannot_be_used_is_refused_with_what_to_do() {
    let lines = [
        ("ann", "line 2: there is no colon; write `name:hash` with `forebay passwd add`"),
        ("ann:", "line 2: user \"ann\": there is no password after the name: set one with `forebay passwd add`"),
        ("ann:hunter2", "is not hashed: set it with `forebay passwd add`, or hash the file with `mosquitto_passwd -U`"),
        ("ann:$argon2id$v=19$m=4,t=3,p=1$c2FsdA$aGFzaA", "`mosquitto_passwd -H sha512-pbkdf2`"),
        ("ann:$5$c2FsdA==$aGFzaA==", "the scheme of the hash is not known"),
        ("ann:$7", "the hash is cut short"),
        ("ann:$6$c2FsdA==", "the hash is cut short"),
        ("ann:$6$c2FsdA==$aGFzaA==$", "too many parts"),
        ("ann:$7$0$c2FsdA==$aGFzaA==", "a whole number from 1 to 10000000"),
        ("ann:$7$10000001$c2FsdA==$aGFzaA==", "a whole number from 1 to 10000000"),
        ("ann:$7$+1$c2FsdA==$aGFzaA==", "a whole number from 1 to 10000000"),
        ("ann:$6$$aGFzaA==", "the salt must be base64 of 1 to 255 bytes"),
        ("ann:$6$c2FsdA$aGFzaA==", "the salt must be base64 of 1 to 255 bytes"),
        ("ann:$6$c2FsdA==$aGFzaA==", "the hash must be base64 of 64 bytes; was the line cut?"),
        (":$6$c2FsdA==$aGFzaA==", "the user name is empty"),
        ("a\u{1}b:$6$c2FsdA==$aGFzaA==", "a user name cannot contain `:` or control characters"),
        (BOB, "line 2: user \"bob\" is there twice: remove one of the lines"),
    ];
    for (line, expected) in lines {
        let message = PasswordFile::parse(&format!("{BOB}\n{line}\n")).unwrap_err().to_string();
        assert!(message.contains(expected), "{line:?} gives: {message}");
        assert!(!message.contains("hunter2") && !message.contains("c2FsdA"), "{message}");
    }
}

#[test]
fn a_name_that_would_read_as_something_else_cannot_be_set() {
    let mut file = PasswordFile::default();
    let hash = hash(b"p");
    let names = [
        ("", UserNameError::Empty),
        ("  ", UserNameError::Empty),
        ("a:b", UserNameError::Characters),
        ("#a", UserNameError::Characters),
        (" a", UserNameError::Characters),
        ("a\n", UserNameError::Characters),
        ("a\0", UserNameError::Characters),
        (&"a".repeat(257), UserNameError::TooLong),
    ];
    for (name, problem) in names {
        assert_eq!(file.set(name, hash.clone()), Err(problem), "{name:?}");
    }
    assert_eq!(file, PasswordFile::default());
    assert_eq!(file.set("é \u{a0}", hash.clone()), Ok(false));
    assert_eq!(PasswordFile::parse(&file.to_string()), Ok(file));
}

#[test]
fn debug_shows_names_and_no_hashes() {
    let file = PasswordFile::parse(BOB).unwrap();
    assert_eq!(format!("{file:?}"), "PasswordFile([\"bob\"])");
    assert_eq!(format!("{:?}", file.get("bob")), "Some(PasswordHash(..))");
}

#[test]
fn the_duration_of_a_refusal_follows_the_costliest_line_that_is_left() {
    let mut file = PasswordFile::parse(&format!("{ANN}\n{BOB}\n{X}\n")).unwrap();
    assert_eq!(file.rounds_max, 1_000);
    file.remove("x");
    assert_eq!(file.rounds_max, 101);
    file.set("ann lee", hash(b"p")).unwrap();
    assert_eq!(file.rounds_max, 2);
    file.remove("ann lee");
    file.remove("bob");
    assert_eq!(file.rounds_max, 0);
    assert!(!file.verify("bob", b""));
}

#[test]
fn a_file_beyond_its_bounds_is_refused() {
    let too_long = "#".repeat(FILE_BYTES_MAX + 1);
    assert_eq!(PasswordFile::parse(&too_long), Err(PasswordFileError::TooLong { bytes: FILE_BYTES_MAX + 1 }));
    assert!(PasswordFile::parse(&too_long[1..]).is_ok());

    let hash = hash(b"p").to_string();
    let users: String = (0..=USERS_MAX).map(|user| format!("{user}:{hash}\n")).collect();
    let fits = users[..users.len() - 1].rfind('\n').unwrap();
    assert_eq!(PasswordFile::parse(&users[..fits]).unwrap().users().count(), USERS_MAX);
    let problem = LineProblem::TooManyUsers;
    assert_eq!(PasswordFile::parse(&users), Err(PasswordFileError::Line { line: USERS_MAX + 1, problem }));
}

proptest! {
    #[test]
    fn parsing_never_panics_and_what_is_accepted_reads_the_same_when_written_again(
        lines in prop::collection::vec(line(), 0..8),
        end in prop::sample::select(vec!["\n", "\r\n", "\r\r\n"]),
    ) {
        if let Ok(file) = PasswordFile::parse(&lines.join(end)) {
            let text = file.to_string();
            prop_assert_eq!(PasswordFile::parse(&text).unwrap().to_string(), text.clone());
            prop_assert_eq!(PasswordFile::parse(&text).unwrap(), file);
        }
    }

    #[test]
    fn whatever_is_hashed_is_verified_and_round_trips(
        password in prop::collection::vec(any::<u8>(), 0..200),
        other in prop::collection::vec(any::<u8>(), 0..200),
        iterations in 1..4_u32,
        salt in prop::collection::vec(any::<u8>(), 1..40),
    ) {
        let hash = PasswordHash::new(&password, NonZeroU32::new(iterations).unwrap(), &salt);
        prop_assert!(hash.verify(&password));
        // HMAC pads a short key with zeros.
        let without_padding = |password: &[u8]| {
            password.iter().rposition(|&byte| byte != 0).map(|last| password[..=last].to_vec())
        };
        prop_assert!(!hash.verify(&other) || without_padding(&password) == without_padding(&other));
        prop_assert_eq!(PasswordHash::parse(&hash.to_string()), Ok(hash));
    }

    #[test]
    fn edits_leave_a_file_that_reads_back(edits in prop::collection::vec((0..5_u8, any::<bool>()), 0..20)) {
        let mut file = PasswordFile::parse(&format!("# one\n{ANN}\n#two\n{BOB}\n# three\n")).unwrap();
        let mut model: Vec<String> = file.users().map(str::to_owned).collect();
        for (user, set) in edits {
            let user = if user == 0 { "bob".to_owned() } else { user.to_string() };
            let existed = model.contains(&user);
            if set {
                prop_assert_eq!(file.set(&user, hash(b"p")), Ok(existed));
                if !existed {
                    model.push(user);
                }
            } else {
                prop_assert_eq!(file.remove(&user), existed);
                model.retain(|known| *known != user);
            }
        }
        prop_assert_eq!(file.users().collect::<Vec<_>>(), model);
        let text = file.to_string();
        for comment in ["# one\n", "#two\n", "# three\n"] {
            prop_assert_eq!(text.matches(comment).count(), 1);
        }
        prop_assert_eq!(PasswordFile::parse(&text).unwrap(), file);
    }
}

/// Good lines, lines with one thing changed, and anything.
fn line() -> impl Strategy<Value = String> {
    prop_oneof![
        prop::sample::select(vec![ANN, X, BOB, "", "# c"]).prop_map(str::to_owned),
        (prop::sample::select(vec![ANN, X, BOB]), any::<prop::sample::Index>(), any::<char>()).prop_map(
            |(line, index, c)| {
                let mut chars: Vec<char> = line.chars().collect();
                let at = index.index(chars.len());
                chars[at] = c;
                chars.into_iter().collect()
            }
        ),
        "[ -~]{0,3}:[$]?[67a]?[$]?[0-9]{0,3}[$]?[A-Za-z+/]{0,8}=?[$]?[A-Za-z]{86}==",
        any::<String>(),
    ]
}

fn hash(password: &[u8]) -> PasswordHash {
    PasswordHash::new(password, NonZeroU32::new(2).unwrap(), b"twelve bytes")
}
