//! mosquitto as a broker that is already there: a process of its own directory and ports, which can be stopped, killed and
//! started again with what it had.
//!
//! It is not a part of the workspace: [`Mosquitto::find`] says whether it is installed. With [`MosquittoConfig::persistent`] it
//! keeps what it has over a stop, over a kill as far as it had been written.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::server::{Server, free_port};
use crate::tls::TlsFiles;

/// How a mosquitto is started.
#[derive(Clone, Debug)]
pub struct MosquittoConfig {
    dir: PathBuf,
    settings: String,
    listeners: String,
    tls_port: Option<u16>,
    websocket_port: Option<u16>,
    is_websocket_tls: bool,
}

impl MosquittoConfig {
    /// Everything under `dir`, nothing of it persistent, anyone may do anything.
    pub fn in_dir(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            settings: String::new(),
            listeners: String::new(),
            tls_port: None,
            websocket_port: None,
            is_websocket_tls: false,
        }
    }

    /// Adds lines of `mosquitto.conf`.
    #[must_use]
    pub fn with(mut self, settings: &str) -> Self {
        self.settings.push_str(settings);
        self.settings.push('\n');
        self
    }

    /// Everything that waits for a subscriber is kept, not only a thousand messages.
    #[must_use]
    pub fn unlimited(self) -> Self {
        self.with("max_queued_messages 0")
    }

    /// As Debian configures it: in memory, written to disk at the end and every half hour.
    #[must_use]
    pub fn persistent(self) -> Self {
        let location = format!("persistence true\npersistence_location {}/", self.dir.display());
        self.with(&location)
    }

    /// Only these users, on every listener.
    pub fn passwords(self, users: &[(&str, &str)]) -> Result<Self> {
        let path = self.dir.join("passwords");
        write_passwords(&path, users)?;
        Ok(self.with(&format!("allow_anonymous false\npassword_file {}", path.display())))
    }

    /// One listener more, with this certificate.
    pub fn tls(mut self, files: &TlsFiles) -> Result<Self> {
        let port = free_port()?;
        let (cert, key) = (files.cert.display(), files.key.display());
        let _ = writeln!(self.listeners, "listener {port} 127.0.0.1\ncertfile {cert}\nkeyfile {key}");
        self.tls_port = Some(port);
        Ok(self)
    }

    /// One listener more, of MQTT over WebSocket.
    pub fn websockets(mut self) -> Result<Self> {
        let port = free_port()?;
        // libwebsockets takes an address for an interface: it would listen to the world.
        let _ = writeln!(self.listeners, "listener {port} lo\nprotocol websockets");
        self.websocket_port = Some(port);
        Ok(self)
    }

    /// Two listeners more, of MQTT over TLS and over a WebSocket within TLS, for clients with a certificate of `clients` only.
    pub fn mutual_tls(self, files: &TlsFiles, clients: &TlsFiles) -> Result<Self> {
        let (cert, key, ca) = (files.cert.display(), files.key.display(), clients.ca.display());
        let mut config = self.tls(files)?;
        let _ = writeln!(config.listeners, "cafile {ca}\nrequire_certificate true");
        config = config.websockets()?;
        let _ = writeln!(config.listeners, "certfile {cert}\nkeyfile {key}\ncafile {ca}\nrequire_certificate true");
        config.is_websocket_tls = true;
        Ok(config)
    }

    /// Starts it and waits until it listens.
    pub fn start(&self, program: &Path) -> Result<Mosquitto> {
        fs::create_dir_all(&self.dir).with_context(|| format!("create {}", self.dir.display()))?;
        let (dir, port) = (&self.dir, free_port()?);
        // As root mosquitto becomes the user `mosquitto`, who may not write in our directory.
        let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
        let anonymous = if self.settings.contains("allow_anonymous") { "" } else { "allow_anonymous true\n" };
        let text = format!(
            "{user}log_dest file {}\n{anonymous}{}listener {port} 127.0.0.1\n{}",
            dir.join("mosquitto.log").display(),
            self.settings,
            self.listeners
        );
        let path = dir.join("mosquitto.conf");
        fs::write(&path, &text).with_context(|| format!("write {}", path.display()))?;
        let server = Server::start(program, ["-c".as_ref(), path.as_os_str()], port)
            .with_context(|| format!("its configuration:\n{text}its log:\n{}", log(dir)))?;
        Ok(Mosquitto { server, config: self.clone() })
    }
}

/// A mosquitto that runs, or is down and will be started again.
#[derive(Debug)]
pub struct Mosquitto {
    server: Server,
    config: MosquittoConfig,
}

impl Mosquitto {
    /// The program, if it is installed. Debian puts it in a directory that is not in everyone's `PATH`.
    pub fn find() -> Option<PathBuf> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        let system = ["/usr/sbin", "/usr/local/sbin"].map(PathBuf::from);
        let dirs = std::env::split_paths(&path).chain(system);
        dirs.map(|dir| dir.join("mosquitto")).find(|program| program.is_file())
    }

    /// Where MQTT is spoken in the clear.
    pub fn addr(&self) -> SocketAddr {
        self.server.addr()
    }

    /// The same as a source's URL.
    pub fn url(&self) -> String {
        format!("mqtt://{}", self.addr())
    }

    /// Where MQTT is spoken over TLS.
    pub fn tls_url(&self) -> Result<String> {
        Ok(format!("mqtts://localhost:{}", self.config.tls_port.context("the listener of TLS was not asked for")?))
    }

    /// Where MQTT is spoken over WebSocket.
    pub fn websocket_url(&self) -> Result<String> {
        let port = self.config.websocket_port.context("the listener of WebSocket was not asked for")?;
        let scheme = if self.config.is_websocket_tls { "wss" } else { "ws" };
        Ok(format!("{scheme}://127.0.0.1:{port}/mqtt"))
    }

    /// Its process id, unless it is down.
    pub fn pid(&self) -> Option<u32> {
        self.server.pid()
    }

    /// SIGKILL: what it had not written is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.server.kill()
    }

    /// SIGTERM: a persistent one writes everything and ends.
    pub fn stop(&mut self) -> Result<()> {
        self.server.stop()
    }

    /// Comes back on the same ports with what it had written. One that still runs is killed first.
    pub fn restart(&mut self) -> Result<()> {
        self.server.restart().with_context(|| format!("its log:\n{}", log(&self.config.dir)))
    }

    /// Other users, at once; those that are connected stay.
    pub fn set_passwords(&self, users: &[(&str, &str)]) -> Result<()> {
        write_passwords(&self.config.dir.join("passwords"), users)?;
        self.server.signal(Signal::HUP)
    }

    /// Its log, for the message of a failed assertion.
    pub fn log(&self) -> String {
        log(&self.config.dir)
    }
}

fn log(dir: &Path) -> String {
    fs::read_to_string(dir.join("mosquitto.log")).unwrap_or_default()
}

/// Only mosquitto's own tool knows how it hashes passwords.
fn write_passwords(path: &Path, users: &[(&str, &str)]) -> Result<()> {
    if let Some(dir) = path.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(path, "").with_context(|| format!("write {}", path.display()))?;
    for (user, password) in users {
        let output = Command::new("mosquitto_passwd").arg("-b").arg(path).args([user, password]).output();
        let output = output.context("run mosquitto_passwd")?;
        ensure!(output.status.success(), "mosquitto_passwd: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
