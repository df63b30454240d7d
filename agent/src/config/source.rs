//! `[[source]]`: a broker that we subscribe to.

use std::fmt;
use std::num::NonZeroU16;
use std::path::PathBuf;
use std::time::Duration;

use forebay_broker::packet::{ProtocolVersion, QoS};
use forebay_broker::topic::TopicPattern;
use forebay_storage::spool::SpoolConfig;
use reqwest::Url;

use super::document::{ConfigError, Node, Section};
use super::manifest::{MqttFetch, Template};
use super::read::{PACKET_BYTES_MAX, secret, word};
use super::units::show_size;
use super::{Dataset, Secret};
use crate::route::wider;

type Result<T> = std::result::Result<T, ConfigError>;
type Parsed<T> = std::result::Result<T, String>;

/// The words of ODF for Quality of Service.
pub(super) const QOS: [(&str, QoS); 3] =
    [("AtMostOnce", QoS::AtMostOnce), ("AtLeastOnce", QoS::AtLeastOnce), ("ExactlyOnce", QoS::ExactlyOnce)];
/// Topic filters of one source; all go into one SUBSCRIBE.
pub(super) const TOPICS_MAX: usize = 1_000;
/// What is said beyond, and of a filter that is there already.
pub(super) const TOPICS_BOUND: &str = "`topics`: from 1 to 1,000 topic filters";
pub(super) const TOPIC_AGAIN: &str = "is already one of this source's topics";
/// Bytes of sealed chunks that stay in the spool to recognise what a broker sends again after a restart, for each source.
const DUP_TAIL_BYTES: u64 = 16 << 20;
/// Longest name, bytes: it is part of a Client Identifier and of a file's name.
const NAME_BYTES_MAX: usize = 64;

/// One `[[source]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// Its name here: part of its default Client Identifier, and what its messages are told apart by. Default: the URL's host.
    pub name: String,
    /// Where the broker is.
    pub url: SourceUrl,
    /// MQTT 3.1.1 or 5.0. Default 3.1.1, which every broker speaks.
    pub version: ProtocolVersion,
    /// Fixed, so that the broker keeps what comes while we are away. Default `forebay-{gateway}-{name}`.
    pub client_id: String,
    /// What is subscribed to, at least one. Default: what the datasets take, with QoS 1.
    pub topics: Vec<Subscription>,
    /// Who we are, if the broker asks.
    pub login: Option<Login>,
    /// A PEM file with the certificates that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// PEM files of the certificate that we show, and of its key.
    pub client_cert: Option<(PathBuf, PathBuf)>,
    /// Seconds between signs of life; a broker that is silent for that long after a PINGREQ is given up. Default 60 s.
    pub keep_alive: Duration,
    /// The largest packet that is taken, bytes. Default 16 MiB. Beyond: nothing is acknowledged, and the source rests with a
    /// line that names the topic; the broker keeps the message.
    pub packet_bytes_max: u32,
    /// Messages that are taken before the first of them is on disk. Default 1,000. Reached: the socket is not read.
    pub receive_maximum: NonZeroU16,
}

/// One topic of a source.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Subscription {
    /// Topic Filter.
    pub filter: String,
    /// The QoS that is asked for.
    pub qos: QoS,
}

impl Subscription {
    /// The topics that it brings.
    #[must_use]
    pub fn pattern(&self) -> Option<TopicPattern> {
        // $share/GROUP/FILTER brings the topics of FILTER (5.0, 4.8.2).
        let filter = match self.filter.strip_prefix("$share/") {
            Some(shared) => shared.split_once('/').map_or(shared, |(_, filter)| filter),
            None => &self.filter,
        };
        TopicPattern::parse(filter).ok()
    }
}

/// User name and password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Login {
    /// User Name.
    pub username: String,
    /// Where the password is; none: a user name alone.
    pub password: Option<Password>,
}

/// Where a password is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Password {
    /// In a file or an environment variable.
    Secret(Secret),
    /// In a manifest, as text with references to the environment.
    Template(Template),
}

