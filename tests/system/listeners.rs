//! TLS, client certificates, Unix sockets, passwords and the access control list, as an operator and a device see them:
//! what comes in, what is said of what does not, and what happens when the files change under a running agent.

use std::fs;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use forebay_broker::auth::PasswordFile;
use forebay_broker::auth::password::PasswordHash;
use forebay_tests::agent::{self, Agent, AgentConfig};
use forebay_tests::device::Device;
use forebay_tests::packets::{Connect, Publish, Reply, Version};
use forebay_tests::tls::TlsFiles;
use forebay_tests::tls_client::{self, DeviceFiles, Devices, TlsStream};
use serde_json::Value;

use crate::sources::wait_for;
use crate::{PROGRAM, finish, forebay, from_env, sealing_soon, start};

const REST: &str = "[[dataset]]\nname = \"rest\"\ntopics = [\"#\"]\nformat = \"text\"\nenvelope = [\"topic\"]";

#[test]
fn certificates_are_rotated_under_load_and_no_connection_is_lost() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::make(&dir.path().join("tls")).unwrap();
    let config = with_tls(dir.path(), &tls_of(&files, "")).with(REST);
    let agent = start(&config);
    let load: Vec<Load> = (0..4).map(|number| Load::start(agent.mqtt_addr(), &files, number)).collect();

    let mut report = Value::Null;
    for rotation in 0..from_env("FOREBAY_ROTATIONS", 5) {
        let renewed = TlsFiles::make(&dir.path().join(format!("renewed-{rotation}"))).unwrap();
        // As certbot does: each file replaced by a rename, the key after the certificate.
        let rotate = || {
            for (new, file) in [(&renewed.ca, &files.ca), (&renewed.cert, &files.cert), (&renewed.key, &files.key)] {
                fs::rename(new, file).unwrap();
            }
        };
        agent.change(rotate).unwrap();
        report = agent.reloaded_since(&report).unwrap();
        assert_eq!(report["problem"], Value::Null, "{report}");
        let stream = tls_client::connect(agent.mqtt_addr(), &tls_client::config(&files.ca, None).unwrap()).unwrap();
        assert_eq!(tls_client::shown(&stream), Some(tls_client::certificate(&files.cert).unwrap()));
        Device::connect_over(stream, Version::V5, &Connect::clean("newcomer")).unwrap().disconnect().unwrap();
    }
    let published: Vec<String> = load.into_iter().flat_map(Load::stop).collect();

    let mut stored = finish(agent, &config, "rest").texts("value").unwrap();
    let mut expected = published;
    stored.sort_unstable();
    expected.sort_unstable();
    println!("rotations under load: acknowledged {}, stored {}, connections lost 0", expected.len(), stored.len());
    assert!(!expected.is_empty());
    assert_eq!(stored, expected);
}

#[test]
fn a_certificate_that_cannot_be_used_leaves_the_one_of_before_and_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::make(&dir.path().join("tls")).unwrap();
    let config = with_tls(dir.path(), &tls_of(&files, "")).with(REST);
    let agent = start(&config);
    let trust = tls_client::config(&files.ca, None).unwrap();
    let expired = TlsFiles::make_expired(&dir.path().join("expired")).unwrap();
    let other = TlsFiles::make(&dir.path().join("other")).unwrap();
    let (good_cert, good_key) = (fs::read(&files.cert).unwrap(), fs::read(&files.key).unwrap());

    for (cert, key, file, words) in [
        (b"nonsense".to_vec(), good_key.clone(), &files.cert, "holds nothing of the kind in PEM"),
        (good_cert.clone(), fs::read(&other.key).unwrap(), &files.key, "does not belong to the certificate"),
        (fs::read(&expired.cert).unwrap(), fs::read(&expired.key).unwrap(), &files.cert, "expired on 2020-01-01"),
    ] {
        let write = || {
            fs::write(&files.cert, cert).unwrap();
            fs::write(&files.key, key).unwrap();
        };
        let report = agent.reload_with(write).unwrap();
        let problem = report["problem"].as_str().unwrap();
        assert!(problem.contains(&file.display().to_string()) && problem.contains(words), "{problem}");
        let (is_ok, said) = forebay(&config, &["check"]);
        assert!(!is_ok && said.contains(words), "{said}");
        drop(tls_client::connect(agent.mqtt_addr(), &trust).unwrap());
    }
    let write = || {
        fs::write(&files.cert, good_cert).unwrap();
        fs::write(&files.key, good_key).unwrap();
    };
    assert_eq!(agent.reload_with(write).unwrap()["problem"], Value::Null);
    assert!(forebay(&config, &["check"]).0);
    let errors = agent.stop_with_errors().unwrap();
    assert!(errors.len() == 3 && errors.iter().all(|line| line.contains("refused")), "one line each: {errors:#?}");
}

