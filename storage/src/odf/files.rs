//! A dataset's directory as somebody sees it who only reads, while its one writer may append.
//!
//! Everything but `refs/head` is named by its content, so whoever starts at a head that was once read sees one whole chain,
//! whatever is appended meanwhile. Slices may be gone: retention releases those that every upstream has.

use std::io;
use std::path::{Path, PathBuf};

use super::block::MetadataBlock;
use super::event::{DataSlice, Event};
use super::multihash::Multihash;
use super::walk::{self, ChainFileError};
use crate::position::Seq;

/// A dataset's directory, read only.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChainFiles {
    dir: PathBuf,
}

/// A slice and how far it takes its dataset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SealedSlice {
    /// The block that brings it.
    pub block: Multihash,
    /// Where its rows are.
    pub slice: DataSlice,
    /// The last `seq` that the chain accounts for with this block.
    pub last_seq: Seq,
}

impl ChainFiles {
    /// Of the dataset in `dir`.
    #[must_use]
    pub fn new(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// The directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The newest block; none before the dataset was created.
    ///
    /// # Errors
    /// `refs/head` cannot be read or is no hash.
    pub fn head(&self) -> Result<Option<Multihash>, ChainFileError> {
        match walk::read_head(&self.dir) {
            Err(ChainFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some),
        }
    }

    /// The blocks after `known` up to `head`, oldest first; without a `known`, all of them. `None`: `known` is no block of
    /// this chain.
    ///
    /// # Errors
    /// A block is missing or damaged.
    pub fn blocks_after(
        &self,
        head: Multihash,
        known: Option<&Multihash>,
    ) -> Result<Option<Vec<Multihash>>, ChainFileError> {
        let hashes = walk::hashes(&self.dir, head, known)?;
        let Some((known, first)) = known.zip(hashes.first()) else { return Ok(Some(hashes)) };
        let follows = self.block(first)?.prev_block_hash.as_ref() == Some(known);
        Ok(follows.then_some(hashes))
    }

    /// The slices that hold a `seq` of at least `from`, oldest first.
    ///
    /// # Errors
    /// A block is missing or damaged.
    pub fn slices_from(&self, head: Multihash, from: Seq) -> Result<Vec<SealedSlice>, ChainFileError> {
        let mut slices = Vec::new();
        let mut next = Some(head);
        while let Some(hash) = next {
            let block = self.block(&hash)?;
            let last_seq = block.event.last_seq();
            if last_seq.is_some_and(|last| last < from) {
                break;
            }
            if let (Some(slice), Some(last_seq)) = (block.event.new_data(), last_seq) {
                slices.push(SealedSlice { block: hash, slice: slice.clone(), last_seq });
            }
            next = block.prev_block_hash;
        }
        slices.reverse();
        Ok(slices)
    }

    /// A block, checked against its name.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn block(&self, hash: &Multihash) -> Result<MetadataBlock, ChainFileError> {
        walk::read_block(&self.dir, hash)
    }

    /// The bytes of a block, checked against its name.
    ///
    /// # Errors
    /// It is missing or damaged.
    pub fn block_bytes(&self, hash: &Multihash) -> Result<Vec<u8>, ChainFileError> {
        walk::read_block_bytes(&walk::block_path(&self.dir, hash), hash)
    }

    /// Where a block is.
    #[must_use]
    pub fn block_path(&self, hash: &Multihash) -> PathBuf {
        walk::block_path(&self.dir, hash)
    }

    /// Where a slice is, unless it was released.
    #[must_use]
    pub fn data_path(&self, hash: &Multihash) -> PathBuf {
        walk::data_path(&self.dir, hash)
    }
}

impl Event {
    /// The last `seq` that the chain accounts for, if the event says so.
    #[must_use]
    pub fn last_seq(&self) -> Option<Seq> {
        match self {
            Self::AddData(event) => event.new_source_state.as_ref()?.seq(),
            _ => None,
        }
    }
}
