//! The load generator: one thread, one epoll, pre-encoded packets, so that the broker and not this program is measured.
//!
//! Each connection keeps up to `window` PUBLISH unacknowledged. A slot of the window is a Packet Identifier: its
//! acknowledgement frees it for the next PUBLISH, and all that one read frees leaves in one write. Every payload is a
//! different JSON object whose padding does not compress, as sensor noise does not.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use forebay_tests::packets::{self, Connect, Publish, Reply, Version};
use hdrhistogram::Histogram;
use rustix::event::Timespec;
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::OwnedFd;

use crate::usage::{Usage, UsageMeter};

/// How long messages in flight may wait for their acknowledgement.
const SETTLE_MAX: Duration = Duration::from_secs(30);

/// What to send.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct LoadArgs {
    /// Connections at once.
    #[arg(long, default_value_t = 100)]
    pub(crate) connections: u16,
    /// PUBLISH in flight per connection.
    #[arg(long, default_value_t = 16, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub(crate) window: u16,
    /// Bytes of each Application Message.
    #[arg(long, default_value_t = 200, value_parser = clap::value_parser!(u32).range(64..=1_000_000))]
    pub(crate) payload_bytes: u32,
    /// Seconds measured.
    #[arg(long, default_value_t = 8.0)]
    pub(crate) duration: f64,
    /// Seconds of load before measuring begins.
    #[arg(long, default_value_t = 1.0)]
    pub(crate) warm_up: f64,
    /// Messages per second over all connections; 0 sends as fast as the windows allow.
    #[arg(long, default_value_t = 0)]
    pub(crate) rate: u32,
    /// 0 or 1.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u8).range(0..=1))]
    pub(crate) qos: u8,
    /// Speak MQTT 5.0; otherwise 3.1.1.
    #[arg(long)]
    pub(crate) v5: bool,
}

/// What came of it.
#[derive(Clone, Debug)]
pub(crate) struct Report {
    /// Acknowledged messages (QoS 0: sent messages) per second.
    pub(crate) msgs_per_sec: f64,
    /// Milliseconds from PUBLISH written to PUBACK read; with a rate, from when the message was due.
    pub(crate) p50_ms: f64,
    /// As `p50_ms`.
    pub(crate) p99_ms: f64,
    /// Share of one core that this program used: near 1.0 it is itself the bottleneck.
    pub(crate) own_cpu: f64,
    /// What the server used meanwhile, when its process id is known.
    pub(crate) server: Option<Usage>,
}

/// Loads `target` and measures it.
pub(crate) fn run(args: &LoadArgs, target: SocketAddr, server_pid: Option<u32>) -> Result<Report> {
    let mut generator = Generator::connect(args, target)?;
    let start = now();
    generator.start = start;
    generator.run_until(start + Duration::from_secs_f64(args.warm_up))?;
    generator.reset();
    let own = UsageMeter::start(std::process::id())?;
    let server = server_pid.map(UsageMeter::start).transpose()?;
    let measured_from = now();
    generator.run_until(measured_from + Duration::from_secs_f64(args.duration))?;
    let secs = measured_from.elapsed().as_secs_f64();
    let payload_bytes = generator.done * u64::from(args.payload_bytes);
    let server = server.map(|meter| meter.finish(generator.done, payload_bytes)).transpose()?;
    Ok(Report {
        msgs_per_sec: generator.done as f64 / secs,
        p50_ms: generator.latency_us.value_at_quantile(0.50) as f64 / 1_000.0,
        p99_ms: generator.latency_us.value_at_quantile(0.99) as f64 / 1_000.0,
        own_cpu: own.finish(generator.done, payload_bytes)?.cpu_secs / secs,
        server,
    })
}

/// Connections that publish.
pub(crate) struct Generator {
    epoll: OwnedFd,
    connections: Vec<Connection>,
    payloads: Payloads,
    pace: Option<Pace>,
    start: Instant,
    latency_us: Histogram<u64>,
    /// Acknowledged messages.
    pub(crate) done: u64,
    qos: u8,
}