#[test]
fn a_device_is_who_its_certificate_says_and_publishes_where_that_may() {
    let dir = tempfile::tempdir().unwrap();
    let files = TlsFiles::make(&dir.path().join("tls")).unwrap();
    let devices = Devices::make(&dir.path().join("devices")).unwrap();
    let (ann, bob) = (devices.sign("ann").unwrap(), devices.sign("bob").unwrap());
    let acl = dir.path().join("acl");
    fs::write(&acl, "pattern write site/%u/#\n").unwrap();
    let config = with_tls(dir.path(), &tls_of(&files, &format!(", client_ca = '{}'", devices.ca().display())))
        .with(&format!("[auth]\nacl_file = '{}'", acl.display()))
        .with(REST);
    let agent = start(&config);

    let mut device = over_tls(&agent, &files, Some(&ann)).unwrap();
    device.publish_and_wait(&Publish::new("site/ann/temp", b"1", 1, 1)).unwrap();
    device.publish(&Publish::new("site/bob/temp", b"2", 1, 2)).unwrap();
    device.expect(&Reply::PubAck { packet_id: 2, code: 0x87 }).unwrap();
    let mut device = over_tls(&agent, &files, Some(&bob)).unwrap();
    device.publish_and_wait(&Publish::new("site/bob/temp", b"3", 2, 1)).unwrap();
    assert!(over_tls(&agent, &files, None).is_err(), "a device without a certificate");
    let stranger = Devices::make(&dir.path().join("strangers")).unwrap().sign("ann").unwrap();
    assert!(over_tls(&agent, &files, Some(&stranger)).is_err(), "a certificate of another authority");

    // A handshake is counted after the client was told.
    let status = wait_for(&agent, "the handshakes that failed", |status| {
        status["broker"]["tls_handshakes_failed"].as_u64() >= Some(2)
    });
    let counters = status["broker"].clone();
    assert_eq!(counters["tls_handshakes_failed"], 2, "{counters}");
    assert_eq!(counters["refused_not_authorized"], 1, "{counters}");
    assert_eq!(finish(agent, &config, "rest").texts("value").unwrap(), ["1", "3"]);
}

#[test]
fn passwords_that_change_cut_off_those_they_concern_and_nobody_else() {
    let dir = tempfile::tempdir().unwrap();
    let passwords = dir.path().join("passwd");
    let write = |users: &[(&str, &str)]| fs::write(&passwords, file_of(users)).unwrap();
    let ann_and_bob = file_of(&[("ann", "a"), ("bob", "b")]);
    fs::write(&passwords, &ann_and_bob).unwrap();
    let config =
        sealing_soon(dir.path()).with(&format!("[auth]\npassword_file = '{}'", passwords.display())).with(REST);
    let agent = start(&config);
    let mut ann = logged_in(&agent, "ann", "a").unwrap();
    let mut bob = logged_in(&agent, "bob", "b").unwrap();
    assert!(logged_in(&agent, "ann", "b").is_err());
    assert!(Device::connect(agent.mqtt_addr(), Version::V5, &Connect::clean("nobody")).is_err());

    let bad = format!("{}\nbob:secret\n", ann_and_bob.lines().next().unwrap());
    let refused = agent.reload_with(|| fs::write(&passwords, bad).unwrap()).unwrap();
    let problem = refused["problem"].as_str().unwrap();
    assert!(problem.contains("passwd:3: ") || problem.contains("passwd:2: "), "{problem}");
    assert!(!problem.contains("secret"), "{problem}");
    ann.publish_and_wait(&Publish::new("t", b"1", 1, 1)).unwrap();
    bob.publish_and_wait(&Publish::new("t", b"2", 1, 1)).unwrap();

    fs::write(&passwords, ann_and_bob.lines().find(|line| line.starts_with("ann:")).unwrap()).unwrap();
    assert_eq!(agent.reloaded_since(&refused).unwrap()["problem"], Value::Null);
    bob.expect(&Reply::Disconnect { code: 0x87 }).unwrap();
    ann.publish_and_wait(&Publish::new("t", b"3", 1, 2)).unwrap();
    assert!(logged_in(&agent, "bob", "b").is_err());

    agent.reload_with(|| write(&[("bob", "new")])).unwrap();
    ann.expect(&Reply::Disconnect { code: 0x87 }).unwrap();
    logged_in(&agent, "bob", "new").unwrap().publish_and_wait(&Publish::new("t", b"4", 1, 1)).unwrap();

    let counters = agent.status().unwrap()["broker"].clone();
    assert_eq!((&counters["revoked"], &counters["logins_failed"]), (&2.into(), &2.into()), "{counters}");
    agent.drain(4).unwrap();
    assert_eq!(agent.stop_with_errors().unwrap().len(), 1, "one line about the file that was refused");
}

