//! Each test is a conversation: what the broker says, what the spool answers, what we say.

use bytes::Bytes;
use forebay_broker::packet::Topic;

use super::*;

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn qos_1_is_acknowledged_once_it_is_on_disk_and_not_before() {
    let mut broker = Broker::subscribed();

    broker.says(publish(QoS::AtLeastOnce, 7));
    assert_eq!(broker.hears(), []);
    broker.stored(1);

    assert_eq!(broker.hears(), [Outgoing::PubAck(id(7))]);
}

#[test]
fn qos_2_is_received_released_and_completed_each_after_its_commit() {
    let mut broker = Broker::subscribed();

    broker.says(publish(QoS::ExactlyOnce, 7));
    assert_eq!(broker.hears(), []);
    broker.stored(1);
    assert_eq!(broker.hears(), [Outgoing::PubRec(id(7))]);
    broker.says(Incoming::PubRel(id(7)));
    assert_eq!(broker.hears(), [], "a PUBCOMP now would let the identifier be used again before we have forgotten it");
    broker.stored(2);

    assert_eq!(broker.hears(), [Outgoing::PubComp(id(7))]);
    assert_eq!(broker.submitted[2], Submission::Release(id(7)));
}

/// After a restart: the broker has our PUBREC, we have a new process.
#[test]
fn a_pubrel_of_an_earlier_connection_is_completed() {
    let mut broker = Broker::connected(true);

    broker.says(Incoming::PubRel(id(7)));
    broker.stored(0);

    assert_eq!(broker.hears().last(), Some(&Outgoing::PubComp(id(7))));
}

#[test]
fn mqtt_4_6_0_2_acknowledgements_leave_in_the_order_of_the_messages() {
    let mut broker = Broker::subscribed();
    for packet_id in 1..=3 {
        broker.says(publish(QoS::AtLeastOnce, packet_id));
    }

    broker.stored(2);
    broker.stored(3);
    assert_eq!(broker.hears(), []);
    broker.stored(1);

    assert_eq!(broker.hears(), [1, 2, 3].map(|packet_id| Outgoing::PubAck(id(packet_id))));
}

#[test]
fn what_cannot_be_stored_now_ends_the_connection_unanswered() {
    let mut broker = Broker::subscribed();
    broker.says(publish(QoS::AtLeastOnce, 1));
    broker.says(publish(QoS::AtLeastOnce, 2));

    broker.answered(1, Outcome::Unavailable);
    broker.answered(2, Outcome::Unavailable);

    assert_eq!(broker.hears(), [Outgoing::Disconnect(QUOTA_EXCEEDED)], "once");
    assert_eq!(broker.closed, Some(Cause::NotStored));
}

#[test]
fn qos_0_needs_no_answer_and_its_loss_ends_nothing() {
    let mut broker = Broker::subscribed();
    broker.says(publish(QoS::AtMostOnce, 0));

    broker.answered(1, Outcome::Unavailable);

    assert_eq!((broker.hears(), broker.closed.clone(), broker.session.open()), (vec![], None, 0));
}

#[test]
fn mqtt_3_2_2_3_a_broker_without_our_session_makes_us_forget_its_packet_identifiers_first() {
    let mut broker = Broker::connected(false);
    assert_eq!(broker.submitted, [Submission::Forget]);
    assert_eq!(broker.hears().len(), 1, "CONNECT, and no SUBSCRIBE before it is forgotten");
    broker.stored(0);
    assert_eq!(broker.hears(), [Outgoing::Subscribe(SUBSCRIBE_ID, topics())]);

    let broker = Broker::connected(true);
    assert_eq!(broker.submitted, []);
}

#[test]
fn what_cannot_be_forgotten_now_ends_the_connection() {
    let mut broker = Broker::connected(false);

    broker.answered(0, Outcome::Unavailable);

    assert_eq!(broker.closed, Some(Cause::NotStored));
}

