//! A broker that does what a test tells it, packet by packet, to a client that subscribes: for what real brokers do rarely or
//! never at the moment one wants it.
//!
//! The test is the script. [`ScriptedBroker::accept`] takes the next connection up to its CONNECT; each step of
//! [`Session`] then either sends one packet or waits for one, and says what came instead. PINGREQ is answered
//! meanwhile. Everything that a client sends and no step waited for stays in order: nothing passes unseen.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::client_packets::{ClientPacket, ReceivedConnect, next_packet};
use crate::packets::{self, Publish, Version};

/// How long a step waits for the client; a client that waits between attempts included.
pub const STEP_MAX: Duration = Duration::from_secs(70);
/// How often it is looked whether a client has come.
const POLL_EVERY: Duration = Duration::from_millis(5);

/// A port on which clients are served by hand.
#[derive(Debug)]
pub struct ScriptedBroker {
    listener: TcpListener,
    addr: SocketAddr,
}

impl ScriptedBroker {
    /// Listens on a free loopback port.
    pub fn listen() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).context("listen for clients")?;
        listener.set_nonblocking(true)?;
        let addr = listener.local_addr()?;
        Ok(Self { listener, addr })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The same as a source's URL.
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.addr)
    }

    /// Waits for the next client and reads its CONNECT, which is to be answered with [`Session::connack`].
    pub fn accept(&self) -> Result<Session> {
        let deadline = now() + STEP_MAX;
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                Err(error) => return Err(error).context("accept a client"),
            }
            ensure!(now() < deadline, "no client came within {STEP_MAX:?}");
            thread::sleep(POLL_EVERY);
        };
        Session::open(stream)
    }

    /// The same, then CONNACK, SUBSCRIBE and SUBACK: what every script begins with. A client that waited to be accepted may have
    /// gone: then it is the next one.
    pub fn accept_subscriber(&self, session_present: bool) -> Result<Session> {
        let subscriber = || {
            let mut session = self.accept()?;
            session.connack(session_present)?;
            session.subscribe_and_grant()?;
            Ok(session)
        };
        let deadline = now() + STEP_MAX;
        loop {
            match subscriber() {
                Err(_) if now() < deadline => {}
                result => return result,
            }
        }
    }
}

/// One connection of a client.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
    inbox: Vec<u8>,
    /// What the client said first.
    pub connect: ReceivedConnect,
    /// What the last SUBSCRIBE asked for.
    pub filters: Vec<(String, u8)>,
}

impl Session {
    fn open(stream: TcpStream) -> Result<Self> {
        stream.set_nonblocking(false)?;
        stream.set_nodelay(true)?;
        stream.set_write_timeout(Some(STEP_MAX))?;
        let connect = ReceivedConnect {
            version: Version::V4,
            clean_start: false,
            keep_alive_secs: 0,
            client_id: String::new(),
            username: None,
            password: None,
        };
        let mut session = Self { stream, inbox: Vec::new(), connect, filters: Vec::new() };
        match session.next()? {
            ClientPacket::Connect(connect) => session.connect = connect,
            other => bail!("a client began with {other:?}"),
        }
        Ok(session)
    }

    /// Writes CONNACK: accepted.
    pub fn connack(&mut self, session_present: bool) -> Result<()> {
        self.refuse_or_accept(session_present, 0)
    }

    /// Writes CONNACK with a code that refuses, and closes.
    pub fn refuse(mut self, code: u8) -> Result<()> {
        self.refuse_or_accept(false, code)
    }

    fn refuse_or_accept(&mut self, session_present: bool, code: u8) -> Result<()> {
        let flags = u8::from(session_present);
        match self.connect.version {
            Version::V4 => self.send(&[0x20, 2, flags, code]),
            Version::V5 => self.send(&[0x20, 3, flags, code, 0]),
        }
    }

    /// Waits for SUBSCRIBE and grants what it asks for. A client may send more than one.
    pub fn subscribe_and_grant(&mut self) -> Result<()> {
        let ClientPacket::Subscribe { packet_id, filters } = self.next()? else {
            bail!("the client did not subscribe")
        };
        let codes: Vec<u8> = filters.iter().map(|(_, qos)| *qos).collect();
        self.filters = filters;
        self.suback(packet_id, &codes)
    }