/// Where a broker is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceUrl {
    /// Host name or address, an IPv6 address without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Over TLS.
    pub tls: bool,
    /// Path of the WebSocket; none: MQTT on TCP itself.
    pub websocket: Option<String>,
}

impl Password {
    /// Reads it. Its last line end does not count; white space does.
    ///
    /// # Errors
    /// One line that names the file or variable.
    pub fn read(&self) -> Parsed<String> {
        match self {
            Self::Secret(secret) => secret.read_line(),
            Self::Template(template) => template.resolve(|name| std::env::var(name).ok()),
        }
        .and_then(|password| match password.len() {
            0..=65_535 => Ok(password),
            _ => Err("the password is longer than the 65,535 bytes of MQTT".to_owned()),
        })
    }
}

impl SourceUrl {
    /// Reads `mqtt://host:port`, `mqtts://…`, `ws://host:port/path`, `wss://…`.
    fn parse(text: &str) -> Parsed<Self> {
        if text.contains('@') {
            // Not repeated: what stands there may be a secret.
            return Err("the URL of a source has no user and no password: they belong in `username` and \
                        `password_file`"
                .to_owned());
        }
        let Some((scheme, rest)) = text.split_once("://") else {
            return Err(format!("{text:?} is not a URL such as \"mqtt://broker.example.com:1883\""));
        };
        let (port, tls, is_websocket) = match scheme {
            "mqtt" => (1_883, false, false),
            "mqtts" => (8_883, true, false),
            "ws" => (80, false, true),
            "wss" => (443, true, true),
            _ => return Err(format!("`{scheme}://` is not a scheme of a source; there are mqtt, mqtts, ws and wss")),
        };
        // One of the schemes whose rules for hosts and ports the parser knows.
        let url = Url::parse(&format!("ws://{rest}")).map_err(|error| format!("{text:?} is not a URL: {error}"))?;
        let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let path = url.path();
        if !is_websocket && path != "/" {
            return Err(format!("{text:?} has a path: only ws:// and wss:// have one; topics belong in `topics`"));
        }
        if url.fragment().is_some() || (!is_websocket && url.query().is_some()) {
            return Err("the URL of a source has no `?` and no `#`".to_owned());
        }
        // The parser leaves the port away that it takes for the default of ws, however that is written.
        let authority = rest.split(['/', '?']).next().unwrap_or_default();
        let written = authority.rsplit_once(':').filter(|(_, port)| port.bytes().all(|byte| byte.is_ascii_digit()));
        let port = match (url.port(), written) {
            (Some(0), _) => return Err("0 is not a port to connect to".to_owned()),
            (Some(port), _) => port,
            (None, Some((_, written))) if !written.is_empty() => 80,
            (None, _) => port,
        };
        let websocket = is_websocket.then(|| match (path, url.query()) {
            ("/", None) => "/mqtt".to_owned(),
            (path, None) => path.to_owned(),
            (path, Some(query)) => format!("{path}?{query}"),
        });
        Ok(Self { host, port, tls, websocket })
    }

    /// `host:port`, an IPv6 address in brackets.
    #[must_use]
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }
}

impl fmt::Display for SourceUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scheme = match (&self.websocket, self.tls) {
            (None, false) => "mqtt",
            (None, true) => "mqtts",
            (Some(_), false) => "ws",
            (Some(_), true) => "wss",
        };
        // Without its query, which may hold a token.
        let path = self.websocket.as_deref().unwrap_or_default().split('?').next().unwrap_or_default();
        write!(f, "{scheme}://{}{path}", self.authority())
    }
}

impl Source {
    /// The source that a manifest's SetPollingSource describes; it has the name of its dataset.
    #[must_use]
    pub fn of_manifest(fetch: MqttFetch, dataset: &str, gateway: &str) -> Self {
        let url = SourceUrl { host: fetch.host, port: fetch.port, tls: false, websocket: None };
        let login =
            fetch.login.map(|(username, password)| Login { username, password: Some(Password::Template(password)) });
        Self { topics: fetch.topics, login, ..Self::at(dataset.to_owned(), url, gateway) }
    }

