//! Files that are there after a power cut: write, fsync, rename, fsync of the directory.
//!
//! A file system may lose, tear or reorder whatever was not yet synced, and a rename is only durable once its directory
//! was synced. All files beside the spool (slices, blocks, references) therefore come into being through [`DurableFs`]
//! and nowhere else:
//!
//! ```text
//! create temporary file in the same directory ─▶ write ─▶ fsync ─▶ rename ─▶ fsync directory
//! ```
//!
//! so that a name is either absent (or still the old file) or a whole file. What a crash leaves behind is at most a
//! temporary file, which [`DurableFs::is_temporary`] recognises and [`DurableFs::remove_temporary`] sweeps.
//!
//! [`DurableFs::recording`] reports every step as an [`FsOp`], from which tests make images of a disk whose power was cut
//! between any two of them.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How names of temporary files begin.
const TEMPORARY: &str = ".forebay-tmp-";

/// One step that changes the disk, reported after it was done.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FsOp {
    /// A directory was made. Durable once its parent is synced.
    CreateDir(PathBuf),
    /// An empty file was made. Its name is durable once its directory is synced.
    Create(PathBuf),
    /// Bytes were appended to a file that was made by `Create`.
    Append(PathBuf, Vec<u8>),
    /// All that was appended is durable.
    SyncFile(PathBuf),
    /// A file got another name, replacing what had it.
    Rename(PathBuf, PathBuf),
    /// All creations, renames and removals in a directory are durable.
    SyncDir(PathBuf),
    /// A name was removed.
    Remove(PathBuf),
}

/// Hears of every [`FsOp`] in the order in which they were done.
pub type Recorder = Arc<dyn Fn(FsOp) + Send + Sync>;

/// The file system, used durably. Cheap to clone.
#[derive(Clone, Default)]
pub struct DurableFs {
    recorder: Option<Recorder>,
    temporaries: Arc<AtomicU64>,
}

impl std::fmt::Debug for DurableFs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DurableFs").field("recording", &self.recorder.is_some()).finish()
    }
}

impl DurableFs {
    /// The file system of the process.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The same, reporting every step to `recorder`: the seam of the power-cut tests.
    #[must_use]
    pub fn recording(recorder: Recorder) -> Self {
        Self { recorder: Some(recorder), ..Self::default() }
    }

    /// Makes `dir` and its missing parents. On return all of them survive a power cut.
    ///
    /// # Errors
    /// What the file system says, with the path. The kind is kept.
    pub fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut path = PathBuf::new();
        for component in dir.components() {
            path.push(component);
            if !matches!(component, Component::Normal(_)) {
                continue;
            }
            match fs::create_dir(&path) {
                Ok(()) => self.report(|| FsOp::CreateDir(path.clone())),
                Err(error) if path.is_dir() => {
                    debug_assert_ne!(error.kind(), io::ErrorKind::NotFound);
                    // A process that died before its sync may have left the last one behind.
                    if path != dir {
                        continue;
                    }
                }
                Err(error) => return Err(at(&path, &error)),
            }
            self.sync_dir(parent(&path))?;
        }
        Ok(())
    }

    /// Writes a file that must not change afterwards, such as one named by its content. A file that is already there with
    /// the same bytes is as good as written.
    ///
    /// # Errors
    /// `AlreadyExists` when the file is there with other bytes; else what the file system says, with the path.
    pub fn write_new(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        match fs::read(path) {
            // Its directory may not have been synced by the process that wrote it.
            Ok(present) if present == bytes => self.sync_dir(parent(path)),
            Ok(_) => Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{}: is there with other bytes", path.display()),
            )),
            Err(error) if error.kind() == io::ErrorKind::NotFound => self.replace(path, bytes),
            Err(error) => Err(at(path, &error)),
        }
    }

    /// Writes a file, replacing what has its name. Readers and crashes see the old file or the new one.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn replace(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = self.create_temp(parent(path))?;
        file.write_all(bytes)?;
        file.persist(path)
    }

    /// A new file in `dir` that has no name worth keeping until [`TempFile::persist`].
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn create_temp(&self, dir: &Path) -> io::Result<TempFile> {
        loop {
            let number = self.temporaries.fetch_add(1, Ordering::Relaxed);
            let path = dir.join(format!("{TEMPORARY}{number}"));
            match File::create_new(&path) {
                Ok(file) => {
                    self.report(|| FsOp::Create(path.clone()));
                    return Ok(TempFile { fs: self.clone(), file, path, persisted: false });
                }
                // Left by an earlier process: take the next number.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(error) => return Err(at(&path, &error)),
            }
        }
    }

    /// Gives a durable file another name in a durable way.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to).map_err(|error| at(from, &error))?;
        self.report(|| FsOp::Rename(from.to_owned(), to.to_owned()));
        self.sync_dir(parent(to))?;
        if parent(from) == parent(to) { Ok(()) } else { self.sync_dir(parent(from)) }
    }

    /// Removes a file; one that is not there is as good as removed.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn remove(&self, path: &Path) -> io::Result<()> {
        match fs::remove_file(path) {
            Ok(()) => self.report(|| FsOp::Remove(path.to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(at(path, &error)),
        }
        self.sync_dir(parent(path))
    }

    /// Whether `path` is a file that a crash left before it got its name.
    #[must_use]
    pub fn is_temporary(path: &Path) -> bool {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with(TEMPORARY))
    }

    /// Removes the temporary files that a crash left in `dir`, not in the directories below it. To be called before
    /// anything is written there. Returns how many there were.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn remove_temporary(&self, dir: &Path) -> io::Result<usize> {
        let mut removed = 0;
        for entry in fs::read_dir(dir).map_err(|error| at(dir, &error))? {
            let path = entry.map_err(|error| at(dir, &error))?.path();
            if Self::is_temporary(&path) {
                self.remove(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Makes what happened to the names in `dir` durable.
    ///
    /// # Errors
    /// What the file system says, with the path.
    pub fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(|error| at(dir, &error))?;
        self.report(|| FsOp::SyncDir(dir.to_owned()));
        Ok(())
    }

    fn report(&self, op: impl FnOnce() -> FsOp) {
        if let Some(recorder) = &self.recorder {
            recorder(op());
        }
    }
}

/// A file being written under a temporary name. Dropped without [`persist`](Self::persist), it is removed.
#[derive(Debug)]
pub struct TempFile {
    fs: DurableFs,
    file: File,
    path: PathBuf,
    persisted: bool,
}

impl TempFile {
    /// Where it is for now.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Syncs the file, gives it the name `path` in the same file system, and syncs the directory.
    ///
    /// # Errors
    /// What the file system says, with the path. The temporary file is then gone.
    pub fn persist(mut self, path: &Path) -> io::Result<()> {
        self.file.sync_all().map_err(|error| at(&self.path, &error))?;
        self.fs.report(|| FsOp::SyncFile(self.path.clone()));
        self.fs.rename(&self.path, path)?;
        self.persisted = true;
        Ok(())
    }
}

impl Write for TempFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes).map_err(|error| at(&self.path, &error))?;
        self.fs.report(|| FsOp::Append(self.path.clone(), bytes.get(..written).unwrap_or(bytes).to_vec()));
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for TempFile {
    fn drop(&mut self) {
        // After a rename whose directory could not be synced the temporary name is gone already.
        if !self.persisted && fs::remove_file(&self.path).is_ok() {
            self.fs.report(|| FsOp::Remove(self.path.clone()));
        }
    }
}