#[test]
fn a_certificate_that_expired_long_ago_does_not_keep_in_whose_password_was_removed() {
    let dir = tempfile::tempdir().unwrap();
    let expired = TlsFiles::make_expired(&dir.path().join("tls")).unwrap();
    let passwords = dir.path().join("passwd");
    fs::write(&passwords, file_of(&[("ann", "a")])).unwrap();
    let config = sealing_soon(dir.path())
        .with(&format!("[auth]\npassword_file = '{}'", passwords.display()))
        .with(&format!("[[listener]]\nbind = \"127.0.0.1:0\"\n{}", tls_of(&expired, "")));
    let agent = start(&config);
    let mut ann = logged_in(&agent, "ann", "a").unwrap();

    let report = agent.reload_with(|| fs::write(&passwords, file_of(&[("bob", "b")])).unwrap()).unwrap();

    assert_eq!(report["problem"], Value::Null, "{report}");
    ann.expect(&Reply::Disconnect { code: 0x87 }).unwrap();
    agent.stop().unwrap();
}

#[test]
fn a_file_that_is_in_use_until_a_restart_is_looked_at_until_then() {
    let dir = tempfile::tempdir().unwrap();
    let passwords = dir.path().join("passwd");
    fs::write(&passwords, file_of(&[("ann", "a")])).unwrap();
    let config = sealing_soon(dir.path()).with(&format!("[auth]\npassword_file = '{}'", passwords.display()));
    let agent = start(&config);
    let mut ann = logged_in(&agent, "ann", "a").unwrap();
    let others = sealing_soon(dir.path()).with("[[listener]]\nbind = \"127.0.0.1:0\"");
    let edited = agent.reload_with(|| others.write().unwrap()).unwrap();
    assert_eq!(edited["needs_restart"], serde_json::json!(["listener", "auth"]), "{edited}");

    fs::write(&passwords, file_of(&[("bob", "b")])).unwrap();

    assert_eq!(agent.reloaded_since(&edited).unwrap()["problem"], Value::Null);
    ann.expect(&Reply::Disconnect { code: 0x87 }).unwrap();
    agent.stop().unwrap();
}

#[test]
fn a_3_1_1_device_that_publishes_where_it_may_not_has_its_message_kept_apart() {
    let dir = tempfile::tempdir().unwrap();
    let acl = dir.path().join("acl");
    fs::write(&acl, "topic write mine/#\n").unwrap();
    let config = sealing_soon(dir.path()).with(&format!("[auth]\nacl_file = '{}'", acl.display())).with(REST);
    let agent = start(&config);
    let mut device = Device::connect(agent.mqtt_addr(), Version::V4, &Connect::clean("d")).unwrap();

    device.publish_and_wait(&Publish::new("mine/a", b"1", 1, 1)).unwrap();
    device.publish_and_wait(&Publish::new("yours/a", b"2", 1, 2)).unwrap();

    agent.drain(1).unwrap();
    let (_, letters) = forebay(&config, &["dead-letters", "list"]);
    assert!(letters.contains("yours/a") && letters.contains("access control list"), "{letters}");
    assert_eq!(finish(agent, &config, "rest").texts("value").unwrap(), ["1"]);
}

#[test]
fn a_unix_socket_takes_programs_of_this_machine() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("mqtt.sock");
    drop(UnixListener::bind(&path).unwrap()); // left over from a process that was killed
    let config = sealing_soon(dir.path()).with(&format!("[[listener]]\nbind = 'unix:{}'", path.display())).with(REST);
    let agent = start(&config);

    let mut listeners = String::new();
    while !listeners.contains("unix:") {
        thread::sleep(Duration::from_millis(10)); // the first listener is there before the second
        listeners = agent.status().unwrap()["listeners"].to_string();
    }
    let stream = UnixStream::connect(&path).unwrap();
    let mut device = Device::connect_over(stream, Version::V5, &Connect::clean("local")).unwrap();
    device.publish_and_wait(&Publish::new("a", b"1", 2, 1)).unwrap();

    assert!(listeners.contains(&format!("unix:{}", path.display())), "{listeners}");
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o666);
    let second = dir.path().join("second");
    let other = AgentConfig::in_dir(&second).with(&format!("[[listener]]\nbind = 'unix:{}'", path.display()));
    let output = agent::command(Path::new(PROGRAM), &other, &["run"]).unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("another program listens there"), "{output:?}");
    device.publish_and_wait(&Publish::new("a", b"2", 1, 2)).unwrap();
    assert_eq!(finish(agent, &config, "rest").texts("value").unwrap(), ["1", "2"]);
    assert!(!path.exists(), "it is removed at the end");
}

