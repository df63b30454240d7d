//! An upstream that is a directory: each dataset's repository is mirrored into a folder of its name (ODF RFC-007).
//!
//! Slices first, then blocks, then `refs/head`, each durable before the next: whoever reads the directory at any moment
//! finds the old chain whole or the new chain whole. What is already there is not written again, so a pass that was cut
//! off, by an error or by a plug that was pulled, goes on where it stopped.
//!
//! The directory is never conjured up: an unmounted disk must look unreachable, not like an empty one that is filled on
//! the gateway's own flash. Only its last component is created, and only while nothing was ever delivered there.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use forebay_storage::durable_fs::DurableFs;
use forebay_storage::odf::{Event, MetadataBlock, Multihash};

/// One dataset's repository here and its copy there.
#[derive(Debug)]
pub struct Mirror<'a> {
    /// The repository of the gateway.
    pub local: &'a Path,
    /// Where its copy is.
    pub remote: PathBuf,
    /// How files are made durable.
    pub fs: &'a DurableFs,
    /// Ends a pass between two files.
    pub stop: &'a AtomicBool,
}

/// What a pass did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mirrored {
    /// Head of both.
    pub head: Multihash,
    /// Blocks that were new there.
    pub blocks: usize,
    /// Bytes that were written.
    pub bytes: u64,
}

/// Why a pass ended early.
#[derive(Debug, thiserror::Error)]
pub enum MirrorError {
    /// The other side cannot be written: it is tried again.
    #[error("{}: {source}", path.display())]
    Remote {
        /// What was being written or read.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The repository of the gateway cannot be read.
    #[error("{}: {problem}", path.display())]
    Local {
        /// What was being read.
        path: PathBuf,
        /// Why not.
        problem: String,
    },
    /// The other side holds a chain that ours does not continue: somebody else wrote there.
    #[error(
        "{}: its head {head} is not a block of this gateway's chain: another writer was here. Move that directory away, \
         or name another one in upstream.url",
        path.display()
    )]
    Diverged {
        /// The repository there.
        path: PathBuf,
        /// Its head.
        head: String,
    },
    /// The agent is stopping.
    #[error("stopped")]
    Stopped,
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

impl Mirror<'_> {
    /// Brings the copy to the head of the local chain. `None`: there is no local chain yet.
    pub fn run(&self) -> Result<Option<Mirrored>, MirrorError> {
        let Some(head) = self.local_head()? else { return Ok(None) };
        let remote_head = self.remote_head()?;
        let news = self.blocks_after(&head, remote_head.as_deref())?;
        let mut bytes = 0;
        if remote_head.as_deref() != Some(&head.to_string()) {
            self.make_folders()?;
            for (name, block) in news.iter().rev() {
                bytes += self.copy_slice(block)?;
                bytes += self.copy_block(name)?;
            }
            let path = self.remote.join("refs/head");
            let text = head.to_string();
            self.fs.replace(&path, text.as_bytes()).map_err(remote_error(&path))?;
        }
        Ok(Some(Mirrored { head, blocks: news.len(), bytes }))
    }

    fn local_head(&self) -> Result<Option<Multihash>, MirrorError> {
        let path = self.local.join("refs/head");
        match fs::read_to_string(&path) {
            Ok(text) => text.trim().parse().map(Some).map_err(|error| local_error(&path, &error)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(local_error(&path, &error)),
        }
    }

    fn remote_head(&self) -> Result<Option<String>, MirrorError> {
        let path = self.remote.join("refs/head");
        match fs::read_to_string(&path) {
            Ok(text) => Ok(Some(text.trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(MirrorError::Remote { path, source }),
        }
    }

    /// Blocks from `head` back to, and without, the block that the other side has as its head; newest first.
    fn blocks_after(
        &self,
        head: &Multihash,
        remote_head: Option<&str>,
    ) -> Result<Vec<(String, MetadataBlock)>, MirrorError> {
        let mut blocks = Vec::new();
        let mut next = Some(head.to_string());
        while let Some(name) = next.take_if(|name| Some(name.as_str()) != remote_head) {
            let block = self.local_block(&name)?;
            next = block.prev_block_hash.as_ref().map(ToString::to_string);
            blocks.push((name, block));
            if next.is_none()
                && let Some(foreign) = remote_head
            {
                return Err(MirrorError::Diverged { path: self.remote.clone(), head: foreign.to_owned() });
            }
        }
        Ok(blocks)
    }

    fn local_block(&self, name: &str) -> Result<MetadataBlock, MirrorError> {
        let path = self.local.join("blocks").join(name);
        let bytes = fs::read(&path).map_err(|error| local_error(&path, &error))?;
        MetadataBlock::decode(&bytes).map_err(|error| local_error(&path, &error))
    }

    fn make_folders(&self) -> Result<(), MirrorError> {
        for folder in ["", "blocks", "data", "checkpoints", "refs"] {
            let path = if folder.is_empty() { self.remote.clone() } else { self.remote.join(folder) };
            match fs::create_dir(&path) {
                Ok(()) => {
                    let parent = path.parent().unwrap_or(&path);
                    self.fs.sync_dir(parent).map_err(remote_error(parent))?;
                }
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    // What an earlier pass had begun when the disk was pulled.
                    self.fs.remove_temporary(&path).map_err(remote_error(&path))?;
                }
                Err(source) => return Err(MirrorError::Remote { path, source }),
            }
        }
        Ok(())
    }

    fn copy_slice(&self, block: &MetadataBlock) -> Result<u64, MirrorError> {
        let Event::AddData(event) = &block.event else { return Ok(0) };
        let Some(slice) = &event.new_data else { return Ok(0) };
        let name = slice.physical_hash.to_string();
        let from = self.local.join("data").join(&name);
        let to = self.remote.join("data").join(&name);
        if fs::metadata(&to).is_ok_and(|there| there.len() == slice.size) {
            return Ok(0);
        }
        self.copy(&from, &to)
    }

    fn copy_block(&self, name: &str) -> Result<u64, MirrorError> {
        let from = self.local.join("blocks").join(name);
        let to = self.remote.join("blocks").join(name);
        let size = fs::metadata(&from).map_err(|error| local_error(&from, &error))?.len();
        if fs::metadata(&to).is_ok_and(|there| there.len() == size) {
            return Ok(0);
        }
        self.copy(&from, &to)
    }

    fn copy(&self, from: &Path, to: &Path) -> Result<u64, MirrorError> {
        if self.stop.load(Ordering::Relaxed) {
            return Err(MirrorError::Stopped);
        }
        let mut source = File::open(from).map_err(|error| local_error(from, &error))?;
        let folder = to.parent().unwrap_or(to);
        let mut temp = self.fs.create_temp(folder).map_err(remote_error(to))?;
        let bytes = io::copy(&mut source, &mut temp).map_err(remote_error(to))?;
        temp.persist(to).map_err(remote_error(to))?;
        Ok(bytes)
    }
}

fn remote_error(path: &Path) -> impl FnOnce(io::Error) -> MirrorError {
    let path = path.to_owned();
    move |source| MirrorError::Remote { path, source }
}

fn local_error(path: &Path, problem: &impl ToString) -> MirrorError {
    MirrorError::Local { path: path.to_owned(), problem: problem.to_string() }
}
