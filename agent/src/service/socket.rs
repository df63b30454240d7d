//! The manager's socket, and what it says in the environment (`sd_notify(3)`, `sd_watchdog_enabled(3)`).
//!
//! One datagram a message, which is all there is to the protocol: less than a crate for it would take to be called.

use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

/// A manager that does not read for so long misses a message.
const SEND_MAX: Duration = Duration::from_millis(500);

/// Where the manager listens.
#[derive(Debug)]
pub struct NotifySocket {
    socket: UnixDatagram,
    address: SocketAddr,
}

/// A manager, and how often it wants to hear of us.
#[derive(Debug)]
pub struct Manager {
    /// Where it listens.
    pub socket: NotifySocket,
    /// WATCHDOG_USEC.
    pub watchdog: Option<Duration>,
}

impl Manager {
    /// The manager that started this process, if it wants to hear anything.
    ///
    /// # Errors
    /// What it says cannot be understood.
    pub fn from_env() -> Result<Option<Self>> {
        let var = |name: &str| std::env::var(name).ok();
        let Some(name) = var("NOTIFY_SOCKET") else { return Ok(None) };
        let socket = NotifySocket::open(&name).with_context(|| format!("NOTIFY_SOCKET={name}"))?;
        let watchdog = watchdog(var("WATCHDOG_USEC").as_deref(), var("WATCHDOG_PID").as_deref(), std::process::id())?;
        Ok(Some(Self { socket, watchdog }))
    }
}

impl NotifySocket {
    /// By its path, or its `@name` in the abstract namespace.
    ///
    /// # Errors
    /// It is neither, or there are no sockets to be had.
    pub fn open(name: &str) -> Result<Self> {
        let address = match name.strip_prefix('@') {
            Some(name) => abstract_name(name)?,
            None if name.starts_with('/') => SocketAddr::from_pathname(name)?,
            None => bail!("neither a path nor @name"),
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_write_timeout(Some(SEND_MAX))?;
        Ok(Self { socket, address })
    }

    /// Sends one message.
    ///
    /// # Errors
    /// Nobody listens, or nobody reads.
    pub fn send(&self, message: &str) -> io::Result<()> {
        self.socket.send_to_addr(message.as_bytes(), &self.address).map(drop)
    }
}

#[cfg(target_os = "linux")]
fn abstract_name(name: &str) -> Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;
    Ok(SocketAddr::from_abstract_name(name)?)
}

#[cfg(not(target_os = "linux"))]
fn abstract_name(_: &str) -> Result<SocketAddr> {
    bail!("only Linux has an abstract namespace")
}

/// How often the manager wants to hear of the process `own`: not at all if it means another one.
fn watchdog(usec: Option<&str>, pid: Option<&str>, own: u32) -> Result<Option<Duration>> {
    let Some(usec) = usec.filter(|_| pid.is_none_or(|pid| pid == own.to_string())) else { return Ok(None) };
    let usec: u64 = usec.parse().with_context(|| format!("WATCHDOG_USEC={usec}"))?;
    Ok(Some(Duration::from_micros(usec)).filter(|every| !every.is_zero()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_arrives_whole_by_path_and_by_abstract_name() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let by_path = (UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap().to_owned());
        let name = format!("forebay-test-{}", std::process::id());
        let by_name = (UnixDatagram::bind_addr(&abstract_name(&name).unwrap()).unwrap(), format!("@{name}"));

        for (manager, name) in [by_path, by_name] {
            NotifySocket::open(&name).unwrap().send("READY=1\nSTATUS=fine").unwrap();

            let mut bytes = [0; 64];
            let length = manager.recv(&mut bytes).unwrap();
            assert_eq!(&bytes[..length], b"READY=1\nSTATUS=fine");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        for name in ["", "relative", "vsock:2:1234"] {
            assert!(NotifySocket::open(name).is_err(), "{name:?}");
        }
    }

    #[test]
    fn the_watchdog_is_ours_unless_it_names_another_process() {
        let seconds = |secs| Some(Duration::from_secs(secs));

        assert_eq!(watchdog(Some("60000000"), None, 7).unwrap(), seconds(60));
        assert_eq!(watchdog(Some("60000000"), Some("7"), 7).unwrap(), seconds(60));
        assert_eq!(watchdog(Some("60000000"), Some("8"), 7).unwrap(), None);
        assert_eq!(watchdog(Some("0"), None, 7).unwrap(), None);
        assert_eq!(watchdog(None, Some("7"), 7).unwrap(), None);
        assert!(watchdog(Some("soon"), None, 7).is_err());
    }
}
