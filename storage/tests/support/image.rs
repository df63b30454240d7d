//! Images of a disk after its power was cut.
//!
//! What was synced is there. Of what was not, each write is kept or lost at random, and may be torn: only some of its
//! pieces arrive. Each name that was made, changed or removed is kept or lost at random until its directory is synced; of
//! a file that was not synced a random part of what was appended is there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use fastrand::Rng;
use forebay_storage::durable_fs::FsOp;

use super::{Event, write_at};

/// How much of what was not synced survives: the share of writes kept, and the size of the pieces in which they are torn.
#[derive(Clone, Copy, Debug)]
pub struct Damage {
    pub kept: f64,
    pub piece: usize,
}

impl Damage {
    /// Any of the usual ones.
    pub fn any(rng: &mut Rng) -> Self {
        let kept = [0.0, 0.2, 0.5, 0.8, 1.0][rng.usize(..5)];
        let piece = [4096, 512, 64, 16][rng.usize(..4)];
        Self { kept, piece }
    }
}

/// A disk after a cut.
#[derive(Clone, Debug, Default)]
pub struct CrashImage {
    /// redb's storage.
    pub database: Vec<u8>,
    /// Files by the path under which they were recorded.
    pub files: BTreeMap<PathBuf, Vec<u8>>,
    pub dirs: BTreeSet<PathBuf>,
}

impl CrashImage {
    /// Writes the files below `from` to the same places below `to`.
    pub fn materialise(&self, from: &Path, to: &Path) {
        for dir in &self.dirs {
            if let Ok(place) = dir.strip_prefix(from) {
                fs::create_dir_all(to.join(place)).unwrap();
            }
        }
        for (path, bytes) in &self.files {
            // A file whose directory was lost is lost.
            if let Ok(place) = path.strip_prefix(from)
                && to.join(place).parent().is_some_and(Path::is_dir)
            {
                fs::write(to.join(place), bytes).unwrap();
            }
        }
    }
}

/// Goes through a log once, making images on the way.
#[derive(Debug, Default)]
pub struct Replay {
    /// redb's storage as of its last sync, and what came after.
    synced: Vec<u8>,
    pending: Vec<DbOp>,
    /// Files by number: what is synced, and what was appended after.
    inodes: Vec<(Vec<u8>, Vec<u8>)>,
    names: BTreeMap<PathBuf, usize>,
    dirs: BTreeSet<PathBuf>,
    pending_names: Vec<NameOp>,
    /// As the running process sees them.
    names_now: BTreeMap<PathBuf, usize>,
}

#[derive(Clone, Debug)]
enum DbOp {
    Write(u64, Vec<u8>),
    SetLen(u64),
}

/// What happened to a name, with the number of the file as the running process saw it.
#[derive(Clone, Debug)]
enum NameOp {
    Link(PathBuf, usize),
    Move(PathBuf, PathBuf, usize),
    Unlink(PathBuf),
    MakeDir(PathBuf),
}

impl NameOp {
    fn dir(&self) -> Option<&Path> {
        match self {
            Self::Link(path, _) | Self::Move(_, path, _) | Self::Unlink(path) | Self::MakeDir(path) => path.parent(),
        }
    }

    /// It reaches the disk, whether or not what came before it did.
    fn settle(&self, names: &mut BTreeMap<PathBuf, usize>, dirs: &mut BTreeSet<PathBuf>) {
        match self {
            Self::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            Self::Move(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
            Self::Unlink(path) => {
                names.remove(path);
            }
            Self::MakeDir(path) => {
                dirs.insert(path.clone());
            }
        }
    }
}

impl Replay {
    /// A disk on which redb's storage already holds `database`, and nothing else.
    pub fn from(database: Vec<u8>) -> Self {
        Self { synced: database, ..Self::default() }
    }

    /// A disk as a cut left it, with the files of `from` now below `to`.
    pub fn after(image: &CrashImage, from: &Path, to: &Path) -> Self {
        let moved = |path: &PathBuf| to.join(path.strip_prefix(from).unwrap());
        let names: BTreeMap<_, _> = image.files.keys().enumerate().map(|(inode, path)| (moved(path), inode)).collect();
        Self {
            synced: image.database.clone(),
            inodes: image.files.values().map(|bytes| (bytes.clone(), Vec::new())).collect(),
            names_now: names.clone(),
            names,
            dirs: image.dirs.iter().map(moved).collect(),
            ..Self::default()
        }
    }

