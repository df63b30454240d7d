//! Nothing that is a secret is ever written to the log, to `forebay status` or to `forebay check`, however much is logged
//! and whichever way it would be written: passwords, their hashes, tokens, private keys, and what devices publish.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::num::NonZeroU32;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE};
use forebay_broker::auth::password::PasswordHash;
use forebay_tests::agent::AgentConfig;
use forebay_tests::broker::ScriptedBroker;
use forebay_tests::device::{Device, REPLY_MAX};
use forebay_tests::packets::{self, Connect, Publish, Reply, Version};
use forebay_tests::server::free_port;
use forebay_tests::tls::TlsFiles;
use rustix::process::{Pid, Signal, kill_process};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned};
use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::{Message, WebSocket};

use crate::{PROGRAM, forebay, sealing_soon, start_node};

/// How long anything may take; reaching it means that the agent hangs.
const WAIT_MAX: Duration = Duration::from_secs(120);
const POLL_EVERY: Duration = Duration::from_millis(20);

const RIGHT_PASSWORD: &str = "Rq7vXw2kTz9 \"ö\\";
const NEXT_PASSWORD: &str = "Nn4cJd8sLm3 \"ö\\";
const WRONG_PASSWORD: &str = "Wf5hGy1pBk6 \"ö\\";
const SOURCE_PASSWORD: &str = "Sj8mQe3uVd2 \"ö\\";
const TOKEN: &str = "ka_Tk6zPa9rCx4w";
const WILL_PAYLOAD: &[u8] = b"Lh2bUo7nEs5 \"\xff\n";
const PAYLOAD: &[u8] = b"Py3iKr8gMa1 \"\xff\n";
const SOURCE_PAYLOAD: &[u8] = b"Fd9tNc4wZo6 \"\xff\n";
/// Rows that cannot be: the reason is kept with the dead letter, and logged.
const REFUSED_PAYLOADS: [&str; 4] = [
    r#"{"temp": "Dq1xYb6jHv8"}"#,
    r#"{"temp": 1.5, "Dq1xYb6jHv8": 1, "ts": "Dq1xYb6jHv8"}"#,
    "Dq1xYb6jHv8",
    r#"["Dq1xYb6jHv8"]"#,
];
const SALT: &[u8; 12] = b"Gm4eRt7yQa2s";

#[test]
fn the_log_as_text_at_level_trace_holds_no_secret() {
    assert_that_nothing_is_told("trace", "text");
}

#[test]
fn the_log_as_json_at_level_trace_holds_no_secret() {
    assert_that_nothing_is_told("trace", "json");
}

#[test]
fn the_log_as_text_at_level_debug_holds_no_secret() {
    assert_that_nothing_is_told("debug", "text");
}

#[test]
fn the_log_as_json_at_level_debug_holds_no_secret() {
    assert_that_nothing_is_told("debug", "json");
}

#[test]
fn a_secret_is_found_in_every_form_it_could_be_written_in() {
    let secret = Secret { what: "a password", core: b"Rq7vXw2kTz9".to_vec() };
    let bytes = b"{\"Rq7vXw2kTz9\"";
    let percent = bytes.iter().fold(String::new(), |text, byte| text + &format!("%{byte:02X}"));
    let told = [
        format!("{:?}", String::from_utf8_lossy(bytes)),
        format!("{bytes:?}"),
        format!("{bytes:02x?}"),
        format!("{bytes:#04x?}").split_whitespace().collect::<Vec<_>>().join(" "),
        bytes.escape_ascii().to_string(),
        hex(bytes, ""),
        hex(bytes, " ").to_uppercase(),
        percent,
        STANDARD.encode(&bytes[..]),
        STANDARD.encode(&bytes[1..]),
        URL_SAFE.encode(&bytes[2..]),
    ];

    for text in told {
        assert!(!secret.found_in(&text).is_empty(), "not found in {text}");
    }
    assert!(secret.found_in("Rq7 vXw 2kTz9").is_empty());
}

