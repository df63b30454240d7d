//! `[[listener]]` and `[auth]`: where devices connect to, over what, and who may.

use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;

use forebay_broker::tls::CertificateIdentity;

use super::document::{ConfigError, Node, Section};
use super::read::word;

type Result<T> = std::result::Result<T, ConfigError>;

/// How a Unix socket is told from an address.
const UNIX: &str = "unix:";

/// One `[[listener]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listener {
    /// Where to listen.
    pub bind: Bind,
    /// MQTT over WebSocket.
    pub websocket: bool,
    /// TLS.
    pub tls: Option<ListenerTls>,
    /// Whether clients without credentials may connect here. Default: as `[auth]` says.
    pub allow_anonymous: Option<bool>,
}

/// Where a listener listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Bind {
    /// TCP; port 0 takes a free one.
    Tcp(SocketAddr),
    /// A Unix socket, for programs of this machine.
    Unix(PathBuf),
}

/// Certificates of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenerTls {
    /// The certificate, then those that lead to its root, PEM.
    pub cert: PathBuf,
    /// Its key, PEM.
    pub key_file: PathBuf,
    /// Which client certificates are taken. Default: none is asked for.
    pub clients: Option<ClientTls>,
}

/// Which client certificates a listener takes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientTls {
    /// The authorities that sign them, PEM.
    pub ca: PathBuf,
    /// Those that are revoked, PEM.
    pub crl: Option<PathBuf>,
    /// Whether a client needs one. Default true.
    pub required: bool,
    /// Where the user name stands in them. Default: the Common Name.
    pub identity: CertificateIdentity,
}

/// `[auth]`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Auth {
    /// Users and their passwords, as `mosquitto_passwd` and `forebay passwd` write them.
    pub password_file: Option<PathBuf>,
    /// Where each may publish, as mosquitto's `acl_file`.
    pub acl_file: Option<PathBuf>,
    /// Whether clients without credentials may connect. Default: on loopback and Unix sockets, if there is no password
    /// file.
    pub allow_anonymous: Option<bool>,
}

impl Auth {
    /// Whether clients without credentials are refused where a listener says nothing else.
    #[must_use]
    pub fn refuses_anonymous(&self) -> bool {
        !self.allow_anonymous.unwrap_or(self.password_file.is_none())
    }
}

impl Default for Listener {
    fn default() -> Self {
        let bind = Bind::Tcp(SocketAddr::from(([127, 0, 0, 1], 1_883)));
        Self { bind, websocket: false, tls: None, allow_anonymous: None }
    }
}

impl Listener {
    /// Whether a client needs a certificate.
    #[must_use]
    pub fn requires_certificates(&self) -> bool {
        self.tls.as_ref().and_then(|tls| tls.clients.as_ref()).is_some_and(|clients| clients.required)
    }

    /// Files that may change while it listens.
    pub fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.tls.iter().flat_map(|tls| {
            let clients = tls.clients.iter().flat_map(|clients| std::iter::once(&clients.ca).chain(&clients.crl));
            [&tls.cert, &tls.key_file].into_iter().chain(clients)
        })
    }

    /// What is spoken: "mqtt", "mqtts", "ws" or "wss".
    #[must_use]
    pub fn scheme(&self) -> &'static str {
        match (self.websocket, self.tls.is_some()) {
            (false, false) => "mqtt",
            (false, true) => "mqtts",
            (true, false) => "ws",
            (true, true) => "wss",
        }
    }
}

impl Bind {
    /// Whether only this machine can connect.
    #[must_use]
    pub fn is_local(&self) -> bool {
        match self {
            Self::Tcp(address) => address.ip().to_canonical().is_loopback(),
            Self::Unix(_) => true,
        }
    }

    fn collides(&self, other: &Self) -> bool {
        match self {
            Self::Tcp(address) => address.port() != 0 && self == other,
            Self::Unix(_) => self == other,
        }
    }
}

impl fmt::Display for Bind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Unix(path) => write!(f, "{UNIX}{}", path.display()),
        }
    }
}

pub(super) fn auth(section: &mut Section) -> Result<Auth> {
    Ok(Auth {
        password_file: section.read("password_file", None, |node| node.path().map(Some))?,
        acl_file: section.read("acl_file", None, |node| node.path().map(Some))?,
        allow_anonymous: section.read("allow_anonymous", None, |node| node.boolean().map(Some))?,
    })
}

