//! Counts of payload fields that no dataset declares, by name.

use std::collections::{BTreeMap, BTreeSet};

/// Most names that are told apart; a device that invents names must not fill the memory. Further ones are counted together.
pub const UNKNOWN_NAMES_MAX: usize = 64;
/// Longest name that is told apart, bytes. Longer ones are counted together.
pub const UNKNOWN_NAME_BYTES_MAX: usize = 128;

/// How often each undeclared field came, in rows that were kept.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UnknownFields {
    /// By name.
    pub by_name: BTreeMap<String, u64>,
    /// Past the bounds.
    pub others: u64,
}

impl UnknownFields {
    /// Counts the undeclared fields of one row, and leaves `names` empty.
    pub(crate) fn count(&mut self, names: &mut BTreeSet<String>) {
        while let Some(name) = names.pop_first() {
            if let Some(count) = self.by_name.get_mut(&name) {
                *count += 1;
            } else if self.by_name.len() < UNKNOWN_NAMES_MAX && name.len() <= UNKNOWN_NAME_BYTES_MAX {
                self.by_name.insert(name, 1);
            } else {
                self.others += 1;
            }
        }
    }
}