/// Everything that knows a secret happens to an agent that logs as much as it can.
fn assert_that_nothing_is_told(level: &str, format: &str) {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::make(dir.path(), level, format);
    assert!(forebay(&site.config, &["provision"]).0, "the node gets a dataset to post to");
    let agent = site.start();

    site.use_passwords(RIGHT_PASSWORD);
    site.use_certificates();
    let mut source = site.broker.accept_subscriber(false).unwrap();
    assert_eq!(source.connect.password.as_deref(), Some(SOURCE_PASSWORD.as_bytes()), "the password is used");
    source.publish_and_complete(&Publish::new("raw/source", SOURCE_PAYLOAD, 1, 1)).unwrap();
    site.wait_until_delivered();
    // Both are read again with SIGHUP, and clients whose password is another now are closed.
    fs::write(&site.passwords, password_line(NEXT_PASSWORD)).unwrap();
    fs::write(&site.token, format!("{TOKEN} ")).unwrap();
    agent.signal(Signal::HUP);
    site.wait_until(|status| status["reload"].is_object());
    site.use_passwords(NEXT_PASSWORD);
    let status = ("the status".to_owned(), site.status());
    let outputs = [&["status"][..], &["check", "raw/7"], &["check", "typed/7"]]
        .map(|args| (args.join(" "), forebay(&site.config, args).1));
    agent.stop();

    let log = ("the log".to_owned(), fs::read_to_string(&site.log).unwrap());
    assert!(log.1.contains(&level.to_uppercase()) && log.1.lines().count() > 50, "the log is as long as it should be");
    let mut found = String::new();
    for secret in site.secrets() {
        for (place, text) in outputs.iter().chain([&status, &log]) {
            for line in secret.found_in(text) {
                let _ = writeln!(found, "{} in {place}: {line}", secret.what);
            }
        }
    }
    assert!(found.is_empty(), "{found}");
}

/// Everything that an agent needs to have secrets.
struct Site {
    config: AgentConfig,
    level: String,
    log: PathBuf,
    passwords: PathBuf,
    token: PathBuf,
    broker: ScriptedBroker,
    server: TlsFiles,
    client: TlsFiles,
    plain: SocketAddr,
    tls: SocketAddr,
    websocket: SocketAddr,
    _node: forebay_tests::node::StubNode,
}

impl Site {
    fn make(dir: &Path, level: &str, format: &str) -> Self {
        let server = TlsFiles::make(&dir.join("server")).unwrap();
        let client = TlsFiles::make_client(&dir.join("client"), "press-7").unwrap();
        let (node, token) = start_node(dir, |config| config.token(TOKEN));
        let (passwords, source_password) = (dir.join("passwd"), dir.join("source-password"));
        fs::write(&passwords, password_line(RIGHT_PASSWORD)).unwrap();
        fs::write(&source_password, SOURCE_PASSWORD).unwrap();
        let broker = ScriptedBroker::listen().unwrap();
        let [plain, tls, websocket] = [(); 3].map(|()| SocketAddr::from((Ipv4Addr::LOCALHOST, free_port().unwrap())));
        let toml = format!(
            r#"
[[listener]]
bind = "{tls}"
[listener.tls]
cert = "{cert}"
key_file = "{key}"
client_ca = "{client_ca}"
identity = "cn"
[[listener]]
bind = "{websocket}"
transport = "websocket"
[auth]
password_file = "{passwords}"
[[source]]
name = "plant"
url = "{source}"
topics = ["raw/#"]
username = "gateway"
password_file = "{source_password}"
[[upstream]]
url = "odf+{node}/acme"
token_file = "{token}"
datasets = ["raw"]
[[upstream]]
url = "{node}/acme"
token_file = "{token}"
datasets = ["posted"]
[[dataset]]
name = "posted"
topics = ["posted/#"]
format = "bytes"
[[dataset]]
name = "typed"
topics = ["typed/#"]
event_time = "ts"
[dataset.schema]
ts = "Timestamp"
temp = "Float32"
[[dataset]]
name = "raw"
topics = ["raw/#"]
format = "bytes"
"#,
            cert = server.cert.display(),
            key = server.key.display(),
            client_ca = client.ca.display(),
            passwords = passwords.display(),
            source = broker.url(),
            source_password = source_password.display(),
            node = node.url(),
            token = token.display(),
        );
        let config = sealing_soon(dir)
            .with(&toml)
            .env("FOREBAY__LISTENER__0__BIND", &plain.to_string())
            .env("FOREBAY__LOG__FORMAT", format);
        let (level, log) = (level.to_owned(), dir.join("log"));
        Self { config, level, log, passwords, token, broker, server, client, plain, tls, websocket, _node: node }
    }

    /// The whole log goes to a file.
    fn start(&self) -> Running {
        let file = self.config.write().unwrap();
        let mut command = Command::new(PROGRAM);
        command.args(["run", "--config"]).arg(file).env("RUST_LOG", &self.level);
        command.envs(self.config.env_vars()).stdin(Stdio::null()).stdout(Stdio::null());
        let mut agent = Running(command.stderr(File::create(&self.log).unwrap()).spawn().unwrap());
        wait_until("an agent that listens", || {
            let ended = agent.0.try_wait().unwrap();
            assert!(ended.is_none(), "the agent ended: {}", fs::read_to_string(&self.log).unwrap());
            TcpStream::connect(self.websocket).is_ok()
        });
        agent
    }