    pub fn apply<N>(&mut self, event: &Event<N>) {
        match event {
            Event::Write(offset, bytes) => self.pending.push(DbOp::Write(*offset, bytes.clone())),
            Event::SetLen(len) => self.pending.push(DbOp::SetLen(*len)),
            Event::Sync => {
                for op in std::mem::take(&mut self.pending) {
                    apply_whole(&mut self.synced, &op);
                }
            }
            Event::Fs(op) => self.apply_fs(op),
            Event::Note(_) => {}
        }
    }

    /// The same for a device that forgets to sync.
    pub fn apply_lying<N>(&mut self, event: &Event<N>) {
        if !matches!(event, Event::Sync) {
            self.apply(event);
        }
    }

    /// The disk if the power is cut here.
    pub fn cut(&self, damage: Damage, rng: &mut Rng) -> CrashImage {
        let mut image = CrashImage { database: self.synced.clone(), dirs: self.dirs.clone(), ..CrashImage::default() };
        for op in &self.pending {
            match op {
                DbOp::SetLen(_) if rng.f64() < damage.kept => apply_whole(&mut image.database, op),
                DbOp::SetLen(_) => {}
                DbOp::Write(offset, bytes) if rng.f64() < damage.kept => {
                    tear(&mut image.database, *offset, bytes, damage.piece, rng);
                }
                DbOp::Write(..) => {}
            }
        }
        let mut names = self.names.clone();
        for op in &self.pending_names {
            if rng.f64() < damage.kept {
                op.settle(&mut names, &mut image.dirs);
            }
        }
        for (path, inode) in names {
            let (synced, appended) = &self.inodes[inode];
            let mut bytes = synced.clone();
            bytes.extend_from_slice(&appended[..rng.usize(..=appended.len())]);
            image.files.insert(path, bytes);
        }
        image
    }

    fn apply_fs(&mut self, op: &FsOp) {
        match op {
            FsOp::Create(path) => {
                self.inodes.push(Default::default());
                let inode = self.inodes.len() - 1;
                self.names_now.insert(path.clone(), inode);
                self.pending_names.push(NameOp::Link(path.clone(), inode));
            }
            FsOp::Append(path, bytes) => self.inodes[self.names_now[path]].1.extend_from_slice(bytes),
            FsOp::SyncFile(path) => {
                let (synced, appended) = &mut self.inodes[self.names_now[path]];
                synced.append(appended);
            }
            FsOp::Rename(from, to) => {
                let inode = self.names_now.remove(from).unwrap_or_else(|| panic!("renamed from nowhere: {from:?}"));
                self.names_now.insert(to.clone(), inode);
                self.pending_names.push(NameOp::Move(from.clone(), to.clone(), inode));
            }
            FsOp::Remove(path) => {
                self.names_now.remove(path);
                self.pending_names.push(NameOp::Unlink(path.clone()));
            }
            FsOp::CreateDir(path) => self.pending_names.push(NameOp::MakeDir(path.clone())),
            FsOp::SyncDir(dir) => {
                for op in std::mem::take(&mut self.pending_names) {
                    if op.dir() == Some(dir) {
                        op.settle(&mut self.names, &mut self.dirs);
                    } else {
                        self.pending_names.push(op);
                    }
                }
            }
        }
    }
}

fn apply_whole(bytes: &mut Vec<u8>, op: &DbOp) {
    match op {
        DbOp::Write(offset, data) => write_at(bytes, *offset, data),
        DbOp::SetLen(len) => bytes.resize(*len as usize, 0),
    }
}

/// Writes some of the pieces: all, none or any.
fn tear(bytes: &mut Vec<u8>, offset: u64, data: &[u8], piece: usize, rng: &mut Rng) {
    let torn = rng.bool();
    for (index, data) in data.chunks(piece).enumerate() {
        if !torn || rng.bool() {
            write_at(bytes, offset + (index * piece) as u64, data);
        }
    }
}
