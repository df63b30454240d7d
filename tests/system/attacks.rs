//! What well-behaved devices notice while a stranger does its worst: twenty of them publish at a steady rate, and an
//! attack runs beside them. Whatever is attacked, they keep nine tenths of their rate, no connection of theirs is lost, and
//! everything that was acknowledged to them is stored. `FOREBAY_ATTACK_SECS` says how long each attack lasts; without it
//! none is run, for a rate wants the machine for itself.
//!
//! Attackers and victims share the machine's processors, so attackers run at a lower priority: what is shown is what the
//! agent does, not who gets a processor.

use std::fs;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use forebay_broker::auth::PasswordFile;
use forebay_broker::auth::password::PasswordHash;
use forebay_tests::agent::{Agent, AgentConfig};
use forebay_tests::device::Device;
use forebay_tests::packets::{self, Connect, Publish, Reply, Version};
use forebay_tests::tls::TlsFiles;
use forebay_tests::tls_client;
use socket2::{Domain, Protocol, Socket, Type};

use crate::{finish, from_env, start};

/// Well-behaved devices, and messages a second of each.
const DEVICES: u64 = 20;
const RATE: u64 = 25;
/// What they keep of their rate.
const ENOUGH: f64 = 0.9;

#[test]
fn half_open_tls_handshakes() {
    // The devices come over TLS, too.
    attack_over(true, "half-open TLS handshakes", "", ("half_open_dropped", 1), |target| {
        // The head of a ClientHello of 512 bytes, and a bit of it.
        let beginning = [&[0x16, 0x03, 0x01, 0x02, 0x00, 0x01, 0x00, 0x01, 0xFC][..], &[3; 60]].concat();
        hold(target.tls, 1_000, &beginning, &[], target);
    });
}

#[test]
fn slowloris_connect() {
    attack("slowloris CONNECT", "connect_timeout = \"2s\"", "connect_timeouts", |target| {
        let mut connect = Vec::new();
        packets::connect(Version::V4, &Connect::clean(&"x".repeat(200)), &mut connect);
        hold(target.plain, 500, &connect[..10], &connect[10..11], target);
    });
}

#[test]
fn a_flood_of_logins_with_wrong_passwords() {
    attack("login flood", "login_failures_max = 1", "logins_refused_rate", |target| {
        thread::scope(|scope| {
            scope.spawn(|| {
                each_of(8, target, |number, round| {
                    let user = if number % 2 == 0 { "ann".to_owned() } else { format!("user-{number}-{round}") };
                    let _ = Device::connect(target.plain, Version::V5, &login(&user, "wrong"));
                });
            });
            // Meanwhile the right password still lets its user in, from another address.
            while !target.is_over() {
                let stream = from_address(2, target.plain);
                let mut device = Device::connect_over(stream, Version::V5, &login("ann", "secret")).unwrap();
                device.ping().unwrap();
                thread::sleep(Duration::from_millis(50));
            }
        });
    });
}

#[test]
fn one_client_at_full_speed() {
    // The devices' own are counted, too: several times as many must come.
    attack_over(false, "one client at full speed", "", ("messages_qos1", 1_000), full_speed);
}

#[test]
fn one_client_at_full_speed_with_a_limit_of_its_rate() {
    attack("… with publish_rate_max", "publish_rate_max = 500", "throttled", full_speed);
}

#[test]
fn lengths_that_are_only_claimed() {
    attack("claims of 256 MiB and more", "", "malformed", |target| {
        each_of(4, target, |_, _| {
            // The largest that can be said, and one that cannot; before CONNECT, and after it.
            for length in [&[0xFF, 0xFF, 0xFF, 0x7F][..], &[0xFF, 0xFF, 0xFF, 0xFF, 0x04]] {
                if let Ok(mut stranger) = Device::open(target.plain, Version::V5) {
                    let _ = stranger.send(&[&[0x10], length].concat());
                    let _ = stranger.next_reply();
                }
                if let Ok(mut client) = Device::connect(target.plain, Version::V5, &Connect::clean("")) {
                    let _ = client.send(&[&[0x30], length].concat());
                    let code = if length.len() == 4 { 0x95 } else { 0x81 };
                    assert_eq!(client.reply().unwrap(), Reply::Disconnect { code });
                }
            }
        });
    });
}

