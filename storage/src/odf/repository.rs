//! A dataset on disk.
//!
//! Everything but `refs/head` is named by its content and never changes (I4). An append writes the blocks, each synced
//! under its name, and moves `refs/head` last, once for all of them: a power cut leaves the old head or the new one, and
//! at worst files that no block refers to, which [`Repository::sweep_orphans`] removes at the next start. A directory
//! without `refs/head` is a creation that was cut short, and is made again with the same key.
//!
//! Opening costs two reads and two SHA3-256 of every block (backwards for the order, forwards for the rules) and 33 bytes
//! of memory a block while it lasts; a dataset that is sealed once a minute has half a million blocks a year.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};

use super::block::{BlockError, MetadataBlock};
use super::chain::{ChainState, RuleViolation};
use super::event::{DatasetKind, Event, Seed};
use super::multihash::Multihash;
pub use super::walk::ChainFileError;
use super::{key, walk};
use crate::durable_fs::DurableFs;
use crate::position::Seq;

/// A dataset's directory, with one writer.
#[derive(Debug)]
pub struct Repository {
    dir: PathBuf,
    fs: DurableFs,
    state: ChainState,
    write_failed: bool,
}

/// A block that is to be written: where, and its bytes.
type BlockFile = (PathBuf, Vec<u8>);

