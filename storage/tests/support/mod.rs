//! A disk whose power can be cut: everything that reaches it is one log, in order, with the acknowledgements between.
//!
//! ```text
//! redb ──▶ RecordingStorage ──┐
//! DurableFs::recording ───────┼──▶ Log: Write · SetLen · Sync · Fs(op) · Note(..)
//! the test: Log::note(..) ────┘
//! ```
//!
//! [`image::Replay`] goes through the log and makes an image of the disk for a cut at any place of it. A `Note` is what the
//! test wants to know when it looks at an image: here, what was asked for and what was acknowledged before the cut.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::unwrap_in_result,
    clippy::panic,
    clippy::allow_attributes,
    reason = "shared by several test binaries; a step that fails fails the test"
)]

pub mod image;
pub mod one_by_one;
pub mod workload;

use std::collections::BTreeSet;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use forebay_storage::durable_fs::{DurableFs, FsOp};
use forebay_storage::spool::Medium;
use redb::StorageBackend;

/// Something that happened, as far as the disk or its checker is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event<N> {
    /// redb wrote bytes at an offset.
    Write(u64, Vec<u8>),
    /// redb changed the length of its file.
    SetLen(u64),
    /// redb's file was synced: the call returned.
    Sync,
    /// A step on the files beside it.
    Fs(FsOp),
    /// What the test noted.
    Note(N),
}

/// All events in order.
#[derive(Debug)]
pub struct Log<N>(Arc<Mutex<Vec<Event<N>>>>);

impl<N> Clone for Log<N> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<N> Default for Log<N> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<N: Clone + Send + std::fmt::Debug + 'static> Log<N> {
    pub fn push(&self, event: Event<N>) {
        self.0.lock().unwrap().push(event);
    }

    pub fn note(&self, note: N) {
        self.push(Event::Note(note));
    }

    pub fn events(&self) -> Vec<Event<N>> {
        self.0.lock().unwrap().clone()
    }

    pub fn len(&self) -> usize {
        self.0.lock().unwrap().len()
    }

    /// A file system that records into this log.
    pub fn fs(&self) -> DurableFs {
        let log = self.clone();
        DurableFs::recording(Arc::new(move |op| log.push(Event::Fs(op))))
    }

    /// A storage for redb that records into this log and begins with `bytes`.
    pub fn medium(&self, bytes: Vec<u8>) -> Medium {
        let storage = RecordingStorage { bytes: Mutex::new(bytes), log: self.clone() };
        Medium::Backend { storage: Arc::new(storage), free_bytes: Arc::new(|| u64::MAX) }
    }
}

#[derive(Debug)]
struct RecordingStorage<N> {
    bytes: Mutex<Vec<u8>>,
    log: Log<N>,
}

impl<N: Clone + Send + std::fmt::Debug + 'static> StorageBackend for RecordingStorage<N> {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read_at(&self.bytes.lock().unwrap(), offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.bytes.lock().unwrap().resize(len as usize, 0);
        self.log.push(Event::SetLen(len));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.log.push(Event::Sync);
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        write_at(&mut self.bytes.lock().unwrap(), offset, data);
        self.log.push(Event::Write(offset, data.to_vec()));
        Ok(())
    }
}

/// Bytes of a block of a [`SmallDisk`].
const BLOCK: u64 = 4096;

/// A storage in memory of limited size. Like a file with holes it takes space for a block once that is written, whatever
/// its length, and a write that finds none meets ENOSPC. Freeing the ballast file gives space.
#[derive(Debug)]
pub struct SmallDisk {
    bytes: Mutex<Vec<u8>>,
    blocks: Mutex<BTreeSet<u64>>,
    /// Bytes of all files together.
    pub capacity: AtomicU64,
    ballast: PathBuf,
    /// How many bytes more than there are it says are free, as a file system does that keeps some for itself.
    pub overstated: AtomicU64,
    /// Fail the next writes with this error instead.
    pub fault: Mutex<Option<io::ErrorKind>>,
    /// Fail the next syncs with this error instead; what was written stays.
    pub sync_fault: Mutex<Option<io::ErrorKind>>,
}

impl SmallDisk {
    /// `ballast` is the file, in the real file system, whose size counts against `capacity`.
    pub fn new(capacity: u64, ballast: PathBuf) -> Arc<Self> {
        let (bytes, blocks, overstated, fault, sync_fault) = Default::default();
        Arc::new(Self { bytes, blocks, capacity: capacity.into(), ballast, overstated, fault, sync_fault })
    }

    pub fn medium(self: &Arc<Self>) -> Medium {
        let disk = Arc::clone(self);
        Medium::Backend {
            storage: Arc::clone(self) as _,
            free_bytes: Arc::new(move || disk.free() + disk.overstated.load(Ordering::SeqCst)),
        }
    }

    pub fn free(&self) -> u64 {
        let used = self.blocks.lock().unwrap().len() as u64 * BLOCK + self.ballast_len();
        self.capacity.load(Ordering::SeqCst).saturating_sub(used)
    }

    /// The bytes of the database, to be damaged.
    pub fn bytes(&self) -> std::sync::MutexGuard<'_, Vec<u8>> {
        self.bytes.lock().unwrap()
    }

    fn ballast_len(&self) -> u64 {
        self.ballast.metadata().map_or(0, |meta| meta.len())
    }

    fn check(&self) -> io::Result<()> {
        match *self.fault.lock().unwrap() {
            Some(kind) => Err(kind.into()),
            None => Ok(()),
        }
    }
}

impl StorageBackend for SmallDisk {
    fn len(&self) -> io::Result<u64> {
        Ok(self.bytes.lock().unwrap().len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        read_at(&self.bytes.lock().unwrap(), offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.check()?;
        self.bytes.lock().unwrap().resize(len as usize, 0);
        self.blocks.lock().unwrap().retain(|block| block * BLOCK < len);
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        if let Some(kind) = *self.sync_fault.lock().unwrap() {
            return Err(kind.into());
        }
        self.check()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.check()?;
        for block in offset / BLOCK..(offset + data.len() as u64).div_ceil(BLOCK) {
            let known = self.blocks.lock().unwrap().contains(&block);
            if !known && self.free() < BLOCK {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.blocks.lock().unwrap().insert(block);
        }
        write_at(&mut self.bytes.lock().unwrap(), offset, data);
        Ok(())
    }
}

fn read_at(bytes: &[u8], offset: u64, out: &mut [u8]) -> io::Result<()> {
    let start = offset as usize;
    let from = bytes.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
    out.copy_from_slice(from);
    Ok(())
}

pub fn write_at(bytes: &mut Vec<u8>, offset: u64, data: &[u8]) {
    let (start, end) = (offset as usize, offset as usize + data.len());
    if bytes.len() < end {
        bytes.resize(end, 0);
    }
    bytes[start..end].copy_from_slice(data);
}

/// A number from the environment, for longer runs.
pub fn from_env(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")))
}

/// Shares a storage with redb.
#[derive(Debug)]
pub struct Shared(pub Arc<dyn StorageBackend>);

impl StorageBackend for Shared {
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, out)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write(offset, data)
    }
}