    fn at(name: String, url: SourceUrl, gateway: &str) -> Self {
        Self {
            client_id: format!("forebay-{gateway}-{name}"),
            name,
            url,
            version: ProtocolVersion::V311,
            topics: Vec::new(),
            login: None,
            ca_file: None,
            client_cert: None,
            keep_alive: Duration::from_secs(60),
            packet_bytes_max: 16 << 20,
            receive_maximum: NonZeroU16::new(1_000).unwrap_or(NonZeroU16::MIN),
        }
    }
}

/// What a source may need of the spool beside what devices need: to remember what its broker may send again.
pub(super) fn make_room(spool: &mut SpoolConfig) {
    spool.dup_window_max += spool.dup_window_source_max;
    spool.dup_tail_bytes += DUP_TAIL_BYTES;
}

/// Every `[[source]]`, in file order, after those that came with manifests. `datasets` say what is subscribed to where the
/// source does not.
pub(super) fn sources(node: Node, known: &[Source], datasets: &[Dataset], gateway: &str) -> Result<Vec<Source>> {
    let mut sources: Vec<Source> = known.to_vec();
    for section in node.sections()? {
        let whole = section.error("");
        let source = source(section, datasets, gateway)?;
        let clash = sources.iter().find_map(|known| {
            if known.name.eq_ignore_ascii_case(&source.name) {
                return Some(format!("there is another source of the name `{}`: give this one a `name`", source.name));
            }
            let same = known.url.authority() == source.url.authority() && known.client_id == source.client_id;
            same.then(|| {
                format!(
                    "has the client_id {:?} of source `{}`: the broker would take each for the other and throw it out",
                    source.client_id, known.name
                )
            })
        });
        if let Some(problem) = clash {
            return Err(ConfigError { problem, ..whole });
        }
        sources.push(source);
    }
    Ok(sources)
}

fn source(mut section: Section, datasets: &[Dataset], gateway: &str) -> Result<Source> {
    let Some(url) = section.take("url") else {
        return Err(section.error("needs `url`, such as url = \"mqtts://broker.example.com:8883\""));
    };
    let url = url.parsed(SourceUrl::parse)?;
    let name = match section.take("name") {
        Some(node) => node.parsed(name)?,
        None => {
            name(&url.host).map_err(|problem| section.error(format!("needs a `name`, since the host {problem}")))?
        }
    };
    let mut source = Source::at(name, url, gateway);
    source.version = section.read("version", source.version, |node| {
        word(node, &[("3.1.1", ProtocolVersion::V311), ("5.0", ProtocolVersion::V5)])
    })?;
    source.client_id = section.read("client_id", source.client_id, |node| match node.text()? {
        text if text.is_empty() || text.len() > 65_535 || text.contains('\0') => {
            Err(node.error("from 1 to 65,535 bytes, without U+0000: a session without a fixed name would be lost"))
        }
        text => Ok(text.to_owned()),
    })?;
    let qos = section.read("qos", QoS::AtLeastOnce, |node| word(node, &QOS))?;
    source.topics = match section.take("topics") {
        Some(node) => topics(node, qos)?,
        None => topics_of(datasets, &source.name, qos),
    };
    if source.topics.is_empty() || source.topics.len() > TOPICS_MAX {
        return Err(section.error(TOPICS_BOUND));
    }
    source.login = login(&mut section)?;
    let is_tls = source.url.tls;
    let path = |node: &Node| match is_tls {
        true => Ok(Some(PathBuf::from(node.text()?))),
        false => Err(node.error("belongs to a source with TLS (mqtts:// or wss://) only")),
    };
    source.ca_file = section.read("ca_file", None, path)?;
    source.client_cert = match (section.read("cert_file", None, path)?, section.read("key_file", None, path)?) {
        (Some(cert), Some(key)) => Some((cert, key)),
        (None, None) => None,
        _ => return Err(section.error("cert_file and key_file belong together")),
    };
    source.keep_alive = section.read("keep_alive", source.keep_alive, |node| match node.duration()? {
        // The wire knows whole seconds.
        keep_alive if (1..=65_535).contains(&keep_alive.as_secs()) => Ok(Duration::from_secs(keep_alive.as_secs())),
        _ => Err(node.error("from 1s to 65,535 seconds [MQTT-3.1.2.10]")),
    })?;
    source.packet_bytes_max =
        section.read("packet_bytes_max", source.packet_bytes_max, |node| match u32::try_from(node.size()?) {
            Ok(bytes @ 128..=PACKET_BYTES_MAX) => Ok(bytes),
            _ => Err(node.error(format!("from 128 B to {}", show_size(PACKET_BYTES_MAX.into())))),
        })?;
    source.receive_maximum = section.read("receive_maximum", source.receive_maximum, |node| {
        NonZeroU16::new(node.integer()?).ok_or_else(|| node.error("at least 1"))
    })?;
    section.finish()?;
    Ok(source)
}

