//! An upstream that holds repositories: each dataset's is mirrored into a folder of its name (ODF RFC-007), in a directory
//! or in a bucket.
//!
//! Slices first, then blocks, then `refs/head`, each durable before the next: whoever reads it at any moment finds the old
//! chain whole or the new chain whole. What is already there is not written again, so a pass that was cut off, by an error
//! or by a plug that was pulled, goes on where it stopped. A bucket's `refs/head` is put on the condition that it still is
//! what was read before, so that two writers cannot both believe that they were first.
//!
//! A directory is never conjured up: an unmounted disk must look unreachable, not like an empty one that is filled on the
//! gateway's own flash. Only its last component is created, and only while nothing was ever delivered there.

use std::fs::{self, File};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use forebay_storage::durable_fs::DurableFs;
use forebay_storage::odf::{ChainFiles, Multihash};
use rustix::fs::{AtFlags, FileType, Mode};
use rustix::io::Errno;

use super::bell::Bell;
use super::bucket::BucketStore;
use super::http::PIECE_BYTES;
use super::outcome::Failure;
use super::pace::Pace;
use crate::config::{Upstream, UpstreamKind};

/// Where repositories are mirrored to.
#[derive(Debug)]
pub enum Mirror {
    /// A directory.
    Directory(Directory),
    /// A bucket.
    Bucket(BucketStore),
}

/// A directory that holds repositories.
#[derive(Debug)]
pub struct Directory {
    root: PathBuf,
    fs: DurableFs,
    pace: Pace,
    bell: Arc<Bell>,
}

/// The head of a repository there.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteHead {
    /// The newest block.
    pub hash: Multihash,
    /// What a bucket calls this state of the file.
    pub version: Option<FileVersion>,
}

/// What a bucket calls one state of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileVersion {
    /// Its ETag.
    pub e_tag: Option<String>,
    /// Its version, in a bucket that keeps several.
    pub version: Option<String>,
}

/// What came of pushing blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pushed {
    /// They are there, and the head is the last of them.
    Done {
        /// Bytes that were sent.
        bytes: u64,
    },
    /// The head is not, or no longer, what it was taken for: look again.
    HeadMoved,
}

/// The names of a repository's files, relative to it.
#[derive(Clone, Copy, Debug)]
pub(super) enum RemoteFile<'a> {
    Slice(&'a Multihash),
    Block(&'a Multihash),
    Head,
}

impl std::fmt::Display for RemoteFile<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Slice(hash) => write!(f, "data/{hash}"),
            Self::Block(hash) => write!(f, "blocks/{hash}"),
            Self::Head => f.write_str("refs/head"),
        }
    }
}

impl Mirror {
    /// For an upstream of one of the two kinds.
    ///
    /// # Errors
    /// What is configured for the bucket cannot be used.
    pub fn new(upstream: &Upstream, fs: &DurableFs, bell: &Arc<Bell>) -> Result<Option<Self>, Failure> {
        Ok(match &upstream.kind {
            UpstreamKind::Directory(root) => Some(Self::Directory(Directory {
                root: root.clone(),
                fs: fs.clone(),
                pace: Pace::new(upstream.rate_limit),
                bell: Arc::clone(bell),
            })),
            UpstreamKind::Bucket(bucket) => Some(Self::Bucket(BucketStore::new(bucket, upstream)?)),
            UpstreamKind::Smart(_) | UpstreamKind::Ingest(_) => None,
        })
    }

    /// Makes sure that it is there. `delivered`: the datasets of which something was delivered there before, so that it must
    /// still be there.
    ///
    /// # Errors
    /// It is not.
    pub async fn reach(&self, delivered: &[&str]) -> Result<(), Failure> {
        match self {
            Self::Directory(directory) => directory.reach(delivered),
            Self::Bucket(bucket) => bucket.reach().await,
        }
    }

    /// The head of a dataset's repository there; none: there is no repository. `delivered` as of [`reach`](Self::reach).
    ///
    /// # Errors
    /// It cannot be read or is no hash; a directory is the gateway's own, or lacks what was delivered there.
    pub async fn head(
        &self,
        dataset: &str,
        files: &ChainFiles,
        delivered: &[&str],
    ) -> Result<Option<RemoteHead>, Failure> {
        let directory = match self {
            Self::Directory(directory) => directory,
            Self::Bucket(bucket) => return bucket.head(dataset).await,
        };
        if directory.is_ours(dataset, files.dir()) {
            let root = directory.root.display();
            return Err(Failure::local(format!(
                "{root} holds the gateway's own datasets: an upstream is another place"
            )));
        }
        directory.mounted(delivered)?;
        directory.head(dataset)
    }

