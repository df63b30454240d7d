//! The configuration: one TOML file, every key optional, turned into types that cannot be wrong.
//!
//! Reading order: this file (what there is, and its defaults), `read` (sections to types), `dataset` (one `[[dataset]]`),
//! `listener` (`[[listener]]` and `[auth]`), `source` (one `[[source]]`), `upstream` (one `[[upstream]]`), [`manifest`] (a dataset as ODF declares it), `document` (the tree with origins, and the
//! errors; `yaml`: the same of YAML), `credential` (files that systemd brings), `later` (keys of later versions), `units`, `sample` (what `init` writes).

mod credential;
mod dataset;
mod document;
mod later;
mod listener;
pub mod manifest;
mod read;
mod sample;
mod source;
pub mod units;
mod upstream;
mod yaml;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use forebay_broker::config::Limits;
use forebay_broker::topic::TopicPattern;
use forebay_storage::dataset::spec::DatasetSpec;
use forebay_storage::spool::SpoolConfig;

pub use self::document::{ConfigError, ENV_PREFIX, Node, Origin, nearest};
pub use self::listener::{Auth, Bind, ClientTls, Listener, ListenerTls};
pub use self::sample::sample;
pub use self::source::{Login, Password, Source, SourceUrl, Subscription};
pub use self::upstream::{Bucket, Ingest, IngestFormat, NodeUrl, Secret, Upstream, UpstreamKind, Window};

use crate::doors;

/// Where a configuration is looked for when none is named, in this order.
pub const SEARCH_PATH: [&str; 2] = ["./forebay.toml", "/etc/forebay/forebay.toml"];

/// Largest configuration file that is read, bytes: 16 MiB.
const CONFIG_BYTES_MAX: u64 = 16 << 20;

/// Everything the agent can be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// The gateway's name: with `seq` the exactly-once key of every row. Default: the host name.
    pub gateway: String,
    /// Where everything is kept. Default `./forebay-data`.
    pub data_dir: PathBuf,
    /// Where devices connect to. Default: 127.0.0.1:1883.
    pub listeners: Vec<Listener>,
    /// Who may connect and publish.
    pub auth: Auth,
    /// What becomes of a message that no dataset takes, from a client that cannot be told (MQTT 3.1.1).
    pub on_refused: OnRefused,
    /// Limits of the broker.
    pub limits: Limits,
    /// Datasets in file order; the first that takes a topic has it. Default: one, `messages`, that takes everything.
    pub datasets: Vec<Dataset>,
    /// Brokers that we subscribe to. Default: none.
    pub sources: Vec<Source>,
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// What it is.
    pub spec: DatasetSpec,
    /// Which topics it takes.
    pub topics: Vec<TopicPattern>,
    /// The source whose messages it takes, and no others. Default: it takes those of devices and of every source.
    pub source: Option<String>,
    /// A retained value that a source sends again, because it subscribed again, is stored once. Default true.
    pub retained_once: bool,
    /// What its manifest says that leads to nothing here, a line each.
    pub notes: Vec<String>,
    /// Where it is declared: its section, or its manifest.
    pub origin: Origin,
}

impl Dataset {
    /// Whether it takes messages of this source.
    #[must_use]
    pub fn takes_from(&self, source: &str) -> bool {
        self.source.as_ref().is_none_or(|from| from == source)
    }
}

/// What becomes of a message that no dataset takes, when its client speaks MQTT 3.1.1 and cannot be told why.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnRefused {
    /// Acknowledge it and keep it as a dead letter.
    #[default]
    DeadLetter,
    /// Close the connection without an acknowledgement. QoS 0 and Will Messages, which nobody would send again, are kept as
    /// dead letters all the same.
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
    /// A level, or `module=level` pairs with commas between them. Default `info`.
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
            listeners: vec![Listener::default()],
            auth: Auth::default(),
            on_refused: OnRefused::default(),
            limits,
            datasets: dataset::default_datasets(),
            sources: Vec::new(),
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
    /// A credential that this process does not have.
    missing: Option<ConfigError>,
}

impl Loaded {
    /// A configuration, and the file that it was read from.
    #[must_use]
    pub fn new(config: Config, file: Option<PathBuf>) -> Self {
        Self { config, file, missing: None }
    }

    /// The same, for whoever needs the files that it names.
    ///
    /// # Errors
    /// It names a credential, and this process has none.
    pub fn complete(self) -> Result<Self, ConfigError> {
        match self.missing {
            Some(missing) => Err(missing),
            None => Ok(self),
        }
    }

