//! The binary: exit codes, signals, and what it prints.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Gateway, TEMPERATURE, publish, reading};

#[test]
fn what_init_writes_is_what_check_accepts() {
    let dir = tempfile::tempdir().unwrap();

    let init = forebay(dir.path(), &["init", "forebay.toml"]);
    let again = forebay(dir.path(), &["init", "forebay.toml"]);
    let check = forebay(dir.path(), &["check", "any/topic"]);

    assert_eq!(init.status.code(), Some(0), "{init:?}");
    assert_eq!(again.status.code(), Some(1), "an existing file is left alone");
    assert_eq!(check.status.code(), Some(0), "{check:?}");
    let text = String::from_utf8(check.stdout).unwrap();
    assert!(text.contains("./forebay.toml") && text.contains("any/topic  devices  messages"), "{text}");
    assert!(!text.contains('\x1b'), "no colour in a pipe");
}

#[test]
fn a_bad_configuration_is_named_and_exits_with_78() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("forebay.toml"), "[spool]\nmax_byte = 1\n").unwrap();

    for command in ["run", "check", "status"] {
        let output = forebay(dir.path(), &[command]);
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(78), "{command}: {error}");
        assert!(error.contains("./forebay.toml:2:1: `spool.max_byte`"), "{error}");
    }
}

#[test]
fn usage_errors_exit_with_2_and_missing_data_with_1() {
    let dir = tempfile::tempdir().unwrap();

    assert_eq!(forebay(dir.path(), &["fly"]).status.code(), Some(2));
    assert_eq!(forebay(dir.path(), &["dead-letters", "drop"]).status.code(), Some(2));
    assert_eq!(forebay(dir.path(), &["status"]).status.code(), Some(1));
    assert_eq!(forebay(dir.path(), &["version"]).status.code(), Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_exits_with_0_and_commands_then_read_the_store_themselves() {
    let gateway = Gateway::new(TEMPERATURE);
    let file = gateway.config_file();
    let mut agent = Running(start(&file));
    let address = listening(&mut agent.0);
    publish(address, "device", &[("site/a/temp", &reading(1)), ("site/a/temp", &reading(2))]).await;

    let asked = forebay(gateway.path(), &["tail", "temperature", "-n", "1", "--output", "json"]);
    let pid = Pid::from_raw(i32::try_from(agent.0.id()).unwrap()).unwrap();
    kill_process(pid, Signal::TERM).unwrap();
    let status = agent.0.wait().unwrap();
    let read = forebay(gateway.path(), &["tail", "temperature", "-n", "1", "--output", "json"]);
    let verified = forebay(gateway.path(), &["verify"]);

    assert_eq!(status.code(), Some(0));
    assert_eq!(asked.stdout, read.stdout);
    assert!(String::from_utf8_lossy(&asked.stdout).contains("\"seq\":1,"), "{asked:?}");
    assert!(String::from_utf8_lossy(&asked.stderr).contains("asking the agent"), "{asked:?}");
    assert!(String::from_utf8_lossy(&read.stderr).contains("no agent runs"), "{read:?}");
    assert!(String::from_utf8_lossy(&verified.stdout).ends_with("verify: ok\n"), "{verified:?}");
}

/// Killed at the end of the test, so that one that fails leaves nothing running.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(crate) fn forebay(dir: &Path, args: &[&str]) -> Output {
    command().current_dir(dir).args(args).output().unwrap()
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_forebay"));
    command.env_remove("RUST_LOG").env("NO_PROXY", "127.0.0.1").stdin(Stdio::null());
    command
}

fn start(file: &Path) -> Child {
    let file = file.to_str().unwrap();
    command().args(["run", "--log", "json", "--config", file]).stderr(Stdio::piped()).spawn().unwrap()
}

/// The address in the line that says where it listens. The rest of the log is read away in the background.
fn listening(child: &mut Child) -> SocketAddr {
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let address = lines.by_ref().find_map(|line| {
        let line: serde_json::Value = serde_json::from_str(&line.unwrap()).unwrap();
        line["message"]
            .as_str()?
            .starts_with("Listening")
            .then(|| line["local_addr"].as_str().unwrap().parse().unwrap())
    });
    std::thread::spawn(move || lines.for_each(drop));
    address.unwrap()
}
