//! One bounded step of one dataset: what is there, what is missing, the next part of it, the position.

use forebay_storage::odf::{ChainFiles, Multihash, SealedSlice};
use forebay_storage::position::Seq;
use forebay_storage::spool::SpoolError;
use tracing::{error, info, warn};

use super::lane::Lane;
use super::{Runner, spool_failure};
use crate::upstream::carrier::{Carrier, ChainCarrier};
use crate::upstream::outcome::{Failure, FailureKind};
use crate::upstream::repository::Pushed;
use crate::upstream::schedule::{self, Waiting};

/// Blocks of one step.
const STEP_BLOCKS: usize = 256;
/// Bytes of slices of one step; a step has at least one slice, however large.
const STEP_BYTES: u64 = 16 << 20;
/// How often in a row a head may move under our hands before the dataset waits.
const HEAD_MOVES_MAX: u32 = 3;

/// What a step did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Everything is there.
    Idle,
    /// There may be more.
    Moved,
    /// Nothing was done yet: look again.
    Again,
}

/// What a step starts from.
#[derive(Clone, Copy, Debug)]
struct Stepping {
    head: Multihash,
    sealed: Seq,
    sealed_bytes: u64,
}

/// The part of what is missing that one step brings.
#[derive(Clone, Copy, Debug, Default)]
struct Part {
    blocks: usize,
    rows: u64,
    slice_bytes: u64,
    /// The first `seq` that it does not account for.
    end: Seq,
}

impl Part {
    fn first_of(files: &ChainFiles, missing: &[Multihash]) -> Result<Self, Failure> {
        let mut part = Self::default();
        for hash in missing.iter().take(STEP_BLOCKS) {
            let block = files.block(hash).map_err(Failure::local)?;
            if let Some(slice) = block.event.new_data() {
                if part.slice_bytes > 0 && part.slice_bytes + slice.size > STEP_BYTES {
                    break;
                }
                if !files.data_path(&slice.physical_hash).is_file() {
                    return Err(released(files, slice.physical_hash));
                }
                part.slice_bytes += slice.size;
                part.rows += slice.rows().unwrap_or(0);
            }
            part.end = block.event.last_seq().map_or(part.end, Seq::next);
            part.blocks += 1;
        }
        Ok(part)
    }
}

fn released(files: &ChainFiles, slice: Multihash) -> Failure {
    Failure::local(format!(
        "slice {slice} is not in {} any more, and the upstream does not have it: it was released when every upstream of \
         that time had it. Copy the dataset's repository there from one of them; the gateway goes on from its head",
        files.dir().display()
    ))
}

fn diverged(carrier: &ChainCarrier, dataset: &str, head: Option<Multihash>) -> Failure {
    let place = carrier.place(dataset);
    let head = head.map_or_else(|| "none".to_owned(), |head| head.to_string());
    Failure::new(
        FailureKind::Diverged,
        format!(
            "{place}: its head {head} is not a block of this gateway's chain: another writer was there, or this gateway's \
             data_dir was set back. Nothing is overwritten; move that dataset away, or deliver to another place"
        ),
    )
}

impl Runner {
    pub(super) async fn step(&mut self, index: usize) -> Result<Step, Failure> {
        let lane = &self.lanes[index];
        let sealed = self.delivery.spool.sealed(lane.id).map_err(|error| spool_failure(&error))?;
        let sealed_bytes = self.delivery.backlog.sealed(&lane.name);
        let Some(head) = lane.files.head().map_err(Failure::local)? else { return Ok(Step::Idle) };
        let stepping = Stepping { head, sealed, sealed_bytes };
        match &self.carrier {
            Some(Carrier::Chain(_)) => self.chain_step(index, stepping).await,
            Some(Carrier::Ingest(_)) => self.ingest_step(index, stepping).await,
            None => Ok(Step::Idle),
        }
    }

