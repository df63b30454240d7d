//! The account at the end: what devices were told against what is on disk.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;

use forebay_storage::dead_letter::DeadLetter;

use super::devices::Tally;
use super::readback::Rows;
use crate::cli::output::{Cell, Table, Tone, grouped, tinted};
use crate::cli::verify::{short_head, verdict};
use crate::verify::{DatasetReport, VerifyReport};

/// What was read back.
pub(super) struct Evidence {
    /// The gateway's data directory.
    pub(super) local: VerifyReport,
    /// The datasets upstream.
    pub(super) upstream: Vec<DatasetReport>,
    /// Both have the same files.
    pub(super) identical: bool,
    /// Rows upstream, by dataset.
    pub(super) rows: Vec<(String, Rows)>,
    /// Dead letters.
    pub(super) dead_letters: Vec<DeadLetter>,
}

/// The balance.
pub(super) struct Account {
    evidence: Evidence,
    acknowledged: u64,
    in_datasets: u64,
    dead: u64,
    lost: Vec<(String, u64)>,
    stored_twice: u64,
    unacknowledged_sent: u64,
    unacknowledged_rows: u64,
    refused: u64,
}

impl Account {
    pub(super) fn new(tallies: &[Tally], evidence: Evidence) -> Self {
        let rows: BTreeMap<&(String, u64), u64> =
            evidence.rows.iter().flat_map(|(_, rows)| rows.iter().map(|(key, count)| (key, *count))).collect();
        let dead: BTreeSet<(&str, &[u8])> =
            evidence.dead_letters.iter().map(|letter| (&*letter.message.client_id, &*letter.message.payload)).collect();
        let mut account = Self {
            acknowledged: 0,
            in_datasets: 0,
            dead: 0,
            lost: Vec::new(),
            stored_twice: rows.values().map(|count| count - 1).sum(),
            unacknowledged_sent: 0,
            unacknowledged_rows: 0,
            refused: 0,
            evidence: Evidence {
                local: VerifyReport::default(),
                upstream: Vec::new(),
                identical: false,
                rows: Vec::new(),
                dead_letters: Vec::new(),
            },
        };
        for tally in tallies {
            account.refused += tally.refused.len() as u64;
            if tally.qos == 0 {
                account.unacknowledged_sent += tally.sent.len() as u64;
                let is_row = |n: &&u64| rows.contains_key(&(tally.client_id.clone(), **n));
                account.unacknowledged_rows += tally.sent.keys().filter(is_row).count() as u64;
            }
            for n in &tally.acknowledged {
                account.acknowledged += 1;
                let payload = tally.sent.get(n).map(String::as_bytes).unwrap_or_default();
                if rows.contains_key(&(tally.client_id.clone(), *n)) {
                    account.in_datasets += 1;
                } else if dead.contains(&(tally.client_id.as_str(), payload)) {
                    account.dead += 1;
                } else {
                    account.lost.push((tally.client_id.clone(), *n));
                }
            }
        }
        drop((rows, dead));
        account.evidence = evidence;
        account
    }

    /// Whether everything is as it was promised.
    pub(super) fn is_ok(&self) -> bool {
        self.lost.is_empty() && self.stored_twice == 0 && self.acknowledged > 0 && self.verified() && self.identical()
    }

    fn verified(&self) -> bool {
        self.evidence.local.ok && self.evidence.upstream.iter().all(|dataset| dataset.ok)
    }

    fn identical(&self) -> bool {
        let heads = |reports: &[DatasetReport]| -> Vec<Option<String>> {
            reports.iter().map(|report| report.head.clone()).collect()
        };
        self.evidence.identical && heads(&self.evidence.local.datasets) == heads(&self.evidence.upstream)
    }

    pub(super) fn render(&self, colour: bool) -> String {
        let mut out = String::from("\n");
        out += &self.table().render(colour);
        out.push('\n');
        let lost = format!("lost {}", grouped(self.lost.len() as u64));
        let tone = if self.lost.is_empty() { Tone::Good } else { Tone::Bad };
        let _ = writeln!(
            out,
            "acknowledged {}, in dataset {}, {}",
            grouped(self.acknowledged),
            grouped(self.in_datasets),
            tinted(&lost, tone, colour),
        );
        let _ = writeln!(
            out,
            "  {} acknowledged = {} rows + {} dead letters, each one matched by client and content; stored twice {}",
            grouped(self.acknowledged),
            grouped(self.in_datasets),
            grouped(self.dead),
            grouped(self.stored_twice),
        );
        for (reason, count) in self.reasons() {
            let _ = writeln!(out, "  dead letters: {} × {reason}", grouped(count));
        }
        let _ = writeln!(
            out,
            "  QoS 0 asks for no acknowledgement: sent {}, in dataset {}",
            grouped(self.unacknowledged_sent),
            grouped(self.unacknowledged_rows),
        );
        let _ = writeln!(
            out,
            "  refused with reason 0x90, because no dataset takes the topic: {} (MQTT 5.0 devices are told)",
            grouped(self.refused),
        );
        for (client_id, n) in self.lost.iter().take(10) {
            let _ = writeln!(out, "{} message {n} of {client_id}", tinted("lost:", Tone::Bad, colour));
        }
        for problem in self.problems() {
            let _ = writeln!(out, "{} {problem}", tinted("problem:", Tone::Bad, colour));
        }
        let (word, tone) = if self.identical() { ("identical", Tone::Good) } else { ("differs", Tone::Bad) };
        let _ = writeln!(out, "upstream: {}", tinted(word, tone, colour));
        out += &verdict(self.verified(), colour);
        out
    }

    fn table(&self) -> Table {
        let mut table = Table::new(["dataset", "rows", "slices", "blocks", "head"]);
        for report in &self.evidence.upstream {
            table.row([
                Cell::from(report.name.as_str()),
                report.rows.into(),
                report.slices.into(),
                report.blocks.into(),
                short_head(report.head.as_deref()).into(),
            ]);
        }
        table
    }

    fn reasons(&self) -> BTreeMap<&str, u64> {
        let mut reasons = BTreeMap::new();
        for letter in &self.evidence.dead_letters {
            *reasons.entry(letter.reason.as_str()).or_default() += 1;
        }
        reasons
    }

    fn problems(&self) -> impl Iterator<Item = &String> {
        let datasets = self.evidence.local.datasets.iter().chain(&self.evidence.upstream);
        self.evidence.local.spool_problems.iter().chain(datasets.flat_map(|dataset| &dataset.problems))
    }
}
