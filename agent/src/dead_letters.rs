//! Dead letters: shown, dropped, or sent through the front door again after what was wrong has been put right.

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use chrono::{DateTime, SecondsFormat};
use forebay_broker::inbound::{Outcome, Ticket};
use forebay_storage::dead_letter::{DeadLetter, NO_DATASET};
use forebay_storage::position::{DatasetId, Seq};
use forebay_storage::spool::{Request, Spool};
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc::{self, WeakSender};

use crate::config::{Config, UpstreamKind};
use crate::route::Router;
use crate::store::scratch_dir;
use crate::upstream::http::Http;
use crate::upstream::ingest::{self, Poster};
use crate::upstream::outcome::Failure;

/// Dead letters read at a time.
const READ_MAX: usize = 256;

/// Which dead letters are meant.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Selection {
    /// Of this dataset; none: of all, and of topics that no dataset takes.
    pub dataset: Option<String>,
    /// With these positions; none: all.
    pub seqs: Vec<u64>,
}

/// One dead letter as it is shown.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeadLetterLine {
    /// Position that the message had in the spool.
    pub seq: u64,
    /// RFC 3339, UTC.
    pub received_at: String,
    /// Dataset; none: no dataset took the topic.
    pub dataset: Option<String>,
    /// Topic Name.
    pub topic: String,
    /// Client Identifier; of a message from a source: the source's name.
    pub client_id: String,
    /// The source that it came from, if any.
    #[serde(default)]
    pub source: Option<String>,
    /// Why it is no row.
    pub reason: String,
    /// The payload, if it is text.
    pub text: Option<String>,
    /// The payload in hexadecimal, if it is not.
    pub hex: Option<String>,
}

/// What was done.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// Dropped, or stored again.
    pub done: u64,
    /// Left as they are, because still no dataset takes their topics, or the upstream that refused them is gone or
    /// refuses them still.
    pub left: u64,
    /// Why the last of the rows was left that an upstream still refuses.
    #[serde(default)]
    pub refused: Option<String>,
}

/// The dead letters that are meant, oldest first within each dataset.
pub fn list(spool: &Spool, selection: &Selection) -> Result<Vec<DeadLetterLine>> {
    let names: BTreeMap<DatasetId, String> = spool.datasets()?.into_iter().map(|(name, id)| (id, name)).collect();
    let letters = selected(spool, selection)?;
    Ok(letters.iter().map(|letter| line(letter, names.get(&letter.message.dataset))).collect())
}

/// Forgets the dead letters that are meant.
pub fn drop(spool: &Spool, selection: &Selection) -> Result<Done> {
    let keys: Vec<_> = selected(spool, selection)?.iter().map(key).collect();
    let done = spool.remove_dead_letters(&keys)? as u64;
    Ok(Done { done, ..Done::default() })
}