/// Why a dataset was not made.
#[derive(Debug, thiserror::Error)]
pub enum CreateError {
    /// There is one.
    #[error("{} already holds a dataset", .0.display())]
    Exists(PathBuf),
    /// There was one.
    #[error(
        "{} holds blocks or data but no refs/head: it is a damaged dataset, not an unfinished one; restore refs/head from an upstream or move the directory away",
        .0.display()
    )]
    HeadLost(PathBuf),
    /// The disk.
    #[error("create a dataset: {0}")]
    Io(#[source] io::Error),
    /// The first block.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The first block.
    #[error(transparent)]
    Rule(#[from] RuleViolation),
}

/// Why a dataset was not opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// No `refs/head`: [`Repository::create`] decides whether it may be made.
    #[error("{} holds no dataset: it has no refs/head", .0.display())]
    NoHead(PathBuf),
    /// A file is missing, damaged, or not where it belongs.
    #[error(transparent)]
    Damaged(#[from] ChainFileError),
}

/// Why nothing was appended. The head is where it was, except after `Io`: then it is the old one or the new one, the
/// repository refuses further appends, and must be opened again.
#[derive(Debug, thiserror::Error)]
pub enum AppendError {
    /// The event must not follow.
    #[error(transparent)]
    Rule(#[from] RuleViolation),
    /// The event cannot be written.
    #[error(transparent)]
    Block(#[from] BlockError),
    /// The slice must be on disk first.
    #[error("{}: {found}; the block says {expected} bytes", .path.display())]
    Data {
        /// The slice.
        path: PathBuf,
        /// Bytes, by the event.
        expected: u64,
        /// What is there.
        found: String,
    },
    /// The disk.
    #[error("append to a dataset: {0}")]
    Io(#[source] io::Error),
    /// An earlier append failed with `Io`.
    #[error("an earlier write to {} failed; open the dataset again", .0.display())]
    WriteFailed(PathBuf),
}

/// What [`Repository::sweep_orphans`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sweep {
    /// Files removed: temporary ones, and blocks and data that the chain does not refer to.
    pub removed: Vec<PathBuf>,
    /// Their size, bytes.
    pub bytes: u64,
    /// Files that nobody here wrote, left alone.
    pub foreign: Vec<PathBuf>,
}

impl Repository {
    /// Makes a dataset with a key of its own and a Seed block.
    pub fn create(dir: &Path, fs: DurableFs, system_time: DateTime<Utc>) -> Result<Self, CreateError> {
        check_unfinished(dir)?;
        for name in ["blocks", "data", "refs"] {
            fs.create_dir_all(&dir.join(name)).map_err(CreateError::Io)?;
        }
        let dataset_id = key::load_or_create(&key::path_for(dir), &fs).map_err(CreateError::Io)?;
        let seed = MetadataBlock {
            system_time,
            prev_block_hash: None,
            sequence_number: 0,
            event: Event::Seed(Seed { dataset_id, dataset_kind: DatasetKind::Root }),
        };
        let bytes = seed.encode()?;
        let hash = Multihash::of(&bytes);
        let state = ChainState::start(hash, &seed)?;

        fs.write_new(&walk::block_path(dir, &hash), &bytes).map_err(CreateError::Io)?;
        fs.replace(&walk::head_path(dir), hash.to_string().as_bytes()).map_err(CreateError::Io)?;
        Ok(Self { dir: dir.to_owned(), fs, state, write_failed: false })
    }

    /// Opens a dataset: walks its chain and checks every block's hash and rules. Data files are not looked at.
    pub fn open(dir: &Path, fs: DurableFs) -> Result<Self, OpenError> {
        let head = match walk::read_head(dir) {
            Err(ChainFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Err(OpenError::NoHead(dir.to_owned()));
            }
            other => other?,
        };
        let hashes = walk::hashes(dir, head, None)?;
        let state = walk::replay(dir, &hashes, |_, _| {})?;
        let state = state.ok_or_else(|| OpenError::NoHead(dir.to_owned()))?;
        Ok(Self { dir: dir.to_owned(), fs, state, write_failed: false })
    }

    /// What the chain says.
    #[must_use]
    pub fn state(&self) -> &ChainState {
        &self.state
    }

    /// The dataset's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// How its files are written.
    #[must_use]
    pub fn fs(&self) -> &DurableFs {
        &self.fs
    }

    /// Where slices are written, before the event that names them is appended.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.join("data")
    }

    /// The file of the slice with this physical hash.
    #[must_use]
    pub fn data_path(&self, hash: &Multihash) -> PathBuf {
        walk::data_path(&self.dir, hash)
    }

    /// Appends a block for each event and moves the head once, after the last; answers the new head. Either all of the
    /// events are in the chain or none. Slices must be in place.
    pub fn append(&mut self, events: &[Event], system_time: DateTime<Utc>) -> Result<Multihash, AppendError> {
        let (state, files) = self.next_blocks(events, system_time)?;
        if files.is_empty() {
            return Ok(self.state.head);
        }
        self.write_failed = true;
        self.write(&files, state.head)?;
        self.write_failed = false;
        self.state = state;
        Ok(self.state.head)
    }

    /// Whether these events could be appended, so that several datasets change or none. Writes nothing.
    ///
    /// # Errors
    /// As of [`append`](Self::append).
    pub fn check(&self, events: &[Event], system_time: DateTime<Utc>) -> Result<(), AppendError> {
        self.next_blocks(events, system_time).map(drop)
    }

    /// What the chain would say after these events, and the files of their blocks.
    fn next_blocks(
        &self,
        events: &[Event],
        system_time: DateTime<Utc>,
    ) -> Result<(ChainState, Vec<BlockFile>), AppendError> {
        if self.write_failed {
            return Err(AppendError::WriteFailed(self.dir.clone()));
        }
        let mut state = self.state.clone();
        let mut files = Vec::with_capacity(events.len());
        for event in events {
            self.check_data(event)?;
            let block = state.next_block(event.clone(), system_time);
            let bytes = block.encode()?;
            let hash = Multihash::of(&bytes);
            state.accept(hash, &block)?;
            files.push((walk::block_path(&self.dir, &hash), bytes));
        }
        Ok((state, files))
    }

    /// The blocks after `after` (none: all of them), oldest first, each with its hash. A hash that is not in the chain
    /// stands for none.
    pub fn blocks(&self, after: Option<&Multihash>) -> Result<Blocks, ChainFileError> {
        let hashes = walk::hashes(&self.dir, self.state.head, after)?;
        Ok(Blocks { dir: self.dir.clone(), hashes: hashes.into_iter() })
    }

    /// Removes what a power cut left behind, slices below `released` included: they were to go. To be called before
    /// anything is being written, a slice included.
    pub fn sweep_orphans(&mut self, released: Seq) -> Result<Sweep, ChainFileError> {
        let mut keep = BTreeSet::new();
        for item in self.blocks(None)? {
            let (hash, block) = item?;
            keep.insert(walk::block_path(&self.dir, &hash));
            if block.event.last_seq().is_none_or(|last| last >= released) {
                keep.extend(block.event.new_data().map(|slice| self.data_path(&slice.physical_hash)));
            }
        }
        keep.insert(walk::head_path(&self.dir));
        let mut sweep = Sweep::default();
        for name in ["blocks", "data", "refs"] {
            self.sweep_dir(&self.dir.join(name), &keep, &mut sweep)?;
        }
        Ok(sweep)
    }

    fn sweep_dir(&self, dir: &Path, keep: &BTreeSet<PathBuf>, sweep: &mut Sweep) -> Result<(), ChainFileError> {
        let at = |source| ChainFileError::Io { path: dir.to_owned(), source };
        for path in list(dir).map_err(at)? {
            if keep.contains(&path) {
                continue;
            }
            if !is_ours(&path) {
                sweep.foreign.push(path);
                continue;
            }
            let bytes = fs::metadata(&path).map_err(at)?.len();
            self.fs.remove(&path).map_err(at)?;
            tracing::info!(path = %path.display(), bytes, "Removed a file that no block refers to.");
            sweep.bytes += bytes;
            sweep.removed.push(path);
        }
        Ok(())
    }

    /// I4: a head must not name a slice that is not there.
    fn check_data(&self, event: &Event) -> Result<(), AppendError> {
        let Some(slice) = event.new_data() else {
            return Ok(());
        };
        let path = self.data_path(&slice.physical_hash);
        let found = match fs::metadata(&path) {
            Ok(metadata) if metadata.len() == slice.size => return Ok(()),
            Ok(metadata) => format!("the slice has {} bytes", metadata.len()),
            Err(error) => format!("the slice is not there ({error})"),
        };
        Err(AppendError::Data { path, expected: slice.size, found })
    }

    fn write(&self, files: &[BlockFile], head: Multihash) -> Result<(), AppendError> {
        for (path, bytes) in files {
            self.fs.write_new(path, bytes).map_err(AppendError::Io)?;
        }
        self.fs.replace(&walk::head_path(&self.dir), head.to_string().as_bytes()).map_err(AppendError::Io)
    }
}

/// Blocks of a chain, oldest first, read one at a time.
#[derive(Debug)]
pub struct Blocks {
    dir: PathBuf,
    hashes: std::vec::IntoIter<Multihash>,
}

impl Iterator for Blocks {
    type Item = Result<(Multihash, MetadataBlock), ChainFileError>;

    fn next(&mut self) -> Option<Self::Item> {
        let hash = self.hashes.next()?;
        Some(walk::read_block(&self.dir, &hash).map(|block| (hash, block)))
    }
}

/// A directory that a creation may have left: at most Seed blocks, no data, no head.
fn check_unfinished(dir: &Path) -> Result<(), CreateError> {
    if walk::head_path(dir).exists() {
        return Err(CreateError::Exists(dir.to_owned()));
    }
    let data = list(&dir.join("data")).map_err(CreateError::Io)?;
    let blocks = list(&dir.join("blocks")).map_err(CreateError::Io)?;
    let is_left_over = |path: &PathBuf| DurableFs::is_temporary(path) || is_seed(path);
    if data.iter().all(|path| DurableFs::is_temporary(path)) && blocks.iter().all(is_left_over) {
        return Ok(());
    }
    Err(CreateError::HeadLost(dir.to_owned()))
}

fn is_seed(path: &Path) -> bool {
    let bytes = fs::read(path).unwrap_or_default();
    MetadataBlock::decode(&bytes).is_ok_and(|block| matches!(block.event, Event::Seed(_)))
}

/// Files of a directory in order of their names; one that is not there has none.
pub(super) fn list(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(with_path(dir, &error)),
        Ok(entries) => entries,
    };
    let paths = entries.map(|entry| entry.map(|entry| entry.path()).map_err(|error| with_path(dir, &error)));
    let mut paths = paths.collect::<io::Result<Vec<_>>>()?;
    paths.sort();
    Ok(paths)
}

fn with_path(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn is_ours(path: &Path) -> bool {
    DurableFs::is_temporary(path) || name_of(path).parse::<Multihash>().is_ok()
}

pub(super) fn name_of(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}
