//! The redb file: transactions, and what happens when they fail.
//!
//! | the commit says | what follows |
//! | --- | --- |
//! | a write found the disk full (ENOSPC, EDQUOT) | [`SpoolError::DiskFull`]; the handle, which redb has latched, is dropped, the ballast file freed, the database opened again; until there is room nothing is stored |
//! | anything else, and whatever a sync says | [`SpoolError::Fatal`], now and for every later transaction: after a failed fsync nobody knows what is on disk |
//!
//! A commit that met a full disk may be on disk all the same, so whatever is known of the database in memory is stale once
//! it was opened again ([`Store::is_stale`]).
//!
//! redb checks pages only when it repairs; on a damaged one it may panic. Panics are contained here and become errors.

use std::fs::File;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, StorageBackend, WriteTransaction};

use crate::durable_fs::DurableFs;
use crate::position::{DatasetId, Seq};

use super::backend::{NotesSync, Shared};

/// Name of the database in the spool's directory.
pub(super) const DATABASE: &str = "spool.redb";
/// Name of the file that is freed when the disk is full.
const BALLAST: &str = "ballast";
/// Left beside a database in which damage was met, so that the next start salvages it.
pub(super) const DAMAGE_MARK: &str = "spool.redb.damaged";

/// Why the spool did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum SpoolError {
    /// Nothing was changed. Free disk space; the spool goes on by itself.
    #[error("the disk is full")]
    DiskFull,
    /// Nobody knows whether it was changed. The process must exit and start again; devices resend.
    #[error("the spool failed and must be opened again: {0}")]
    Fatal(String),
    /// Damage that redb met while reading. Nothing was changed; the next start salvages what can be read.
    #[error("the spool cannot be read: {0}")]
    Unreadable(String),
    /// A position may not go back.
    #[error("{what} of dataset {} cannot go back from {from} to {to}", dataset.0)]
    PositionGoesBack {
        /// `sealed` or `delivered`.
        what: &'static str,
        /// Whose.
        dataset: DatasetId,
        /// Where it is.
        from: Seq,
        /// Where it was to go.
        to: Seq,
    },
    /// `delivered ≤ sealed ≤ log end` would not hold.
    #[error("{what} of dataset {} cannot pass {limit}: asked for {to}", dataset.0)]
    PositionAhead {
        /// `sealed` or `delivered`.
        what: &'static str,
        /// Whose.
        dataset: DatasetId,
        /// How far it may go.
        limit: Seq,
        /// Where it was to go.
        to: Seq,
    },
    /// More datasets than ids.
    #[error("no dataset id is left for {0}")]
    NoDatasetId(String),
}

/// Why the spool cannot be opened. Damage is not among the reasons, unless the database has no file to put aside.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("{}: in use by another process", .0.display())]
    InUse(PathBuf),
    /// The database was written by a later version.
    #[error("{}: layout {found} is not known to this version, which knows {known}; install the newer version again",
        path.display())]
    Later {
        /// The database.
        path: PathBuf,
        /// Its layout.
        found: u64,
        /// The latest that is known.
        known: u64,
    },
    /// The file system refuses.
    #[error("cannot open the spool: {0}")]
    Io(#[from] io::Error),
    /// redb refuses.
    #[error("cannot open the spool: {0}")]
    Database(String),
}

/// Where the database lives.
#[derive(Clone)]
pub enum Medium {
    /// `spool.redb` in the spool's directory.
    File,
    /// A storage of the caller's: the seam for disk faults.
    Backend {
        /// It is never closed, so that it can be opened again.
        storage: Arc<dyn StorageBackend>,
        /// How many bytes are free.
        free_bytes: Arc<dyn Fn() -> u64 + Send + Sync>,
    },
}

/// Why a transaction is given up: by redb, or by us.
pub(super) enum Abort {
    Redb(redb::Error),
    Ours(SpoolError),
}

macro_rules! abort_from {
    ($($error:ty),*) => {$(
        impl From<$error> for Abort {
            fn from(error: $error) -> Self {
                Self::Redb(error.into())
            }
        }
    )*};
}
abort_from!(redb::StorageError, redb::TableError, redb::TransactionError, redb::CommitError);