    /// Devices with the right and a wrong password, over TCP and over WebSocket.
    fn use_passwords(&self, password: &str) {
        for version in [Version::V4, Version::V5] {
            let connect = Connect {
                will: Some(("raw/will", WILL_PAYLOAD)),
                login: Some(("press", password)),
                ..Connect::clean("device")
            };
            let mut device = Device::connect(self.plain, version, &connect).unwrap();
            publish_all(|packet| device.publish_and_wait(packet).unwrap());
            for (payload, packet_id) in REFUSED_PAYLOADS.iter().zip(10..) {
                device.publish(&Publish::new("typed/7", payload.as_bytes(), 1, packet_id)).unwrap();
                device.reply().unwrap();
            }
            // No DISCONNECT: the Will Message is published.
            drop(device);
            let wrong = Connect { login: Some(("press", WRONG_PASSWORD)), ..Connect::clean("stranger") };
            Device::connect(self.plain, version, &wrong).expect_err("a wrong password is refused");
            over_websocket(self.websocket, version, &connect);
        }
    }

    /// A device that shows its certificate.
    fn use_certificates(&self) {
        for version in [Version::V4, Version::V5] {
            let mut roots = RootCertStore::empty();
            roots.add(CertificateDer::from_pem_file(&self.server.ca).unwrap()).unwrap();
            let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots)
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_file(&self.client.cert).unwrap()],
                    PrivateKeyDer::from_pem_file(&self.client.key).unwrap(),
                )
                .unwrap();
            let connection = ClientConnection::new(Arc::new(config), "localhost".try_into().unwrap()).unwrap();
            let mut stream = StreamOwned::new(connection, connect_tcp(self.tls));
            let connect = Connect { will: Some(("raw/will", WILL_PAYLOAD)), ..Connect::clean("certified") };
            stream.write_all(&connect_and_publish(version, &connect)).unwrap();
            let mut inbox = Vec::new();
            let (mut next, mut chunk) = (0, [0; 1_024]);
            while next < 2 {
                let count = stream.read(&mut chunk).unwrap();
                assert!(count > 0, "the agent closed the connection");
                inbox.extend_from_slice(&chunk[..count]);
                next += take_replies(&mut inbox);
            }
        }
    }

    fn wait_until_delivered(&self) {
        self.wait_until(|status| status["spool"]["waiting"] == 0);
        let (ok, text) = forebay(&self.config, &["sync", "--once"]);
        assert!(!text.is_empty(), "sync says how it went: {ok}");
    }

    fn wait_until(&self, is_so: impl Fn(&Value) -> bool) {
        wait_until("what the status should say", || is_so(&serde_json::from_str(&self.status()).unwrap()));
    }

    /// What `forebay status` makes its table of.
    fn status(&self) -> String {
        let mut socket = UnixStream::connect(self.config.data_dir().join("forebay.sock")).unwrap();
        socket.write_all(b"{\"command\":\"status\"}\n").unwrap();
        let mut answer = String::new();
        BufReader::new(socket).read_line(&mut answer).unwrap();
        answer
    }

    fn secrets(&self) -> Vec<Secret> {
        let core = |what, text: &[u8]| Secret { what, core: text[..11].to_vec() };
        let mut secrets = vec![
            core("the password", RIGHT_PASSWORD.as_bytes()),
            core("the next password", NEXT_PASSWORD.as_bytes()),
            core("a wrong password", WRONG_PASSWORD.as_bytes()),
            core("the source's password", SOURCE_PASSWORD.as_bytes()),
            Secret { what: "the token", core: TOKEN.as_bytes()[3..].to_vec() },
            core("a payload", PAYLOAD),
            core("a Will Message", WILL_PAYLOAD),
            core("a source's payload", SOURCE_PAYLOAD),
            Secret { what: "a payload that is refused", core: b"Dq1xYb6jHv8".to_vec() },
            core("a salt", SALT),
        ];
        for password in [RIGHT_PASSWORD, NEXT_PASSWORD] {
            let line = password_line(password);
            let hash = STANDARD.decode(line.trim().rsplit('$').next().unwrap()).unwrap();
            secrets.push(Secret { what: "a hash", core: hash[8..24].to_vec() });
        }
        for files in [&self.server, &self.client] {
            let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
            // PKCS #8 of P-256: after 36 bytes of what it is, 32 that are secret.
            secrets.push(Secret { what: "a private key", core: key.secret_der()[36..60].to_vec() });
        }
        secrets
    }
}

