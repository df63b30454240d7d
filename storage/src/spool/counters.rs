//! What the spool counted since it was opened.

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the spool was opened. All only grow.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        #[non_exhaustive]
        pub struct Counters {
            $($(#[$doc])* pub $name: u64,)*
        }

        impl Counters {
            /// Adds another count to this one.
            pub(super) fn add(&mut self, other: &Self) {
                $(self.$name += other.$name;)*
            }

            /// Names and counts, in a fixed order.
            #[must_use]
            pub fn list(&self) -> Vec<(&'static str, u64)> {
                vec![$((stringify!($name), self.$name),)*]
            }
        }
    };
}

counters! {
    /// Messages stored in chunks.
    messages_stored,
    /// Their bytes before compression.
    message_bytes,
    /// Their bytes as stored.
    chunk_bytes,
    /// Commits that stored messages.
    commits,
    /// Resent QoS 1 messages that were already stored.
    duplicates_qos1,
    /// Resent QoS 2 messages that were already stored.
    duplicates_qos2,
    /// Retained values that a source sent again, and that were the last ones stored of their topics.
    duplicates_retained,
    /// Messages refused because the spool or the disk was full.
    refused_full,
    /// Messages above the largest size.
    messages_too_large,
    /// QoS 2 messages refused because the table of Packet Identifiers, or the client's share of it, was full.
    packet_ids_refused,
    /// Sessions refused because the table of sessions was full.
    sessions_refused,
    /// Last values that were too large to be kept.
    retained_not_kept,
    /// Topics whose last value made room for others'.
    retained_forgotten,
    /// Dead letters stored.
    dead_letters,
    /// Dead letters dropped because of their bound.
    dead_letters_dropped,
    /// Messages dropped because the spool was full and drops the oldest.
    messages_dropped,
    /// Ledger keys forgotten because of their bound.
    ledger_keys_dropped,
    /// Chunks that could not be read.
    chunks_damaged,
    /// Commits that met a full disk.
    disk_full,
}
