//! Believes nothing: recomputes every hash, rule, offset and row count of a dataset's directory.
//!
//! A [`Report`] names every file that is not as it should be. Memory is bounded whatever the dataset's size: one block,
//! one batch of [`BATCH_ROWS`] rows and 33 bytes per block at a time, at most [`PROBLEMS_MAX`] problems. A slice is only
//! parsed as Parquet after its bytes were found to be those that the block names, so that damage never reaches a parser.

use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use super::chain::ChainState;
use super::event::DataSlice;
use super::multihash::{DatasetDid, Multihash};
use super::repository::{list, name_of};
use super::slice_check::{check_file, check_rows};
use super::walk::{self, ChainFileError};
use crate::position::Seq;

/// Rows held at a time.
pub const BATCH_ROWS: usize = 1_024;

/// Problems listed. Beyond: counted in [`Report::problems_left_off`].
pub const PROBLEMS_MAX: usize = 1_000;

/// How much is looked at. Each includes the one before.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Depth {
    /// Blocks: hashes and rules.
    Chain,
    /// Slices: presence, size, physical hash.
    Files,
    /// Rows: columns, offsets, logical hash, event time against the watermark.
    Rows,
}

/// What was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Whose chain it is, if its Seed could be read.
    pub dataset_id: Option<DatasetDid>,
    /// Its head, if `refs/head` could be read.
    pub head: Option<Multihash>,
    /// Blocks in the chain that are as they should be.
    pub blocks: u64,
    /// Slices looked at.
    pub slices: u64,
    /// Rows read.
    pub rows: u64,
    /// Size of the slices by their blocks, bytes.
    pub data_bytes: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
    /// Problems beyond [`PROBLEMS_MAX`].
    pub problems_left_off: u64,
    /// What is allowed and may still surprise: files that no block refers to, a watermark that rows are ahead of.
    pub notes: Vec<Problem>,
}

/// A file and what is wrong with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Path within the dataset's directory.
    pub file: PathBuf,
    /// A sentence.
    pub what: String,
}

impl Report {
    /// Nothing is wrong.
    #[must_use]
    pub fn is_ok(&self) -> bool {
        self.problems.is_empty()
    }

    fn problem(&mut self, problem: Problem) {
        if self.problems.len() >= PROBLEMS_MAX {
            self.problems_left_off += 1;
        } else if !self.problems.contains(&problem) {
            self.problems.push(problem);
        }
    }

    fn note(&mut self, file: PathBuf, what: impl Into<String>) {
        if self.notes.len() < PROBLEMS_MAX {
            self.notes.push(Problem { file, what: what.into() });
        }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.what)
    }
}

/// Checks the dataset in `dir`.
#[must_use]
pub fn verify(dir: &Path, depth: Depth) -> Report {
    verify_kept(dir, depth, Seq(0))
}

/// The same where retention has released the slices below `released`: they may be missing.
#[must_use]
pub fn verify_kept(dir: &Path, depth: Depth, released: Seq) -> Report {
    let mut verifier = Verifier { dir, depth, released, gone: 0, report: Report::default() };
    verifier.check_block_files();
    let referenced = verifier.check_chain();
    if let Some(referenced) = referenced {
        verifier.note_orphans(&referenced);
    }
    if verifier.gone > 0 {
        let what = format!("{} slices were released after every upstream had them", verifier.gone);
        verifier.report.note(PathBuf::from("data"), what);
    }
    verifier.report
}

struct Verifier<'a> {
    dir: &'a Path,
    depth: Depth,
    released: Seq,
    /// Slices that are missing and may be.
    gone: u64,
    report: Report,
}