/// The directory that holds `path`.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// The error with the path in its text and its kind kept.
fn at(path: &Path, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

/// Reads at most `limit` bytes of a file. A longer file is an error, not a surprise in memory.
///
/// # Errors
/// `FileTooLarge` beyond the limit; else what the file system says, with the path.
pub fn read_bounded(path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(|error| at(path, &error))?;
    file.take(limit.saturating_add(1)).read_to_end(&mut bytes).map_err(|error| at(path, &error))?;
    if bytes.len() as u64 > limit {
        let text = format!("{}: longer than {limit} bytes", path.display());
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn a_file_is_synced_before_it_gets_its_name_and_the_name_before_the_call_returns() {
        let dir = tempfile::tempdir().unwrap();
        let (fs, ops) = recorded();
        let path = dir.path().join("head");

        fs.replace(&path, b"one").unwrap();

        let temporary = dir.path().join(format!("{TEMPORARY}0"));
        let expected = [
            FsOp::Create(temporary.clone()),
            FsOp::Append(temporary.clone(), b"one".to_vec()),
            FsOp::SyncFile(temporary.clone()),
            FsOp::Rename(temporary, path),
            FsOp::SyncDir(dir.path().to_owned()),
        ];
        assert_eq!(*ops.lock().unwrap(), expected);
    }

    #[test]
    fn new_directories_are_synced_into_their_parents() {
        let dir = tempfile::tempdir().unwrap();
        let (fs, ops) = recorded();

        fs.create_dir_all(&dir.path().join("a/b")).unwrap();

        let (a, b) = (dir.path().join("a"), dir.path().join("a/b"));
        let expected =
            [FsOp::CreateDir(a.clone()), FsOp::SyncDir(dir.path().to_owned()), FsOp::CreateDir(b), FsOp::SyncDir(a)];
        assert_eq!(*ops.lock().unwrap(), expected);
    }

    #[test]
    fn an_existing_equal_file_is_as_good_as_written_and_another_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let (fs, path) = (DurableFs::new(), dir.path().join("block"));

        fs.write_new(&path, b"one").unwrap();
        fs.write_new(&path, b"one").unwrap();
        let error = fs.write_new(&path, b"two").unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        assert_eq!(fs::read(&path).unwrap(), b"one");
    }

    #[test]
    fn a_temporary_file_that_is_dropped_or_left_by_a_crash_is_removed() {
        let dir = tempfile::tempdir().unwrap();
        let fs = DurableFs::new();
        drop(fs.create_temp(dir.path()).unwrap());
        fs::write(dir.path().join(format!("{TEMPORARY}7")), b"torn").unwrap();

        let removed = fs.remove_temporary(dir.path()).unwrap();

        assert_eq!(removed, 1);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn an_error_names_the_path_and_keeps_its_kind() {
        let error = DurableFs::new().replace(Path::new("/nowhere/head"), b"").unwrap_err();

        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert!(error.to_string().starts_with("/nowhere/"), "{error}");
    }

    #[test]
    fn a_file_beyond_the_limit_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        fs::write(&path, [0; 11]).unwrap();

        assert_eq!(read_bounded(&path, 10).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
        assert_eq!(read_bounded(&path, 11).unwrap().len(), 11);
    }

    fn recorded() -> (DurableFs, Arc<Mutex<Vec<FsOp>>>) {
        let ops = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&ops);
        (DurableFs::recording(Arc::new(move |op| log.lock().unwrap().push(op))), ops)
    }
}
