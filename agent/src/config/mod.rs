//! The configuration: one TOML file, every key optional, turned into types that cannot be wrong.
//!
//! Reading order: this file (what there is, and its defaults), `read` (sections to types), `dataset` (one `[[dataset]]`),
//! `upstream` (one `[[upstream]]`), `document` (the tree with origins, and the errors), `later` (keys of later versions), `units`, `sample` (what `init`
//! writes).

mod dataset;
mod document;
mod later;
mod read;
mod sample;
pub mod units;
mod upstream;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_broker::config::{Limits, ListenerConfig};
use forebay_broker::topic::TopicPattern;
use forebay_storage::dataset::spec::DatasetSpec;
use forebay_storage::spool::SpoolConfig;

pub use self::document::{ConfigError, ENV_PREFIX, Node, Origin, nearest};
pub use self::sample::sample;
pub use self::upstream::{Bucket, Ingest, IngestFormat, NodeUrl, Secret, Upstream, UpstreamKind, Window};

/// Where a configuration is looked for when none is named, in this order.
pub const SEARCH_PATH: [&str; 2] = ["./forebay.toml", "/etc/forebay/forebay.toml"];

/// Everything the agent can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The gateway's name: with `seq` the exactly-once key of every row. Default: the host name.
    pub gateway: String,
    /// Where everything is kept. Default `./forebay-data`.
    pub data_dir: PathBuf,
    /// Where devices connect to. Default: 127.0.0.1:1883.
    pub listeners: Vec<ListenerConfig>,
    /// Whether clients may connect without credentials from beyond this machine. Default false.
    pub allow_anonymous: bool,
    /// What becomes of a message that no dataset takes, from a client that cannot be told (MQTT 3.1.1).
    pub on_refused: OnRefused,
    /// Limits of the broker.
    pub limits: Limits,
    /// Datasets in file order; the first that takes a topic has it. Default: one, `messages`, that takes everything.
    pub datasets: Vec<Dataset>,
    /// The spool's bounds.
    pub spool: SpoolConfig,
    /// When a batch is cut.
    pub batch: Batch,
    /// Bytes of slices, over all datasets, that are kept although every upstream has them. Default 256 MiB.
    pub keep_delivered_bytes: u64,
    /// Where datasets are delivered to. Default: nowhere further, the local repository is the end.
    pub upstreams: Vec<Upstream>,
    /// Logging.
    pub log: Log,
}

/// One `[[dataset]]`.
#[derive(Clone, Debug)]
pub struct Dataset {
    /// What it is.
    pub spec: DatasetSpec,
    /// Which topics it takes.
    pub topics: Vec<TopicPattern>,
}

/// What becomes of a message that no dataset takes, when its client speaks MQTT 3.1.1 and cannot be told why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRefused {
    /// Acknowledge it and keep it as a dead letter.
    #[default]
    DeadLetter,
    /// Close the connection without an acknowledgement.
    Disconnect,
}

/// `[batch]`: whichever comes first cuts a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Batch {
    /// Rows of one slice at the most. Default 100,000.
    pub rows: u64,
    /// Payload bytes of one slice at the most. Default 32 MiB.
    pub bytes: u64,
    /// Age of the oldest message of a batch, counted only while an upstream is reachable. Default 60 s.
    pub age: Duration,
}

/// `[log]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Log {
    /// Text or JSON lines. Default: text.
    pub format: LogFormat,
    /// A level, or directives as `tracing-subscriber` reads them. Default `info`.
    pub level: String,
}

/// How log lines are written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        let limits = Limits::default();
        let sessions_max = (limits.sessions_max + limits.connections_max) as u64;
        Self {
            gateway: host_name(),
            data_dir: PathBuf::from("./forebay-data"),
            listeners: vec![ListenerConfig { bind: SocketAddr::from((Ipv4Addr::LOCALHOST, 1_883)) }],
            allow_anonymous: false,
            on_refused: OnRefused::default(),
            limits,
            datasets: dataset::default_datasets(),
            spool: SpoolConfig { sessions_max, ..SpoolConfig::default() },
            batch: Batch::default(),
            keep_delivered_bytes: 256 << 20,
            upstreams: Vec::new(),
            log: Log::default(),
        }
    }
}

impl Default for Batch {
    fn default() -> Self {
        Self { rows: 100_000, bytes: 32 << 20, age: Duration::from_secs(60) }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self { format: LogFormat::default(), level: "info".to_owned() }
    }
}

/// A configuration and where it came from.
#[derive(Clone, Debug)]
pub struct Loaded {
    /// The configuration.
    pub config: Config,
    /// The file it was read from; none: built-in defaults.
    pub file: Option<PathBuf>,
}

impl Config {
    /// Reads `file`, or the first file of [`SEARCH_PATH`] that exists, or nothing; then applies `env`.
    pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Loaded, ConfigError> {
        let found = match file {
            Some(file) => Some(file.to_owned()),
            None => SEARCH_PATH.iter().map(PathBuf::from).find(|path| path.is_file()),
        };
        let mut tree = match &found {
            Some(file) => Node::parse(&read_file(file)?, file)?,
            None => Node::empty(),
        };
        apply_env(&mut tree, env)?;
        Ok(Loaded { config: read::config(tree)?, file: found })
    }

    /// Reads a configuration from its text; `file` names it in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        read::config(Node::parse(text, file)?)
    }

    /// The socket by which commands reach a running agent.
    pub fn control_socket(&self) -> PathBuf {
        self.data_dir.join("forebay.sock")
    }
}

fn read_file(file: &Path) -> Result<String, ConfigError> {
    std::fs::read_to_string(file).map_err(|error| ConfigError {
        origin: Origin::File { file: file.into(), line: 1, column: 1 },
        key: String::new(),
        problem: format!("cannot be read: {error}"),
    })
}

fn apply_env(tree: &mut Node, env: impl IntoIterator<Item = (String, String)>) -> Result<(), ConfigError> {
    let mut overrides: Vec<_> = env.into_iter().filter(|(name, _)| name.starts_with(ENV_PREFIX)).collect();
    overrides.sort();
    overrides.iter().try_for_each(|(name, value)| tree.set_from_env(name, value))
}

fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if name.is_empty() { "gateway".to_owned() } else { name }
}

#[cfg(test)]
mod tests;
