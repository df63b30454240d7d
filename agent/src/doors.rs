//! The listeners while the agent runs: opened at the start, given new certificates, passwords and access control list when
//! the files change. A file that cannot be used leaves everything as it was.

use std::fs::Permissions;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use forebay_broker::Broker;
use forebay_broker::auth::Access;
use forebay_broker::config::ListenerConfig;
use forebay_broker::tls::ServerTls;
use tokio::net::{UnixListener, UnixStream};
use tracing::{info, warn};

use crate::access::{self, FileError};
use crate::config::{Auth, Bind, Config, Listener};

/// Open listeners.
#[derive(Debug)]
pub struct Doors {
    doors: Vec<Door>,
}

#[derive(Debug)]
struct Door {
    listener: Listener,
    tls: Option<ServerTls>,
    /// Where it listens; `None`: a Unix socket.
    address: Option<SocketAddr>,
}

/// What the files say, read and found to be good.
#[derive(Debug)]
pub struct Keys {
    access: Access,
    /// Of each listener.
    tls: Vec<Option<ServerTls>>,
}

impl Keys {
    /// Reads every file that listeners and clients need.
    ///
    /// # Errors
    /// The first one that cannot be used.
    pub fn read(listeners: &[Listener], auth: &Auth) -> Result<Self, FileError> {
        let tls = listeners.iter().map(|listener| listener.tls.as_ref().map(access::server_tls).transpose());
        Ok(Self { access: access::read_access(auth)?, tls: tls.collect::<Result<_, _>>()? })
    }
}

/// Files that are read again when they change.
#[must_use]
pub fn files(config: &Config) -> Vec<PathBuf> {
    let auth = config.auth.password_file.iter().chain(&config.auth.acl_file);
    auth.chain(config.listeners.iter().flat_map(Listener::files)).cloned().collect()
}

impl Doors {
    /// Asks clients for what `[auth]` says, and opens the listeners.
    ///
    /// # Errors
    /// A file cannot be used, or an address cannot be listened on.
    pub async fn open(broker: &Broker, config: &Config) -> Result<Self> {
        let keys = Keys::read(&config.listeners, &config.auth)?;
        broker.set_access(keys.access);
        let mut doors = Vec::new();
        for (listener, tls) in config.listeners.iter().zip(keys.tls) {
            // Everybody else can still come in, and the clock may be wrong until it is synchronised.
            if let Some(problem) = expiry(listener, tls.as_ref()) {
                warn!(listener = %listener.bind, %problem, "Clients will not trust this listener.");
            }
            let entry = ListenerConfig {
                websocket: listener.websocket,
                tls: tls.clone(),
                allow_anonymous: listener.allow_anonymous,
            };
            let address = match &listener.bind {
                Bind::Tcp(bind) => Some(broker.listen(*bind, entry).await.map(|listening| listening.local_addr)),
                Bind::Unix(path) => {
                    broker.listen_unix(bind_unix(path).await?, entry).await;
                    None
                }
            };
            let address = address.transpose().with_context(|| format!("listen on {}", listener.bind))?;
            doors.push(Door { listener: listener.clone(), tls, address });
        }
        Ok(Self { doors })
    }

    /// Reads the files again, for the listeners that are open.
    ///
    /// # Errors
    /// A file cannot be used, or holds another certificate that is not valid now: what was before stays.
    pub fn read_again(&self, auth: &Auth) -> Result<Keys, FileError> {
        let listeners: Vec<Listener> = self.doors.iter().map(|door| door.listener.clone()).collect();
        let keys = Keys::read(&listeners, auth)?;
        for (door, tls) in self.doors.iter().zip(&keys.tls) {
            let Some(problem) = expiry(&door.listener, tls.as_ref()) else { continue };
            let validity = |tls: &Option<ServerTls>| tls.as_ref().map(ServerTls::validity);
            if validity(tls) != validity(&door.tls) {
                return Err(problem);
            }
            // It is shown already. To refuse the rest would keep a device in whose password was removed.
            warn!(listener = %door.listener.bind, %problem, "Clients will not trust this listener.");
        }
        Ok(keys)
    }

    /// Puts in place what was read: it counts for new connections, and those whose password or certificate is not
    /// accepted any more are closed.
    pub fn change(&self, broker: &Broker, keys: Keys) {
        broker.set_access(keys.access);
        for (door, renewed) in self.doors.iter().zip(&keys.tls) {
            if let (Some(tls), Some(renewed)) = (&door.tls, renewed) {
                tls.replace(renewed);
                broker.revoke(tls);
            }
        }
        info!("Certificates, passwords and access control list are in place.");
    }

    /// Where devices connect to over TCP, in the order of the configuration.
    #[must_use]
    pub fn addresses(&self) -> Vec<SocketAddr> {
        self.doors.iter().filter_map(|door| door.address).collect()
    }

    /// The same for people, with what is spoken there if it is not plain MQTT, and Unix sockets.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let name = |door: &Door| {
            let bind = door.address.map_or(door.listener.bind.clone(), Bind::Tcp);
            match door.listener.scheme() {
                "mqtt" => bind.to_string(),
                scheme => format!("{scheme}://{bind}"),
            }
        };
        self.doors.iter().map(name).collect()
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        for door in &self.doors {
            if let Bind::Unix(path) = &door.listener.bind {
                let _ = std::fs::remove_file(path);
            }
        }
    }
}

fn expiry(listener: &Listener, tls: Option<&ServerTls>) -> Option<FileError> {
    access::expiry(listener.tls.as_ref()?, tls?)
}

/// As open as a port of this machine; the rights of its directory say who may reach it.
async fn bind_unix(path: &Path) -> Result<UnixListener> {
    if UnixStream::connect(path).await.is_ok() {
        bail!("listen on {}: another program listens there", path.display());
    }
    let is_left_over = std::fs::symlink_metadata(path).is_ok_and(|found| {
        use std::os::unix::fs::FileTypeExt as _;
        found.file_type().is_socket()
    });
    if is_left_over {
        std::fs::remove_file(path).with_context(|| format!("remove {}", path.display()))?;
    }
    let listener = UnixListener::bind(path).map_err(|error| match error.kind() {
        ErrorKind::AddrInUse => anyhow::anyhow!("listen on {}: there is a file of this name", path.display()),
        _ => anyhow::Error::from(error).context(format!("listen on {}", path.display())),
    })?;
    std::fs::set_permissions(path, Permissions::from_mode(0o666))
        .with_context(|| format!("open {} for others", path.display()))?;
    Ok(listener)
}