#[test]
fn the_identifiers_of_another_broker_are_forgotten_although_this_one_knows_us() {
    let mut broker = Broker::new(Options { is_elsewhere: true, ..options() });

    broker.says(connack(true));

    assert_eq!(broker.submitted, [Submission::Forget]);
}

#[test]
fn every_connection_subscribes_and_takes_back_what_is_no_longer_wanted() {
    let mut broker = Broker::new(Options { stale_filters: vec!["old".to_owned()], ..options() });

    broker.says(connack(true));

    assert_eq!(
        broker.hears()[1..],
        [Outgoing::Unsubscribe(UNSUBSCRIBE_ID, vec!["old".to_owned()]), Outgoing::Subscribe(SUBSCRIBE_ID, topics())]
    );
}

#[test]
fn a_filter_that_is_refused_or_granted_for_less_is_a_problem_and_no_end() {
    for (code, words) in [
        (0x80, "the broker refuses the subscription to \"a/#\": failure"),
        (0x87, "the broker refuses the subscription to \"a/#\": not authorized"),
        (0, "the broker grants \"a/#\" with QoS 0 only, not 2"),
    ] {
        let mut broker = Broker::connected(true);
        broker.says(Incoming::SubAck { packet_id: SUBSCRIBE_ID, codes: vec![code] });

        let problem = broker.subscribed.clone().flatten().unwrap();
        assert!(problem.starts_with(words), "{problem}");
        assert_eq!(broker.closed, None);
    }
}

#[test]
fn a_refused_connection_says_what_to_change() {
    let refused = |version, code, words: Option<&str>| {
        let mut broker = Broker::new(Options { version, ..options() });
        let words = words.map(str::to_owned);
        broker.says(Incoming::ConnAck {
            session_present: false,
            code,
            words,
            keep_alive_secs: None,
            session_expiry_secs: None,
        });
        match broker.closed {
            Some(Cause::Failed { problem, for_good }) => (problem, for_good),
            other => panic!("{other:?}"),
        }
    };

    let (problem, for_good) = refused(ProtocolVersion::V311, 5, None);
    assert!(problem.contains("not authorized: look at `username` and its password") && for_good, "{problem}");
    let (problem, for_good) = refused(ProtocolVersion::V5, 0x86, Some("who are you"));
    assert!(problem.contains("bad user name or password (who are you)") && for_good, "{problem}");
    let (problem, for_good) = refused(ProtocolVersion::V311, 1, None);
    assert!(problem.contains("set `version`") && for_good, "{problem}");
    let (_, for_good) = refused(ProtocolVersion::V311, 3, None);
    assert!(!for_good, "a server that is unavailable may be there the next time");
}

#[test]
fn a_takeover_names_its_likely_reason() {
    let mut broker = Broker::subscribed();

    broker.says(Incoming::Disconnect { code: 0x8E, words: None });

    let Some(Cause::Failed { problem, .. }) = broker.closed else { panic!() };
    assert!(problem.contains("session taken over: another client has the same `client_id`"), "{problem}");
}

#[test]
fn reading_stops_at_the_bound_of_what_waits_for_the_disk() {
    let mut broker = Broker::subscribed();
    for packet_id in 1..=3 {
        assert!(broker.session.is_reading());
        broker.says(publish(QoS::AtLeastOnce, packet_id));
    }
    assert!(!broker.session.is_reading());

    broker.stored(1);

    assert!(broker.session.is_reading());
}

#[test]
fn an_end_answers_what_was_taken_takes_nothing_more_and_says_goodbye() {
    let mut broker = Broker::subscribed();
    broker.says(publish(QoS::AtLeastOnce, 1));

    broker.session.handle_end(Cause::Stopped);
    broker.says(publish(QoS::AtLeastOnce, 2));
    assert!(!broker.session.is_reading());
    assert_eq!((broker.hears(), broker.closed.clone()), (vec![], None));
    broker.stored(1);

    assert_eq!(broker.hears(), [Outgoing::PubAck(id(1)), Outgoing::Disconnect(NORMAL)]);
    assert_eq!(broker.closed, Some(Cause::Stopped));
}