    /// Brings blocks, oldest first, with their slices, and moves the head to the last of them. `delivered` as of
    /// [`reach`](Self::reach).
    ///
    /// # Errors
    /// Something could not be read here or written there. What was written stays and is not written again.
    pub async fn push(
        &self,
        dataset: &str,
        files: &ChainFiles,
        known: Option<&RemoteHead>,
        blocks: &[Multihash],
        delivered: &[&str],
    ) -> Result<Pushed, Failure> {
        let Some(last) = blocks.last() else { return Ok(Pushed::Done { bytes: 0 }) };
        let mut bytes = 0;
        if let Self::Directory(directory) = self {
            directory.make_folders(dataset, delivered)?;
        }
        for hash in blocks {
            let block = files.block(hash).map_err(Failure::local)?;
            if let Some(slice) = block.event.new_data() {
                let from = files.data_path(&slice.physical_hash);
                bytes += self.bring(dataset, RemoteFile::Slice(&slice.physical_hash), &from, slice.size).await?;
            }
            let from = files.block_path(hash);
            let size = fs::metadata(&from).map_err(|error| local_error(&from, &error))?.len();
            bytes += self.bring(dataset, RemoteFile::Block(hash), &from, size).await?;
        }
        let moved = match self {
            Self::Directory(directory) => directory.set_head(dataset, known, last)?,
            Self::Bucket(bucket) => bucket.set_head(dataset, known, last).await?,
        };
        Ok(if moved { Pushed::Done { bytes } } else { Pushed::HeadMoved })
    }

    /// Brings one file unless it is there. A file is named by its content and appears whole, so its size tells.
    async fn bring(&self, dataset: &str, file: RemoteFile<'_>, from: &Path, size: u64) -> Result<u64, Failure> {
        match self {
            Self::Directory(directory) => {
                if directory.has(dataset, file, size) {
                    Ok(0)
                } else {
                    directory.copy(dataset, file, from).await
                }
            }
            Self::Bucket(bucket) => {
                // A block is smaller than the question whether it is there.
                let is_there = !matches!(file, RemoteFile::Block(_)) && bucket.has(dataset, file, size).await?;
                if is_there { Ok(0) } else { bucket.put(dataset, file, from, size).await }
            }
        }
    }
}

impl Directory {
    fn reach(&self, delivered: &[&str]) -> Result<(), Failure> {
        let expected = !delivered.is_empty();
        reach(&self.root, expected).map_err(|error| {
            let advice = if expected { ": is the disk mounted?" } else { "" };
            Failure::unreachable(format!("reach {}: {error}{advice}", self.root.display()))
        })?;
        self.mounted(delivered).map(drop)
    }

    /// Holds the directory, with its disk. A mount point without its disk is an empty directory: nothing may be written
    /// into it.
    fn mounted(&self, delivered: &[&str]) -> Result<File, Failure> {
        let root = File::open(&self.root).map_err(|error| remote_error(&self.root, &error))?;
        let is_there = |dataset: &&str| {
            rustix::fs::statat(&root, *dataset, AtFlags::empty())
                .is_ok_and(|there| FileType::from_raw_mode(there.st_mode) == FileType::Directory)
        };
        if delivered.is_empty() || delivered.iter().any(is_there) {
            return Ok(root);
        }
        Err(Failure::unreachable(format!(
            "{} holds nothing of {}, which was delivered there: is the disk mounted? For a new disk, make a folder of that \
             name on it",
            self.root.display(),
            delivered.join(", ")
        )))
    }

    /// By any name: a link to the gateway's own datasets is not another place.
    fn is_ours(&self, dataset: &str, ours: &Path) -> bool {
        let there = fs::canonicalize(self.root.join(dataset));
        there.is_ok_and(|there| fs::canonicalize(ours).is_ok_and(|ours| ours == there))
    }

    fn path(&self, dataset: &str, file: RemoteFile<'_>) -> PathBuf {
        self.root.join(dataset).join(file.to_string())
    }

    fn head(&self, dataset: &str) -> Result<Option<RemoteHead>, Failure> {
        let path = self.path(dataset, RemoteFile::Head);
        match fs::read_to_string(&path) {
            Ok(text) => parse_head(&path.display().to_string(), &text, None).map(Some),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(remote_error(&path, &error)),
        }
    }

    fn has(&self, dataset: &str, file: RemoteFile<'_>, size: u64) -> bool {
        fs::metadata(self.path(dataset, file)).is_ok_and(|there| there.len() == size)
    }

