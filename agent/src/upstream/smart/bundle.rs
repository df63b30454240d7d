//! Blocks on their way: one gzipped tar, and what the node is told of it. (pure)
//!
//! The same blocks give the same bytes: entries are named by their hashes, oldest first, and hold neither time nor owner.

use flate2::Compression;
use flate2::write::GzEncoder;
use forebay_storage::odf::{Event, MetadataBlock, Multihash};

use super::frames::{FRAME_BYTES_MAX, ObjectFile, Plan};
use crate::upstream::outcome::Failure;

/// Largest archive, bytes: each is at least two characters of JSON. Beyond: [`Failure::local`].
const ARCHIVE_BYTES_MAX: usize = FRAME_BYTES_MAX / 2;

/// Blocks being packed.
pub(super) struct Packer {
    plan: Plan,
    objects: Vec<ObjectFile>,
    tar: tar::Builder<GzEncoder<Vec<u8>>>,
}

/// Blocks, packed.
#[derive(Debug)]
pub(super) struct Bundle {
    /// What is in it.
    pub(super) plan: Plan,
    /// The slices that its blocks bring, oldest first.
    pub(super) objects: Vec<ObjectFile>,
    /// The blocks.
    pub(super) archive: Vec<u8>,
}

impl Packer {
    pub(super) fn new() -> Self {
        let tar = tar::Builder::new(GzEncoder::new(Vec::new(), Compression::default()));
        Self { plan: Plan::default(), objects: Vec::new(), tar }
    }

    /// Adds the next block.
    pub(super) fn add(&mut self, hash: &Multihash, bytes: &[u8]) -> Result<(), Failure> {
        let name = hash.to_string();
        let block = MetadataBlock::decode(bytes).map_err(|error| Failure::local(format!("block {name}: {error}")))?;
        self.note(&name, &block)?;
        self.plan.num_blocks += 1;
        self.plan.bytes_in_raw_blocks += bytes.len() as u64;
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(0);
        self.tar.append_data(&mut header, &name, bytes).map_err(Failure::local)?;
        if self.tar.get_ref().get_ref().len() > ARCHIVE_BYTES_MAX {
            return Err(Failure::local(format!("{} blocks are more than a node takes at once", self.plan.num_blocks)));
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Bundle, Failure> {
        let gzip = self.tar.into_inner().map_err(Failure::local)?;
        let archive = gzip.finish().map_err(Failure::local)?;
        Ok(Bundle { plan: self.plan, objects: self.objects, archive })
    }

    fn note(&mut self, name: &str, block: &MetadataBlock) -> Result<(), Failure> {
        let Event::AddData(event) = &block.event else { return Ok(()) };
        if event.new_checkpoint.is_some() {
            return Err(Failure::local(format!("block {name} has a checkpoint, which a gateway never writes")));
        }
        let Some(slice) = &event.new_data else { return Ok(()) };
        let Some(rows) = slice.rows() else {
            return Err(Failure::local(format!("block {name} has a slice that ends before it begins")));
        };
        self.plan.num_objects += 1;
        self.plan.num_records = self.plan.num_records.saturating_add(rows);
        self.plan.bytes_in_raw_objects = self.plan.bytes_in_raw_objects.saturating_add(slice.size);
        self.objects.push(ObjectFile::slice(slice.physical_hash, slice.size));
        Ok(())
    }
}
