//! Devices, sessions, the registry and storage in a world without sockets, at random: cut connections, takeovers, clean
//! starts, expired sessions, outcomes late and out of order, refusals, storage that fails, restarts of the agent.
//!
//! Always: a PUBACK or PUBREC of success means stored; QoS 2 is stored at most once, and exactly once when acknowledged;
//! answers come in the order of the PUBLISHes; and when the troubles end, everything a device kept is completed.
//!
//! A failure prints its seed; replay it with `FOREBAY_SEED=n cargo test -p forebay-broker --test session_model`.

mod model;

use model::World;

const STEPS: usize = 400;

/// More of them by `FOREBAY_WORLDS=n`.
fn worlds() -> u64 {
    std::env::var("FOREBAY_WORLDS").ok().and_then(|worlds| worlds.parse().ok()).unwrap_or(3_000)
}

#[test]
fn acknowledged_means_stored_and_qos_2_means_once() {
    let seeds = match std::env::var("FOREBAY_SEED") {
        Ok(seed) => vec![seed.parse().expect("a number")],
        Err(_) => (0..worlds()).collect(),
    };
    let mut seen = model::Seen::default();
    for seed in seeds {
        let run = std::panic::catch_unwind(|| {
            let mut world = World::new(seed);
            for _ in 0..STEPS {
                world.step();
            }
            world.settle();
            world.seen
        });
        match run {
            Ok(run) => seen.add(&run),
            Err(panic) => {
                eprintln!("FOREBAY_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{seen:?}");
    if std::env::var("FOREBAY_SEED").is_err() {
        assert!(seen.everything_happened(), "the world is too tame: {seen:?}");
    }
}