    fn make_folders(&self, dataset: &str, delivered: &[&str]) -> Result<(), Failure> {
        self.make_folder(dataset, delivered)?;
        let root = self.root.join(dataset);
        for folder in ["blocks", "data", "checkpoints", "refs"] {
            let path = root.join(folder);
            match fs::create_dir(&path) {
                Ok(()) => self.fs.sync_dir(&root).map_err(|error| remote_error(&root, &error))?,
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    // What an earlier pass had begun when the disk was pulled.
                    self.fs.remove_temporary(&path).map_err(|error| remote_error(&path, &error))?;
                }
                Err(error) => return Err(remote_error(&path, &error)),
            }
        }
        Ok(())
    }

    /// Makes the dataset's folder on the very disk that was found mounted. By its path, one that is pulled at this moment
    /// would leave the folder in the mount point, which would pass for the disk from then on. Everything else is made
    /// inside of that folder, and fails without it.
    fn make_folder(&self, dataset: &str, delivered: &[&str]) -> Result<(), Failure> {
        let root = self.mounted(delivered)?;
        let made = match rustix::fs::mkdirat(&root, dataset, Mode::from_raw_mode(0o777)) {
            Ok(()) => root.sync_all(),
            Err(Errno::EXIST) => Ok(()),
            Err(error) => Err(error.into()),
        };
        made.map_err(|error| remote_error(&self.root.join(dataset), &error))
    }

    async fn copy(&self, dataset: &str, file: RemoteFile<'_>, from: &Path) -> Result<u64, Failure> {
        let to = self.path(dataset, file);
        let refused = |error: io::Error| remote_error(&self.root, &error);
        let mut source = File::open(from).map_err(|error| local_error(from, &error))?;
        let mut temp = self.fs.create_temp(to.parent().unwrap_or(&to)).map_err(refused)?;
        let mut piece = vec![0; PIECE_BYTES];
        let mut bytes = 0;
        loop {
            if self.bell.is_stopped() {
                return Err(Failure::stopped());
            }
            let read = source.read(&mut piece).map_err(|error| local_error(from, &error))?;
            if read == 0 {
                break;
            }
            self.pace.wait(read).await;
            temp.write_all(piece.get(..read).unwrap_or_default()).map_err(refused)?;
            bytes += read as u64;
        }
        temp.persist(&to).map_err(refused)?;
        Ok(bytes)
    }

    /// A directory has no compare-and-swap; looking again narrows the gap in which another writer could slip in.
    fn set_head(&self, dataset: &str, known: Option<&RemoteHead>, head: &Multihash) -> Result<bool, Failure> {
        if self.head(dataset)?.as_ref() != known {
            return Ok(false);
        }
        let path = self.path(dataset, RemoteFile::Head);
        self.fs.replace(&path, head.to_string().as_bytes()).map_err(|error| remote_error(&path, &error))?;
        Ok(true)
    }
}

/// Makes sure that the upstream's directory can be used. `expected`: something was delivered there before, so it must
/// still be there.
pub fn reach(root: &Path, expected: bool) -> io::Result<()> {
    match fs::metadata(root) {
        Ok(metadata) if metadata.is_dir() => Ok(()),
        Ok(_) => Err(io::Error::new(io::ErrorKind::NotADirectory, "is not a directory")),
        Err(error) if error.kind() == io::ErrorKind::NotFound && !expected => {
            fs::create_dir(root)?;
            root.parent().map_or(Ok(()), |parent| File::open(parent)?.sync_all())
        }
        Err(error) => Err(error),
    }
}

/// Reads `refs/head`. `kamu` refuses so much as a newline after it; we do not, since an editor may have put it there.
pub(super) fn parse_head(place: &str, text: &str, version: Option<FileVersion>) -> Result<RemoteHead, Failure> {
    let hash = text.trim().parse().map_err(|_| {
        let shown: String = text.chars().take(80).collect();
        Failure::new(
            super::outcome::FailureKind::Diverged,
            format!("{place} is {shown:?} and not the hash of a block: another program wrote there"),
        )
    })?;
    Ok(RemoteHead { hash, version })
}

/// Without the names of temporary files, so that the same trouble has the same words each time.
fn remote_error(path: &Path, error: &io::Error) -> Failure {
    let what = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "the disk is full".to_owned(),
        io::ErrorKind::ReadOnlyFilesystem => "the disk is mounted read-only".to_owned(),
        io::ErrorKind::PermissionDenied => "the agent may not write there".to_owned(),
        _ => error.to_string(),
    };
    Failure::unreachable(format!("{}: {what}", path.display()))
}

fn local_error(path: &Path, error: &io::Error) -> Failure {
    Failure::local(format!("{}: {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_that_is_pulled_between_two_looks_leaves_nothing_in_its_mount_point() {
        let dir = tempfile::tempdir().unwrap();
        let (mount, disk) = (dir.path().join("mount"), dir.path().join("disk"));
        fs::create_dir(&mount).unwrap();
        let durable = DurableFs::new();
        let directory = Directory { root: mount.clone(), fs: durable, pace: Pace::new(None), bell: Arc::default() };
        directory.make_folders("temp", &[]).unwrap();
        directory.mounted(&["temp"]).unwrap();

        fs::rename(&mount, &disk).unwrap();
        fs::create_dir(&mount).unwrap();

        for dataset in ["temp", "door"] {
            let failure = directory.make_folders(dataset, &["temp"]).unwrap_err();
            assert!(failure.to_string().contains("is the disk mounted?"), "{failure}");
        }
        assert_eq!(fs::read_dir(&mount).unwrap().count(), 0);
        fs::remove_dir(&mount).unwrap();
        fs::rename(&disk, &mount).unwrap();
        directory.make_folders("door", &["temp"]).unwrap();
        assert!(mount.join("door/refs").is_dir());
    }
}
