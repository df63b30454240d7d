//! `[[upstream]]`: where datasets go, and how.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use chrono::NaiveTime;
use reqwest::Url;

use super::Dataset;
use super::document::{ConfigError, Node, Section, nearest};
use super::read::{only_if, secret, word};

type Result<T> = std::result::Result<T, ConfigError>;
type Parsed<T> = std::result::Result<T, String>;

/// The template of the push ingest URL when none is configured.
const INGEST_PATH: &str = "{account}/{dataset}/ingest";
/// How long an upstream may be silent before an attempt is given up, when nothing is configured.
const TIMEOUT: Duration = Duration::from_secs(120);

/// One `[[upstream]]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upstream {
    /// As written; it names the upstream in the spool and in reports.
    pub url: String,
    /// What it is.
    pub kind: UpstreamKind,
    /// Names of the datasets that go there. Default: all.
    pub datasets: Option<BTreeSet<String>>,
    /// Where the token is; a node only.
    pub token: Option<Secret>,
    /// A PEM file with the certificates that are trusted instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// Bytes a second that are sent at the most. Default: as fast as it goes.
    pub rate_limit: Option<NonZeroU64>,
    /// When anything is sent at all, by the gateway's local time. Default: always.
    pub window: Option<Window>,
    /// Whether fresh, small slices go before a backlog.
    pub live_first: bool,
    /// How long the upstream may be silent before an attempt is given up. Default 120 s.
    pub timeout: Duration,
}

/// Upstreams by URL scheme.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamKind {
    /// `file:///path`: a directory in which each dataset's repository is mirrored.
    Directory(PathBuf),
    /// `s3://bucket/prefix`, `s3+http(s)://host:port/bucket/prefix`: the same in a bucket.
    Bucket(Bucket),
    /// `odf+http(s)://node/account`: ODF Smart Transfer Protocol; the node's dataset is ours.
    Smart(NodeUrl),
    /// `http(s)://node/account`: Kamu push ingest; the node's dataset takes our rows.
    Ingest(Ingest),
}

/// An S3-compatible store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bucket {
    /// `http://host:port` of the store; none: Amazon's.
    pub endpoint: Option<String>,
    /// Its name.
    pub name: String,
    /// Before every key, without slashes at its ends; may be empty.
    pub prefix: String,
    /// Default: `AWS_REGION`, else us-east-1.
    pub region: Option<String>,
    /// Default: `AWS_ACCESS_KEY_ID` and its like, or the credentials of the machine's role.
    pub access_key_id: Option<String>,
    /// Belongs to `access_key_id`.
    pub secret_access_key: Option<Secret>,
}

/// A Kamu node, and whose datasets are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeUrl {
    /// `http(s)://host/…/`, without the account; its path ends in a slash.
    pub base: Url,
    /// The last component of the configured URL; none: a single-tenant node.
    pub account: Option<String>,
}

/// How rows are posted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ingest {
    /// The node.
    pub node: NodeUrl,
    /// Path below the node's base, with `{account}` and `{dataset}`.
    pub path: String,
    /// Encoding of the rows.
    pub format: IngestFormat,
    /// Name of the push source; needed when the node's dataset has several.
    pub source_name: Option<String>,
}

/// Encoding of rows that are posted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum IngestFormat {
    /// One Parquet file a request.
    #[default]
    Parquet,
    /// One JSON object a line.
    NdJson,
}

/// Where a secret is. It never stands in the configuration itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Secret {
    /// In a file, read again before it is believed to be wrong.
    File(PathBuf),
    /// In an environment variable of this name.
    Env(String),
}

/// A part of each day, by local time. It may pass midnight.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Window {
    /// First minute.
    pub from: NaiveTime,
    /// First minute that is outside again.
    pub to: NaiveTime,
}

impl Upstream {
    /// Whether this dataset goes there.
    #[must_use]
    pub fn takes(&self, dataset: &str) -> bool {
        self.datasets.as_ref().is_none_or(|datasets| datasets.contains(dataset))
    }

    /// An upstream with every default.
    pub fn at(url: &str) -> Parsed<Self> {
        let kind = kind(url)?;
        Ok(Self {
            // The URL names the upstream's positions: a slash more or less at its end must not make it another one.
            url: url.trim_end_matches('/').to_owned(),
            kind,
            datasets: None,
            token: None,
            ca_file: None,
            rate_limit: None,
            window: None,
            live_first: false,
            timeout: TIMEOUT,
        })
    }
}

