//! What the tests of `odf` share: fixtures.
#![allow(clippy::unwrap_used, reason = "a step that fails fails the test")]
#![allow(dead_code, reason = "each test links its own copy and uses a part of it")]
#![allow(clippy::allow_attributes, reason = "an expectation would fail in the test that uses everything")]

use std::path::{Path, PathBuf};

/// A fixture in `tests/data`.
pub(crate) fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

/// A copy of a fixture directory that a test may damage.
pub(crate) fn copy_of(name: &str) -> (tempfile::TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let copy = temp.path().join("dataset");
    copy_tree(&data(name), &copy);
    (temp, copy)
}

/// Lowercase hex.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// The bytes of hex.
pub(crate) fn from_hex(text: &str) -> Vec<u8> {
    let digits = (0..text.len()).step_by(2);
    digits.map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Copies a directory with all that is in it.
pub(crate) fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in from.read_dir().unwrap() {
        let from = entry.unwrap().path();
        let to = to.join(from.file_name().unwrap());
        if from.is_dir() {
            copy_tree(&from, &to);
        } else {
            std::fs::copy(&from, &to).unwrap();
        }
    }
}

/// The files of a dataset that its chain is made of, relative to it.
pub(crate) fn files_of(dir: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    for name in ["blocks", "data", "refs"] {
        for entry in dir.join(name).read_dir().unwrap() {
            files.push(Path::new(name).join(entry.unwrap().file_name()));
        }
    }
    files.sort();
    files
}