    /// Brings the chain there a bounded part nearer to ours.
    async fn chain_step(&mut self, index: usize, stepping: Stepping) -> Result<Step, Failure> {
        let lane = &self.lanes[index];
        if lane.known == Some(stepping.head) && !self.delivery.is_directory() {
            self.handle_delivered(index, stepping.sealed, Some(stepping.sealed_bytes), 0)?;
            return Ok(Step::Idle);
        }
        let Some(Carrier::Chain(carrier)) = &self.carrier else { return Ok(Step::Idle) };
        let before = self.delivered(lane)?;
        let delivered = self.delivered_datasets()?;
        let remote = carrier.head(&lane.name, &lane.files, &delivered).await?;
        let remote_hash = remote.as_ref().map(|head| head.hash);
        let missing = lane.files.blocks_after(stepping.head, remote_hash.as_ref()).map_err(Failure::local)?;
        let Some(missing) = missing else { return Err(diverged(carrier, &lane.name, remote_hash)) };
        if missing.is_empty() {
            self.lanes[index].known = Some(stepping.head);
            self.handle_delivered(index, stepping.sealed, Some(stepping.sealed_bytes), 0)?;
            return Ok(Step::Idle);
        }
        let part = Part::first_of(&lane.files, &missing).map_err(|failure| match remote {
            // A dataset that may no longer be seen looks like one that is not there.
            None if before > Seq(0) => failure.context(format!(
                "{} was delivered to and is gone, or may not be seen any more",
                carrier.place(&lane.name)
            )),
            _ => failure,
        })?;
        let blocks = missing.get(..part.blocks).unwrap_or(&missing);
        let pushed = carrier.push(&lane.name, &lane.files, remote.as_ref(), blocks, &delivered).await?;
        let Pushed::Done { bytes } = pushed else {
            return self.handle_head_moved(index);
        };
        let is_whole = blocks.len() == missing.len();
        let position = if is_whole { stepping.sealed } else { part.end.min(stepping.sealed) };
        let lane = &mut self.lanes[index];
        lane.known = blocks.last().copied();
        lane.head_moves = 0;
        info!(
            upstream = self.delivery.upstream.url,
            dataset = lane.name,
            blocks = blocks.len(),
            rows = part.rows,
            bytes,
            "Delivered."
        );
        self.note_sent(blocks.len() as u64, part.rows, bytes);
        self.handle_delivered(index, position, is_whole.then_some(stepping.sealed_bytes), part.slice_bytes)?;
        Ok(Step::Moved)
    }

    fn handle_head_moved(&mut self, index: usize) -> Result<Step, Failure> {
        let lane = &mut self.lanes[index];
        lane.known = None;
        lane.head_moves += 1;
        if lane.head_moves < HEAD_MOVES_MAX {
            return Ok(Step::Again);
        }
        lane.head_moves = 0;
        Err(Failure::new(FailureKind::Unknown, "its head there moves while it is written: is there another writer?"))
    }

    /// Posts the rows of one slice.
    async fn ingest_step(&mut self, index: usize, stepping: Stepping) -> Result<Step, Failure> {
        let lane = &self.lanes[index];
        let delivered = self.delivered(lane)?;
        let slices = if delivered < stepping.sealed {
            lane.files.slices_from(stepping.head, delivered).map_err(Failure::local)?
        } else {
            Vec::new()
        };
        let waits = |slice: &SealedSlice| slice.last_seq < stepping.sealed && !lane.ahead.contains(&slice.block);
        let slices: Vec<SealedSlice> = slices.into_iter().filter(waits).collect();
        if let Some(step) = self.skip_released(index, &slices)? {
            return Ok(step);
        }
        let lane = &self.lanes[index];
        let sizes: Vec<Waiting> = slices.iter().map(|slice| Waiting { bytes: slice.slice.size }).collect();
        let Some(next) = schedule::next_slice(&sizes, self.delivery.upstream.live_first) else {
            self.lanes[index].ahead.clear();
            self.handle_delivered(index, stepping.sealed, Some(stepping.sealed_bytes), 0)?;
            return Ok(Step::Idle);
        };
        let slice = &slices[next];
        let path = lane.files.data_path(&slice.slice.physical_hash);
        let Some(Carrier::Ingest(ingest)) = &mut self.carrier else { return Ok(Step::Idle) };
        let posted =
            ingest.deliver(&self.lanes[index].name, self.lanes[index].id, slice, &path, &self.delivery).await?;
        let lane = &mut self.lanes[index];
        info!(
            upstream = self.delivery.upstream.url,
            dataset = lane.name,
            rows = posted.rows,
            bytes = posted.bytes,
            refused = posted.refused,
            "Delivered."
        );
        let position = if next == 0 {
            slice.last_seq.next()
        } else {
            lane.ahead.insert(slice.block);
            delivered
        };
        self.note_sent(1, posted.rows, posted.bytes);
        self.handle_delivered(index, position, None, slice.slice.size)?;
        Ok(Step::Moved)
    }

