//! A block and its file.
//!
//! ```text
//! Manifest { kind: 0x400000, version: 3, content: [ubyte] }          the file; its SHA3-256 is the block's hash
//!     content = MetadataBlock { system_time, prev_block_hash, sequence_number, event }     a buffer of its own
//! ```
//!
//! Version 3 is written. Version 2 is read too: it differs only in that its encoder placed the `Timestamp` structs off
//! their alignment, which a reader of bytes does not notice. Version 1 was laid out otherwise and is refused.

use chrono::{DateTime, Utc};

use super::event::{Event, OpaqueEvent, build_timestamp, read_hash, read_timestamp};
use super::flatbuffer::{Buffer, Builder, FlatbufferError, Slot, required};
use super::multihash::Multihash;

/// Largest block file that is written or read, bytes. Ours have a few hundred; an attachment may take some kilobytes.
/// Beyond: [`BlockError::TooLarge`].
pub const BLOCK_BYTES_MAX: usize = 4 * 1024 * 1024;

/// Multicodec of an ODF metadata block.
const MANIFEST_KIND: i64 = 0x40_0000;
const VERSION_WRITTEN: i32 = 3;

/// One link of the chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetadataBlock {
    /// When it was made. Never before that of the previous block.
    pub system_time: DateTime<Utc>,
    /// The previous block; absent in the first.
    pub prev_block_hash: Option<Multihash>,
    /// Number of blocks before it.
    pub sequence_number: u64,
    /// What it says.
    pub event: Event,
}

/// Bytes that are not a block we can use, or a block that we cannot write.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BlockError {
    /// Not an ODF metadata block.
    #[error("not an ODF metadata block: its manifest is of kind {kind:#x} and should be 0x400000")]
    NotABlock {
        /// What it says it is.
        kind: i64,
    },
    /// Laid out in a way that this version does not know.
    #[error(
        "metadata block of version {version}: versions 2 and 3 are supported; pull the dataset with a current `kamu`, which rewrites it"
    )]
    UnsupportedVersion {
        /// What it says.
        version: i32,
    },
    /// Damaged, or not FlatBuffers at all.
    #[error(transparent)]
    Damaged(#[from] FlatbufferError),
    /// The event is one of those that are only carried along.
    #[error("cannot write a block with {}: it was read without being understood", .0.name())]
    Opaque(OpaqueEvent),
    /// Larger than [`BLOCK_BYTES_MAX`].
    #[error("a metadata block of {size} bytes is larger than the limit of {BLOCK_BYTES_MAX} bytes")]
    TooLarge {
        /// Bytes.
        size: usize,
    },
}

impl MetadataBlock {
    /// The block's file, in the canonical layout. Its name is [`Multihash::of`] these bytes.
    pub fn encode(&self) -> Result<Vec<u8>, BlockError> {
        let content = self.encode_content()?;
        let mut builder = Builder::default();
        let content = builder.bytes(&content);
        let manifest = builder.table(&[Slot::I64(MANIFEST_KIND), Slot::I32(VERSION_WRITTEN), content]);
        let bytes = builder.finish(manifest);
        check_size(&bytes)?;
        Ok(bytes)
    }

    /// Reads a block's file. Does not look at its hash.
    pub fn decode(bytes: &[u8]) -> Result<Self, BlockError> {
        check_size(bytes)?;
        let buffer = Buffer::new(bytes);
        let manifest = buffer.root()?;
        let kind = manifest.i64(0)?.unwrap_or_default();
        if kind != MANIFEST_KIND {
            return Err(BlockError::NotABlock { kind });
        }
        let version = manifest.i32(1)?.unwrap_or_default();
        if !matches!(version, 2 | 3) {
            return Err(BlockError::UnsupportedVersion { version });
        }
        let content = required(manifest.bytes(2)?, "Manifest.content")?;
        Ok(Self::decode_content(content)?)
    }

    fn encode_content(&self) -> Result<Vec<u8>, BlockError> {
        let mut builder = Builder::default();
        let prev_block_hash = self.prev_block_hash.map(|hash| hash.to_bytes());
        let slots = [
            build_timestamp(self.system_time),
            builder.optional_bytes(prev_block_hash.as_deref()),
            Slot::u64(self.sequence_number),
            self.event.build(&mut builder).map_err(BlockError::Opaque)?,
        ];
        let block = builder.table(&slots);
        Ok(builder.finish(block))
    }

    fn decode_content(bytes: &[u8]) -> Result<Self, FlatbufferError> {
        let buffer = Buffer::new(bytes);
        let table = buffer.root()?;
        let system_time = read_timestamp(&table, 0, "MetadataBlock.system_time")?;
        let (tag, event) = required(table.union(3)?, "MetadataBlock.event")?;
        Ok(Self {
            system_time: required(system_time, "MetadataBlock.system_time")?,
            prev_block_hash: read_hash(&table, 1, "MetadataBlock.prev_block_hash")?,
            sequence_number: table.u64(2)?.unwrap_or_default(),
            event: Event::read(tag, &event)?,
        })
    }
}

fn check_size(bytes: &[u8]) -> Result<(), BlockError> {
    let size = bytes.len();
    if size > BLOCK_BYTES_MAX {
        return Err(BlockError::TooLarge { size });
    }
    Ok(())
}
