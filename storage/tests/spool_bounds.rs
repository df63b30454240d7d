//! What one client or one kind of message may take of the spool, and that nothing goes without a record.

mod support;

use forebay_storage::dead_letter::{DeadLetter, NO_DATASET};
use forebay_storage::durable_fs::DurableFs;
use forebay_storage::position::Seq;
use forebay_storage::spool::{GapReason, Outcome, Request, Spool, SpoolConfig};
use support::one_by_one::{A, exactly_once, message, noise, recording_writer, small};

/// Two clients that never released anything could take all Packet Identifiers, and no other could publish with QoS 2.
#[test]
fn a_client_that_releases_nothing_takes_only_its_share_of_packet_identifiers() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { packet_ids_max: 16, packet_ids_client_max: 4, ..small() };
    let (spool, _) = Spool::open(dir.path(), config, DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);
    for packet_id in 1..=4 {
        assert_eq!(writer.send(by("greedy", packet_id)), Outcome::Stored);
    }
    assert_eq!(writer.send(by("greedy", 5)), Outcome::Unavailable);
    assert_eq!(writer.send(by("greedy", 4)), Outcome::Stored, "a resent one is known");
    assert_eq!(writer.send(by("other", 5)), Outcome::Stored);
    assert_eq!(spool.counters().packet_ids_refused, 1);

    writer.send(Request::Release { client_id: "greedy".into(), packet_id: 1, ticket: () });
    assert_eq!(writer.send(by("greedy", 5)), Outcome::Stored);
    writer.send(Request::CloseSession { client_id: "greedy".into(), ticket: () });
    for packet_id in 1..=4 {
        assert_eq!(writer.send(by("greedy", packet_id)), Outcome::Stored);
    }
}

/// Client Identifiers are free to choose: 32 of them could take everything, from sources, too, for as long as their sessions
/// lived.
#[test]
fn a_few_clients_that_release_nothing_leave_packet_identifiers_to_all_others() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { packet_ids_max: 32, packet_ids_client_max: 8, packet_ids_client_crowded: 2, ..small() };
    let (spool, _) = Spool::open(dir.path(), config.clone(), DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);
    for packet_id in 1..=20 {
        assert_eq!(writer.send(by("\0plant", packet_id)), Outcome::Stored);
    }
    let mut take = |client: &str| (1..=10).take_while(|id| writer.send(by(client, *id)) == Outcome::Stored).count();

    assert_eq!([take("greedy"), take("gree")], [8, 8], "what sources have does not count");
    assert!((0..8).all(|n| take(&format!("modest {n}")) == 2), "each has its own");
    assert_eq!(take("too many"), 0);
    assert_eq!(writer.send(by("\0plant", 21)), Outcome::Stored, "nor do sources wait for devices");
    drop((writer, spool));
    let (spool, _) = Spool::open(dir.path(), config, DurableFs::new()).unwrap();
    let mut writer = recording_writer(&spool);
    assert_eq!(writer.send(by("too many", 1)), Outcome::Unavailable);
    writer.send(Request::CloseSession { client_id: "\0plant".into(), ticket: () });
    assert_eq!(writer.send(by("too many", 1)), Outcome::Unavailable, "nor does it help when sources give back");

    writer.send(Request::CloseSession { client_id: "modest 0".into(), ticket: () });
    assert_eq!(writer.send(by("greedy", 9)), Outcome::Unavailable, "who has more than a few waits");
    assert_eq!(writer.send(by("too many", 1)), Outcome::Stored);
    assert_eq!(spool.counters().packet_ids_refused, 3);
}

/// Dead letters are acknowledged messages. Those that newer ones pushed out were only counted, and only until a restart.
#[test]
fn dead_letters_that_are_pushed_out_leave_a_gap_that_survives_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { dead_letter_bytes_max: 30_000, ..small() };
    let (spool, _) = Spool::open(dir.path(), config.clone(), DurableFs::new()).unwrap();
    let (mut writer, noise) = (recording_writer(&spool), noise());

    for n in 0..10 {
        let message = message(A, n, &noise(n));
        let letter = Request::DeadLetter {
            message,
            reason: "no dataset".into(),
            packet_id: None,
            retained_once: false,
            ticket: (),
        };
        assert_eq!(writer.send(letter), Outcome::Stored);
    }

    assert_eq!(spool.counters().dead_letters_dropped, 6);
    drop((writer, spool));
    let (spool, _) = Spool::open(dir.path(), config, DurableFs::new()).unwrap();
    assert_eq!(spool.dead_letters(NO_DATASET, Seq(0), 100).unwrap().len(), 4);
    let gaps = spool.gaps().unwrap();
    assert_eq!(gaps.len(), 1, "{gaps:?}");
    assert_eq!((gaps[0].first, gaps[0].end, gaps[0].reason), (Seq(0), Seq(6), GapReason::Dropped));
    assert_eq!((gaps[0].messages, gaps[0].bytes), (6, 6 * 7000));
}

/// A row that an upstream refuses is sealed already: its dead letter comes by itself, and perhaps again after a crash.
#[test]
fn dead_letters_of_sealed_rows_are_kept_once_and_within_the_same_bound() {
    let dir = tempfile::tempdir().unwrap();
    let config = SpoolConfig { dead_letter_bytes_max: 30_000, ..small() };
    let (spool, _) = Spool::open(dir.path(), config.clone(), DurableFs::new()).unwrap();
    let noise = noise();
    let letter = |n: u64, reason: &str| DeadLetter {
        seq: Seq(n),
        message: message(A, n, &noise(n)),
        reason: reason.to_owned(),
        at_us: 7,
    };
    let first: Vec<_> = (0..3).map(|n| letter(n, "refused")).collect();

    assert_eq!(spool.add_dead_letters(&first).unwrap(), 3);
    assert_eq!(spool.add_dead_letters(&[letter(2, "again"), letter(3, "refused")]).unwrap(), 1);
    assert_eq!(spool.add_dead_letters(&first).unwrap(), 0);
    assert_eq!((spool.counters().dead_letters, spool.counters().dead_letters_dropped), (4, 0));

    let more: Vec<_> = (4..6).map(|n| letter(n, "refused")).collect();
    assert_eq!(spool.add_dead_letters(&more).unwrap(), 2);
    assert_eq!((spool.counters().dead_letters, spool.counters().dead_letters_dropped), (6, 2));
    drop(spool);
    let (spool, _) = Spool::open(dir.path(), config, DurableFs::new()).unwrap();
    let kept: Vec<_> = (2..6).map(|n| letter(n, "refused")).collect();
    assert_eq!(spool.dead_letters(A, Seq(0), 100).unwrap(), kept);
    let gaps = spool.gaps().unwrap();
    assert_eq!((gaps.len(), gaps[0].first, gaps[0].end, gaps[0].reason), (1, Seq(0), Seq(2), GapReason::Dropped));
}

fn by(client: &str, packet_id: u16) -> Request<()> {
    let mut request = exactly_once(message(A, u64::from(packet_id), "x"), packet_id);
    if let Request::Append { message, .. } = &mut request {
        message.client_id = client.into();
    }
    request
}