impl From<SpoolError> for Abort {
    fn from(error: SpoolError) -> Self {
        Self::Ours(error)
    }
}

const HEALTHY: u8 = 0;
const FULL: u8 = 1;
const FAILED: u8 = 2;

/// The database and its health.
pub(super) struct Store {
    medium: Medium,
    dir: PathBuf,
    fs: DurableFs,
    cache_bytes: usize,
    ballast_bytes: u64,
    condition: AtomicU8,
    /// A sync of the database has failed, ever.
    sync_failed: Arc<AtomicBool>,
    /// The database was opened again, and nobody has looked at it since.
    stale: AtomicBool,
    /// Held from the beginning of a write transaction until its failure was handled, so that the next writer never meets
    /// a latched handle and mistakes it for a fault of its own.
    writing: Mutex<()>,
    /// None while it cannot even be opened for lack of space.
    database: RwLock<Option<Database>>,
}

impl Store {
    /// Opens or creates the database. `Err(Ok(reason))` is damage.
    pub(super) fn open(
        medium: Medium,
        dir: &Path,
        fs: DurableFs,
        cache_bytes: usize,
        ballast_bytes: u64,
    ) -> Result<Self, Result<String, OpenError>> {
        let sync_failed = Arc::default();
        let database = open_database(&medium, dir, cache_bytes, &sync_failed)?;
        if let Medium::File = medium {
            fs.sync_dir(dir).map_err(|error| Err(error.into()))?;
        }
        Ok(Self {
            medium,
            dir: dir.to_owned(),
            fs,
            cache_bytes,
            ballast_bytes,
            condition: AtomicU8::new(HEALTHY),
            sync_failed,
            stale: AtomicBool::new(false),
            writing: Mutex::new(()),
            database: RwLock::new(Some(database)),
        })
    }

    /// Runs `work` in a write transaction and commits it durably. On return it is on disk.
    pub(super) fn write<R>(&self, work: impl FnOnce(&WriteTransaction) -> Result<R, Abort>) -> Result<R, SpoolError> {
        self.write_if(|txn| Ok((work(txn)?, true)), |_| ())
    }

    /// The same for work that may find that there is nothing to do, when it returns false: then nothing is written. After
    /// the commit, and before anybody else can write, `settle` tells whoever keeps something of it in memory.
    pub(super) fn write_if<R>(
        &self,
        work: impl FnOnce(&WriteTransaction) -> Result<(R, bool), Abort>,
        settle: impl FnOnce(&mut R),
    ) -> Result<R, SpoolError> {
        let _writing = self.lock_writing();
        if self.condition.load(Ordering::Acquire) == FAILED || self.sync_failed.load(Ordering::Acquire) {
            return Err(SpoolError::Fatal("an earlier commit failed".into()));
        }
        let result = {
            let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
            let Some(database) = database.as_ref() else { return Err(SpoolError::DiskFull) };
            contain(|| {
                let txn = database.begin_write()?;
                let (done, changed) = work(&txn)?;
                if changed { txn.commit().map_err(Abort::from) } else { txn.abort().map_err(Abort::from) }?;
                Ok(done)
            })
        };
        match result {
            Ok(mut done) => {
                settle(&mut done);
                Ok(done)
            }
            Err(Abort::Ours(error)) => Err(error),
            Err(Abort::Redb(error)) => Err(self.write_failed(&error)),
        }
    }

    /// Whether the database was opened again and may hold another end than is known. True until [`mark_fresh`].
    ///
    /// [`mark_fresh`]: Self::mark_fresh
    pub(super) fn is_stale(&self) -> bool {
        self.stale.load(Ordering::Acquire)
    }

    /// The database was looked at, in a write transaction.
    pub(super) fn mark_fresh(&self) {
        self.stale.store(false, Ordering::Release);
    }