#[test]
fn a_quiet_connection_is_pinged_and_a_silent_one_given_up() {
    let mut broker = Broker::subscribed();
    let start = broker.now;

    broker.waits_until(start + SECOND * 45);
    assert_eq!(broker.hears(), [Outgoing::PingReq]);
    broker.says(Incoming::PingResp);
    broker.waits_until(start + SECOND * 90);
    assert_eq!(broker.hears(), [Outgoing::PingReq]);
    broker.waits_until(start + SECOND * 149);
    assert_eq!(broker.closed, None);
    broker.waits_until(start + SECOND * 150);

    let Some(Cause::Failed { problem, for_good: false }) = broker.closed else { panic!("{:?}", broker.closed) };
    assert!(problem.contains("no answer to a PINGREQ"), "{problem}");
}

/// mosquitto measures our silence, not its own: a stream of messages alone would not keep the connection.
#[test]
fn a_broker_that_only_sends_qos_0_is_pinged_all_the_same() {
    let mut broker = Broker::subscribed();
    for _ in 0..45 {
        broker.now += SECOND;
        broker.says(publish(QoS::AtMostOnce, 0));
    }

    broker.waits_until(broker.now);

    assert_eq!(broker.hears(), [Outgoing::PingReq]);
}

#[test]
fn while_we_do_not_read_the_broker_is_pinged_again_and_again_and_not_given_up() {
    let mut broker = Broker::subscribed();
    let start = broker.now;

    for secs in [45, 90, 135, 180] {
        broker.now = start + SECOND * secs;
        broker.session.handle_timeout(broker.now, false);
        broker.act();
        assert_eq!(broker.hears(), [Outgoing::PingReq], "after {secs} s");
        assert!(broker.session.poll_timeout() > Some(broker.now), "no busy wait");
    }

    assert_eq!(broker.closed, None);
}

#[test]
fn a_long_packet_on_a_slow_link_is_a_sign_of_life() {
    let mut live = Broker::subscribed();
    let mut subscribing = Broker::connected(true);
    for broker in [&mut live, &mut subscribing] {
        for _ in 0..60 {
            broker.now += SECOND * 5;
            broker.session.handle_bytes(broker.now);
            broker.waits_until(broker.now);
        }
        assert_eq!(broker.closed, None);
    }
}

#[test]
fn mqtt_3_2_2_21_the_keep_alive_of_the_broker_counts() {
    let mut broker = Broker::new(options());
    let keep_alive_secs = Some(100);
    broker.says(Incoming::ConnAck {
        session_present: true,
        code: 0,
        words: None,
        keep_alive_secs,
        session_expiry_secs: None,
    });
    broker.says(Incoming::SubAck { packet_id: SUBSCRIBE_ID, codes: vec![2] });

    assert_eq!(broker.session.poll_timeout(), Some(broker.now + SECOND * 75));
}

#[test]
fn a_broker_that_never_answers_is_given_up() {
    let mut connecting = Broker::new(options());
    connecting.waits_until(connecting.now + ANSWER_MAX);
    let mut subscribing = Broker::connected(true);
    subscribing.waits_until(subscribing.now + ANSWER_MAX);

    for (broker, what) in [(connecting, "no CONNACK"), (subscribing, "no SUBACK")] {
        let Some(Cause::Failed { problem, .. }) = broker.closed else { panic!() };
        assert!(problem.contains(what), "{problem}");
    }
}

