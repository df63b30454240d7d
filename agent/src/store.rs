//! A data directory, opened by one process at a time: by the agent, or by a command while no agent runs.
//!
//! ```text
//! <data_dir>/forebay.lock     held by whoever has it open
//! <data_dir>/forebay.sock     how commands reach a running agent
//! <data_dir>/spool/           messages that are not sealed yet
//! <data_dir>/datasets/NAME/   one ODF repository a dataset
//! <data_dir>/sources/         what brokers believe that we subscribe to
//! <data_dir>/scratch/         requests being prepared; emptied at every start
//! ```

use std::fs::{File, OpenOptions, TryLockError};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::spool::{OpenReport, Spool};

use crate::config::Config;

/// An open data directory.
#[derive(Debug)]
pub struct Store {
    /// The spool.
    pub spool: Spool,
    /// What opening it found.
    pub report: OpenReport,
    /// How files are made durable.
    pub fs: DurableFs,
    _lock: File,
}

/// Where the datasets' repositories are.
pub fn datasets_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("datasets")
}

/// Where each source's memory of its filters is.
pub fn sources_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("sources")
}

/// Where requests are prepared; nothing in it outlives a start.
pub fn scratch_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("scratch")
}

impl Store {
    /// Opens the data directory, and makes it if it is missing.
    pub fn open(config: &Config) -> Result<Self> {
        let fs = DurableFs::new();
        fs.create_dir_all(&config.data_dir).with_context(|| format!("create {}", config.data_dir.display()))?;
        let lock = lock(&config.data_dir)?;
        let scratch = scratch_dir(&config.data_dir);
        fs.create_dir_all(&scratch).with_context(|| format!("create {}", scratch.display()))?;
        fs.remove_temporary(&scratch).with_context(|| format!("empty {}", scratch.display()))?;
        let dir = config.data_dir.join("spool");
        let (spool, report) = Spool::open(&dir, config.spool.clone(), fs.clone())
            .with_context(|| format!("open the spool in {}", dir.display()))?;
        Ok(Self { spool, report, fs, _lock: lock })
    }

    /// Opens an existing data directory, for a command that only looks.
    pub fn open_existing(config: &Config) -> Result<Self> {
        if !config.data_dir.join("spool").is_dir() {
            bail!("there is no data in {}", config.data_dir.display());
        }
        Self::open(config)
    }
}

fn lock(data_dir: &Path) -> Result<File> {
    let path = data_dir.join("forebay.lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .with_context(|| format!("open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            bail!("{} is in use by another forebay process", data_dir.display())
        }
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("lock {}", path.display())),
    }
}