    /// The files that it was read from: the configuration and the manifests that it names; and those of listeners and
    /// `[auth]`. Whoever waits for a change watches them.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        let declared = self.config.datasets.iter().filter_map(|dataset| dataset.origin.file());
        let files = self.file.iter().cloned().chain(declared.map(Path::to_owned)).chain(doors::files(&self.config));
        files.collect::<BTreeSet<PathBuf>>().into_iter().collect()
    }
}

impl Config {
    /// Reads `file`, or the first file of [`SEARCH_PATH`] that exists, or nothing; then applies `env`.
    pub fn load(file: Option<&Path>, env: impl IntoIterator<Item = (String, String)>) -> Result<Loaded, ConfigError> {
        let found = match file {
            Some(file) => Some(file.to_owned()),
            None => SEARCH_PATH.iter().map(PathBuf::from).find(|path| path.is_file()),
        };
        let mut tree = match &found {
            Some(file) => Node::parse(&read_file(file, CONFIG_BYTES_MAX)?, file)?,
            None => Node::empty(),
        };
        let env: Vec<_> = env.into_iter().collect();
        let credentials = env.iter().find(|(name, _)| name == credential::DIRECTORY).map(|(_, dir)| PathBuf::from(dir));
        apply_env(&mut tree, env)?;
        let missing = credential::resolve(&mut tree, credentials.as_deref())?;
        Ok(Loaded { missing, ..Loaded::new(read::config(tree)?, found) })
    }

    /// Reads a configuration from its text; `file` names it in errors.
    pub fn parse(text: &str, file: &Path) -> Result<Self, ConfigError> {
        read::config(Node::parse(text, file)?)
    }

    /// Adds what a manifest declares: a dataset, unless this file has declared it already, and the source that its
    /// SetPollingSource fetches from. Answers the dataset.
    ///
    /// # Errors
    /// The file cannot be read or honoured, or clashes with what there is. A manifest that names no topics is one of them.
    pub fn add_manifest(&mut self, file: &Path) -> Result<&Dataset, ConfigError> {
        let (dataset, source) = dataset::of_manifest(file, &self.gateway)?;
        let origin = Origin::start_of(file);
        let error = |problem: String| ConfigError { origin: origin.clone(), key: String::new(), problem };
        let Some(source) = source else {
            return Err(error(
                "has a push source, which names no topics: declare it as [[dataset]] with `manifest` and `topics`"
                    .to_owned(),
            ));
        };
        let name = &dataset.spec.name;
        let known = self.datasets.iter().position(|known| known.spec.name.eq_ignore_ascii_case(name));
        let is_this_file = |known: usize| {
            let declared = self.datasets[known].origin.file().and_then(|declared| declared.canonicalize().ok());
            declared.is_some() && declared == file.canonicalize().ok()
        };
        if known.is_some_and(|known| !is_this_file(known)) {
            return Err(error(format!("there is another dataset of the name `{name}`")));
        }
        if self.sources.iter().any(|known| known.name.eq_ignore_ascii_case(&source.name)) {
            return Err(error(format!("there is a source of the name of its dataset, `{name}`")));
        }
        self.sources.push(source);
        source::make_room(&mut self.spool);
        if let Some(known) = known {
            return Ok(&self.datasets[known]);
        }
        if self.datasets == dataset::default_datasets() {
            self.datasets.clear();
        }
        // First, so that no wider pattern takes its messages.
        self.datasets.insert(0, dataset);
        Ok(&self.datasets[0])
    }

    /// For an agent that only seals and delivers: no device and no source is heard.
    pub fn receive_nothing(&mut self) {
        self.listeners.clear();
        self.sources.clear();
    }

    /// Whether no device and no source is heard.
    pub fn receives_nothing(&self) -> bool {
        self.listeners.is_empty() && self.sources.is_empty()
    }

    /// The socket by which commands reach a running agent.
    pub fn control_socket(&self) -> PathBuf {
        self.data_dir.join("forebay.sock")
    }
}

fn read_file(file: &Path, bytes_max: u64) -> Result<String, ConfigError> {
    let read = || {
        if std::fs::metadata(file)?.len() > bytes_max {
            return Err(std::io::Error::other(format!("it has more than {}", units::show_size(bytes_max))));
        }
        std::fs::read_to_string(file)
    };
    read().map_err(|error| ConfigError {
        origin: Origin::start_of(file),
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
mod source_tests;
#[cfg(test)]
mod tests;
