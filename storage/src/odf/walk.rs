//! Reads a chain from its directory: head first, then block by block towards the Seed.
//!
//! A block's name is the hash of its bytes and its bytes name the previous block, so a walk that meets neither a missing
//! nor a damaged file has seen exactly the chain that was written. It ends because each step needs another file.

use std::io;
use std::path::{Path, PathBuf};

use super::block::{BLOCK_BYTES_MAX, BlockError, MetadataBlock};
use super::chain::{ChainState, RuleViolation};
use super::multihash::Multihash;
use crate::durable_fs::read_bounded;

/// Longest `refs/head` that is looked at, bytes; a hash has 69.
const HEAD_BYTES_MAX: u64 = 256;

/// A file of a chain that cannot be used. The text names it and what is wrong.
#[derive(Debug, thiserror::Error)]
pub enum ChainFileError {
    /// Missing, or the disk does not give it.
    #[error("{source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said, with the path in its text.
        source: io::Error,
    },
    /// `refs/head` is not a hash.
    #[error("{}: should be the hash of a block and nothing else, not even a newline, and is {found:?}", .path.display())]
    Head {
        /// The file.
        path: PathBuf,
        /// Its text.
        found: String,
    },
    /// Its bytes are not those that it is named by.
    #[error("{}: is damaged: its bytes have the hash {found}", .path.display())]
    Hash {
        /// The file.
        path: PathBuf,
        /// What its bytes hash to.
        found: Multihash,
    },
    /// Its bytes are as they were written, and not a block.
    #[error("{}: {source}", .path.display())]
    Block {
        /// The file.
        path: PathBuf,
        /// Why.
        source: BlockError,
    },
    /// It must not be where it is.
    #[error("{}: breaks the chain: {source}", .path.display())]
    Rule {
        /// The file.
        path: PathBuf,
        /// Which rule.
        source: RuleViolation,
    },
}

impl ChainFileError {
    /// The file.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Io { path, .. }
            | Self::Head { path, .. }
            | Self::Hash { path, .. }
            | Self::Block { path, .. }
            | Self::Rule { path, .. } => path,
        }
    }
}

/// The names of a dataset's files.
pub(crate) fn head_path(dir: &Path) -> PathBuf {
    dir.join("refs").join("head")
}

pub(crate) fn block_path(dir: &Path, hash: &Multihash) -> PathBuf {
    dir.join("blocks").join(hash.to_string())
}

pub(crate) fn data_path(dir: &Path, hash: &Multihash) -> PathBuf {
    dir.join("data").join(hash.to_string())
}

/// The newest block's hash.
pub(crate) fn read_head(dir: &Path) -> Result<Multihash, ChainFileError> {
    let path = head_path(dir);
    let bytes = read_at_most(&path, HEAD_BYTES_MAX)?;
    let text = String::from_utf8_lossy(&bytes);
    text.parse().map_err(|_| ChainFileError::Head { path, found: text.into_owned() })
}

/// A block whose bytes have the hash they are named by.
pub(crate) fn read_block(dir: &Path, hash: &Multihash) -> Result<MetadataBlock, ChainFileError> {
    let path = block_path(dir, hash);
    let bytes = read_block_bytes(&path, hash)?;
    MetadataBlock::decode(&bytes).map_err(|source| ChainFileError::Block { path, source })
}

/// A block's bytes, if they have the hash they are named by.
pub(crate) fn read_block_bytes(path: &Path, hash: &Multihash) -> Result<Vec<u8>, ChainFileError> {
    let bytes = read_at_most(path, BLOCK_BYTES_MAX as u64)?;
    let found = Multihash::of(&bytes);
    if found != *hash {
        return Err(ChainFileError::Hash { path: path.to_owned(), found });
    }
    Ok(bytes)
}

/// Hashes of the blocks up to `head`, oldest first; from the Seed, or from the one after `after` if that is met.
pub(crate) fn hashes(dir: &Path, head: Multihash, after: Option<&Multihash>) -> Result<Vec<Multihash>, ChainFileError> {
    let mut hashes = Vec::new();
    let mut next = Some(head);
    while let Some(hash) = next.filter(|hash| Some(hash) != after) {
        hashes.push(hash);
        next = read_block(dir, &hash)?.prev_block_hash;
    }
    hashes.reverse();
    Ok(hashes)
}

/// Reads the blocks `hashes` (oldest first, from the Seed), checks each against the rules, and lets `visit` see it with
/// the state that it leads to.
pub(crate) fn replay(
    dir: &Path,
    hashes: &[Multihash],
    mut visit: impl FnMut(&MetadataBlock, &ChainState),
) -> Result<Option<ChainState>, ChainFileError> {
    let mut state: Option<ChainState> = None;
    for hash in hashes {
        let block = read_block(dir, hash)?;
        let rule = |source| ChainFileError::Rule { path: block_path(dir, hash), source };
        match &mut state {
            None => state = Some(ChainState::start(*hash, &block).map_err(rule)?),
            Some(state) => state.accept(*hash, &block).map_err(rule)?,
        }
        if let Some(state) = &state {
            visit(&block, state);
        }
    }
    Ok(state)
}

fn read_at_most(path: &Path, len_max: u64) -> Result<Vec<u8>, ChainFileError> {
    read_bounded(path, len_max).map_err(|source| ChainFileError::Io { path: path.to_owned(), source })
}
