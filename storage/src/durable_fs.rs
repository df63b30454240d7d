//! Files that are whole or absent, and stay so when the power fails.
//!
//! Every file is written under a temporary name, synced, renamed, and its directory synced: the only way a name appears
//! in a dataset.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What was asked of the file system, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "the names say it")]
pub enum FsOp {
    CreateDir(PathBuf),
    Create(PathBuf),
    Write(PathBuf, Vec<u8>),
    Sync(PathBuf),
    Rename { from: PathBuf, to: PathBuf },
    SyncDir(PathBuf),
    Remove(PathBuf),
}

/// The file system, seen through the operations that survive a power cut.
#[derive(Clone, Default)]
pub struct DurableFs {
    observer: Option<Arc<dyn Fn(FsOp) + Send + Sync>>,
}

impl DurableFs {
    /// The real one.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The real one, which also tells `observer` of each operation: a test makes crash images of it.
    #[must_use]
    pub fn recording(observer: Arc<dyn Fn(FsOp) + Send + Sync>) -> Self {
        Self { observer: Some(observer) }
    }

    /// Makes `dir` and what is missing above it.
    pub fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        if dir.is_dir() {
            return Ok(());
        }
        if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.create_dir_all(parent)?;
        }
        match fs::create_dir(dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => self.report(|| FsOp::CreateDir(dir.to_owned())),
        }
        self.sync_dir(parent_of(dir))
    }

    /// Writes a file that is named by its content: one that is there with these bytes is left alone.
    pub fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        if fs::read(path).is_ok_and(|there| there == bytes) {
            return self.sync_dir(parent_of(path));
        }
        self.replace(path, bytes)
    }

    /// Writes a file, or puts another in its place at once.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut temp = self.create_temp(parent_of(path))?;
        temp.write_all(bytes)?;
        temp.persist(path)
    }

    /// A file that has no name yet.
    pub fn create_temp(&self, dir: &Path) -> io::Result<TempFile> {
        static COUNTER: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
        let number = COUNTER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = dir.join(format!(".{}-{number}.tmp", std::process::id()));
        let file = File::create(&path)?;
        self.report(|| FsOp::Create(path.clone()));
        Ok(TempFile { fs: self.clone(), path, file, persisted: false })
    }

    /// Removes a file; one that is not there is fine.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => self.report(|| FsOp::Remove(path.to_owned())),
        }
        self.sync_dir(parent_of(path))
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir)?.sync_all()?;
        self.report(|| FsOp::SyncDir(dir.to_owned()));
        Ok(())
    }

    fn report(&self, op: impl FnOnce() -> FsOp) {
        if let Some(observer) = &self.observer {
            observer(op());
        }
    }
}

impl std::fmt::Debug for DurableFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DurableFs").finish_non_exhaustive()
    }
}

/// A file without its final name. Dropped, it is removed.
#[derive(Debug)]
pub struct TempFile {
    fs: DurableFs,
    path: PathBuf,
    file: File,
    persisted: bool,
}

impl TempFile {
    /// Syncs it and gives it its name.
    pub fn persist(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all()?;
        self.fs.report(|| FsOp::Sync(self.path.clone()));
        fs::rename(&self.path, path)?;
        self.persisted = true;
        self.fs.report(|| FsOp::Rename { from: self.path.clone(), to: path.to_owned() });
        self.fs.sync_dir(parent_of(path))
    }
}

impl Write for TempFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.fs.report(|| FsOp::Write(self.path.clone(), bytes[..written].to_vec()));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        if !self.persisted {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn parent_of(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}
