//! `forebay passwd`: the file it writes, what it answers, and that mosquitto's own tool goes on with it.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

#[test]
fn a_user_is_added_verified_listed_changed_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let passwd = |args: &[&str], input: &[u8]| passwd(dir.path(), args, input);

    assert_eq!(out(&passwd(&["add", "plant 7"], b"se cret\n")), (Some(0), "added plant 7\n".to_owned()));
    assert_eq!(out(&passwd(&["add", "ann", "--iterations", "7"], b"a\0b\xff")), (Some(0), "added ann\n".to_owned()));
    assert_eq!(out(&passwd(&["list"], b"")), (Some(0), "plant 7\nann\n".to_owned()));
    assert_eq!(out(&passwd(&["verify", "plant 7"], b"se cret\n")), (Some(0), "right\n".to_owned()));
    assert_eq!(out(&passwd(&["verify", "plant 7"], b"secret\n")), (Some(1), "wrong\n".to_owned()));
    assert_eq!(out(&passwd(&["verify", "ann"], b"a\0b\xff\n")), (Some(0), "right\n".to_owned()));

    assert_eq!(out(&passwd(&["add", "plant 7"], b"another\n")), (Some(0), "changed plant 7\n".to_owned()));
    assert_eq!(out(&passwd(&["verify", "plant 7"], b"se cret\n")), (Some(1), "wrong\n".to_owned()));
    assert_eq!(out(&passwd(&["remove", "ann"], b"")), (Some(0), "removed ann\n".to_owned()));
    assert_eq!(out(&passwd(&["list"], b"")), (Some(0), "plant 7\n".to_owned()));

    let text = fs::read_to_string(dir.path().join("passwords")).unwrap();
    assert!(text.starts_with("plant 7:$7$10000$") && !text.contains("another"), "{text}");
}

#[test]
fn without_a_file_that_of_the_configuration_is_meant() {
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("forebay.toml");
    let run = |args: &[&str]| {
        let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
        let output =
            command.arg("passwd").args(args).arg("--config").arg(&config).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap() + std::str::from_utf8(&output.stderr).unwrap())
    };
    fs::write(&config, "[auth]\npassword_file = \"passwords\"\n").unwrap();
    assert_eq!(out(&passwd(dir.path(), &["add", "ann"], b"secret\n")).0, Some(0));

    assert_eq!(run(&["list"]), (Some(0), "ann\n".to_owned()));
    assert_eq!(run(&["remove", "ann"]), (Some(0), "removed ann\n".to_owned()));
    assert_eq!(fs::read_to_string(dir.path().join("passwords")).unwrap(), "# nobody\n");

    fs::write(&config, "gateway = \"gw\"\n").unwrap();
    let (code, said) = run(&["list"]);
    assert!(code == Some(1) && said.contains("say which with --file"), "{said}");
}

#[test]
fn what_cannot_be_done_is_said_and_changes_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("passwords");
    let fails = |args: &[&str], input: &[u8], code: i32, expected: &str| {
        let before = fs::read(&path).ok();
        let output = passwd(dir.path(), args, input);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(code), "{error}");
        assert!(error.contains(expected), "{args:?}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
        assert_eq!(fs::read(&path).ok(), before);
    };
    fails(&["remove", "ann"], b"", 1, "passwords: No such file");
    fails(&["verify", "ann"], b"hunter2\n", 1, "passwords: No such file");
    fails(&["add", "a:b"], b"hunter2\n", 1, "a user name cannot contain `:`");
    fails(&["add", "ann"], b"\nhunter2\n", 1, "the password is empty");
    fails(&["add", "ann", "--iterations", "0"], b"hunter2\n", 2, "--iterations");
    fails(&["add", "ann", "hunter"], b"hunter2\n", 2, "unexpected argument");

    fs::write(&path, "# devices\nbob:hunter2\n").unwrap();
    fails(&["add", "ann"], b"hunter2\n", 1, "passwords: line 2: user \"bob\": the password is not hashed");
    fails(&["list"], b"", 1, "passwords: line 2");
    fs::write(&path, "# devices\n").unwrap();
    fails(&["remove", "ann"], b"", 1, "passwords: there is no user \"ann\"");
    fails(&["verify", "ann"], b"hunter2\n", 1, "passwords: there is no user \"ann\"");
}

#[test]
fn a_new_file_is_for_its_owner_only_and_the_mode_links_and_comments_of_an_old_one_are_kept() {
    let dir = tempfile::tempdir().unwrap();
    let (link, file) = (dir.path().join("passwords"), dir.path().join("file"));
    let mode = || fs::metadata(&file).unwrap().permissions().mode() & 0o777;
    symlink("file", &link).unwrap();
    fs::write(&file, "# devices\n").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();

    assert_eq!(passwd(dir.path(), &["add", "ann"], b"p\n").status.code(), Some(0));
    assert_eq!(mode(), 0o640);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert!(fs::read_to_string(&file).unwrap().starts_with("# devices\nann:$7$"));

    fs::remove_file(&link).unwrap();
    let made = passwd(dir.path(), &["add", "ann"], b"p\n");
    assert_eq!(fs::metadata(&link).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(String::from_utf8(made.stderr).unwrap().contains("is new, with mode 0600"));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn a_file_of_mosquitto_passwd_is_extended_and_it_goes_on_with_ours() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("passwords");
    fs::write(&path, "").unwrap();
    let mosquitto_passwd = |args: &[&str], rest: &[&str]| {
        Command::new("mosquitto_passwd").args(args).arg(&path).args(rest).stderr(Stdio::null()).status()
    };
    if let Err(error) = mosquitto_passwd(&["-b"], &["theirs", "one"]) {
        return eprintln!("!!! SKIPPED: mosquitto_passwd: {error}; install mosquitto !!!");
    }
    assert_eq!(passwd(dir.path(), &["add", "ours"], b"two\n").status.code(), Some(0));
    assert!(mosquitto_passwd(&["-b"], &["more", "three"]).unwrap().success());

    assert_eq!(out(&passwd(dir.path(), &["list"], b"")), (Some(0), "theirs\nours\nmore\n".to_owned()));
    for (user, password) in [("theirs", "one"), ("ours", "two"), ("more", "three")] {
        assert_eq!(passwd(dir.path(), &["verify", user], password.as_bytes()).status.code(), Some(0), "{user}");
    }
    assert!(mosquitto_passwd(&["-D"], &["ours"]).unwrap().success());
    assert_eq!(out(&passwd(dir.path(), &["list"], b"")), (Some(0), "theirs\nmore\n".to_owned()));
}

/// Runs `forebay passwd ARGS --file passwords` in `dir` with this standard input.
fn passwd(dir: &Path, args: &[&str], input: &[u8]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.current_dir(dir).arg("passwd").args(args).args(["--file", "passwords"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    // A command that reads no password has perhaps ended already.
    let _ = child.stdin.take().unwrap().write_all(input);
    child.wait_with_output().unwrap()
}

fn out(output: &Output) -> (Option<i32>, String) {
    (output.status.code(), String::from_utf8(output.stdout.clone()).unwrap())
}
