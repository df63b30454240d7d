//! rumqttd as a broker that is already there, in a process of its own. It keeps sessions and messages in memory: what it had
//! is gone with the process, however that ends.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::Result;

use crate::server::{Server, free_port};

/// A rumqttd that runs, or is down and will be started again.
#[derive(Debug)]
pub struct Rumqttd {
    server: Server,
    port_v5: u16,
}

impl Rumqttd {
    /// Starts `program`, `forebay-stub-rumqttd`, and waits until it listens.
    pub fn start(program: &Path) -> Result<Self> {
        let (port, port_v5) = (free_port()?, free_port()?);
        let args = ["--port", &port.to_string(), "--port-v5", &port_v5.to_string()];
        let mut server = Server::start(program, args, port)?;
        server.wait_for(port_v5)?;
        Ok(Self { server, port_v5 })
    }

    /// Where MQTT 3.1.1 is spoken; rumqttd wants a port for each protocol.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// The same as a source's URL.
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.addr())
    }

    /// Where MQTT 5.0 is spoken.
    pub fn addr_v5(&self) -> SocketAddr {
        SocketAddr::from((Ipv4Addr::LOCALHOST, self.port_v5))
    }

    /// Its process id, unless it is down.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// SIGKILL; all it had is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill()
    }

    /// Comes back on the same ports, with nothing. One that still runs is killed first.
    pub fn restart(&mut self) -> Result<()> {
        self.server.restart()
    }
}
