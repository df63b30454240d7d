//! Where the broker and the storage meet, and the only place that knows both.
//!
//! ```text
//! broker, sources ──Inbound, Ticket──▶ route ──Request, Ticket──▶ spool writer (one commit) ──▶ Ticket resolved
//! ```
//!
//! All channels are bounded: a writer that is busy stops this loop, which stops broker and sources from reading sockets. A
//! message is not copied on its way: topic and payload share the read buffer until their commit. What is kept alive so is bounded
//! by `limits.unstored_bytes_max`, and by 32 KiB, one read, for each of `limits.unstored_messages_max` from clients that send
//! mostly other packets.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use forebay_broker::inbound::{Inbound, InboundPublish, Outcome, Refusal, Ticket};
use forebay_broker::packet::QoS;
use forebay_storage::dead_letter::NO_DATASET;
use forebay_storage::message::{Flags, Message, Publisher};
use forebay_storage::position::DatasetId;
use forebay_storage::spool::{self, Request};
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::clock::{self, Clock};
use crate::config::{Config, OnRefused};
use crate::route::Router;

/// How many messages are taken from the broker at once.
const TAKEN_MAX: usize = 256;

/// Reason of a dead letter whose topic no dataset takes.
pub const NO_DATASET_REASON: &str = "no dataset takes this topic";

/// Reason of a dead letter whose client may not publish to its topic.
pub const NOT_AUTHORIZED_REASON: &str = "the access control list does not let this client publish to this topic";

/// Where messages go. A reload replaces it whole: what was routed before goes where it went.
#[derive(Debug)]
pub struct Routes {
    /// Topic to dataset.
    pub router: Router,
    /// Ids of the datasets, in the order of the configuration.
    pub datasets: Vec<DatasetId>,
    /// For each of them: whether a retained value that a source sends again is stored once.
    pub retained_once: Vec<bool>,
    /// What becomes of a message without a dataset from a client that cannot be told.
    pub on_refused: OnRefused,
}

/// What ingest has to know.
#[derive(Debug)]
pub struct Ingest {
    /// Where messages go from now on.
    pub routes: watch::Receiver<Routes>,
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
    not_authorized_refused: AtomicU64,
    not_authorized_dead_letters: AtomicU64,
}

/// [`Counters`] at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Totals {
    /// Messages that the broker accepted or a source brought.
    pub received: u64,
    /// Answers "it is on disk", releases, sessions and probes included.
    pub stored: u64,
    /// Answers "not now".
    pub unavailable: u64,
    /// Messages of no dataset, refused.
    pub no_dataset_refused: u64,
    /// Messages of no dataset, acknowledged and kept as dead letters.
    pub no_dataset_dead_letters: u64,
    /// Messages that their clients may not publish, refused.
    #[serde(default)]
    pub not_authorized_refused: u64,
    /// Messages that their clients may not publish, acknowledged and kept as dead letters.
    #[serde(default)]
    pub not_authorized_dead_letters: u64,
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
            not_authorized_refused: load(&self.not_authorized_refused),
            not_authorized_dead_letters: load(&self.not_authorized_dead_letters),
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

impl Routes {
    /// To these datasets, with their ids in the same order.
    pub fn new(config: &Config, datasets: &[(String, DatasetId)]) -> Self {
        Self {
            router: Router::new(&config.datasets),
            datasets: datasets.iter().map(|(_, id)| *id).collect(),
            retained_once: config.datasets.iter().map(|dataset| dataset.retained_once).collect(),
            on_refused: config.on_refused,
        }
    }
}