#[test]
fn an_agent_that_anybody_could_publish_to_does_not_start_and_says_what_to_add() {
    let dir = tempfile::tempdir().unwrap();
    let open = sealing_soon(dir.path()).with("[[listener]]\nbind = \"0.0.0.0:0\"");

    let output = agent::command(Path::new(PROGRAM), &open, &["run"]).unwrap();

    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(78), "{said}");
    assert!(said.contains("    [auth]\n    password_file = \"/etc/forebay/passwd\"\n"), "{said}");
    assert!(said.contains("    [auth]\n    allow_anonymous = true\n"), "{said}");
}

#[test]
fn a_file_that_is_not_there_ends_the_start_as_a_bad_configuration() {
    let dir = tempfile::tempdir().unwrap();
    for (keys, file) in [
        ("tls = { cert = \"/nowhere/server.crt\", key_file = \"/nowhere/server.key\" }", "/nowhere/server.key"),
        ("[auth]\npassword_file = \"/nowhere/passwd\"", "/nowhere/passwd"),
        ("[auth]\nacl_file = \"/nowhere/acl\"", "/nowhere/acl"),
    ] {
        let config = AgentConfig::in_dir(dir.path()).with(keys);
        let output = agent::command(Path::new(PROGRAM), &config, &["run"]).unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(78), "{said}");
        assert!(said.contains(file), "{said}");
        let (is_ok, checked) = forebay(&config, &["check"]);
        assert!(!is_ok && checked.contains(&format!("problem: {file}")), "{checked}");
    }
}

/// As `sealing_soon`; the keys of the first listener come before every other section.
fn with_tls(dir: &Path, tls: &str) -> AgentConfig {
    AgentConfig::in_dir(dir).with(tls).with("[batch]\nage = \"100ms\"")
}

/// `tls` of the first listener.
fn tls_of(files: &TlsFiles, more: &str) -> String {
    format!("tls = {{ cert = '{}', key_file = '{}'{more} }}", files.cert.display(), files.key.display())
}

fn over_tls(agent: &Agent, files: &TlsFiles, shows: Option<&DeviceFiles>) -> anyhow::Result<Device<TlsStream>> {
    let stream = tls_client::connect(agent.mqtt_addr(), &tls_client::config(&files.ca, shows)?)?;
    Device::connect_over(stream, Version::V5, &Connect::clean(""))
}

fn logged_in(agent: &Agent, user: &str, password: &str) -> anyhow::Result<Device> {
    let connect = Connect { login: Some((user, password)), ..Connect::clean("") };
    Device::connect(agent.mqtt_addr(), Version::V5, &connect)
}

fn file_of(users: &[(&str, &str)]) -> String {
    let mut file = PasswordFile::default();
    for (user, password) in users {
        let salt: [u8; 12] = std::array::from_fn(|_| fastrand::u8(..));
        let hash = PasswordHash::new(password.as_bytes(), 2.try_into().unwrap(), &salt);
        file.set(user, hash).unwrap();
    }
    file.to_string()
}

/// A device that publishes over one TLS connection until it is stopped.
struct Load {
    stop: Arc<AtomicBool>,
    device: JoinHandle<Vec<String>>,
}

impl Load {
    fn start(addr: SocketAddr, files: &TlsFiles, number: u32) -> Self {
        let stream = tls_client::connect(addr, &tls_client::config(&files.ca, None).unwrap()).unwrap();
        let mut device = Device::connect_over(stream, Version::V5, &Connect::clean("")).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let device = thread::spawn(move || {
            let mut published = Vec::new();
            for packet_id in (1..=u16::MAX).cycle() {
                if stopping.load(Ordering::Relaxed) {
                    break;
                }
                let text = format!("{number} {}", published.len());
                device
                    .publish_and_wait(&Publish::new("load", text.as_bytes(), 1 + (packet_id % 2) as u8, packet_id))
                    .unwrap();
                published.push(text);
                thread::sleep(Duration::from_millis(1));
            }
            device.disconnect().unwrap();
            published
        });
        Self { stop, device }
    }

    fn stop(self) -> Vec<String> {
        self.stop.store(true, Ordering::Relaxed);
        self.device.join().expect("the connection is never lost")
    }
}