#[test]
fn a_storm_of_will_messages() {
    let payload = vec![b'w'; 4_000]; // larger ones are a matter of the disk's speed
    attack("will storm", "", "wills", move |target| {
        each_of(4, target, |number, round| {
            let topic = format!("storm/{number}/{round}");
            let connect = Connect { will: Some((&topic, &payload)), ..Connect::clean("") };
            drop(Device::connect(target.plain, Version::V4, &connect)); // without DISCONNECT
        });
    });
}

#[test]
fn a_client_identifier_that_several_fight_for() {
    attack("takeover ping-pong", "", "takeovers", |target| {
        each_of(4, target, |_, _| {
            if let Ok(mut device) = Device::connect(target.plain, Version::V5, &Connect::persistent("contested")) {
                let _ = device.publish(&Publish::new("contested", b"mine", 1, 1));
                let _ = device.next_reply();
            }
        });
    });
}

#[test]
fn clients_that_do_not_read() {
    attack_over(
        false,
        "clients that do not read",
        "write_timeout = \"300ms\"",
        ("bytes_received", 1_000_000),
        |target| {
            let pings = [0xC0, 0].repeat(4_096);
            each_of(8, target, |_, _| {
                let Some(stream) = narrow(target.plain) else { return };
                let Ok(mut device) = Device::connect_over(stream, Version::V4, &Connect::clean("")) else { return };
                while device.send(&pings).is_ok() && !target.is_over() {}
            });
        },
    );
}

#[test]
fn a_flood_of_connections() {
    attack("connection flood", "", "connections_accepted", |target| {
        each_of(8, target, |_, _| drop(TcpStream::connect(target.plain)));
    });
}

#[test]
fn garbage_instead_of_a_websocket() {
    attack("WebSocket garbage", "", "websocket_upgrades_failed", |target| {
        each_of(8, target, |number, _| {
            let Ok(mut stream) = TcpStream::connect(target.websocket) else { return };
            let garbage: &[u8] = if number % 2 == 0 {
                b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
            } else {
                &[0x16, 3, 1, 0, 0, 13, 10, 13, 10]
            };
            let _ = stream.write_all(garbage);
            let _ = stream.read(&mut [0; 512]);
        });
    });
}

/// Where to, and until when.
struct Target {
    plain: SocketAddr,
    tls: SocketAddr,
    websocket: SocketAddr,
    over: AtomicBool,
}

