//! Whether files have changed, by looking at them now and then. (pure, but for [`look`])
//!
//! Notifications of the kernel miss what happens behind a symlink and on network disks; a look costs one system call a
//! file. Symlinks are followed, so a directory that is swapped as a whole (certbot, Kubernetes) is seen. What is just
//! being written is not believed: only when every file looks as it did at the look before is a change a change.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Between two looks.
pub const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What tells one state of a file from another; none: it is not there.
pub type Look = Option<Stamp>;

/// When and how large, and which file it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// Modification, seconds and nanoseconds since 1970.
    pub modified: (i64, i64),
    /// Bytes.
    pub bytes: u64,
    /// Device and inode.
    pub inode: (u64, u64),
}

/// Looks at files, following symlinks. What cannot be looked at is not there.
#[must_use]
pub fn look(files: Vec<PathBuf>) -> BTreeMap<PathBuf, Look> {
    files.into_iter().map(|file| (file.clone(), stamp(&file))).collect()
}

fn stamp(file: &Path) -> Look {
    let data = std::fs::metadata(file).ok()?;
    Some(Stamp { modified: (data.mtime(), data.mtime_nsec()), bytes: data.len(), inode: (data.dev(), data.ino()) })
}

/// Remembers how files looked.
#[derive(Clone, Debug, Default)]
pub struct Watch {
    /// As they were when they were last acted upon.
    known: BTreeMap<PathBuf, Look>,
    /// As they were at the last look.
    last: BTreeMap<PathBuf, Look>,
}

impl Watch {
    /// Of files that look like this.
    #[must_use]
    pub fn new(looks: BTreeMap<PathBuf, Look>) -> Self {
        Self { known: looks.clone(), last: looks }
    }

    /// The files.
    #[must_use]
    pub fn files(&self) -> Vec<PathBuf> {
        self.known.keys().cloned().collect()
    }

    /// Takes a look at [`files`](Self::files), and answers the files that changed since they were last acted upon; they
    /// are acted upon now. None as long as anything differs from the look before.
    pub fn handle_look(&mut self, looks: BTreeMap<PathBuf, Look>) -> Vec<PathBuf> {
        let is_settled = looks == self.last;
        self.last = looks;
        if !is_settled {
            return Vec::new();
        }
        let changed = self.last.iter().filter(|(file, look)| self.known.get(*file) != Some(look));
        let changed = changed.map(|(file, _)| file.clone()).collect();
        self.known.clone_from(&self.last);
        changed
    }

    /// Watches these files from now on. Those that were watched before keep how they looked when they were acted upon.
    pub fn set_files(&mut self, mut looks: BTreeMap<PathBuf, Look>) {
        for (file, look) in &mut looks {
            if let Some(known) = self.known.get(file) {
                *look = *known;
            }
        }
        *self = Self::new(looks);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(of: &[(&str, Look)]) -> BTreeMap<PathBuf, Look> {
        of.iter().map(|(file, look)| (PathBuf::from(file), *look)).collect()
    }

    fn stamp(secs: i64, bytes: u64) -> Look {
        Some(Stamp { modified: (secs, 0), bytes, inode: (1, 1) })
    }

    #[test]
    fn a_change_counts_when_two_looks_in_a_row_agree_on_it() {
        let mut watch = Watch::new(looks(&[("a", stamp(1, 10))]));

        assert!(watch.handle_look(looks(&[("a", stamp(1, 10))])).is_empty());
        assert!(watch.handle_look(looks(&[("a", stamp(2, 11))])).is_empty());
        assert_eq!(watch.handle_look(looks(&[("a", stamp(2, 11))])), [PathBuf::from("a")]);
        assert!(watch.handle_look(looks(&[("a", stamp(2, 11))])).is_empty());
    }

    #[test]
    fn a_file_that_is_being_written_is_waited_for_whichever_file_it_is() {
        let mut watch = Watch::new(looks(&[("a", stamp(1, 10)), ("b", stamp(1, 10))]));

        for b in [stamp(2, 0), None, stamp(3, 5), stamp(3, 9)] {
            assert!(watch.handle_look(looks(&[("a", stamp(2, 10)), ("b", b)])).is_empty());
        }
        let both = watch.handle_look(looks(&[("a", stamp(2, 10)), ("b", stamp(3, 9))]));

        assert_eq!(both, [PathBuf::from("a"), PathBuf::from("b")]);
    }

    #[test]
    fn a_file_that_is_put_back_before_it_is_believed_has_not_changed() {
        let mut watch = Watch::new(looks(&[("a", stamp(1, 10))]));

        assert!(watch.handle_look(looks(&[("a", None)])).is_empty());
        assert!(watch.handle_look(looks(&[("a", stamp(1, 10))])).is_empty());
        assert!(watch.handle_look(looks(&[("a", stamp(1, 10))])).is_empty());
    }

    #[test]
    fn a_file_that_stays_away_has_changed() {
        let mut watch = Watch::new(looks(&[("a", stamp(1, 10))]));

        assert!(watch.handle_look(looks(&[("a", None)])).is_empty());
        assert_eq!(watch.handle_look(looks(&[("a", None)])), [PathBuf::from("a")]);
    }

    #[test]
    fn a_file_that_changes_while_the_configuration_is_read_is_seen() {
        let mut watch = Watch::new(looks(&[("a", stamp(1, 10))]));
        watch.handle_look(looks(&[("a", stamp(2, 10))]));
        assert_eq!(watch.handle_look(looks(&[("a", stamp(2, 10))])).len(), 1);

        watch.set_files(looks(&[("a", stamp(3, 10)), ("new", stamp(1, 1))]));

        assert!(watch.handle_look(looks(&[("a", stamp(3, 10)), ("new", stamp(1, 1))])).is_empty());
        let changed = watch.handle_look(looks(&[("a", stamp(3, 10)), ("new", stamp(1, 1))]));
        assert_eq!(changed, [PathBuf::from("a")]);
    }

    #[test]
    fn a_symlink_that_is_moved_to_another_file_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let (one, other, link) = (dir.path().join("one"), dir.path().join("other"), dir.path().join("link"));
        std::fs::write(&one, "same").unwrap();
        std::fs::write(&other, "same").unwrap();
        std::os::unix::fs::symlink(&one, &link).unwrap();
        let before = look(vec![link.clone()]);

        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink(&other, &link).unwrap();

        assert_ne!(look(vec![link.clone()]), before);
    }
}
