//! A device: one blocking socket, MQTT by hand, so that a test decides every byte and when it is sent.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::packets::{self, Connect, Publish, Reply, Version};

/// How long a device waits for anything; reaching it means that the server hangs.
pub const REPLY_MAX: Duration = Duration::from_secs(30);

/// A connection of a device, over TCP if nothing else is said.
#[derive(Debug)]
pub struct Device<S = TcpStream> {
    stream: S,
    version: Version,
    inbox: Vec<u8>,
    /// What CONNACK said.
    pub session_present: bool,
}

impl Device {
    /// Opens a socket and sends nothing.
    pub fn open(addr: SocketAddr, version: Version) -> Result<Self> {
        let stream = TcpStream::connect(addr).with_context(|| format!("connect to {addr}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(REPLY_MAX))?;
        stream.set_write_timeout(Some(REPLY_MAX))?;
        Ok(Self { stream, version, inbox: Vec::new(), session_present: false })
    }

    /// Opens a socket and completes CONNECT.
    pub fn connect(addr: SocketAddr, version: Version, connect: &Connect<'_>) -> Result<Self> {
        let device = Self::open(addr, version)?;
        Self::connect_over(device.stream, version, connect)
    }

    /// The socket, to shut down half of it or to hand to another thread.
    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }
}

impl<S: Read + Write> Device<S> {
    /// Completes CONNECT over a connection that is there.
    pub fn connect_over(stream: S, version: Version, connect: &Connect<'_>) -> Result<Self> {
        let mut device = Self { stream, version, inbox: Vec::new(), session_present: false };
        let mut packet = Vec::new();
        packets::connect(version, connect, &mut packet);
        device.send(&packet)?;
        match device.reply()? {
            Reply::ConnAck { session_present, code: 0 } => device.session_present = session_present,
            other => bail!("CONNECT was answered with {other:?}"),
        }
        Ok(device)
    }

    /// Writes bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.write_all(bytes).context("write to the server")?;
        self.stream.flush().context("write to the server")
    }

    /// Writes a PUBLISH.
    pub fn publish(&mut self, packet: &Publish<'_>) -> Result<()> {
        let mut bytes = Vec::new();
        packets::publish(self.version, packet, &mut bytes);
        self.send(&bytes)
    }

    /// Writes a PUBLISH and completes its QoS.
    pub fn publish_and_wait(&mut self, packet: &Publish<'_>) -> Result<()> {
        self.publish(packet)?;
        let packet_id = packet.packet_id;
        if packet.qos == 1 {
            return self.expect(&Reply::PubAck { packet_id, code: 0 });
        }
        if packet.qos == 2 {
            self.expect(&Reply::PubRec { packet_id, code: 0 })?;
            let mut bytes = Vec::new();
            packets::pubrel(packet_id, &mut bytes);
            self.send(&bytes)?;
            return self.expect(&Reply::PubComp { packet_id, code: 0 });
        }
        Ok(())
    }

    /// Writes SUBSCRIBE and answers the code of its SUBACK.
    pub fn subscribe(&mut self, packet_id: u16, filter: &str) -> Result<u8> {
        let mut bytes = Vec::new();
        packets::subscribe(self.version, packet_id, filter, &mut bytes);
        self.send(&bytes)?;
        match self.reply()? {
            Reply::SubAck { packet_id: answered, code } if answered == packet_id => Ok(code),
            other => bail!("SUBSCRIBE was answered with {other:?}"),
        }
    }

    /// PINGREQ and its answer: everything sent before has been read by the server.
    pub fn ping(&mut self) -> Result<()> {
        let mut bytes = Vec::new();
        packets::pingreq(&mut bytes);
        self.send(&bytes)?;
        self.expect(&Reply::PingResp)
    }

    /// Ends the connection normally and waits until the server has closed it too.
    pub fn disconnect(mut self) -> Result<()> {
        let mut bytes = Vec::new();
        packets::disconnect(&mut bytes);
        self.send(&bytes)?;
        self.expect_closed()
    }

    /// The next packet must be `wanted`.
    pub fn expect(&mut self, wanted: &Reply) -> Result<()> {
        let reply = self.reply()?;
        ensure!(reply == *wanted, "got {reply:?} instead of {wanted:?}");
        Ok(())
    }

    /// The server must close without another packet.
    pub fn expect_closed(&mut self) -> Result<()> {
        match self.next_reply()? {
            None => Ok(()),
            Some(reply) => bail!("got {reply:?} instead of the end of the connection"),
        }
    }

    /// The next packet; the end of the connection is an error.
    pub fn reply(&mut self) -> Result<Reply> {
        self.next_reply()?.context("the server closed the connection")
    }

    /// The next packet, or `None` when the server has closed or reset the connection.
    pub fn next_reply(&mut self) -> Result<Option<Reply>> {
        loop {
            if let Some((reply, length)) = packets::next_reply(&self.inbox) {
                self.inbox.drain(..length);
                return Ok(Some(reply));
            }
            let mut chunk = [0; 4_096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Ok(None),
                Ok(count) => self.inbox.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return Ok(None),
                Err(error) => return Err(error).context("read from the server"),
            }
        }
    }
}
