//! Bounds of the spool: each with its unit, its default and what happens when it is reached.

use std::time::Duration;

/// The most messages in one chunk, whatever the configuration says. A last chunk whose header is damaged may have held
/// this many, so the next message gets a position beyond them.
pub const CHUNK_MESSAGES_MAX: u32 = 65_536;

/// The largest message that can be stored: topic, Client Identifier and payload. 64 MiB. A larger one is never accepted
/// (`Outcome::Unavailable`, counted as `messages_too_large`); the broker's packet limit must be lower.
pub const MESSAGE_BYTES_MAX: usize = 64 << 20;

/// What to do with new messages when the spool is full.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFull {
    /// Acknowledge nothing: devices keep their messages and send them again.
    #[default]
    Refuse,
    /// Remove the oldest messages that are not sealed, and record the gap. When there is none left: refuse.
    DropOldest,
}

/// Bounds of the spool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpoolConfig {
    /// Bytes of messages not yet sealed (with page rounding) plus the `external_bytes` that the owner reports. Default
    /// 2 GiB. Reached: [`on_full`](Self::on_full).
    pub max_bytes: u64,
    /// Bytes that must stay free in the file system, whatever `max_bytes` says. Default 256 MiB. Reached: `on_full`.
    pub min_free_bytes: u64,
    /// Default: refuse.
    pub on_full: OnFull,
    /// How long a full spool holds its requests (and so stops the sockets from being read) before it answers
    /// `Unavailable`. Default 10 s. Once it has, it answers at once until there is room.
    pub patience: Duration,
    /// Most messages of one commit. Default 4,096; at most [`CHUNK_MESSAGES_MAX`]. Reached: the rest goes into the next.
    pub commit_messages_max: usize,
    /// Bytes of messages after which a commit takes no further one. Default 1 MiB, at most 64 MiB.
    pub commit_bytes_max: usize,
    /// File that is freed when the disk is full, so that redb can still delete. Bytes, default 4 MiB.
    pub ballast_bytes: u64,
    /// redb's page cache, bytes. Default 4 MiB.
    pub cache_bytes: usize,
    /// Packet Identifiers of QoS 2 between PUBLISH and PUBREL, of all devices together. Default 131,072. Reached:
    /// `Unavailable`, counted as `packet_ids_refused`. Those of sources are not among them: each has at most 65,535, and
    /// how many is its broker's choice.
    pub packet_ids_max: u64,
    /// The same for one device while less than half of `packet_ids_max` is taken. Default 4,096. Reached: as
    /// `packet_ids_max`.
    pub packet_ids_client_max: u64,
    /// The same for one device from then on. Default 64, which 1,024 further devices can have whatever was taken before.
    /// Reached: as `packet_ids_max`.
    pub packet_ids_client_crowded: u64,
    /// Stored sessions, those of connected clients included. Default 20,000. Reached: `Unavailable`, counted as `sessions_refused`.
    pub sessions_max: u64,
    /// Topics of devices whose last retained value is kept. Default 10,000. Reached: those that were written longest ago are
    /// forgotten, counted as `retained_forgotten`; the messages themselves are stored.
    pub retained_topics_max: u64,
    /// Bytes of these topics and values. Default 16 MiB. Reached: as `retained_topics_max`. What alone would take more
    /// than a sixteenth is not kept, counted as `retained_not_kept`.
    pub retained_bytes_max: u64,
    /// Topics whose last value is remembered, for each source. Default 50,000. Reached: as `retained_topics_max`; a value of
    /// them that comes again with a subscription is stored again.
    pub retained_source_topics_max: u64,
    /// Bytes of these topics, for each source; of a value it is 32. Default 16 MiB. Reached: as `retained_bytes_max`.
    pub retained_source_bytes_max: u64,
    /// The largest retained payload that is kept; of a larger one only its hash and length are. Default 64 KiB.
    pub retained_payload_max: usize,
    /// Bytes of dead letters. Default 64 MiB. Reached: the oldest is dropped, recorded as a gap and
    /// counted as `dead_letters_dropped`.
    pub dead_letter_bytes_max: u64,
    /// Messages that are remembered to recognise a DUP, all clients together. Default 131,072. Reached: those of the
    /// client that was idle longest are forgotten: a DUP of them would be stored again.
    pub dup_window_max: usize,
    /// The same for one client. Default 256. Reached: its oldest is forgotten.
    pub dup_window_client_max: usize,
    /// The same for one source, whose broker decides how many are on their way. Default 32,768, half of all identifiers.
    pub dup_window_source_max: usize,
    /// Bytes of sealed chunks that stay in the spool so that a restart can rebuild the DUP window. Default 4 MiB; never
    /// more than an eighth of `max_bytes`.
    pub dup_tail_bytes: u64,
    /// Ledger keys per dataset. Default 100,000. Reached: the oldest is forgotten: its row would be sealed again.
    pub ledger_keys_max: u64,
    /// Recorded gaps per dataset. Default 1,000. Reached: a neighbour of the new one is widened instead.
    pub gaps_max: u64,
}

impl Default for SpoolConfig {
    fn default() -> Self {
        Self {
            max_bytes: 2 << 30,
            min_free_bytes: 256 << 20,
            on_full: OnFull::Refuse,
            patience: Duration::from_secs(10),
            commit_messages_max: 4096,
            commit_bytes_max: 1 << 20,
            ballast_bytes: 4 << 20,
            cache_bytes: 4 << 20,
            packet_ids_max: 131_072,
            packet_ids_client_max: 4_096,
            packet_ids_client_crowded: 64,
            sessions_max: 20_000,
            retained_topics_max: 10_000,
            retained_bytes_max: 16 << 20,
            retained_source_topics_max: 50_000,
            retained_source_bytes_max: 16 << 20,
            retained_payload_max: 64 << 10,
            dead_letter_bytes_max: 64 << 20,
            dup_window_max: 131_072,
            dup_window_client_max: 256,
            dup_window_source_max: 32_768,
            dup_tail_bytes: 4 << 20,
            ledger_keys_max: 100_000,
            gaps_max: 1_000,
        }
    }
}

impl SpoolConfig {
    /// How many Packet Identifiers one device may hold when all devices hold `all`.
    pub(super) fn packet_ids_of_client(&self, all: u64) -> u64 {
        match all {
            all if all >= self.packet_ids_max => 0,
            all if all >= self.packet_ids_max / 2 => self.packet_ids_client_crowded.min(self.packet_ids_client_max),
            _ => self.packet_ids_client_max,
        }
    }

    /// How many bytes of sealed chunks stay for the DUP window.
    pub(super) fn tail_bytes(&self) -> u64 {
        self.dup_tail_bytes.min(self.max_bytes / 8)
    }

    /// How many messages one commit takes.
    pub(super) fn commit_messages(&self) -> usize {
        self.commit_messages_max.clamp(1, CHUNK_MESSAGES_MAX as usize)
    }

    /// After how many bytes it is enough.
    pub(super) fn commit_bytes(&self) -> usize {
        self.commit_bytes_max.min(MESSAGE_BYTES_MAX)
    }
}
