//! The manager hears what is true, and not too often.

use super::probe::Part;
use super::*;
use crate::upstream::report::Problem;

const SECOND: Duration = Duration::from_secs(1);

fn start() -> Instant {
    crate::clock::now()
}

fn known() -> Known {
    Known { connections: 12, stored: 1_234, spool_bytes: (64 << 20, 2 << 30), ..Known::default() }
}

fn send(text: &str) -> Action {
    Action::Send(text.to_owned())
}

const FINE: &str = "12 devices connected, 1,234 messages stored, spool 3 % of 2.0 GiB";

#[test]
fn ready_comes_with_the_status_and_the_first_ping_at_once() {
    let now = start();
    let mut service = Service::new(Some(SECOND * 60), now);

    assert_eq!(service.handle_ready(&known(), now), send(&format!("READY=1\nSTATUS={FINE}")));
    assert_eq!(service.poll_timeout(), now);
    assert_eq!(service.handle_timeout(&known(), None, now), [send("WATCHDOG=1")]);
}

#[test]
fn pings_come_twice_in_the_time_that_the_manager_allows() {
    let now = start();
    let mut service = Service::new(Some(SECOND * 8), now);
    service.handle_ready(&known(), now);
    service.handle_timeout(&known(), None, now);

    assert_eq!(service.poll_timeout(), now + SECOND * 4);
    assert_eq!(service.handle_timeout(&known(), None, now + SECOND * 3), []);
    assert_eq!(service.handle_timeout(&known(), None, now + SECOND * 4), [send("WATCHDOG=1")]);
    assert_eq!(service.poll_timeout(), now + SECOND * 8);
}

#[test]
fn without_a_watchdog_there_is_no_ping() {
    let now = start();
    let mut service = Service::new(None, now);
    service.handle_ready(&known(), now);

    assert_eq!(service.poll_timeout(), now + SECOND * 10);
    assert_eq!(service.handle_timeout(&known(), None, now + SECOND * 10), []);
}

#[test]
fn a_status_that_changes_is_sent_at_most_every_ten_seconds_and_one_that_does_not_is_not() {
    let now = start();
    let mut service = Service::new(None, now);
    service.handle_ready(&known(), now);
    let more = Known { stored: 1_235, ..known() };

    assert_eq!(service.handle_timeout(&more, None, now + SECOND * 9), []);
    let changed = format!("STATUS={}", FINE.replace("1,234", "1,235"));
    assert_eq!(service.handle_timeout(&more, None, now + SECOND * 10), [send(&changed)]);
    assert_eq!(service.handle_timeout(&known(), None, now + SECOND * 19), []);
    assert_eq!(service.handle_timeout(&more, None, now + SECOND * 20), []);
}

#[test]
fn a_part_that_is_silent_for_the_time_of_the_watchdog_ends_the_pings_until_it_answers() {
    let now = start();
    let mut service = Service::new(Some(SECOND * 60), now);
    service.handle_ready(&known(), now);
    service.handle_timeout(&known(), None, now);
    let silent = Silent { part: Part::Writer, since: now };

    let slow = service.handle_timeout(&known(), Some(silent), now + SECOND * 59);
    assert_eq!(slow, [send("WATCHDOG=1")], "a disk that takes its time is not dead");
    let dead = service.handle_timeout(&known(), Some(silent), now + SECOND * 90);
    let status = format!("STATUS=the spool's writer does not answer; {FINE}");
    assert_eq!(dead, [Action::Stalled(silent, SECOND * 90), send(&status)]);
    assert_eq!(service.handle_timeout(&known(), Some(silent), now + SECOND * 120), [], "it is told once");
    let alive = service.handle_timeout(&known(), None, now + SECOND * 150);
    assert_eq!(alive, [Action::Recovered, send("WATCHDOG=1"), send(&format!("STATUS={FINE}"))]);
}

#[test]
fn a_reload_says_when_it_began_and_ready_again_with_what_came_of_it() {
    let now = start();
    let mut service = Service::new(None, now);
    let refused = Known { refused: Some("forebay.toml:3:1: `batch`: no".to_owned()), ..known() };

    assert_eq!(service.handle_reloading(1_234_567), send("RELOADING=1\nMONOTONIC_USEC=1234567"));
    let ready = format!("READY=1\nSTATUS=the new configuration is refused: forebay.toml:3:1: `batch`: no; {FINE}");
    assert_eq!(service.handle_ready(&refused, now), send(&ready));
}

#[test]
fn after_stopping_nothing_more_is_said() {
    let now = start();
    let mut service = Service::new(Some(SECOND), now);

    assert_eq!(service.handle_stopping(None), send("STOPPING=1\nSTATUS=Stopping: answering what was received."));
    assert_eq!(service.handle_timeout(&known(), None, now + SECOND * 60), []);
    let failed = service.handle_stopping(Some("write the spool: the disk\nis gone"));
    assert_eq!(failed, send("STOPPING=1\nSTATUS=Failed: write the spool: the disk is gone"));
}

#[test]
fn what_is_wrong_stands_first_and_the_worst_of_it_at_the_beginning() {
    let refuses = DeliveryReport {
        url: "s3://bucket".to_owned(),
        undelivered_bytes: 3 << 20,
        problems: [("temp".to_owned(), Problem { words: "access denied".to_owned(), quarantined: true })].into(),
        ..DeliveryReport::default()
    };
    let known = Known {
        disk_full: true,
        sealing_error: Some("no space".to_owned()),
        sources: vec![("plant".to_owned(), "connection refused".to_owned())],
        upstreams: vec![refuses, DeliveryReport { url: "file:///usb".to_owned(), ..DeliveryReport::default() }],
        ..known()
    };

    let words = "the disk is full; sealing fails: no space; s3://bucket: dataset temp: access denied; source plant: \
                 connection refused";
    assert_eq!(status(&known, None), format!("{words}; {FINE}; s3://bucket behind by 3.0 MiB"));
}

#[test]
fn a_spool_without_room_is_full() {
    let full = Known { spool_bytes: ((2 << 30) - 4_096, 2 << 30), ..known() };

    assert!(status(&full, None).starts_with("the spool is full; "));
}

#[test]
fn a_status_is_one_line_of_bounded_length_whatever_a_server_answered() {
    let words = format!("line\nWATCHDOG=1\r{}", "é".repeat(5_000));
    let known = Known { sealing_error: Some(words), ..known() };

    let status = status(&known, None);

    assert!(status.starts_with("sealing fails: line WATCHDOG=1 é"), "{status}");
    assert!(status.len() < PROBLEM_BYTES_MAX + 100 && status.ends_with(FINE), "{status}");
    assert!(!status.contains('\n'));
}
