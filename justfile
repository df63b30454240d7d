# `just` alone lists what there is. CI runs `.ci/run`, which holds the same commands and does not need just.

_list:
    @just --list --unsorted

# Format, lints, docs: before every commit
check:
    .ci/run format clippy docs

# Lints of the builds that leave kinds of upstream out
features:
    .ci/run features

# Licences, duplicates, yanked crates, advisories; needs python3-venv or minutes
deny:
    .ci/run deny

# Every test; needs only Rust and a C compiler
test:
    cargo test --workspace

# The agent, simulated devices, a link that is cut and comes back
demo:
    cargo run -- demo

# What CI runs, all of it; installs Debian packages
ci:
    .ci/run

# paho-mqtt, mosquitto_pub and mqtt.js publish, pyarrow reads the dataset
clients:
    cargo build --workspace --bins
    .ci/run clients

# kill -9 under load, so many times
kill9 times="50":
    FOREBAY_KILLS={{times}} .ci/run kill9

# Outages of every kind of upstream, so many of each
outages times="200":
    FOREBAY_OUTAGES={{times}} .ci/run outages

# Brokers that are subscribed to: kill -9 while so many messages flow, the edges, pull
sources times="100" messages="50000":
    FOREBAY_SOURCE_KILLS={{times}} FOREBAY_SOURCE_MESSAGES={{messages}} .ci/run sources

# Strangers do their worst for so many seconds each, beside devices that must not notice; on a quiet machine
attacks secs="10":
    FOREBAY_ATTACK_SECS={{secs}} .ci/run attacks

# What becomes of a message with each broker when something fails, compared with the README
matrix:
    .ci/run matrix

# The same, written into the README
write-matrix:
    FOREBAY_WRITE_MATRIX=1 .ci/run matrix

# A static binary for a gateway: aarch64, armv7 or x86_64
cross target="aarch64" *options="":
    cross/build.sh {{options}} {{target}}

# Every target, built and run under emulation beside the host's own build
cross-all:
    cargo build --workspace --bins
    FOREBAY_TARGETS="aarch64 armv7 x86_64" .ci/run gateway

# Simulated power cuts, so many
power-cuts cuts="2000":
    FOREBAY_POWER_CUTS={{cuts}} .ci/run power_cuts

# What `just cross` has built, as .deb and .tar.gz; and one image for all of these
package *targets="aarch64":
    for target in {{targets}}; do cross/package.sh $target || exit 1; done
    cross/package.sh --oci {{targets}}

# The packages are installed, run under systemd, upgraded and removed; installs Debian packages, needs root
test-packages targets="aarch64":
    FOREBAY_TARGETS="{{targets}}" .ci/run packages

# libFuzzer on codec and session; needs nightly
fuzz secs="60":
    FOREBAY_FUZZ_SECS={{secs}} .ci/run fuzz

# Forebay beside mosquitto and rumqttd; on a quiet machine
bench *args="--rounds 5 --duration 8":
    .ci/run bench {{args}}

# A million messages wait for each kind of upstream, which then comes back; on a quiet machine
backlog *args="--rows 1000000":
    .ci/run bench backlog {{args}}

# What 10,000 idle connections and 2,000 of TLS cost, and what a publisher notices; on a quiet machine
idle *args="":
    .ci/run bench idle {{args}}

# Memory, time to start and power cuts on emulated gateways, of what cross/build.sh has built; needs qemu-system-arm
vm *targets="":
    FOREBAY_TARGETS="{{targets}}" .ci/run vm