    /// Runs `work` in a read transaction, which must be short: it keeps every page alive that is freed meanwhile.
    pub(super) fn read<R>(&self, work: impl Fn(&ReadTransaction) -> Result<R, Abort>) -> Result<R, SpoolError> {
        match self.read_once(&work) {
            Err(Abort::Redb(redb::Error::PreviousIo | redb::Error::DatabaseClosed)) => {
                // A writer met a full disk and is about to open the database again.
                drop(self.lock_writing());
                self.read_once(&work)
            }
            result => result,
        }
        .map_err(|abort| match abort {
            Abort::Ours(error) => error,
            Abort::Redb(error) => {
                if is_damage(&error) {
                    self.mark_damage(&error);
                }
                SpoolError::Unreadable(error.to_string())
            }
        })
    }

    /// Whether the disk was full at the last commit and has not been found otherwise since.
    pub(super) fn is_full(&self) -> bool {
        self.condition.load(Ordering::Acquire) == FULL
    }

    /// Makes the ballast file when it is missing. Without room for it the store is as if a commit had met a full disk.
    pub(super) fn ensure_ballast(&self) -> io::Result<()> {
        let _writing = self.lock_writing();
        self.create_ballast().inspect_err(|_| self.condition.store(FULL, Ordering::Release))
    }

    /// After a full disk, once there is room: opens the database if that failed, and makes the ballast again.
    pub(super) fn recover(&self) -> Result<(), SpoolError> {
        let _writing = self.lock_writing();
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        if database.is_none() {
            *database = self.open_again()?;
        }
        if database.is_some() && self.create_ballast().is_ok() {
            self.condition.store(HEALTHY, Ordering::Release);
            return Ok(());
        }
        Err(SpoolError::DiskFull)
    }

