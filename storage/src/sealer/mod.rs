//! From spool to dataset: messages become rows, rows a slice, the slice a block of the dataset's chain.
//!
//! ```text
//! chunks of the spool ─▶ Batcher: which dataset, when ─▶ batch: [sealed; end) ─▶ slice ─▶ block ─▶ refs/head ─▶ sealed
//! ```
//!
//! One seal, in the order of its durable steps:
//!
//! 1. the slice is written under a temporary name, synced, and gets the name of its hash;
//! 2. the block is written and synced, then `refs/head` moves: **this is the moment of truth**, since the block's source
//!    state carries the last `seq` of the batch;
//! 3. one commit in the spool raises the sealed position, keeps dead letters and primary keys, and lets the messages go.
//!
//! A crash before 2 leaves the old head and files that nothing refers to, which are swept at the next start. A crash
//! between 2 and 3, or a commit 3 that failed, leaves a chain that is ahead of the spool's sealed position. That is seen
//! before anything else is sealed: the messages are still in the spool and the slice says which of them are rows, so commit
//! 3 is made up.
//!
//! Sealing is a function of the previous head and the messages: `system_time` is the latest receipt time of the batch (or
//! that of the previous block, if later), never "now". The same messages give the same bytes.
//!
//! Memory is bounded by one row group and a few pieces of the spool, whatever the backlog.

mod batch;
mod dataset;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::dataset::{DatasetSealer, Sealed};

use crate::batcher::{BatchLimits, Batcher, Cut, CutReason};
use crate::dataset::spec::DatasetSpec;
use crate::durable_fs::DurableFs;
use crate::odf::repository::{AppendError, ChainFileError, CreateError, OpenError};
use crate::position::{DatasetId, Seq};
use crate::slice::SliceError;
use crate::spool::{ChunkInfo, Spool, SpoolError};