impl Generator {
    /// Connects everyone and publishes nothing yet.
    pub(crate) fn connect(args: &LoadArgs, target: SocketAddr) -> Result<Self> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        let version = if args.v5 { Version::V5 } else { Version::V4 };
        let mut connections = Vec::new();
        for index in 0..args.connections {
            let connection = Connection::open(index, version, args, target)
                .with_context(|| format!("connect client {index} to {target}"))?;
            let events = EventFlags::IN;
            epoll::add(&epoll, &connection.stream, EventData::new_u64(u64::from(index)), events)?;
            connections.push(connection);
        }
        Ok(Self {
            epoll,
            connections,
            payloads: Payloads::new(args.payload_bytes as usize),
            pace: (args.rate > 0).then(|| Pace { per_sec: f64::from(args.rate), sent: 0, next: 0 }),
            start: now(),
            latency_us: Histogram::new_with_bounds(1, 600_000_000, 3)?,
            done: 0,
            qos: args.qos,
        })
    }

    fn reset(&mut self) {
        self.latency_us.reset();
        self.done = 0;
    }

    /// Publishes; what is in flight at the end stays so.
    pub(crate) fn run_until(&mut self, end: Instant) -> Result<()> {
        let mut events = Vec::with_capacity(256);
        let mut time = now();
        if self.pace.is_none() {
            for index in 0..self.connections.len() {
                self.fill(index, time)?;
            }
        }
        while time < end {
            self.send_due(time)?;
            let timeout = self.pace.as_ref().map_or(Duration::from_millis(20), |_| Duration::from_millis(1));
            wait(&self.epoll, &mut events, timeout)?;
            time = now();
            for event in events.drain(..) {
                let (index, flags) = (event.data.u64() as usize, event.flags);
                if flags.contains(EventFlags::OUT) {
                    self.connections[index].flush(&self.epoll)?;
                }
                if flags.intersects(EventFlags::IN | EventFlags::HUP | EventFlags::ERR) {
                    self.receive(index, time)?;
                }
                if self.pace.is_none() {
                    self.fill(index, time)?;
                }
            }
        }
        Ok(())
    }

    /// Publishes nothing more, and waits until everything in flight is acknowledged.
    pub(crate) fn settle(&mut self) -> Result<()> {
        let mut events = Vec::with_capacity(256);
        let deadline = now() + SETTLE_MAX;
        let in_flight = |connection: &Connection| connection.free.len() < usize::from(connection.window);
        while self.connections.iter().any(in_flight) {
            wait(&self.epoll, &mut events, Duration::from_millis(20))?;
            let time = now();
            ensure!(time < deadline, "messages are not acknowledged within {SETTLE_MAX:?}");
            for event in events.drain(..) {
                let index = event.data.u64() as usize;
                self.connections[index].flush(&self.epoll)?;
                self.receive(index, time)?;
            }
        }
        Ok(())
    }

    fn receive(&mut self, index: usize, time: Instant) -> Result<()> {
        let connection = &mut self.connections[index];
        let freed = connection.read_acks(|sent_at| {
            let micros = time.saturating_duration_since(sent_at).as_micros() as u64;
            self.latency_us.saturating_record(micros.max(1));
        })?;
        self.done += freed;
        Ok(())
    }

    /// Uses every free slot of a connection's window.
    fn fill(&mut self, index: usize, time: Instant) -> Result<()> {
        let connection = &mut self.connections[index];
        if self.qos == 0 {
            while connection.outbox.is_empty() {
                for _ in 0..connection.window {
                    connection.queue_publish(0, &mut self.payloads);
                }
                self.done += u64::from(connection.window);
                connection.flush(&self.epoll)?;
                if now() > time + Duration::from_millis(5) {
                    break;
                }
            }
            return Ok(());
        }
        while let Some(packet_id) = connection.free.pop() {
            connection.sent_at[usize::from(packet_id) - 1] = time;
            connection.queue_publish(packet_id, &mut self.payloads);
        }
        connection.flush(&self.epoll)
    }

    /// With a rate: sends what is due, round robin over the connections that have a free slot.
    fn send_due(&mut self, time: Instant) -> Result<()> {
        let Some(pace) = &mut self.pace else { return Ok(()) };
        let due = ((time - self.start).as_secs_f64() * pace.per_sec) as u64;
        let mut full = 0;
        while pace.sent < due && full < self.connections.len() {
            let index = pace.next;
            pace.next = (index + 1) % self.connections.len();
            let connection = &mut self.connections[index];
            let packet_id = if self.qos == 0 { Some(0) } else { connection.free.pop() };
            let Some(packet_id) = packet_id.filter(|_| connection.outbox.len() < 65_536) else {
                full += 1;
                continue;
            };
            full = 0;
            if packet_id > 0 {
                let due_after = Duration::from_secs_f64(pace.sent as f64 / pace.per_sec);
                connection.sent_at[usize::from(packet_id) - 1] = self.start + due_after;
            } else {
                self.done += 1;
            }
            pace.sent += 1;
            connection.queue_publish(packet_id, &mut self.payloads);
        }
        for connection in self.connections.iter_mut().filter(|connection| !connection.outbox.is_empty()) {
            connection.flush(&self.epoll)?;
        }
        Ok(())
    }
}

struct Pace {
    per_sec: f64,
    sent: u64,
    next: usize,
}

struct Connection {
    index: u16,
    version: Version,
    stream: TcpStream,
    topic: String,
    window: u16,
    free: Vec<u16>,
    sent_at: Vec<Instant>,
    inbox: Vec<u8>,
    outbox: Vec<u8>,
    wants_out: bool,
}