impl Ingest {
    /// Moves what the broker accepts and the sources bring to the spool, until both have gone, the writer has, or `stop`
    /// comes and nothing is left. `probes` go the same way, for whoever wants to know that it is open.
    pub async fn run(
        self,
        mut inbound: mpsc::Receiver<Inbound>,
        mut sources: mpsc::Receiver<Inbound>,
        mut probes: mpsc::Receiver<Ticket>,
        spool: mpsc::Sender<Request<Ticket>>,
        mut stop: oneshot::Receiver<()>,
    ) {
        let taken_max = TAKEN_MAX.min(spool.max_capacity());
        let mut taken = Vec::with_capacity(taken_max);
        let mut from_sources = Vec::new();
        let mut requests = Vec::with_capacity(taken_max);
        let (mut stopping, mut devices_left, mut sources_left) = (false, true, true);
        loop {
            // Not biased: a flood of devices must not silence the sources, nor they it.
            tokio::select! {
                _ = &mut stop, if !stopping => {
                    stopping = true;
                    inbound.close();
                    sources.close();
                }
                count = inbound.recv_many(&mut taken, taken_max), if devices_left => devices_left = count > 0,
                count = sources.recv_many(&mut from_sources, taken_max), if sources_left => sources_left = count > 0,
                Some(ticket) = probes.recv() => requests.push(Request::Probe { ticket }),
            }
            if !devices_left && !sources_left {
                return;
            }
            requests.extend(taken.drain(..).chain(from_sources.drain(..)).filter_map(|inbound| self.request(inbound)));
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
        let source = Publisher::of(&publish.client_id).source();
        let is_from_source = source.is_some();
        let routes = self.routes.borrow();
        if !publish.is_authorized {
            return self.refuse(publish, Refusal::NotAuthorized, is_from_source, routes.on_refused);
        }
        let Some(route) = routes.router.route(publish.topic.as_str(), source) else {
            return self.refuse(publish, Refusal::NoDataset, is_from_source, routes.on_refused);
        };
        let packet_id = publish.packet_id.map(std::num::NonZero::get);
        let retained_once = is_from_source && routes.retained_once[route.dataset];
        let (mut message, ticket) = self.message(publish, routes.datasets[route.dataset]);
        message.captures = route.captures;
        Some(Request::Append { message, packet_id, retained_once, ticket })
    }

    /// A broker cannot be told that we do not want what we subscribed to.
    fn refuse(
        &self,
        publish: InboundPublish,
        refusal: Refusal,
        is_from_source: bool,
        on_refused: OnRefused,
    ) -> Option<Request<Ticket>> {
        let (reason, refused, kept) = match refusal {
            Refusal::NotAuthorized => (
                NOT_AUTHORIZED_REASON,
                &self.counters.not_authorized_refused,
                &self.counters.not_authorized_dead_letters,
            ),
            Refusal::NoDataset | Refusal::PayloadInvalid => {
                (NO_DATASET_REASON, &self.counters.no_dataset_refused, &self.counters.no_dataset_dead_letters)
            }
        };
        tracing::debug!(client_id = &*publish.client_id, topic = publish.topic.as_str(), reason, "Not taken.");
        // Nobody waits for an answer to QoS 0 and to a Will Message: refused, they would be gone without a word.
        let is_waited_for = publish.qos != QoS::AtMostOnce && !publish.will;
        let hears_of_it = publish.can_be_told || (is_waited_for && on_refused == OnRefused::Disconnect);
        if !is_from_source && hears_of_it {
            refused.fetch_add(1, Ordering::Relaxed);
            publish.ticket.resolve(Outcome::Refused(refusal));
            return None;
        }
        kept.fetch_add(1, Ordering::Relaxed);
        let packet_id = publish.packet_id.map(std::num::NonZero::get);
        let (message, ticket) = self.message(publish, NO_DATASET);
        Some(Request::DeadLetter { message, reason: reason.into(), packet_id, retained_once: is_from_source, ticket })
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
    use bytes::Bytes;
    use forebay_broker::packet::Topic;
    use forebay_storage::message::source_client_id;
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
    fn what_a_client_may_not_publish_is_refused_or_kept_where_nobody_takes_it_for_a_reading() {
        let ingest = ingest(OnRefused::DeadLetter);
        let (mut told, mut outcomes) = publish("site/oslo/temp", true);
        told.is_authorized = false;
        let (mut untold, _) = publish("site/oslo/temp", false);
        untold.is_authorized = false;

        let refused = ingest.request(Inbound::Publish(told));
        let kept = ingest.request(Inbound::Publish(untold));

        assert!(refused.is_none());
        assert_eq!(outcomes.try_recv().unwrap(), (1, Outcome::Refused(Refusal::NotAuthorized)));
        let Some(Request::DeadLetter { message, reason, .. }) = kept else { panic!("{kept:?}") };
        assert_eq!((message.dataset, &*reason), (NO_DATASET, NOT_AUTHORIZED_REASON));
        let totals = ingest.counters.totals();
        assert_eq!((totals.not_authorized_refused, totals.not_authorized_dead_letters), (1, 1));
    }

    #[test]
    fn or_its_connection_is_closed_if_the_configuration_says_so() {
        let (publish, mut outcomes) = publish("other", false);

        let request = ingest(OnRefused::Disconnect).request(Inbound::Publish(publish));

        assert!(request.is_none());
        assert_eq!(outcomes.try_recv().unwrap(), (1, Outcome::Refused(Refusal::NoDataset)));
    }

    #[test]
    fn what_nobody_waits_for_an_answer_to_is_kept_whatever_the_configuration_says() {
        for (qos, will) in [(QoS::AtMostOnce, false), (QoS::AtLeastOnce, true)] {
            let (publish, _) = publish("other", false);

            let request =
                ingest(OnRefused::Disconnect).request(Inbound::Publish(InboundPublish { qos, will, ..publish }));

            assert!(matches!(request, Some(Request::DeadLetter { .. })), "{request:?}");
        }
    }

    #[test]
    fn a_retained_value_of_a_source_is_stored_once_and_of_a_device_as_often_as_it_publishes() {
        let retained_once = |client_id: Arc<str>| {
            let (mut publish, _) = publish("site/oslo/temp", true);
            publish.client_id = client_id;
            match ingest(OnRefused::DeadLetter).request(Inbound::Publish(publish)) {
                Some(Request::Append { retained_once, .. }) => retained_once,
                request => panic!("{request:?}"),
            }
        };

        assert!(retained_once(source_client_id("plant")));
        assert!(!retained_once("plant".into()));
    }

    #[test]
    fn a_source_is_never_refused_what_no_dataset_takes() {
        let (mut publish, _) = publish("other", true);
        publish.client_id = source_client_id("plant");

        let request = ingest(OnRefused::Disconnect).request(Inbound::Publish(publish));

        assert!(matches!(request, Some(Request::DeadLetter { retained_once: true, .. })), "{request:?}");
    }

    #[tokio::test]
    async fn what_the_broker_accepts_reaches_the_spool_in_order() {
        let (to_ingest, inbound) = mpsc::channel(8);
        let (_source, sources) = mpsc::channel(8);
        let (to_spool, mut spool) = mpsc::channel(2);
        let (_, probes) = mpsc::channel(1);
        let (stop, stopped) = oneshot::channel();
        let loop_task = tokio::spawn(ingest(OnRefused::DeadLetter).run(inbound, sources, probes, to_spool, stopped));

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
        let routes = Routes::new(&Config { on_refused, ..config }, &[("t".to_owned(), DatasetId(7))]);
        Ingest { routes: watch::channel(routes).1, clock: Arc::default(), counters: Arc::default() }
    }

    fn publish(topic: &str, can_be_told: bool) -> (InboundPublish, UnboundedReceiver<(u64, Outcome)>) {
        let (outcomes, answered) = mpsc::unbounded_channel();
        let publish = InboundPublish {
            client_id: "device".into(),
            user_name: None,
            is_authorized: true,
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