impl Verifier<'_> {
    /// Every block file by itself, so that one damaged block does not hide another behind it.
    fn check_block_files(&mut self) {
        let dir = self.dir.join("blocks");
        let paths = match list(&dir) {
            Ok(paths) => paths,
            Err(source) => return self.file_problem(&ChainFileError::Io { path: dir, source }, ""),
        };
        for path in paths {
            let Ok(hash) = name_of(&path).parse::<Multihash>() else {
                continue;
            };
            if let Err(error) = walk::read_block_bytes(&path, &hash) {
                self.file_problem(&error, "");
            }
        }
    }

    /// The files that the chain refers to, unless it could not be followed to its end.
    fn check_chain(&mut self) -> Option<BTreeSet<PathBuf>> {
        let head = match walk::read_head(self.dir) {
            Ok(head) => head,
            Err(error) => {
                self.file_problem(&error, "; no block can be found without it");
                return None;
            }
        };
        self.report.head = Some(head);
        let hashes = match walk::hashes(self.dir, head, None) {
            Ok(hashes) => hashes,
            Err(error) => {
                self.broken_walk(&error, head);
                return None;
            }
        };
        let dir = self.dir;
        let blocks = hashes.iter().map(|hash| walk::block_path(dir, hash));
        let mut referenced: BTreeSet<PathBuf> = blocks.collect();
        let replayed = walk::replay(dir, &hashes, |block, state| {
            self.report.blocks += 1;
            self.report.dataset_id = Some(state.dataset_id);
            if let Some(slice) = block.event.new_data() {
                let path = walk::data_path(dir, &slice.physical_hash);
                let may_be_gone = block.event.last_seq().is_some_and(|last| last < self.released);
                if may_be_gone && !path.exists() {
                    self.gone += 1;
                } else {
                    self.check_slice(slice, state);
                }
                referenced.insert(path);
            }
        });
        if let Err(error) = replayed {
            self.file_problem(&error, "; the blocks after it were not checked");
            return None;
        }
        Some(referenced)
    }

    fn check_slice(&mut self, slice: &DataSlice, state: &ChainState) {
        self.report.slices += 1;
        self.report.data_bytes = self.report.data_bytes.saturating_add(slice.size);
        if self.depth < Depth::Files {
            return;
        }
        let path = walk::data_path(self.dir, &slice.physical_hash);
        if let Err(what) = check_file(&path, slice) {
            let file = self.relative(&path);
            return self.report.problem(Problem { file, what });
        }
        if self.depth < Depth::Rows {
            return;
        }
        let findings = check_rows(&path, slice, state);
        self.report.rows += findings.rows;
        for what in findings.problems {
            let file = self.relative(&path);
            self.report.problem(Problem { file, what });
        }
        for what in findings.notes {
            let file = self.relative(&path);
            self.report.note(file, what);
        }
    }

    fn note_orphans(&mut self, referenced: &BTreeSet<PathBuf>) {
        for name in ["blocks", "data"] {
            for path in list(&self.dir.join(name)).unwrap_or_default() {
                if !referenced.contains(&path) {
                    let file = self.relative(&path);
                    self.report.note(file, "no block of the chain refers to it");
                }
            }
        }
    }

    /// A head whose block is not there may itself be what was damaged.
    fn broken_walk(&mut self, error: &ChainFileError, head: Multihash) {
        let is_missing = matches!(error, ChainFileError::Io { .. });
        if is_missing && error.path() == walk::block_path(self.dir, &head) {
            let file = self.relative(&walk::head_path(self.dir));
            let what = format!("names the block {head}, which cannot be read");
            self.report.problem(Problem { file, what });
        }
        self.file_problem(error, "");
    }

    fn file_problem(&mut self, error: &ChainFileError, consequence: &str) {
        let file = self.relative(error.path());
        let text = error.to_string();
        let prefix = format!("{}: ", error.path().display());
        let what = text.strip_prefix(&prefix).unwrap_or(&text);
        self.report.problem(Problem { file, what: format!("{what}{consequence}") });
    }

    fn relative(&self, path: &Path) -> PathBuf {
        path.strip_prefix(self.dir).unwrap_or(path).to_owned()
    }
}