impl Target {
    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

fn attack(name: &str, limits: &str, counter: &str, wage: impl Fn(&Target) + Send + 'static) {
    attack_over(false, name, limits, (counter, 1), wage);
}

/// Runs the attack beside the devices. The counter shows that it hit: at least so often a second.
fn attack_over(
    tls: bool,
    name: &str,
    limits: &str,
    (counter, least): (&str, u64),
    wage: impl Fn(&Target) + Send + 'static,
) {
    let secs: u64 = from_env("FOREBAY_ATTACK_SECS", 0);
    if secs == 0 {
        println!(
            "SKIPPED: rates want the machine for themselves: FOREBAY_ATTACK_SECS=10 runs it, as `.ci/run attacks` does"
        );
        return;
    }
    let length = Duration::from_secs(secs);
    let dir = tempfile::tempdir().unwrap();
    let config = guarded(dir.path(), limits);
    let agent = start(&config);
    let target = Arc::new(target_of(&agent));
    let trust = tls_client::config(&dir.path().join("tls/ca.pem"), None).unwrap();
    let connect = || -> Box<dyn Stream> {
        match tls {
            true => Box::new(tls_client::connect(target.tls, &trust).unwrap()),
            false => Box::new(TcpStream::connect(target.plain).unwrap()),
        }
    };
    let devices: Vec<Steady> = (0..DEVICES).map(|number| Steady::start(number, connect())).collect();

    let before = measure(&devices, length / 2);
    let (counted, rss) = (counted(&agent, counter), rss_mib(&agent));
    let attacker = {
        let target = Arc::clone(&target);
        thread::spawn(move || {
            let _ = rustix::process::setpriority_process(None, 10); // of this thread, and of those that it starts
            wage(&target);
        })
    };
    thread::sleep(length / 4);
    let mut during = measure(&devices, length);
    if during.share < ENOUGH {
        during = measure(&devices, length * 2); // other programs share the machine: once more, for longer
    }
    let rss_during = rss_mib(&agent);
    target.over.store(true, Ordering::Relaxed);
    attacker.join().expect("the attack goes on until it is over");
    let hits = self::counted(&agent, counter) - counted;
    let acknowledged: Vec<String> = devices.into_iter().flat_map(Steady::stop).collect();

    println!(
        "attack: {name}: rate {:.0} % (before {:.0} %), p99 {:.1} ms (before {:.1}), RSS {rss_during:.0} MiB (before \
         {rss:.0}), {counter} {hits}",
        during.share * 100.0,
        before.share * 100.0,
        during.p99_ms,
        before.p99_ms
    );
    let wanted = (least * length.as_secs()).max(1);
    assert!(hits >= wanted, "the attack did not hit: {counter} rose by {hits} and not by {wanted}");
    assert!(rss_during < 250.0, "memory is bounded");
    assert!(during.share >= ENOUGH, "{:.2} of what was due was acknowledged", during.share);
    agent.sync().unwrap(); // does not wait for the age of the last batches
    let mut stored = finish(agent, &config, "steady").texts("value").unwrap();
    let mut expected = acknowledged;
    stored.sort_unstable();
    expected.sort_unstable();
    assert_eq!(stored, expected, "each of what was acknowledged is stored, once");
}

/// An agent with every kind of listener, a user `ann` whose password is `secret`, and room for what attackers store.
fn guarded(dir: &Path, limits: &str) -> AgentConfig {
    let files = TlsFiles::make(&dir.join("tls")).unwrap();
    let mut passwords = PasswordFile::default();
    passwords.set("ann", PasswordHash::new(b"secret", 10_000.try_into().unwrap(), b"a salt of it")).unwrap();
    fs::write(dir.join("passwd"), passwords.to_string()).unwrap();
    AgentConfig::in_dir(dir)
        .with("[[listener]]\nbind = \"127.0.0.1:0\"")
        .with(&format!("tls = {{ cert = '{}', key_file = '{}' }}", files.cert.display(), files.key.display()))
        .with("[[listener]]\nbind = \"127.0.0.1:0\"\ntransport = \"websocket\"")
        .with(&format!("[limits]\n{limits}"))
        .with("[auth]\nallow_anonymous = true\npassword_file = \"passwd\"")
        .with("[spool]\nmax_bytes = \"16GiB\"")
        .with("[[dataset]]\nname = \"steady\"\ntopics = [\"steady/#\"]\nformat = \"text\"")
        .with("[[dataset]]\nname = \"rest\"\ntopics = [\"#\"]\nformat = \"bytes\"")
}

fn target_of(agent: &Agent) -> Target {
    let mut listeners = Vec::new();
    while listeners.len() < 3 {
        thread::sleep(Duration::from_millis(10));
        listeners = serde_json::from_value::<Vec<String>>(agent.status().unwrap()["listeners"].clone()).unwrap();
    }
    let address = |scheme: &str| {
        let named = listeners.iter().find_map(|listener| listener.strip_prefix(scheme)).unwrap();
        named.parse().unwrap()
    };
    Target {
        plain: agent.mqtt_addr(),
        tls: address("mqtts://"),
        websocket: address("ws://"),
        over: AtomicBool::new(false),
    }
}

fn counted(agent: &Agent, counter: &str) -> u64 {
    agent.status().unwrap()["broker"][counter].as_u64().unwrap()
}

fn rss_mib(agent: &Agent) -> f64 {
    let status = fs::read_to_string(format!("/proc/{}/status", agent.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<f64>().unwrap() / 1024.0
}

/// TCP, or TLS over it.
trait Stream: Read + Write + Send {}
impl<T: Read + Write + Send> Stream for T {}

/// A device that publishes at its rate, each message acknowledged before the next.
struct Steady {
    shared: Arc<Shared>,
    device: JoinHandle<Vec<String>>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    acknowledged: AtomicU64,
    latencies_us: std::sync::Mutex<Vec<u64>>,
}

impl Steady {
    fn start(number: u64, stream: Box<dyn Stream>) -> Self {
        let shared = Arc::new(Shared::default());
        let client_id = format!("steady-{number}");
        let mut device = Device::connect_over(stream, Version::V5, &Connect::clean(&client_id)).unwrap();
        let published = Arc::clone(&shared);
        let device = thread::spawn(move || {
            let (topic, mut sent) = (format!("steady/{number}"), Vec::new());
            let mut due = now();
            while !published.stop.load(Ordering::Relaxed) {
                let text = format!("{number} {}", sent.len());
                let packet_id = (sent.len() % 60_000) as u16 + 1;
                device.publish_and_wait(&Publish::new(&topic, text.as_bytes(), 1, packet_id)).unwrap();
                sent.push(text);
                published.acknowledged.fetch_add(1, Ordering::Relaxed);
                published.latencies_us.lock().unwrap().push(due.elapsed().as_micros() as u64);
                due += Duration::from_millis(1_000 / RATE);
                thread::sleep(due.saturating_duration_since(now()));
            }
            device.disconnect().unwrap();
            sent
        });
        Self { shared, device }
    }

    fn stop(self) -> Vec<String> {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.device.join().expect("its connection is never lost")
    }
}

struct Measured {
    /// Of the messages that were due, those that were acknowledged.
    share: f64,
    /// From when a message was due to its acknowledgement.
    p99_ms: f64,
}

fn measure(devices: &[Steady], length: Duration) -> Measured {
    let total = || devices.iter().map(|device| device.shared.acknowledged.load(Ordering::Relaxed)).sum::<u64>();
    for device in devices {
        device.shared.latencies_us.lock().unwrap().clear();
    }
    let (began, before) = (now(), total());
    thread::sleep(length);
    let due = began.elapsed().as_secs_f64() * (DEVICES * RATE) as f64;
    let share = (total() - before) as f64 / due;
    let mut all: Vec<u64> =
        devices.iter().flat_map(|device| device.shared.latencies_us.lock().unwrap().clone()).collect();
    all.sort_unstable();
    let p99 = all.get(all.len() * 99 / 100).copied().unwrap_or_default();
    Measured { share, p99_ms: p99 as f64 / 1_000.0 }
}

/// So many threads that do it again and again.
fn each_of(threads: u32, target: &Target, once: impl Fn(u32, u32) + Sync) {
    thread::scope(|scope| {
        for number in 0..threads {
            let once = &once;
            scope.spawn(move || {
                for round in 0.. {
                    if target.is_over() {
                        return;
                    }
                    once(number, round);
                }
            });
        }
    });
}

/// Holds connections that say a beginning and then as little as keeps them alive; those that are closed are opened again.
fn hold(addr: SocketAddr, count: usize, beginning: &[u8], more: &[u8], target: &Target) {
    let open = || {
        let mut stream = TcpStream::connect(addr).ok()?;
        stream.write_all(beginning).ok()?;
        stream.set_nonblocking(true).ok()?;
        Some(stream)
    };
    let mut held: Vec<Option<TcpStream>> = Vec::new();
    while !target.is_over() {
        held.resize_with(count, || None);
        for slot in &mut held {
            if target.is_over() {
                return;
            }
            let is_open = slot.as_mut().is_some_and(|stream| {
                let is_closed =
                    matches!(stream.read(&mut [0; 16]), Ok(0)) || stream.take_error().ok().flatten().is_some();
                !is_closed && (more.is_empty() || stream.write_all(more).is_ok())
            });
            if !is_open {
                *slot = open();
            }
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn full_speed(target: &Target) {
    let mut device = Device::connect(target.plain, Version::V5, &Connect::clean("fast")).unwrap();
    let window: u16 = 200; // below our Receive Maximum
    let mut packet_id = 0;
    while !target.is_over() {
        let mut bytes = Vec::new();
        for _ in 0..window {
            packet_id = packet_id % 60_000 + 1;
            packets::publish(Version::V5, &Publish::new("fast", &[b'f'; 200], 1, packet_id), &mut bytes);
        }
        device.send(&bytes).unwrap();
        for _ in 0..window {
            device.reply().unwrap();
        }
    }
}

fn login<'a>(user: &'a str, password: &'a str) -> Connect<'a> {
    Connect { login: Some((user, password)), ..Connect::clean("") }
}

/// A connection from 127.0.0.`last`.
fn from_address(last: u8, addr: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).unwrap();
    socket.bind(&SocketAddr::from((IpAddr::V4(Ipv4Addr::new(127, 0, 0, last)), 0)).into()).unwrap();
    socket.connect(&addr.into()).unwrap();
    socket.into()
}

/// A connection with a small window, which is full soon.
fn narrow(addr: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, Some(Protocol::TCP)).ok()?;
    socket.set_recv_buffer_size(4_096).ok()?;
    socket.set_write_timeout(Some(Duration::from_secs(2))).ok()?;
    socket.connect(&addr.into()).ok()?;
    Some(socket.into())
}

#[expect(clippy::disallowed_methods, reason = "rates and latencies are measured")]
fn now() -> Instant {
    Instant::now()
}