    /// Bytes free for us in the file system of the spool's directory.
    pub(super) fn free_bytes(&self) -> io::Result<u64> {
        if let Medium::Backend { free_bytes, .. } = &self.medium {
            return Ok(free_bytes());
        }
        let stat = rustix::fs::statvfs(&self.dir)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn lock_writing(&self) -> MutexGuard<'_, ()> {
        self.writing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn read_once<R>(&self, work: &impl Fn(&ReadTransaction) -> Result<R, Abort>) -> Result<R, Abort> {
        let database = self.database.read().unwrap_or_else(PoisonError::into_inner);
        let Some(database) = database.as_ref() else { return Err(Abort::Ours(SpoolError::DiskFull)) };
        contain(|| work(&database.begin_read()?))
    }

    fn write_failed(&self, error: &redb::Error) -> SpoolError {
        let full = matches!(error, redb::Error::Io(error) if is_disk_full(error))
            || (matches!(error, redb::Error::PreviousIo) && self.is_full());
        // A file system may find out at the sync that it is full. By then pages may be lost that it had taken.
        if !full || self.sync_failed.load(Ordering::Acquire) {
            self.condition.store(FAILED, Ordering::Release);
            if is_damage(error) {
                self.mark_damage(error);
            }
            return SpoolError::Fatal(error.to_string());
        }
        self.condition.store(FULL, Ordering::Release);
        let mut database = self.database.write().unwrap_or_else(PoisonError::into_inner);
        *database = None;
        if let Err(error) = self.fs.remove(&self.dir.join(BALLAST)) {
            tracing::warn!(%error, "Cannot free the ballast file.");
        }
        match self.open_again() {
            Ok(opened) => *database = opened,
            Err(error) => return error,
        }
        SpoolError::DiskFull
    }

    /// The database, or none when there is too little space even to open it.
    fn open_again(&self) -> Result<Option<Database>, SpoolError> {
        self.stale.store(true, Ordering::Release);
        let opened = open_database(&self.medium, &self.dir, self.cache_bytes, &self.sync_failed);
        // Dropping the handle before may have synced, too.
        if self.sync_failed.load(Ordering::Acquire) {
            self.condition.store(FAILED, Ordering::Release);
            return Err(SpoolError::Fatal("a sync failed on opening the database again".into()));
        }
        match opened {
            Ok(database) => Ok(Some(database)),
            Err(Err(OpenError::Io(error))) if is_disk_full(&error) => Ok(None),
            Err(reason) => {
                self.condition.store(FAILED, Ordering::Release);
                let reason = reason.unwrap_or_else(|error| error.to_string());
                Err(SpoolError::Fatal(reason))
            }
        }
    }

    fn create_ballast(&self) -> io::Result<()> {
        let path = self.dir.join(BALLAST);
        if path.metadata().is_ok_and(|meta| meta.len() == self.ballast_bytes) || self.ballast_bytes == 0 {
            return Ok(());
        }
        let file = File::create(&path)?;
        let flags = rustix::fs::FallocateFlags::empty();
        let made = match rustix::fs::fallocate(&file, flags, 0, self.ballast_bytes) {
            Err(rustix::io::Errno::OPNOTSUPP) => {
                io::copy(&mut io::Read::take(io::repeat(0), self.ballast_bytes), &mut &file).map(|_| ())
            }
            result => result.map_err(io::Error::from),
        };
        made.and_then(|()| file.sync_all()).and_then(|()| self.fs.sync_dir(&self.dir)).inspect_err(|_| {
            let _ = std::fs::remove_file(&path);
        })
    }

    fn mark_damage(&self, error: &redb::Error) {
        tracing::error!(%error, "The spool is damaged; restart the agent to salvage it.");
        if let Medium::File = self.medium
            && let Err(error) = self.fs.replace(&self.dir.join(DAMAGE_MARK), error.to_string().as_bytes())
        {
            tracing::warn!(%error, "Cannot mark the spool as damaged.");
        }
    }
}

/// Opens the database. `Err(Ok(reason))` is damage. A sync of it that fails sets `sync_failed`.
fn open_database(
    medium: &Medium,
    dir: &Path,
    cache_bytes: usize,
    sync_failed: &Arc<AtomicBool>,
) -> Result<Database, Result<String, OpenError>> {
    let path = dir.join(DATABASE);
    let mut builder = Builder::new();
    builder.set_cache_size(cache_bytes);
    let opened = catch_unwind(AssertUnwindSafe(|| match medium {
        Medium::File => {
            let file = File::options().read(true).write(true).create(true).truncate(false).open(&path)?;
            builder.create_with_backend(NotesSync::new(FileBackend::new(file)?, sync_failed))
        }
        Medium::Backend { storage, .. } => {
            builder.create_with_backend(NotesSync::new(Shared(Arc::clone(storage)), sync_failed))
        }
    }));
    match opened {
        Ok(Ok(database)) => Ok(database),
        Ok(Err(error)) => Err(classify_open(error, path)),
        Err(_) => Err(Ok("redb panicked on opening it".into())),
    }
}

fn classify_open(error: DatabaseError, path: PathBuf) -> Result<String, OpenError> {
    use io::ErrorKind::{InvalidData, UnexpectedEof};
    match error {
        DatabaseError::DatabaseAlreadyOpen => Err(OpenError::InUse(path)),
        DatabaseError::Storage(redb::StorageError::Corrupted(reason)) => Ok(reason),
        DatabaseError::Storage(redb::StorageError::Io(error))
            if matches!(error.kind(), InvalidData | UnexpectedEof) =>
        {
            Ok(error.to_string())
        }
        DatabaseError::Storage(redb::StorageError::Io(error)) => Err(OpenError::Io(error)),
        DatabaseError::UpgradeRequired(version) => Ok(format!("redb file format {version}")),
        error => Err(OpenError::Database(error.to_string())),
    }
}

/// Runs `work`; a panic, which redb raises on damaged pages, becomes an error.
pub(super) fn contain<R>(work: impl FnOnce() -> Result<R, Abort>) -> Result<R, Abort> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Abort::Redb(redb::Error::Corrupted("redb panicked, which it does on a damaged page".into())))
    })
}

fn is_damage(error: &redb::Error) -> bool {
    matches!(error, redb::Error::Corrupted(_) | redb::Error::TableTypeMismatch { .. })
}

fn is_disk_full(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded)
}