pub(super) fn listeners(node: Node, auth: &Auth) -> Result<Vec<Listener>> {
    let mut listeners: Vec<Listener> = Vec::new();
    for mut section in node.sections()? {
        let Some(node) = section.take("bind") else {
            return Err(section.error("needs `bind`, such as bind = \"127.0.0.1:1883\""));
        };
        let listener = Listener {
            bind: bind(&node)?,
            websocket: section.read("transport", false, |node| word(node, &[("mqtt", false), ("websocket", true)]))?,
            tls: section.take("tls").map(tls).transpose()?,
            allow_anonymous: section.read("allow_anonymous", None, |node| node.boolean().map(Some))?,
        };
        section.finish()?;
        if listeners.iter().any(|known| known.bind.collides(&listener.bind)) {
            return Err(node.error(format!("{} is already the address of another listener", listener.bind)));
        }
        must_not_be_open_to_all(&node, &listener, auth)?;
        listeners.push(listener);
    }
    Ok(listeners)
}

fn bind(node: &Node) -> Result<Bind> {
    let text = node.text()?;
    if let Some(path) = text.strip_prefix(UNIX) {
        if path.is_empty() || path.len() > 107 {
            return Err(
                node.error("a Unix socket has a path of 1 to 107 bytes, such as \"unix:/run/forebay/mqtt.sock\"")
            );
        }
        return Ok(Bind::Unix(PathBuf::from(path)));
    }
    node.parsed(|text| {
        text.parse().map(Bind::Tcp).map_err(|_| {
            format!(
                "{text:?} is not an address and port such as \"127.0.0.1:1883\" or \"[::1]:1883\", nor a path such as \
                 \"unix:/run/forebay/mqtt.sock\""
            )
        })
    })
}

/// Whoever can reach the address must need something to get in, or the file says in words that it need not.
fn must_not_be_open_to_all(node: &Node, listener: &Listener, auth: &Auth) -> Result<()> {
    let is_said = listener.allow_anonymous.or(auth.allow_anonymous) == Some(true);
    let is_guarded = auth.password_file.is_some() || listener.requires_certificates();
    if listener.bind.is_local() || is_said || is_guarded {
        return Ok(());
    }
    Err(node.error(format!(
        "{} can be reached from other machines, and anybody there could publish. Add these two lines (`forebay passwd add \
         USER --file /etc/forebay/passwd` makes the file):\n\n    [auth]\n    password_file = \"/etc/forebay/passwd\"\n\n\
         or these, if that is what you want:\n\n    [auth]\n    allow_anonymous = true\n",
        listener.bind
    )))
}

fn tls(node: Node) -> Result<ListenerTls> {
    let mut section = node.section()?;
    let file = |section: &mut Section, key: &'static str| match section.take(key) {
        Some(node) => node.path().map(Some),
        None => Ok(None),
    };
    let cert = file(&mut section, "cert")?;
    let key_file = file(&mut section, "key_file")?;
    let (Some(cert), Some(key_file)) = (cert, key_file) else {
        return Err(section.error("needs `cert` and `key_file`: PEM files of the server's certificate and its key"));
    };
    let clients = clients(&mut section)?;
    section.finish()?;
    Ok(ListenerTls { cert, key_file, clients })
}

fn clients(section: &mut Section) -> Result<Option<ClientTls>> {
    let ca = section.read("client_ca", None, |node| node.path().map(Some))?;
    let Some(ca) = ca else {
        for key in ["client_cert", "client_crl", "identity"] {
            if let Some(node) = section.take(key) {
                return Err(node.error("needs `client_ca`: the authority that signs the clients' certificates"));
            }
        }
        return Ok(None);
    };
    Ok(Some(ClientTls {
        ca,
        crl: section.read("client_crl", None, |node| node.path().map(Some))?,
        required: section.read("client_cert", true, |node| word(node, &[("required", true), ("optional", false)]))?,
        identity: section.read("identity", CertificateIdentity::default(), |node| {
            word(
                node,
                &[
                    ("cn", CertificateIdentity::CommonName),
                    ("san", CertificateIdentity::SubjectAltName),
                    ("none", CertificateIdentity::None),
                ],
            )
        })?,
    }))
}