    /// Goes past slices that are no longer here: every upstream of that time has their rows, and this one, configured later,
    /// never gets them from here.
    fn skip_released(&self, index: usize, slices: &[SealedSlice]) -> Result<Option<Step>, Failure> {
        let lane = &self.lanes[index];
        let is_gone = |slice: &&SealedSlice| !lane.files.data_path(&slice.slice.physical_hash).exists();
        let released = self.delivery.spool.released(lane.id).map_err(|error| spool_failure(&error))?;
        let gone: Vec<&SealedSlice> =
            slices.iter().take_while(|slice| slice.last_seq < released).take_while(is_gone).collect();
        let Some(last) = gone.last() else { return Ok(None) };
        let rows: u64 = gone.iter().filter_map(|slice| slice.slice.rows()).sum();
        error!(
            upstream = self.delivery.upstream.url,
            dataset = lane.name,
            rows,
            "Rows that were released before this upstream was configured do not reach it from here: other upstreams have them."
        );
        *self.delivery.progress.lock().never_sent.entry(lane.name.clone()).or_default() += rows;
        self.handle_delivered(index, last.last_seq.next(), None, 0)?;
        Ok(Some(Step::Moved))
    }

    pub(super) fn delivered(&self, lane: &Lane) -> Result<Seq, Failure> {
        self.delivery.spool.delivered(&self.delivery.upstream.url, lane.id).map_err(|error| spool_failure(&error))
    }

    /// Notes how far the upstream is: in the spool, in the account of what waits, in the report. `whole`: bytes of all
    /// slices, when it has all of them; else it has `more` bytes than before.
    fn handle_delivered(&self, index: usize, position: Seq, whole: Option<u64>, more: u64) -> Result<(), Failure> {
        let lane = &self.lanes[index];
        let delivery = &self.delivery;
        let before = self.delivered(lane)?;
        if position > before {
            match delivery.spool.set_delivered(&delivery.upstream.url, lane.id, position) {
                // A receipt has moved it further meanwhile.
                Ok(()) | Err(SpoolError::PositionGoesBack { .. }) => {}
                Err(error) => return Err(spool_failure(&error)),
            }
        }
        match whole {
            Some(bytes) => delivery.backlog.handle_delivered(delivery.number, &lane.name, bytes),
            None => delivery.backlog.handle_delivered_more(delivery.number, &lane.name, more),
        }
        if position > before
            && let Err(problem) = delivery.retention.run()
        {
            warn!(problem = format!("{problem:#}"), "Delivered slices could not be released.");
        }
        // Last: whoever waits for it, as `sync` does, finds released what may be.
        delivery.progress.lock().delivered.insert(lane.name.clone(), position.max(before).0);
        Ok(())
    }

    fn note_sent(&mut self, blocks: u64, rows: u64, bytes: u64) {
        self.note_contact();
        let mut report = self.delivery.progress.lock();
        report.blocks += blocks;
        report.rows += rows;
        report.bytes += bytes;
    }
}