fn name(text: &str) -> Parsed<String> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let is_name = !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.chars().all(is_plain);
    match is_name && !text.starts_with('.') {
        true => Ok(text.to_owned()),
        false => Err(format!(
            "{text:?} is not a name: from 1 to {NAME_BYTES_MAX} letters, digits, '-', '_' and '.', not beginning with '.'"
        )),
    }
}

fn topics(node: Node, qos: QoS) -> Result<Vec<Subscription>> {
    let mut topics: Vec<Subscription> = Vec::new();
    for node in node.list()? {
        let again = node.error(TOPIC_AGAIN);
        let topic = if node.text().is_ok() {
            Subscription { filter: node.parsed(filter)?, qos }
        } else {
            let mut section = node.section()?;
            let Some(path) = section.take("path") else {
                return Err(section.error("needs `path`, such as { path = \"plant/+/temp\", qos = \"ExactlyOnce\" }"));
            };
            let qos = section.read("qos", qos, |node| word(node, &QOS))?;
            section.finish()?;
            Subscription { filter: path.parsed(filter)?, qos }
        };
        if topics.iter().any(|known| known.filter == topic.filter) {
            return Err(again);
        }
        topics.push(topic);
    }
    Ok(topics)
}

/// Reads a Topic Filter.
pub(super) fn filter(text: &str) -> Parsed<String> {
    if text.contains(['{', '}']) {
        return Err(format!(
            "{text:?}: a source subscribes with + and #; {{captures}} belong in the topics of a dataset"
        ));
    }
    if let Some(shared) = text.strip_prefix("$share/") {
        let (group, filter) = shared.split_once('/').unwrap_or_default();
        if group.is_empty() || group.contains(['+', '#']) || filter.is_empty() {
            return Err(format!("{text:?} is not a shared subscription: \"$share/GROUP/FILTER\" [MQTT-4.8.2-1]"));
        }
    }
    let pattern = TopicPattern::parse(text).map_err(|error| error.to_string())?;
    Ok(pattern.filter())
}

/// The filters of all datasets that may take a message of this source, but for those that lie within another: a broker may
/// send a message for each filter that takes its topic `[MQTT-3.3.5-1]`.
fn topics_of(datasets: &[Dataset], source: &str, qos: QoS) -> Vec<Subscription> {
    let takers = datasets.iter().filter(|dataset| dataset.takes_from(source));
    let filters: Vec<String> = takers.flat_map(|dataset| dataset.topics.iter().map(TopicPattern::filter)).collect();
    let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
    (0..filters.len())
        .filter(|position| wider(&filters, *position).is_none())
        .map(|position| Subscription { filter: filters[position].to_owned(), qos })
        .collect()
}

fn login(section: &mut Section) -> Result<Option<Login>> {
    let username = section.read("username", None, |node| match node.text()? {
        text if text.is_empty() || text.len() > 65_535 => Err(node.error("from 1 to 65,535 bytes")),
        text => Ok(Some(text.to_owned())),
    })?;
    let password = secret(true, "a source", section, "password_file", "password_env")?;
    match (username, password) {
        (None, None) => Ok(None),
        (None, Some(_)) => Err(section.error("a password needs `username` [MQTT-3.1.2-22]")),
        (Some(username), password) => Ok(Some(Login { username, password: password.map(Password::Secret) })),
    }
}