/// An agent that is killed with its test.
struct Running(Child);

impl Running {
    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).unwrap()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    fn stop(mut self) {
        self.signal(Signal::TERM);
        assert!(self.0.wait().unwrap().success());
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Something that nobody may read, by the part of it that looks the same however it is escaped.
struct Secret {
    what: &'static str,
    core: Vec<u8>,
}

impl Secret {
    /// The lines that hold it, cut where it begins.
    fn found_in(&self, text: &str) -> Vec<String> {
        let folded = text.to_ascii_lowercase();
        let forms = self.forms();
        let lines = text.lines().zip(folded.lines());
        let holds = |line: &str, folded: &str| {
            forms.iter().any(|(form, is_exact)| if *is_exact { line.contains(form) } else { folded.contains(form) })
        };
        lines.filter(|(line, folded)| holds(line, folded)).map(|(line, _)| line.chars().take(400).collect()).collect()
    }

    /// Every way to write it, and whether upper and lower case are different there.
    fn forms(&self) -> Vec<(String, bool)> {
        let core = &self.core;
        let decimal = core.iter().map(u8::to_string).collect::<Vec<_>>();
        let mut forms = vec![
            (core.escape_ascii().to_string(), true),
            (decimal.join(", "), false),
            (decimal.join(","), false),
            (decimal.join(" "), false),
        ];
        if let Ok(text) = std::str::from_utf8(core) {
            forms.push((text.to_owned(), true));
        }
        for between in ["", " ", ", ", ":", "%", "\\x", ", 0x"] {
            forms.push((hex(core, between), false));
        }
        // Base64 by three bytes, of which the first may belong to what stands before.
        for skipped in 0..3 {
            let whole = (core.len() - skipped) / 3 * 3;
            forms.push((STANDARD.encode(&core[skipped..skipped + whole]), true));
            forms.push((URL_SAFE.encode(&core[skipped..skipped + whole]), true));
        }
        forms
    }
}

fn hex(bytes: &[u8], between: &str) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(between)
}

fn password_line(password: &str) -> String {
    let iterations = NonZeroU32::new(101).unwrap();
    format!("press:{}\n", PasswordHash::new(password.as_bytes(), iterations, SALT))
}

fn publish_all(mut publish: impl FnMut(&Publish<'_>)) {
    for (topic, qos, packet_id) in [("raw/7", 0, 0), ("raw/7", 1, 1), ("raw/7", 2, 2), ("posted/7", 1, 3)] {
        publish(&Publish::new(topic, PAYLOAD, qos, packet_id));
    }
}

fn connect_and_publish(version: Version, connect: &Connect<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    packets::connect(version, connect, &mut bytes);
    packets::publish(version, &Publish::new("raw/7", PAYLOAD, 1, 1), &mut bytes);
    bytes
}

/// Counts what was accepted.
fn take_replies(inbox: &mut Vec<u8>) -> usize {
    let mut count = 0;
    while let Some((reply, length)) = packets::next_reply(inbox) {
        let is_accepted = matches!(reply, Reply::ConnAck { code: 0, .. } | Reply::PubAck { code: 0, .. });
        assert!(is_accepted, "{reply:?}");
        inbox.drain(..length);
        count += 1;
    }
    count
}

fn over_websocket(addr: SocketAddr, version: Version, connect: &Connect<'_>) {
    let mut request = format!("ws://{addr}/mqtt").into_client_request().unwrap();
    request.headers_mut().insert("Sec-WebSocket-Protocol", "mqtt".parse().unwrap());
    let (mut socket, _): (WebSocket<TcpStream>, _) = tungstenite::client(request, connect_tcp(addr)).unwrap();
    socket.send(Message::binary(connect_and_publish(version, connect))).unwrap();
    let (mut inbox, mut replies) = (Vec::new(), 0);
    while replies < 2 {
        if let Message::Binary(bytes) = socket.read().unwrap() {
            inbox.extend_from_slice(&bytes);
        }
        replies += take_replies(&mut inbox);
    }
}

fn connect_tcp(addr: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(addr).unwrap();
    stream.set_read_timeout(Some(REPLY_MAX)).unwrap();
    stream
}

#[expect(clippy::disallowed_methods, reason = "a test gives up on an agent that hangs")]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + WAIT_MAX;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} does not come");
        thread::sleep(POLL_EVERY);
    }
}
