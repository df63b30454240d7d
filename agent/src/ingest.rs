//! Where the broker and the storage meet, and the only place that knows both.
//!
//! ```text
//! broker ──Inbound, Ticket──▶ route ──Request, Ticket──▶ spool writer (one commit) ──▶ Ticket resolved
//! ```
//!
//! Both channels are bounded: a writer that is busy stops this loop, which stops the broker from reading sockets. A
//! message is not copied on its way: topic and payload share the read buffer until their commit, which bounds what they
//! keep alive to `limits.unstored_bytes_max` and `limits.unstored_messages_max`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_broker::inbound::{Inbound, InboundPublish, Outcome, Refusal, Ticket};
use forebay_storage::dead_letter::NO_DATASET;
use forebay_storage::message::{Flags, Message};
use forebay_storage::position::DatasetId;
use forebay_storage::spool::{self, Request};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

use crate::clock::{self, Clock};
use crate::config::OnRefused;
use crate::route::Router;

/// How many messages are taken from the broker at once.
const TAKEN_MAX: usize = 256;

/// Reason of a dead letter whose topic no dataset takes.
pub const NO_DATASET_REASON: &str = "no dataset takes this topic";

/// What ingest has to know.
#[derive(Debug)]
pub struct Ingest {
    /// Topic to dataset.
    pub router: Router,
    /// Ids of the datasets, in the order of the configuration.
    pub datasets: Vec<DatasetId>,
    /// What becomes of a message without a dataset from a client that cannot be told.
    pub on_refused: OnRefused,
    /// Whether the wall clock is right.
    pub clock: Arc<Clock>,
    /// What happened so far.
    pub counters: Arc<Counters>,
}

/// Totals since the agent started.
#[derive(Debug, Default)]
pub struct Counters {
    received: AtomicU64,
    stored: AtomicU64,
    unavailable: AtomicU64,
    no_dataset_refused: AtomicU64,
    no_dataset_dead_letters: AtomicU64,
}

/// [`Counters`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Messages that the broker accepted.
    pub received: u64,
    /// Answers "it is on disk", releases and sessions included.
    pub stored: u64,
    /// Answers "not now".
    pub unavailable: u64,
    /// Messages of no dataset, refused.
    pub no_dataset_refused: u64,
    /// Messages of no dataset, acknowledged and kept as dead letters.
    pub no_dataset_dead_letters: u64,
}

impl Counters {
    /// What happened so far.
    pub fn totals(&self) -> Totals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            received: load(&self.received),
            stored: load(&self.stored),
            unavailable: load(&self.unavailable),
            no_dataset_refused: load(&self.no_dataset_refused),
            no_dataset_dead_letters: load(&self.no_dataset_dead_letters),
        }
    }

    /// Answers a ticket as the spool writer says. Called on the writer's thread, in the order of the log.
    pub fn resolve(&self, ticket: Ticket, outcome: spool::Outcome) {
        let (counter, outcome) = match outcome {
            spool::Outcome::Stored => (&self.stored, Outcome::Stored),
            spool::Outcome::Unavailable => (&self.unavailable, Outcome::Unavailable),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        ticket.resolve(outcome);
    }
}

impl Ingest {
    /// Moves what the broker accepts to the spool, until the broker has gone, the writer has, or `stop` comes and nothing
    /// is left.
    pub async fn run(
        self,
        mut inbound: mpsc::Receiver<Inbound>,
        spool: mpsc::Sender<Request<Ticket>>,
        mut stop: oneshot::Receiver<()>,
    ) {
        let taken_max = TAKEN_MAX.min(spool.max_capacity());
        let mut taken = Vec::with_capacity(taken_max);
        let mut requests = Vec::with_capacity(taken_max);
        let mut stopping = false;
        loop {
            let count = tokio::select! {
                biased;
                _ = &mut stop, if !stopping => {
                    stopping = true;
                    inbound.close();
                    continue;
                }
                count = inbound.recv_many(&mut taken, taken_max) => count,
            };
            if count == 0 {
                return;
            }
            requests.extend(taken.drain(..).filter_map(|inbound| self.request(inbound)));
            if requests.is_empty() {
                continue;
            }
            let Ok(permits) = spool.reserve_many(requests.len()).await else { return };
            for (permit, request) in permits.zip(requests.drain(..)) {
                permit.send(request);
            }
        }
    }

    /// What the spool has to do; nothing for what is refused here.
    fn request(&self, inbound: Inbound) -> Option<Request<Ticket>> {
        match inbound {
            Inbound::Publish(publish) => self.publish(publish),
            Inbound::Release { client_id, packet_id, ticket } => {
                Some(Request::Release { client_id, packet_id: packet_id.get(), ticket })
            }
            Inbound::OpenSession { client_id, expiry_secs, ticket } => {
                Some(Request::OpenSession { client_id, expiry_secs, ticket })
            }
            Inbound::CloseSession { client_id, ticket } => Some(Request::CloseSession { client_id, ticket }),
        }
    }

    fn publish(&self, publish: InboundPublish) -> Option<Request<Ticket>> {
        self.counters.received.fetch_add(1, Ordering::Relaxed);
        let Some(route) = self.router.route(publish.topic.as_str()) else {
            return self.without_dataset(publish);
        };
        let packet_id = publish.packet_id.map(std::num::NonZero::get);
        let (mut message, ticket) = self.message(publish, self.datasets[route.dataset]);
        message.captures = route.captures;
        Some(Request::Append { message, packet_id, ticket })
    }