/// How long a dataset rests after a batch that could not be sealed, µs. 5 s.
const REST_US: i64 = 5_000_000;
/// How many chunk headers are looked at in one go.
const SCAN_CHUNKS: usize = 1_024;
/// Bytes of the spool that are meant to wait in it. 64 MiB: beyond three quarters of it the largest dataset is sealed early,
/// since a slice is a fraction of the size and redb stays quick to repair.
const HOT_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Why a dataset could not be opened or a batch not be sealed. Nothing is lost: the messages stay in the spool.
#[derive(Debug, thiserror::Error)]
pub enum SealError {
    /// The declared columns do not continue the chain's. A matter of configuration.
    #[error(
        "dataset {dataset}: {difference}; only optional fields (\"?\") may be added: give the changed dataset a new name"
    )]
    Incompatible {
        /// Its name.
        dataset: String,
        /// What differs.
        difference: String,
    },
    /// The dataset cannot be created.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The dataset cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// A block cannot be read.
    #[error(transparent)]
    Chain(#[from] ChainFileError),
    /// A block cannot be added.
    #[error(transparent)]
    Append(#[from] AppendError),
    /// The slice could not be written or read.
    #[error(transparent)]
    Slice(#[from] SliceError),
    /// The file system.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// The spool.
    #[error(transparent)]
    Spool(#[from] SpoolError),
}

/// A dataset that cannot be opened. The gateway runs on: its messages are acknowledged and wait in the spool (I7).
#[derive(Debug)]
pub struct Unusable {
    /// Its name.
    pub dataset: String,
    /// Names the file and what is wrong with it.
    pub error: SealError,
}

/// Where the datasets are, and whose.
#[derive(Clone)]
struct Place {
    fs: DurableFs,
    root: PathBuf,
    gateway: String,
}

/// Seals every dataset of the gateway, one batch at a time. To be driven by one thread.
pub struct Sealer {
    spool: Spool,
    place: Place,
    limits: BatchLimits,
    batcher: Batcher,
    datasets: BTreeMap<DatasetId, DatasetSealer>,
    unusable: Vec<Unusable>,
    /// Messages in the spool whose dataset nobody seals.
    unserved: BTreeMap<DatasetId, u64>,
    /// Datasets whose last batch failed, and when they are tried again, µs.
    resting: BTreeMap<DatasetId, i64>,
    /// Chunks below this are known to the batcher.
    scanned: Seq,
}

/// Whether the dataset on disk, if there is one, allows this declaration. Writes nothing, and may be asked while a sealer is
/// at work. Nothing is said of a dataset that cannot be read.
///
/// # Errors
/// `Incompatible` names the difference.
pub fn check(root: &Path, fs: &DurableFs, spec: &DatasetSpec, now_us: i64) -> Result<(), SealError> {
    dataset::check(root, fs, spec, now_us)
}

impl Place {
    /// Opens these datasets, and answers which of them cannot be.
    fn open(
        &self,
        spool: &Spool,
        specs: &[&Arc<DatasetSpec>],
        now_us: i64,
    ) -> Result<(BTreeMap<DatasetId, DatasetSealer>, Vec<Unusable>), SealError> {
        let (mut datasets, mut unusable) = (BTreeMap::new(), Vec::new());
        for spec in specs {
            match DatasetSealer::open(spool, &self.fs, &self.root, &self.gateway, spec, now_us) {
                Ok(dataset) => _ = datasets.insert(dataset.id(), dataset),
                Err(error @ (SealError::Incompatible { .. } | SealError::Spool(_) | SealError::Io(_))) => {
                    return Err(error);
                }
                Err(error) => unusable.push(Unusable { dataset: spec.name.clone(), error }),
            }
        }
        Ok((datasets, unusable))
    }
}

impl fmt::Debug for Sealer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sealer").field("root", &self.place.root).field("scanned", &self.scanned).finish_non_exhaustive()
    }
}

impl Sealer {
    /// Opens or creates the repository of every dataset under `root`, one directory each, and finishes what a crash
    /// interrupted. `now_us` stamps the first blocks of datasets that are new. A damaged dataset is left as it is and does
    /// not stop the others: see [`unusable`](Self::unusable).
    ///
    /// # Errors
    /// `Incompatible` is a matter of configuration and names the difference; `Spool` and `Io` when the disk fails.
    pub fn open(
        spool: Spool,
        fs: &DurableFs,
        root: &Path,
        gateway: &str,
        specs: &[Arc<DatasetSpec>],
        limits: BatchLimits,
        now_us: i64,
    ) -> Result<Self, SealError> {
        let place = Place { fs: fs.clone(), root: root.to_owned(), gateway: gateway.to_owned() };
        let specs: Vec<_> = specs.iter().collect();
        let (datasets, unusable) = place.open(&spool, &specs, now_us)?;
        let mut sealer = Self {
            scanned: spool.log_start()?,
            spool,
            place,
            limits,
            batcher: Batcher::new(limits),
            datasets,
            unusable,
            unserved: BTreeMap::new(),
            resting: BTreeMap::new(),
        };
        sealer.scan()?;
        Ok(sealer)
    }

    /// Goes on with these datasets and limits, as a new [`open`](Self::open) would: new ones are made, what is no longer
    /// declared stays on disk and in the spool, and those that could not be opened are tried again.
    ///
    /// # Errors
    /// As of `open`, and a dataset that is new here and cannot be opened or made. Nothing is changed then; only a disk that
    /// fails between two datasets can leave the first of them with its new declaration.
    pub fn redeclare(&mut self, specs: &[Arc<DatasetSpec>], limits: BatchLimits, now_us: i64) -> Result<(), SealError> {
        let is_open = |spec: &&Arc<DatasetSpec>| self.datasets.values().any(|known| known.spec().name == spec.name);
        let (known, added): (Vec<_>, Vec<_>) = specs.iter().partition(is_open);
        let known: BTreeMap<&str, &Arc<DatasetSpec>> =
            known.into_iter().map(|spec| (spec.name.as_str(), spec)).collect();
        let next_of = |dataset: &DatasetSealer| known.get(dataset.spec().name.as_str()).copied();
        // What may be refused is refused before anything is written.
        for dataset in self.datasets.values_mut() {
            next_of(dataset).map_or(Ok(()), |spec| dataset.check(&self.spool, spec, now_us))?;
        }
        let (added, mut unusable) = self.place.open(&self.spool, &added, now_us)?;
        let was_usable = |one: &Unusable| self.unusable.iter().all(|known| known.dataset != one.dataset);
        if let Some(index) = unusable.iter().position(was_usable) {
            return Err(unusable.swap_remove(index).error);
        }
        for dataset in self.datasets.values_mut() {
            let changed = next_of(dataset).filter(|spec| *spec != dataset.spec());
            changed.map_or(Ok(()), |spec| dataset.redeclare(&self.spool, spec, now_us))?;
        }
        self.datasets.retain(|_, dataset| next_of(dataset).is_some());
        self.datasets.extend(added);
        self.unusable = unusable;
        self.limits = limits;
        self.batcher = Batcher::new(limits);
        self.unserved.clear();
        self.resting.clear();
        self.scanned = self.spool.log_start()?;
        self.scan()
    }

    /// Seals the batch that is most due at `now_us`, if any is.
    ///
    /// # Errors
    /// Any [`SealError`]. The messages stay in the spool, and that dataset rests for a while; call again for the others.
    pub fn seal_due(&mut self, now_us: i64) -> Result<Option<(Sealed, CutReason)>, SealError> {
        self.scan()?;
        self.wake(now_us);
        while let Some(cut) = self.batcher.poll_cut(now_us) {
            match self.seal(cut) {
                Ok(Some(sealed)) => return Ok(Some((sealed, cut.reason))),
                Ok(None) => {}
                Err(error) => {
                    self.resting.insert(cut.dataset, now_us.saturating_add(REST_US));
                    return Err(error);
                }
            }
        }
        Ok(None)
    }

    /// Makes due again what has rested long enough, or since a clock that was set back.
    fn wake(&mut self, now_us: i64) {
        let batcher = &mut self.batcher;
        self.resting.retain(|dataset, until| {
            let rests = *until > now_us && *until <= now_us.saturating_add(REST_US);
            if !rests {
                batcher.handle_sealed(*dataset, 0, 0, None);
            }
            rests
        });
    }

    /// Makes everything due that is in the spool now, whatever its size and age. Then [`seal_due`](Self::seal_due) until
    /// [`is_drained`](Self::is_drained).
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub fn handle_drain(&mut self) -> Result<(), SealError> {
        self.scan()?;
        self.batcher.handle_drain();
        Ok(())
    }

    /// Whether everything of the last drain is sealed.
    #[must_use]
    pub fn is_drained(&self) -> bool {
        self.batcher.is_drained()
    }

    /// Whether an upstream can take a batch: only then does age count.
    pub fn handle_upstream(&mut self, reachable: bool) {
        self.batcher.handle_upstream(reachable);
    }

    /// Whether the last batch of some dataset failed, and it waits to be tried again.
    #[must_use]
    pub fn is_resting(&self) -> bool {
        !self.resting.is_empty()
    }

    /// When the next batch is due if nothing more comes, µs since 1970.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<i64> {
        self.batcher.poll_timeout().into_iter().chain(self.resting.values().copied()).min()
    }

    /// The datasets that could not be opened. The next start tries again.
    #[must_use]
    pub fn unusable(&self) -> &[Unusable] {
        &self.unusable
    }

    /// Names of datasets that are no longer declared, or cannot be opened, with how many messages wait for them.
    ///
    /// # Errors
    /// When the spool cannot be read.
    pub fn unserved(&self) -> Result<Vec<(String, u64)>, SealError> {
        let names = self.spool.datasets()?.into_iter();
        Ok(names.filter_map(|(name, id)| Some((name, *self.unserved.get(&id)?))).collect())
    }

    /// The datasets that can be sealed, by id.
    pub fn datasets(&self) -> impl Iterator<Item = &DatasetSealer> {
        self.datasets.values()
    }

    /// The chunks below this position are accounted for: wait for the log to pass it.
    #[must_use]
    pub fn scanned(&self) -> Seq {
        self.scanned
    }

    /// Tells the batcher what has come into the spool, and how full that is.
    fn scan(&mut self) -> Result<(), SealError> {
        let log_end = self.spool.log_end();
        loop {
            let chunks = self.spool.chunks(self.scanned, SCAN_CHUNKS)?;
            let Some(last) = chunks.last() else { break };
            self.scanned = last.end;
            for chunk in &chunks {
                self.note(chunk)?;
            }
        }
        // Dead letters take positions, too, without a chunk.
        self.scanned = self.scanned.max(log_end);
        let usage = self.spool.usage();
        // What nobody seals must not make small slices of what is sealed.
        let used = usage.live_bytes.min(self.batcher.waiting_bytes());
        self.batcher.handle_spool(used, usage.max_bytes.min(HOT_BYTES_MAX));
        Ok(())
    }

    fn note(&mut self, chunk: &ChunkInfo) -> Result<(), SealError> {
        for &(id, messages, bytes) in &chunk.datasets {
            match self.datasets.get(&id) {
                Some(dataset) if dataset.sealed() < chunk.end => {
                    self.batcher.handle_messages(id, messages.into(), bytes, chunk.oldest_received_us);
                }
                Some(_) => {}
                None if self.spool.sealed(id)? < chunk.end => {
                    *self.unserved.entry(id).or_default() += u64::from(messages);
                }
                None => {}
            }
        }
        Ok(())
    }

    fn seal(&mut self, cut: Cut) -> Result<Option<Sealed>, SealError> {
        let Some(dataset) = self.datasets.get_mut(&cut.dataset) else { return Ok(None) };
        let limits = BatchLimits { rows: cut.messages_max, ..self.limits };
        match dataset.seal(&self.spool, &limits) {
            Ok(Some(sealed)) => {
                let Sealed { messages, payload_bytes, rest_since_us, .. } = sealed;
                self.batcher.handle_sealed(cut.dataset, messages, payload_bytes, rest_since_us);
                Ok(Some(sealed))
            }
            Ok(None) => {
                // What the batcher counted was dropped from a full spool, or sealed before a crash.
                self.batcher.handle_sealed(cut.dataset, u64::MAX, u64::MAX, None);
                Ok(None)
            }
            // Stays cut in the eyes of the batcher until it has rested.
            Err(error) => Err(error),
        }
    }
}