    /// Waits for SUBSCRIBE and answers every filter with `code`.
    pub fn subscribe_and_answer(&mut self, code: u8) -> Result<()> {
        let ClientPacket::Subscribe { packet_id, filters } = self.next()? else {
            bail!("the client did not subscribe")
        };
        let codes = vec![code; filters.len()];
        self.filters = filters;
        self.suback(packet_id, &codes)
    }

    fn suback(&mut self, packet_id: u16, codes: &[u8]) -> Result<()> {
        let properties = usize::from(self.connect.version == Version::V5);
        let length = u8::try_from(2 + properties + codes.len()).context("too many filters for this broker")?;
        let mut packet = vec![0x90, length];
        packet.extend_from_slice(&packet_id.to_be_bytes());
        packet.extend(std::iter::repeat_n(0, properties));
        packet.extend_from_slice(codes);
        self.send(&packet)
    }

    /// Writes PUBLISH.
    pub fn publish(&mut self, packet: &Publish<'_>) -> Result<()> {
        let mut bytes = Vec::new();
        packets::publish(self.connect.version, packet, &mut bytes);
        self.send(&bytes)
    }

    /// Writes PUBREL.
    pub fn pubrel(&mut self, packet_id: u16) -> Result<()> {
        let mut bytes = Vec::new();
        packets::pubrel(packet_id, &mut bytes);
        self.send(&bytes)
    }

    /// Writes PUBLISH and waits until its QoS is complete.
    pub fn publish_and_complete(&mut self, packet: &Publish<'_>) -> Result<()> {
        self.publish(packet)?;
        match packet.qos {
            0 => Ok(()),
            1 => self.expect(&ClientPacket::PubAck(packet.packet_id)),
            _ => {
                self.expect(&ClientPacket::PubRec(packet.packet_id))?;
                self.pubrel(packet.packet_id)?;
                self.expect(&ClientPacket::PubComp(packet.packet_id))
            }
        }
    }

    /// The next packet must be `wanted`.
    pub fn expect(&mut self, wanted: &ClientPacket) -> Result<()> {
        let packet = self.next().with_context(|| format!("wait for {wanted:?}"))?;
        ensure!(packet == *wanted, "the client sent {packet:?} instead of {wanted:?}");
        Ok(())
    }

    /// The client must end the connection, with or without DISCONNECT, before it sends anything else.
    pub fn expect_end(mut self) -> Result<()> {
        loop {
            match self.receive(STEP_MAX)? {
                Received::End => return Ok(()),
                Received::Packet(ClientPacket::Disconnect) => {}
                Received::Packet(packet) => bail!("the client sent {packet:?} instead of ending the connection"),
                Received::Nothing => bail!("the client did not end the connection within {STEP_MAX:?}"),
            }
        }
    }

    /// Nothing may come for so long.
    pub fn expect_silence(&mut self, silence: Duration) -> Result<()> {
        match self.receive(silence)? {
            Received::Nothing => Ok(()),
            Received::End => bail!("the client ended the connection"),
            Received::Packet(packet) => bail!("the client sent {packet:?}"),
        }
    }

    /// Closes the connection, as a broker that is shut down does.
    pub fn close(self) {
        drop(self);
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("write to the client")
    }

    fn next(&mut self) -> Result<ClientPacket> {
        match self.receive(STEP_MAX)? {
            Received::Packet(packet) => Ok(packet),
            Received::End => bail!("the client ended the connection"),
            Received::Nothing => bail!("the client sent nothing for {STEP_MAX:?}"),
        }
    }

    fn receive(&mut self, patience: Duration) -> Result<Received> {
        let deadline = now() + patience;
        loop {
            while let Some((packet, length)) = next_packet(self.connect.version, &self.inbox) {
                self.inbox.drain(..length);
                if packet != ClientPacket::PingReq {
                    return Ok(Received::Packet(packet));
                }
                self.send(&[0xD0, 0])?;
            }
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return Ok(Received::Nothing);
            }
            self.stream.set_read_timeout(Some(left))?;
            let mut chunk = [0; 4_096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(Received::End),
                Ok(count) => self.inbox.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(Received::End),
                Err(error) if is_nothing(error.kind()) => {}
                Err(error) => return Err(error).context("read from the client"),
            }
        }
    }
}

enum Received {
    Packet(ClientPacket),
    End,
    Nothing,
}

fn is_nothing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted)
}

#[expect(clippy::disallowed_methods, reason = "a test gives up on a client that hangs")]
fn now() -> Instant {
    Instant::now()
}
