//! Our codec against the two of rumqttc, an implementation that knows nothing of ours.
//!
//! * What rumqttc's client writes, we read, and it means the same.
//! * What we write, rumqttc's client reads, and it means the same.
//! * Where both accept mutated bytes, they mean the same. Where only rumqttc does, the rule that we hold and it does not
//!   is one of those that `laxities` lists; where only we do, it is one of `strictness`.
//!
//! Every case has a number, which seeds it: a failure names it, and `CODEC_CASE=number` runs that one alone.
//! `CODEC_CASES=n` sets how many there are.

#![expect(clippy::panic, clippy::unwrap_used, reason = "all of this is test code, also outside of #[test] functions")]

mod answers;
mod compare;
mod generate;
mod laxities;
mod mutate;
mod v4;
mod v5;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use bytes::{Bytes, BytesMut};
use fastrand::Rng;
use forebay_broker::codec::{self, CodecError, Frame};
use forebay_broker::packet::{Incoming, ProtocolVersion};

/// Well above every packet that is generated.
const LIMIT: u32 = 1024 * 1024;

#[test]
fn what_a_3_1_1_client_writes_means_the_same_to_us() {
    for_each_case(30_000, |rng| {
        let (bytes, packet) = v4::written(rng);
        let decoded = ours(bytes, ProtocolVersion::V311).expect("a valid packet");
        compare::v4(&decoded, &packet);
    });
}

#[test]
fn what_a_5_0_client_writes_means_the_same_to_us() {
    for_each_case(30_000, |rng| {
        let (bytes, packet) = v5::written(rng);
        let decoded = ours(bytes, ProtocolVersion::V5).expect("a valid packet");
        compare::v5(&decoded, &packet);
    });
}

#[test]
fn what_we_write_means_the_same_to_a_client() {
    for_each_case(30_000, answers::check);
}

#[test]
fn what_both_accept_of_mutated_3_1_1_packets_means_the_same() {
    let mut outcomes = BTreeMap::new();
    for_each_case(100_000, |rng| {
        let (bytes, _) = v4::written(rng);
        let mutated = mutate::packet(rng, &bytes);
        let theirs = v4::read(&mutated);
        let outcome = match (ours(mutated.clone(), ProtocolVersion::V311), theirs) {
            (Ok(Incoming::Connect(ours)), _) if ours.version == ProtocolVersion::V5 => "skipped",
            (Ok(ours), Some(theirs)) => {
                compare::v4(&ours, &theirs);
                "both accept"
            }
            (Err(error), Some(_)) => laxities::v4(&mutated, error),
            (Ok(ours), None) => laxities::strictness_v4(&ours),
            (Err(_), None) => "both refuse",
        };
        *outcomes.entry(outcome).or_insert(0) += 1;
    });
    report("3.1.1", &outcomes);
}

#[test]
fn what_both_accept_of_mutated_5_0_packets_means_the_same() {
    let mut outcomes = BTreeMap::new();
    for_each_case(100_000, |rng| {
        let (bytes, _) = v5::written(rng);
        let mutated = mutate::packet(rng, &bytes);
        let theirs = v5::read(&mutated);
        let outcome = match (ours(mutated.clone(), ProtocolVersion::V5), theirs) {
            (Ok(Incoming::Connect(ours)), _) if ours.version == ProtocolVersion::V311 => "skipped",
            (Ok(ours), Some(theirs)) => {
                compare::v5(&ours, &theirs);
                "both accept"
            }
            (Err(error), Some(theirs)) => laxities::v5(&mutated, error, &theirs),
            (Ok(ours), None) => laxities::strictness_v5(&mutated, &ours),
            (Err(_), None) => "both refuse",
        };
        *outcomes.entry(outcome).or_insert(0) += 1;
    });
    report("5.0", &outcomes);
}

#[test]
fn every_prefix_of_a_valid_packet_needs_more_and_nothing_is_taken() {
    for_each_case(2_000, |rng| {
        let bytes = match rng.bool() {
            true => v4::written(rng).0,
            false => v5::written(rng).0,
        };
        for length in (0..bytes.len()).take(500) {
            let mut buffer = BytesMut::from(&bytes[..length]);
            assert_eq!(codec::next_frame(&mut buffer, LIMIT), Ok(None), "at {length}");
            assert_eq!(buffer, bytes[..length], "at {length}");
            let Ok(Frame::Incomplete { bytes_needed }) = codec::inspect(&buffer, LIMIT) else {
                panic!("not incomplete at {length}");
            };
            assert!(bytes_needed >= 1 && bytes_needed <= bytes.len() - length);
        }
    });
}

/// Runs a check on as many cases as asked for, each from a seed of its own, and names the case that fails.
fn for_each_case(default: u64, mut check: impl FnMut(&mut Rng)) {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let cases = match number("CODEC_CASE") {
        Some(one) => one..one + 1,
        None => 0..number("CODEC_CASES").unwrap_or(default),
    };
    for case in cases {
        let mut rng = Rng::with_seed(case);
        let outcome = catch_unwind(AssertUnwindSafe(|| check(&mut rng)));
        if let Err(panic) = outcome {
            eprintln!("failed in case {case}: CODEC_CASE={case} runs it alone");
            resume_unwind(panic);
        }
    }
}

/// Finds and decodes `bytes`, which hold one packet or the start of one.
fn ours(bytes: Bytes, version: ProtocolVersion) -> Result<Incoming, CodecError> {
    let mut buffer = BytesMut::from(bytes);
    match codec::next_frame(&mut buffer, LIMIT)? {
        Some(frame) => codec::decode(frame, version),
        None => Err(CodecError::NotOneFrame),
    }
}

fn report(version: &str, outcomes: &BTreeMap<&'static str, u32>) {
    println!("{version}: {outcomes:#?}");
    if std::env::var_os("CODEC_CASE").is_none() {
        assert!(outcomes.get("both accept").is_some_and(|&count| count > 0));
        assert!(outcomes.get("both refuse").is_some_and(|&count| count > 0));
    }
}