impl Connection {
    fn open(index: u16, version: Version, args: &LoadArgs, target: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(target)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        let mut packet = Vec::new();
        let client_id = format!("bench-{index}");
        let connect = Connect { keep_alive_secs: 600, ..Connect::clean(&client_id) };
        packets::connect(version, &connect, &mut packet);
        stream.write_all(&packet)?;
        let mut inbox = Vec::new();
        let reply = loop {
            let mut chunk = [0; 256];
            let count = stream.read(&mut chunk).context("wait for CONNACK")?;
            ensure!(count > 0, "closed before CONNACK");
            inbox.extend_from_slice(&chunk[..count]);
            if let Some((reply, length)) = packets::next_reply(&inbox) {
                inbox.drain(..length);
                break reply;
            }
        };
        ensure!(matches!(reply, Reply::ConnAck { code: 0, .. }), "refused: {reply:?}");
        stream.set_nonblocking(true)?;
        Ok(Self {
            index,
            version,
            stream,
            topic: format!("bench/{index}/temp"),
            window: args.window,
            free: (1..=args.window).rev().collect(),
            sent_at: vec![now(); usize::from(args.window)],
            inbox,
            outbox: Vec::new(),
            wants_out: false,
        })
    }

    fn queue_publish(&mut self, packet_id: u16, payloads: &mut Payloads) {
        let payload = payloads.next(self.index);
        let packet = Publish::new(&self.topic, payload, u8::from(packet_id > 0), packet_id);
        packets::publish(self.version, &packet, &mut self.outbox);
    }

    /// Writes what is queued; the rest waits for the socket.
    fn flush(&mut self, epoll: &OwnedFd) -> Result<()> {
        let mut written = 0;
        while written < self.outbox.len() {
            match self.stream.write(&self.outbox[written..]) {
                Ok(count) => written += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error).context("write PUBLISH"),
            }
        }
        self.outbox.drain(..written);
        let wants_out = !self.outbox.is_empty();
        if wants_out != self.wants_out {
            self.wants_out = wants_out;
            let events = if wants_out { EventFlags::IN | EventFlags::OUT } else { EventFlags::IN };
            epoll::modify(epoll, &self.stream, EventData::new_u64(u64::from(self.index)), events)?;
        }
        Ok(())
    }

    /// Reads once, tells when each acknowledged message was sent, and answers how many there were.
    fn read_acks(&mut self, mut acknowledged: impl FnMut(Instant)) -> Result<u64> {
        let mut chunk = [0; 8_192];
        let count = match self.stream.read(&mut chunk) {
            Ok(0) => bail!("the server closed connection {}", self.index),
            Ok(count) => count,
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) => return Ok(0),
            Err(error) => return Err(error).context("read acknowledgements"),
        };
        self.inbox.extend_from_slice(&chunk[..count]);
        let (mut at, mut freed) = (0, 0);
        while let Some((reply, length)) = packets::next_reply(&self.inbox[at..]) {
            at += length;
            // 0x10 is success too: "no matching subscribers".
            let Reply::PubAck { packet_id, code: 0 | 0x10 } = reply else {
                bail!("connection {} got {reply:?} instead of a PUBACK", self.index);
            };
            let slot = usize::from(packet_id).wrapping_sub(1);
            acknowledged(*self.sent_at.get(slot).context("PUBACK of a packet that was not sent")?);
            self.free.push(packet_id);
            freed += 1;
        }
        self.inbox.drain(..at);
        Ok(freed)
    }
}

/// Makes payloads: `{"n":0000000001,"c":00042,"temp":21.07,"pad":"…"}`, each different.
struct Payloads {
    noise: Vec<u8>,
    random: fastrand::Rng,
    number: u64,
    payload: Vec<u8>,
}

impl Payloads {
    const HEAD: &str = r#"{"n":1000000000,"c":10000,"temp":21.07,"pad":""#;

    fn new(payload_bytes: usize) -> Self {
        let mut random = fastrand::Rng::with_seed(7);
        let noise = std::iter::repeat_with(|| random.alphanumeric() as u8).take(4 << 20).collect();
        let mut payload = Self::HEAD.as_bytes().to_vec();
        payload.resize(payload_bytes - 2, b'x');
        payload.extend_from_slice(b"\"}");
        Self { noise, random, number: 1_000_000_000, payload }
    }

    fn next(&mut self, connection: u16) -> &[u8] {
        self.number += 1;
        put_digits(&mut self.payload[5..15], self.number);
        put_digits(&mut self.payload[20..25], 10_000 + u64::from(connection));
        put_digits(&mut self.payload[36..38], self.random.u64(10..100));
        let end = self.payload.len() - 2;
        let pad = &mut self.payload[Self::HEAD.len()..end];
        let from = self.random.usize(..self.noise.len() - pad.len());
        pad.copy_from_slice(&self.noise[from..from + pad.len()]);
        &self.payload
    }
}

fn put_digits(out: &mut [u8], mut number: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

fn wait(epoll: &OwnedFd, events: &mut Vec<epoll::Event>, timeout: Duration) -> Result<()> {
    let timeout = Timespec { tv_sec: 0, tv_nsec: i64::from(timeout.subsec_nanos()) };
    match epoll::wait(epoll, rustix::buffer::spare_capacity(events), Some(&timeout)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(error).context("wait for sockets"),
    }
}

#[expect(clippy::disallowed_methods, reason = "a load generator measures time")]
pub(crate) fn now() -> Instant {
    Instant::now()
}
