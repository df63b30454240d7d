//! Where a measured agent delivers to: a directory, or a server of the tests behind a link that can be taken away.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use forebay_agent::upstream::ingest::payload;
use forebay_agent::verify;
use forebay_tests::agent::{self, AgentConfig};
use forebay_tests::node::{NodeConfig, StubNode};
use forebay_tests::proxy::Proxy;
use forebay_tests::s3::{self, S3Server};

/// A kind of upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kind {
    /// A directory.
    Directory,
    /// A bucket of an S3 server.
    Bucket,
    /// Smart push to a node.
    Smart,
    /// Push ingest to a node.
    Ingest,
}

/// An upstream that is away until it is let in.
pub(crate) struct Destination {
    kind: Kind,
    url: String,
    /// More lines of `[upstream]`.
    keys: String,
    server: Server,
}

enum Server {
    /// A disk that is mounted here, and where it is while it is not.
    Directory(PathBuf, PathBuf),
    Bucket(S3Server, Proxy),
    Node(StubNode, Proxy),
}

impl Kind {
    /// Name in the table.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Directory => "directory",
            Self::Bucket => "bucket",
            Self::Smart => "smart push",
            Self::Ingest => "push ingest",
        }
    }
}

impl Destination {
    /// Starts it under `dir`. It can be reached until it is told otherwise.
    pub(crate) fn start(kind: Kind, dir: &Path) -> Result<Self> {
        match kind {
            Kind::Directory => {
                let (mount, unplugged) = (dir.join("mount"), dir.join("unplugged"));
                fs::create_dir(&mount)?;
                let url = format!("file://{}", mount.join("forebay").display());
                Ok(Self { kind, url, keys: String::new(), server: Server::Directory(mount, unplugged) })
            }
            Kind::Bucket => bucket(dir),
            Kind::Smart | Kind::Ingest => node(kind, dir),
        }
    }

    /// Which kind.
    pub(crate) fn kind(&self) -> Kind {
        self.kind
    }

    /// The agent's `[upstream]`.
    pub(crate) fn toml(&self) -> String {
        format!("[upstream]\nurl = '{}'\n{}", self.url, self.keys)
    }

    /// Creates on the node what the agent will post to.
    pub(crate) fn provision(&self, program: &Path, config: &AgentConfig) -> Result<()> {
        if self.kind == Kind::Ingest {
            let output = agent::command(program, config, &["provision"])?;
            ensure!(output.status.success(), "provision: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }

    /// Takes the link away, or gives it back.
    pub(crate) fn set_away(&self, is_away: bool) -> Result<()> {
        match &self.server {
            Server::Directory(mount, unplugged) if is_away => fs::rename(mount, unplugged)?,
            Server::Directory(mount, unplugged) => fs::rename(unplugged, mount)?,
            Server::Bucket(_, proxy) | Server::Node(_, proxy) => {
                proxy.refuse(is_away);
                if is_away {
                    proxy.cut();
                }
            }
        }
        Ok(())
    }

    /// Makes the link slow, or as fast as it goes. Whether there is a link.
    pub(crate) fn set_slow(&self, bytes_per_sec: Option<u64>) -> bool {
        match &self.server {
            Server::Directory(..) => false,
            Server::Bucket(_, proxy) | Server::Node(_, proxy) => {
                proxy.throttle(bytes_per_sec);
                true
            }
        }
    }

    /// The server's process; a directory has none.
    pub(crate) fn pid(&self) -> Option<u32> {
        match &self.server {
            Server::Directory(..) => None,
            Server::Bucket(server, _) => server.pid(),
            Server::Node(node, _) => Some(node.pid()),
        }
    }

    /// Bytes that went up the link; a directory has none.
    pub(crate) fn bytes_up(&self) -> Option<u64> {
        match &self.server {
            Server::Directory(..) => None,
            Server::Bucket(_, proxy) | Server::Node(_, proxy) => Some(proxy.bytes_up()),
        }
    }

    /// The rows that a dataset has there. A chain of ours is verified too.
    pub(crate) fn rows(&self, dataset: &str) -> Result<u64> {
        let repository = match &self.server {
            Server::Directory(mount, _) => mount.join("forebay").join(dataset),
            Server::Bucket(server, _) => server.object_path(&format!("bench/{dataset}")),
            Server::Node(node, _) => node.dataset_dir(node.account(), dataset),
        };
        if self.kind != Kind::Ingest {
            let report = verify::dataset(dataset, &repository);
            ensure!(report.ok, "{} does not verify: {report:?}", repository.display());
        }
        let mut rows = 0;
        for slice in slices(&repository)? {
            rows += payload::rows(&slice)?;
        }
        Ok(rows)
    }
}

/// The data files of a repository.
pub(crate) fn slices(repository: &Path) -> Result<Vec<PathBuf>> {
    let data = repository.join("data");
    let entries = fs::read_dir(&data).with_context(|| format!("list {}", data.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}

fn bucket(dir: &Path) -> Result<Destination> {
    let server = S3Server::start(&beside("forebay-stub-s3")?, &dir.join("s3"))?;
    let proxy = Proxy::start(server.addr())?;
    let url = server.url("bench").replace(&server.addr().to_string(), &proxy.addr().to_string());
    let secret = dir.join("secret");
    fs::write(&secret, s3::SECRET_KEY)?;
    let keys = format!(
        "region = \"{}\"\naccess_key_id = \"{}\"\nsecret_access_key_file = '{}'\n",
        s3::REGION,
        s3::ACCESS_KEY,
        secret.display()
    );
    Ok(Destination { kind: Kind::Bucket, url, keys, server: Server::Bucket(server, proxy) })
}

fn node(kind: Kind, dir: &Path) -> Result<Destination> {
    let node = StubNode::start_program(&beside("forebay-stub-node")?, &NodeConfig::in_dir(&dir.join("node")))?;
    let proxy = Proxy::start(node.addr())?;
    let scheme = if kind == Kind::Smart { "odf+http" } else { "http" };
    let url = format!("{scheme}://{}/{}", proxy.addr(), node.account());
    let token = dir.join("token");
    fs::write(&token, node.token())?;
    let keys = format!("token_file = '{}'\n", token.display());
    Ok(Destination { kind, url, keys, server: Server::Node(node, proxy) })
}

/// A program that was built with this one.
pub(crate) fn beside(name: &str) -> Result<PathBuf> {
    let program = std::env::current_exe().context("find this program")?.with_file_name(name);
    ensure!(program.is_file(), "{} is not built", program.display());
    Ok(program)
}