    fn without_dataset(&self, publish: InboundPublish) -> Option<Request<Ticket>> {
        tracing::debug!(
            client_id = &*publish.client_id,
            topic = publish.topic.as_str(),
            "No dataset takes this topic."
        );
        if publish.can_be_told || self.on_refused == OnRefused::Disconnect {
            self.counters.no_dataset_refused.fetch_add(1, Ordering::Relaxed);
            publish.ticket.resolve(Outcome::Refused(Refusal::NoDataset));
            return None;
        }
        self.counters.no_dataset_dead_letters.fetch_add(1, Ordering::Relaxed);
        let packet_id = publish.packet_id.map(std::num::NonZero::get);
        let (message, ticket) = self.message(publish, NO_DATASET);
        Some(Request::DeadLetter { message, reason: NO_DATASET_REASON.into(), packet_id, ticket })
    }

    fn message(&self, publish: InboundPublish, dataset: DatasetId) -> (Message, Ticket) {
        let message = Message {
            dataset,
            received_at_us: clock::micros(publish.received_at),
            flags: Flags {
                qos: publish.qos as u8,
                retain: publish.retain,
                dup: publish.dup,
                will: publish.will,
                clock_synchronised: self.clock.is_synchronised(),
            },
            topic: publish.topic.as_bytes().clone(),
            captures: Vec::new(),
            client_id: publish.client_id,
            payload: publish.payload,
        };
        (message, publish.ticket)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use bytes::Bytes;
    use forebay_broker::packet::{QoS, Topic};
    use std::path::Path;
    use std::time::SystemTime;
    use tokio::sync::mpsc::UnboundedReceiver;

    #[test]
    fn a_message_goes_to_its_dataset_with_its_captures() {
        let (publish, _) = publish("site/oslo/temp", true);

        let request = ingest(OnRefused::DeadLetter).request(Inbound::Publish(publish));

        let Some(Request::Append { message, packet_id, .. }) = request else { panic!("{request:?}") };
        assert_eq!(message.dataset, DatasetId(7));
        assert_eq!(message.captures.first(), Some(&(5..9)));
        assert_eq!(message.flags.qos, 1);
        assert_eq!(packet_id, Some(3));
    }

    #[test]
    fn a_client_that_can_be_told_is_told_that_no_dataset_takes_the_topic() {
        let (publish, mut outcomes) = publish("other", true);
        let ingest = ingest(OnRefused::DeadLetter);

        let request = ingest.request(Inbound::Publish(publish));

        assert!(request.is_none());
        assert_eq!(outcomes.try_recv().unwrap(), (1, Outcome::Refused(Refusal::NoDataset)));
        assert_eq!(ingest.counters.totals().no_dataset_refused, 1);
    }

    #[test]
    fn a_client_that_cannot_be_told_has_its_message_kept_as_a_dead_letter() {
        let (publish, mut outcomes) = publish("other", false);
        let ingest = ingest(OnRefused::DeadLetter);

        let request = ingest.request(Inbound::Publish(publish));

        assert!(matches!(request, Some(Request::DeadLetter { .. })), "{request:?}");
        assert!(outcomes.try_recv().is_err());
        assert_eq!(ingest.counters.totals().no_dataset_dead_letters, 1);
    }

    #[test]
    fn or_its_connection_is_closed_if_the_configuration_says_so() {
        let (publish, mut outcomes) = publish("other", false);

        let request = ingest(OnRefused::Disconnect).request(Inbound::Publish(publish));

        assert!(request.is_none());
        assert_eq!(outcomes.try_recv().unwrap(), (1, Outcome::Refused(Refusal::NoDataset)));
    }

    #[tokio::test]
    async fn what_the_broker_accepts_reaches_the_spool_in_order() {
        let (to_ingest, inbound) = mpsc::channel(8);
        let (to_spool, mut spool) = mpsc::channel(2);
        let (stop, stopped) = oneshot::channel();
        let loop_task = tokio::spawn(ingest(OnRefused::DeadLetter).run(inbound, to_spool, stopped));

        for topic in ["site/a/temp", "site/bb/temp", "site/ccc/temp", "other", "site/d/temp"] {
            to_ingest.send(Inbound::Publish(publish(topic, true).0)).await.unwrap();
        }
        stop.send(()).unwrap();

        let mut topics = Vec::new();
        while let Some(Request::Append { message, .. }) = spool.recv().await {
            topics.push(message.topic);
        }
        loop_task.await.unwrap();
        assert_eq!(topics, ["site/a/temp", "site/bb/temp", "site/ccc/temp", "site/d/temp"]);
    }

    fn ingest(on_refused: OnRefused) -> Ingest {
        let text = "[[dataset]]\nname = \"t\"\nformat = \"text\"\ntopics = [\"site/{site}/temp\"]\n";
        let config = Config::parse(text, Path::new("t")).unwrap();
        Ingest {
            router: Router::new(&config.datasets),
            datasets: vec![DatasetId(7)],
            on_refused,
            clock: Arc::default(),
            counters: Arc::default(),
        }
    }

    fn publish(topic: &str, can_be_told: bool) -> (InboundPublish, UnboundedReceiver<(u64, Outcome)>) {
        let (outcomes, answered) = mpsc::unbounded_channel();
        let publish = InboundPublish {
            client_id: "device".into(),
            user_name: None,
            topic: Topic::new(Bytes::copy_from_slice(topic.as_bytes())).unwrap(),
            payload: Bytes::from_static(b"1"),
            qos: QoS::AtLeastOnce,
            retain: false,
            dup: false,
            will: false,
            packet_id: std::num::NonZeroU16::new(3),
            can_be_told,
            received_at: SystemTime::UNIX_EPOCH,
            ticket: Ticket::new(1, outcomes, None),
        };
        (publish, answered)
    }
}