impl UpstreamKind {
    /// The node behind it, if it is one.
    #[must_use]
    pub fn node(&self) -> Option<&NodeUrl> {
        match self {
            Self::Smart(node) => Some(node),
            Self::Ingest(ingest) => Some(&ingest.node),
            Self::Directory(_) | Self::Bucket(_) => None,
        }
    }
}

impl NodeUrl {
    /// A path below the base.
    #[must_use]
    pub fn join(&self, path: &str) -> Url {
        // Joining a relative path to an http URL cannot fail; the base itself would be answered with 404.
        self.base.join(path).unwrap_or_else(|_| self.base.clone())
    }

    /// The URL of a dataset.
    #[must_use]
    pub fn dataset(&self, name: &str) -> Url {
        self.fill("{account}/{dataset}", name)
    }

    /// A path template, filled. A single-tenant node has no `{account}/`.
    #[must_use]
    pub fn fill(&self, template: &str, dataset: &str) -> Url {
        let template = template.trim_start_matches('/');
        let path = match &self.account {
            Some(account) => template.replace("{account}", account),
            None => template.replace("{account}/", ""),
        };
        self.join(&path.replace("{dataset}", dataset))
    }
}

impl Secret {
    /// Reads it; white space around it does not count.
    ///
    /// # Errors
    /// One line that names the file or variable.
    pub fn read(&self) -> Parsed<String> {
        match self.text()?.trim() {
            "" => Err(format!("{self} is empty")),
            text if text.chars().any(|c| c.is_whitespace() || c.is_control()) => {
                Err(format!("{self} holds more than one word"))
            }
            text => Ok(text.to_owned()),
        }
    }

    /// Reads it as a password, which may have white space; the line end after it does not count.
    ///
    /// # Errors
    /// One line that names the file or variable.
    pub fn read_line(&self) -> Parsed<String> {
        let text = self.text()?;
        let line = text.strip_suffix('\n').unwrap_or(&text);
        match line.strip_suffix('\r').unwrap_or(line) {
            "" => Err(format!("{self} is empty")),
            line if line.contains('\n') => Err(format!("{self} holds more than one line")),
            line => Ok(line.to_owned()),
        }
    }

    fn text(&self) -> Parsed<String> {
        match self {
            Self::File(path) => {
                std::fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))
            }
            Self::Env(name) => {
                std::env::var(name).map_err(|_| format!("the environment variable {name} is not set to text"))
            }
        }
    }
}