/// Stores the messages of the dead letters again, as new messages routed by the configuration of now, and forgets each
/// one when its message is on disk. A crash between the two leaves both: a replay is at least once. Blocks; ends with an
/// error once the agent stops, which it does not hold up. A row that an upstream refused is posted there again instead.
/// To be called where blocking is allowed, within the runtime.
pub fn replay(
    config: &Config,
    spool: &Spool,
    writer: &WeakSender<Request<Ticket>>,
    selection: &Selection,
) -> Result<Done> {
    let router = Router::new(&config.datasets);
    let names: BTreeMap<DatasetId, String> = spool.datasets()?.into_iter().map(|(name, id)| (id, name)).collect();
    let mut done = Done::default();
    for letter in selected(spool, selection)? {
        if let Some(url) = ingest::refused_by(&letter.reason) {
            match names.get(&letter.message.dataset).and_then(|name| repost(config, url, name, &letter)) {
                Some(Ok(())) => {
                    spool.remove_dead_letters(&[key(&letter)])?;
                    done.done += 1;
                }
                Some(Err(failure)) => {
                    done.left += 1;
                    done.refused = Some(format!("row {}: {failure}", letter.seq));
                }
                None => done.left += 1,
            }
            continue;
        }
        let topic = String::from_utf8_lossy(&letter.message.topic).into_owned();
        let Some(route) = router.route(&topic, letter.message.publisher().source()) else {
            done.left += 1;
            continue;
        };
        let mut message = letter.message.clone();
        message.dataset = spool.dataset_id(&config.datasets[route.dataset].spec.name)?;
        message.captures = route.captures;
        let (outcomes, mut answers) = mpsc::unbounded_channel();
        let ticket = Ticket::new(0, outcomes, None);
        let request = Request::Append { message, packet_id: None, retained_once: false, ticket };
        let writer = writer.upgrade().context("the agent is stopping")?;
        writer.blocking_send(request).ok().context("the agent is stopping")?;
        match answers.blocking_recv() {
            Some((_, Outcome::Stored)) => {}
            _ => bail!("the spool took {} messages and no further one", done.done),
        }
        spool.remove_dead_letters(&[key(&letter)])?;
        done.done += 1;
    }
    Ok(done)
}

/// A row that an upstream refused is in its dataset already: what is done again is posting it. `None`: that upstream or
/// dataset is not configured any more.
fn repost(config: &Config, url: &str, dataset: &str, letter: &DeadLetter) -> Option<Result<(), Failure>> {
    let upstream = config.upstreams.iter().find(|upstream| upstream.url == url && upstream.takes(dataset))?;
    let UpstreamKind::Ingest(target) = &upstream.kind else { return None };
    let post = async {
        let poster = Poster::new(Arc::new(Http::new(upstream)?), target.clone(), scratch_dir(&config.data_dir));
        poster.repost(dataset, letter.message.payload.clone()).await
    };
    Some(tokio::runtime::Handle::current().block_on(post))
}

fn key(letter: &DeadLetter) -> (DatasetId, Seq) {
    (letter.message.dataset, letter.seq)
}

fn selected(spool: &Spool, selection: &Selection) -> Result<Vec<DeadLetter>> {
    let datasets = spool.datasets()?;
    let ids: Vec<DatasetId> = match &selection.dataset {
        None => datasets.iter().map(|(_, id)| *id).chain([NO_DATASET]).collect(),
        Some(wanted) => {
            let found = datasets.iter().find(|(name, _)| name == wanted);
            vec![found.with_context(|| format!("there is no dataset {wanted}"))?.1]
        }
    };
    let mut letters = Vec::new();
    for id in ids {
        let mut from = Seq(0);
        loop {
            let more = spool.dead_letters(id, from, READ_MAX)?;
            let Some(last) = more.last() else { break };
            from = last.seq.next();
            letters.extend(more.into_iter().filter(|letter| selection.takes(letter)));
        }
    }
    Ok(letters)
}

impl Selection {
    fn takes(&self, letter: &DeadLetter) -> bool {
        self.seqs.is_empty() || self.seqs.contains(&letter.seq.0)
    }
}

fn line(letter: &DeadLetter, dataset: Option<&String>) -> DeadLetterLine {
    let message = &letter.message;
    let received_at = DateTime::from_timestamp_micros(message.received_at_us).unwrap_or_default();
    let text = std::str::from_utf8(&message.payload).ok().map(str::to_owned);
    let hex = text.is_none().then(|| message.payload.iter().map(|byte| format!("{byte:02x}")).collect());
    DeadLetterLine {
        seq: letter.seq.0,
        received_at: received_at.to_rfc3339_opts(SecondsFormat::Millis, true),
        dataset: dataset.cloned(),
        topic: String::from_utf8_lossy(&message.topic).into_owned(),
        client_id: message.publisher().name().to_owned(),
        source: message.publisher().source().map(str::to_owned),
        reason: letter.reason.clone(),
        text,
        hex,
    }
}
