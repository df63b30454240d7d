//! What a service manager hears, as systemd does: datagrams on the socket that NOTIFY_SOCKET names.

use std::fs;
use std::io::{BufRead, BufReader, ErrorKind};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use forebay_tests::agent::{Agent, AgentConfig};
use forebay_tests::device::Device;
use forebay_tests::packets::{Connect, Publish, Reply, Version};
use rustix::process::{Pid, Signal, kill_process};
use rustix::time::{ClockId, clock_gettime};

use crate::{forebay, publish, sealing_soon, start, start_node, temp};

/// Whoever hears nothing for so long says so.
const PATIENCE: Duration = Duration::from_secs(60);
/// The time of the watchdog, where a test has one.
const WATCHDOG: Duration = Duration::from_secs(6);

#[test]
fn ready_comes_once_devices_can_connect_and_says_how_the_agent_is() {
    let (dir, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let door = dir.path().join("mqtt.sock");
    let config =
        manager.tell(sealing_soon(dir.path()).with(&format!("[[listener]]\nbind = 'unix:{}'", door.display())));
    let starting = thread::spawn(move || start(&config));

    let ready = manager.next();
    let device = UnixStream::connect(&door).unwrap();
    Device::connect_over(device, Version::V5, &Connect::clean("device")).unwrap();

    assert_eq!(ready[0], "READY=1");
    assert_eq!(ready[1], "STATUS=0 devices connected, 0 messages stored, spool 0 % of 2.0 GiB");
    starting.join().unwrap().stop().unwrap();
}

#[test]
fn the_watchdog_is_fed_while_the_agent_is_idle_and_without_a_write_to_its_disk() {
    let (dir, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let config = manager.tell(sealing_soon(dir.path())).env("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string());
    let agent = start(&config);
    let spool = config.data_dir().join("spool/spool.redb");
    let written = |path: &Path| fs::metadata(path).unwrap().modified().unwrap();

    assert_eq!(manager.next()[0], "READY=1");
    let before = written(&spool);
    for _ in 0..3 {
        assert_eq!(manager.next(), ["WATCHDOG=1"]);
    }

    assert_eq!(written(&spool), before);
    agent.stop().unwrap();
}

#[test]
fn a_watchdog_of_another_process_is_left_alone() {
    let (dir, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let config = manager.tell(sealing_soon(dir.path())).env("WATCHDOG_USEC", "1000").env("WATCHDOG_PID", "1");
    let agent = start(&config);

    assert_eq!(manager.next()[0], "READY=1");
    agent.signal(Signal::TERM).unwrap();
    assert_eq!(manager.next()[0], "STOPPING=1");
}

#[test]
fn a_reload_says_reloading_with_the_time_and_then_ready() {
    let (dir, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let agent = start(&manager.tell(sealing_soon(dir.path())));
    assert_eq!(manager.next()[0], "READY=1");

    let before = monotonic_us();
    agent.signal(Signal::HUP).unwrap();

    let reloading = manager.next();
    assert_eq!(reloading[0], "RELOADING=1");
    let at: u64 = reloading[1].strip_prefix("MONOTONIC_USEC=").unwrap().parse().unwrap();
    assert!((before..=monotonic_us()).contains(&at), "systemd drops an answer from before its signal");
    assert_eq!(manager.next()[0], "READY=1");
    agent.stop().unwrap();
}

#[test]
fn a_file_that_cannot_be_used_is_named_in_the_status_until_it_is_mended() {
    let (dir, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let config = manager.tell(sealing_soon(dir.path()));
    let agent = start(&config);
    assert_eq!(manager.next()[0], "READY=1");

    config.clone().with("[batch2]").write().unwrap();
    agent.signal(Signal::HUP).unwrap();
    assert_eq!(manager.next()[0], "RELOADING=1");
    let refused = manager.next();
    config.write().unwrap();
    agent.signal(Signal::HUP).unwrap();
    assert_eq!(manager.next()[0], "RELOADING=1");
    let mended = manager.next();

    assert_eq!(refused[0], "READY=1");
    assert!(refused[1].starts_with("STATUS=the new configuration is refused: "), "{refused:?}");
    assert!(refused[1].contains("forebay.toml") && refused[1].contains("batch2"), "{refused:?}");
    assert_eq!(mended[0], "READY=1");
    assert!(mended[1].starts_with("STATUS=0 devices connected"), "{mended:?}");
    assert_eq!(agent.stop_with_errors().unwrap().len(), 1);
}

#[test]
fn sigterm_is_answered_with_stopping() {
    let (dir, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let agent = start(&manager.tell(sealing_soon(dir.path())));
    assert_eq!(manager.next()[0], "READY=1");

    agent.stop().unwrap();

    assert_eq!(manager.next(), ["STOPPING=1", "STATUS=Stopping: answering what was received."]);
}

#[test]
fn a_token_comes_as_a_credential_that_only_the_service_has() {
    let dir = tempfile::tempdir().unwrap();
    let (node, token) = start_node(dir.path(), |config| config);
    let upstream = format!("[[upstream]]\nurl = 'odf+{}/acme'\ntoken_file = \"credential:token\"", node.url());
    let outside = temp(dir.path()).with(&upstream);
    let service = outside.clone().env("CREDENTIALS_DIRECTORY", token.parent().unwrap().to_str().unwrap());

    let agent = start(&service);
    publish(&agent, &["precious"]);
    let (is_delivered, report) = forebay(&outside, &["sync", "--once"]);
    let (is_told, status) = forebay(&outside, &["status"]);
    agent.stop().unwrap();
    let (is_checked, problem) = forebay(&outside, &["check"]);

    assert!(is_delivered && is_told, "an administrator's shell has no credentials: {report}{status}");
    assert!(!is_checked && problem.contains("`upstream.token_file`: CREDENTIALS_DIRECTORY is not set"), "{problem}");
    assert!(problem.contains("LoadCredential=token:/path"), "{problem}");
}

/// The writer's thread alone is held in its sync, as by a disk that has died.
#[test]
fn a_writer_that_hangs_in_a_sync_ends_the_pings_until_it_answers() {
    let (dir, manager) = (tempfile::tempdir().unwrap(), Manager::new());
    let config = manager.tell(sealing_soon(dir.path())).env("WATCHDOG_USEC", &WATCHDOG.as_micros().to_string());
    let agent = start(&config);
    let Some(held) = HeldSync::of(&agent) else {
        println!("SKIPPED: strace is not installed, or may not attach to a process of ours.");
        return;
    };
    let mut device = Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("device")).unwrap();
    device.publish(&Publish::new("a", b"x", 1, 1)).unwrap();

    manager.wait_for("STATUS=the spool's writer does not answer; ");
    thread::sleep(WATCHDOG * 2);
    assert_eq!(manager.heard(), Vec::<Vec<String>>::new(), "the manager would have ended the agent by now");
    held.release();
    device.expect(&Reply::PubAck { packet_id: 1, code: 0 }).unwrap();
    manager.wait_for("WATCHDOG=1");

    let errors = agent.stop_with_errors().unwrap();
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].contains("does not answer") && errors[0].contains("the spool's writer"), "{errors:#?}");
}

/// Stands in for systemd.
struct Manager {
    socket: UnixDatagram,
    dir: tempfile::TempDir,
}

impl Manager {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = UnixDatagram::bind(dir.path().join("notify")).unwrap();
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        Self { socket, dir }
    }

    /// The same configuration, for an agent that this manager started.
    fn tell(&self, config: AgentConfig) -> AgentConfig {
        config.env("NOTIFY_SOCKET", self.dir.path().join("notify").to_str().unwrap())
    }

    /// The next message, an assignment a line.
    fn next(&self) -> Vec<String> {
        self.receive().expect("the agent tells its manager something")
    }

    /// What has come so far.
    fn heard(&self) -> Vec<Vec<String>> {
        self.socket.set_nonblocking(true).unwrap();
        let heard = std::iter::from_fn(|| self.receive()).collect();
        self.socket.set_nonblocking(false).unwrap();
        heard
    }

    /// Hears until an assignment begins like this.
    fn wait_for(&self, beginning: &str) {
        while !self.next().iter().any(|assignment| assignment.starts_with(beginning)) {}
    }

    fn receive(&self) -> Option<Vec<String>> {
        let mut bytes = [0; 4_096];
        match self.socket.recv(&mut bytes) {
            Ok(length) => Some(String::from_utf8_lossy(&bytes[..length]).lines().map(str::to_owned).collect()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// strace, which holds the writer's thread as soon as it wants to sync.
struct HeldSync(Child);

impl HeldSync {
    fn of(agent: &Agent) -> Option<Self> {
        let writer = thread_of(agent, "spool-writer");
        let mut strace = Command::new("strace");
        strace.args([
            "-e",
            "trace=fdatasync",
            "-e",
            "inject=fdatasync:delay_enter=600000000",
            "-o",
            "/dev/null",
            "-p",
            &writer,
        ]);
        let mut strace = strace.stderr(Stdio::piped()).spawn().ok()?;
        let mut said = String::new();
        BufReader::new(strace.stderr.take()?).read_line(&mut said).ok()?;
        if said.contains("attached") {
            return Some(Self(strace));
        }
        let _ = strace.wait();
        None
    }

    fn release(mut self) {
        kill_process(Pid::from_child(&self.0), Signal::TERM).unwrap();
        self.0.wait().unwrap();
    }
}

/// The id of a thread of the agent. A thread gives itself its name once it runs, and others come and go meanwhile.
fn thread_of(agent: &Agent, name: &str) -> String {
    let is_named = |task: &Path| fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim() == name);
    let look = || {
        let tasks = fs::read_dir(format!("/proc/{}/task", agent.pid())).unwrap();
        tasks.map_while(Result::ok).map(|task| task.path()).find(|task| is_named(task))
    };
    let task = std::iter::repeat_with(look).take(3_000).find_map(|task| {
        thread::sleep(Duration::from_millis(if task.is_none() { 20 } else { 0 }));
        task
    });
    task.unwrap().file_name().unwrap().to_str().unwrap().to_owned()
}

fn monotonic_us() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}