impl std::fmt::Display for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::File(path) => write!(f, "{}", path.display()),
            Self::Env(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// Every `[[upstream]]`, in file order.
pub(super) fn upstreams(node: Node, datasets: &[Dataset], data_dir: &Path) -> Result<Vec<Upstream>> {
    let mut upstreams: Vec<Upstream> = Vec::new();
    for section in node.sections()? {
        let whole = section.error("");
        let upstream = upstream(section, datasets)?;
        if let UpstreamKind::Directory(path) = &upstream.kind
            && overlaps(path, data_dir)
        {
            let problem =
                "lies in data_dir or around it: an upstream is another place, so that data may leave this one";
            return Err(ConfigError { key: "upstream.url".to_owned(), problem: problem.to_owned(), ..whole });
        }
        if let Some(problem) = upstreams.iter().find_map(|known| clash(known, &upstream, datasets)) {
            return Err(ConfigError { key: "upstream.url".to_owned(), problem, ..whole });
        }
        upstreams.push(upstream);
    }
    Ok(upstreams)
}

fn upstream(mut section: Section, datasets: &[Dataset]) -> Result<Upstream> {
    let Some(url) = section.take("url") else {
        return Err(section.error(
            "needs `url`, such as url = \"file:///mnt/usb/forebay\" or url = \"odf+https://node.example.com/account\"",
        ));
    };
    let mut upstream = url.parsed(Upstream::at)?;
    upstream.datasets = section.take("datasets").map(|node| names(node, datasets)).transpose()?;
    upstream.rate_limit = section.read("rate_limit", None, |node| {
        NonZeroU64::new(node.size()?).map(Some).ok_or_else(|| node.error("at least 1 B (a second)"))
    })?;
    upstream.window = section.read("window", None, |node| node.parsed(window).map(Some))?;
    upstream.live_first = section.read("live_first", false, Node::boolean)?;
    upstream.timeout = section.read("timeout", TIMEOUT, |node| match node.duration()? {
        timeout if timeout >= Duration::from_millis(100) => Ok(timeout),
        _ => Err(node.error("at least 100ms")),
    })?;
    let over_http = !matches!(upstream.kind, UpstreamKind::Directory(_));
    upstream.ca_file =
        only_if(over_http, "an upstream with https", &mut section, "ca_file", |node| Ok(PathBuf::from(node.text()?)))?;
    let is_node = upstream.kind.node().is_some();
    upstream.token = secret(is_node, "a node", &mut section, "token_file", "token_env")?;
    match &mut upstream.kind {
        UpstreamKind::Bucket(bucket) => bucket_keys(bucket, &mut section)?,
        UpstreamKind::Ingest(ingest) => ingest_keys(ingest, &mut section)?,
        UpstreamKind::Directory(_) | UpstreamKind::Smart(_) => {
            for key in ["ingest_path", "ingest_format", "source_name"] {
                only_if(false, "push ingest (a URL by http:// or https://)", &mut section, key, |_| Ok(()))?;
            }
        }
    }
    for key in ["region", "access_key_id", "secret_access_key_file", "secret_access_key_env"] {
        only_if(false, "S3", &mut section, key, |_| Ok(()))?;
    }
    section.finish()?;
    Ok(upstream)
}

fn bucket_keys(bucket: &mut Bucket, section: &mut Section) -> Result<()> {
    let text = |node: &Node| Ok(Some(node.text()?.to_owned()));
    bucket.region = section.read("region", None, text)?;
    let key_id = section.take("access_key_id");
    let secret = secret(true, "S3", section, "secret_access_key_file", "secret_access_key_env")?;
    match (&key_id, &secret) {
        (Some(node), None) => return Err(node.error("needs secret_access_key_file or secret_access_key_env")),
        (None, Some(_)) => return Err(section.error("a secret_access_key needs access_key_id")),
        _ => {}
    }
    bucket.access_key_id = key_id.as_ref().map(|node| Ok(node.text()?.to_owned())).transpose()?;
    bucket.secret_access_key = secret;
    Ok(())
}

fn ingest_keys(ingest: &mut Ingest, section: &mut Section) -> Result<()> {
    ingest.path = section.read("ingest_path", INGEST_PATH.to_owned(), |node| node.parsed(path_template))?;
    ingest.format = section.read("ingest_format", IngestFormat::Parquet, |node| {
        word(node, &[("parquet", IngestFormat::Parquet), ("ndjson", IngestFormat::NdJson)])
    })?;
    ingest.source_name = section.read("source_name", None, |node| Ok(Some(node.text()?.to_owned())))?;
    Ok(())
}

fn names(node: Node, datasets: &[Dataset]) -> Result<BTreeSet<String>> {
    let known: Vec<&str> = datasets.iter().map(|dataset| dataset.spec.name.as_str()).collect();
    let empty = node.error("names no dataset: leave the key away for all of them");
    let mut names = BTreeSet::new();
    for node in node.list()? {
        let name = node.text()?;
        if !known.contains(&name) {
            return Err(node.error(match nearest(name, &known) {
                Some(near) => format!("there is no dataset {name:?}; did you mean {near:?}?"),
                None => format!("there is no dataset {name:?}; there are: {}", known.join(", ")),
            }));
        }
        names.insert(name.to_owned());
    }
    if names.is_empty() { Err(empty) } else { Ok(names) }
}

/// Whether one of two directories lies in the other, as far as their names tell; `deliver` looks at the disk, too.
fn overlaps(path: &Path, data_dir: &Path) -> bool {
    let data_dir = std::path::absolute(data_dir).unwrap_or_else(|_| data_dir.to_owned());
    path.starts_with(&data_dir) || data_dir.starts_with(path)
}

/// Why two upstreams cannot stand in one file.
fn clash(one: &Upstream, other: &Upstream, datasets: &[Dataset]) -> Option<String> {
    if one.url == other.url || one.kind == other.kind {
        return Some(format!("{} is already the URL of another upstream", other.url));
    }
    let (a, b) = (one.kind.node()?, other.kind.node()?);
    let shared = datasets.iter().map(|dataset| &dataset.spec.name).find(|name| one.takes(name) && other.takes(name));
    let is_both = std::mem::discriminant(&one.kind) != std::mem::discriminant(&other.kind);
    let same = is_both
        && a.base.host_str() == b.base.host_str()
        && a.base.port_or_known_default() == b.base.port_or_known_default()
        && a.account == b.account;
    shared.filter(|_| same).map(|name| {
        format!(
            "dataset {name} would go to the same account of the same node by push ingest and by smart push: the first \
             posted row would make its chain there differ from the gateway's for good. Keep one of the two, or name \
             different ones in `datasets` of each"
        )
    })
}

fn kind(url: &str) -> Parsed<UpstreamKind> {
    let Some((scheme, rest)) = url.split_once("://") else {
        return Err(format!("{url:?} is not a URL such as \"file:///mnt/usb/forebay\""));
    };
    let authority = rest.split('/').next().unwrap_or_default();
    if authority.contains('@') {
        // Not repeated: what stands there may be a secret.
        return Err(
            "the URL of an upstream has no user and no password: a token belongs in token_file, the keys of S3 in \
                    access_key_id and secret_access_key_file"
                .to_owned(),
        );
    }
    match scheme {
        "s3" | "s3+http" | "s3+https" if !cfg!(feature = "s3") => Err(left_out(scheme, "s3")),
        "odf+http" | "odf+https" if !cfg!(feature = "smart-push") => Err(left_out(scheme, "smart-push")),
        "file" => directory(rest).map(UpstreamKind::Directory),
        "s3" => bucket(None, rest).map(UpstreamKind::Bucket),
        "s3+http" | "s3+https" => {
            let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
            let endpoint = format!("{}://{host}", scheme.trim_start_matches("s3+"));
            Url::parse(&endpoint).map_err(|error| format!("{url:?} is not a URL: {error}"))?;
            bucket(Some(endpoint), path).map(UpstreamKind::Bucket)
        }
        "odf+http" | "odf+https" => node_url(url.trim_start_matches("odf+")).map(UpstreamKind::Smart),
        "http" | "https" => Ok(UpstreamKind::Ingest(Ingest {
            node: node_url(url)?,
            path: INGEST_PATH.to_owned(),
            format: IngestFormat::default(),
            source_name: None,
        })),
        _ => Err(format!(
            "`{scheme}://` is not a scheme of an upstream; there are file, s3, s3+http, s3+https (a repository), \
             odf+https, odf+http (smart push to a Kamu node), https, http (push ingest)"
        )),
    }
}

fn left_out(scheme: &str, feature: &str) -> String {
    format!(
        "`{scheme}://` is left out of this build: take a package that has it, or build with `cargo build --release \
         --features {feature}`"
    )
}

fn directory(path: &str) -> Parsed<PathBuf> {
    let path = PathBuf::from(path);
    let plain = path.components().all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    if !path.is_absolute() || !plain || path.parent().is_none() {
        return Err("a directory is written in full, with three slashes: \"file:///mnt/usb/forebay\"".to_owned());
    }
    Ok(path)
}

fn bucket(endpoint: Option<String>, path: &str) -> Parsed<Bucket> {
    let (name, prefix) = path.trim_matches('/').split_once('/').unwrap_or((path.trim_matches('/'), ""));
    if name.is_empty() || prefix.split('/').any(|part| matches!(part, "." | "..")) {
        return Err("needs a bucket: \"s3://bucket/prefix\" or \"s3+https://host:port/bucket/prefix\"".to_owned());
    }
    Ok(Bucket {
        endpoint,
        name: name.to_owned(),
        prefix: prefix.trim_matches('/').to_owned(),
        region: None,
        access_key_id: None,
        secret_access_key: None,
    })
}

fn node_url(url: &str) -> Parsed<NodeUrl> {
    let mut base = Url::parse(url).map_err(|error| format!("{url:?} is not a URL: {error}"))?;
    if base.query().is_some() || base.fragment().is_some() {
        return Err("the URL of a node has no `?` and no `#`".to_owned());
    }
    let path = base.path().trim_matches('/').to_owned();
    let (parent, account) = path.rsplit_once('/').unwrap_or(("", &path));
    base.set_path(&if parent.is_empty() { "/".to_owned() } else { format!("/{parent}/") });
    Ok(NodeUrl { base, account: Some(account).filter(|account| !account.is_empty()).map(str::to_owned) })
}

fn path_template(text: &str) -> Parsed<String> {
    if !text.contains("{dataset}") {
        return Err(format!("needs {{dataset}}; the default is \"{INGEST_PATH}\""));
    }
    let rest = text.replace("{account}", "").replace("{dataset}", "");
    if rest.contains(['{', '}', '?', '#']) {
        return Err("may have {account} and {dataset}, and no `?` or `#`".to_owned());
    }
    Ok(text.to_owned())
}

fn window(text: &str) -> Parsed<Window> {
    let time = |text: &str| NaiveTime::parse_from_str(text.trim(), "%H:%M").ok();
    let window = text.split_once('-').and_then(|(from, to)| Some(Window { from: time(from)?, to: time(to)? }));
    window
        .filter(|window| window.from != window.to)
        .ok_or_else(|| format!("{text:?} is not a part of the day such as \"22:00-06:00\" (local time)"))
}