#[test]
fn a_packet_at_the_wrong_time_ends_the_connection() {
    let mut early = Broker::new(options());
    early.says(publish(QoS::AtMostOnce, 0));
    let mut twice = Broker::subscribed();
    twice.says(connack(true));
    let mut unasked = Broker::subscribed();
    unasked.says(Incoming::SubAck { packet_id: SUBSCRIBE_ID, codes: vec![0] });
    let mut without = Broker::subscribed();
    without.says(publish(QoS::ExactlyOnce, 0));

    for broker in [early, twice, unasked, without] {
        assert!(matches!(broker.closed, Some(Cause::Failed { for_good: false, .. })), "{:?}", broker.closed);
    }
}

/// The broker's side of the conversation, and the spool's.
struct Broker {
    session: Session,
    now: Instant,
    heard: Vec<Outgoing>,
    submitted: Vec<Submission>,
    subscribed: Option<Option<String>>,
    closed: Option<Cause>,
}

impl Broker {
    fn new(options: Options) -> Self {
        let now = crate::clock::now();
        let session = Session::new(options, None, now);
        Self { session, now, heard: vec![], submitted: vec![], subscribed: None, closed: None }
    }

    /// Where a CONNACK was sent and nothing answered yet.
    fn connected(session_present: bool) -> Self {
        let mut broker = Self::new(options());
        broker.says(connack(session_present));
        broker
    }

    /// A fresh session whose first submission, `Forget`, has the number 0 and is stored.
    fn subscribed() -> Self {
        let mut broker = Self::connected(false);
        broker.stored(0);
        broker.says(Incoming::SubAck { packet_id: SUBSCRIBE_ID, codes: vec![2] });
        assert_eq!(broker.subscribed, Some(None));
        broker.heard.clear();
        broker
    }

    fn says(&mut self, packet: Incoming) {
        self.session.handle_packet(packet, self.now);
        self.act();
    }

    fn stored(&mut self, number: u64) {
        self.answered(number, Outcome::Stored);
    }

    fn answered(&mut self, number: u64, outcome: Outcome) {
        self.session.handle_outcome(number, outcome, self.now);
        self.act();
    }

    fn waits_until(&mut self, now: Instant) {
        self.now = now;
        self.session.handle_timeout(now, true);
        self.act();
    }

    fn hears(&mut self) -> Vec<Outgoing> {
        std::mem::take(&mut self.heard)
    }

    fn act(&mut self) {
        while let Some(action) = self.session.poll_action() {
            assert_eq!(self.closed, None, "nothing comes after the end");
            match action {
                Action::Send(packet) => {
                    self.session.handle_sent(self.now);
                    self.heard.push(packet);
                }
                Action::Submit(number, what) => {
                    assert_eq!(number, self.submitted.len() as u64);
                    self.submitted.push(what);
                }
                Action::Subscribed { problem } => self.subscribed = Some(problem),
                Action::Close(cause) => self.closed = Some(cause),
            }
        }
    }
}

fn options() -> Options {
    Options {
        version: ProtocolVersion::V5,
        client_id: "gw".to_owned(),
        topics: topics(),
        stale_filters: Vec::new(),
        is_elsewhere: false,
        keep_alive: SECOND * 60,
        receive_maximum: NonZeroU16::new(3).unwrap(),
    }
}

fn topics() -> Vec<Subscription> {
    vec![Subscription { filter: "a/#".to_owned(), qos: QoS::ExactlyOnce }]
}

fn connack(session_present: bool) -> Incoming {
    Incoming::ConnAck { session_present, code: 0, words: None, keep_alive_secs: None, session_expiry_secs: None }
}

fn publish(qos: QoS, packet_id: u16) -> Incoming {
    Incoming::Publish(Publish {
        topic: Topic::new(Bytes::from_static(b"a/b")).unwrap(),
        payload: Bytes::from_static(b"x"),
        qos,
        retain: false,
        dup: false,
        packet_id: NonZeroU16::new(packet_id),
    })
}

fn id(packet_id: u16) -> PacketId {
    NonZeroU16::new(packet_id).unwrap()
}
