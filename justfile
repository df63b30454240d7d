# `just` alone lists what there is. CI runs `.ci/run`, which holds the same commands and does not need just.

_list:
    @just --list --unsorted

# Format, lints, docs: before every commit
check:
    .ci/run format clippy docs

# Every test; needs only Rust and a C compiler
test:
    cargo test --workspace

# The agent, simulated devices, a link that is cut and comes back
demo:
    cargo run -- demo

# What CI runs, all of it; installs Debian packages
ci:
    .ci/run

# paho-mqtt and mosquitto_pub publish, pyarrow reads the dataset
clients:
    cargo build --workspace --bins
    .ci/run clients

# kill -9 under load, so many times
kill9 times="50":
    FOREBAY_KILLS={{times}} .ci/run kill9

# Outages of every kind of upstream, so many of each
outages times="200":
    FOREBAY_OUTAGES={{times}} .ci/run outages

# Simulated power cuts, so many
power-cuts cuts="2000":
    FOREBAY_POWER_CUTS={{cuts}} .ci/run power_cuts

# libFuzzer on codec and session; needs nightly
fuzz secs="60":
    FOREBAY_FUZZ_SECS={{secs}} .ci/run fuzz

# Forebay beside mosquitto and rumqttd; on a quiet machine
bench *args="--rounds 5 --duration 8":
    .ci/run bench {{args}}

# A million messages wait for each kind of upstream, which then comes back; on a quiet machine
backlog *args="--rows 1000000":
    .ci/run bench backlog {{args}}
