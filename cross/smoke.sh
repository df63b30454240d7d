#!/usr/bin/env bash
# smoke.sh [--kills N] TARGET [HOST_FOREBAY]
#
# Does target/dist/TRIPLE/forebay do on its own architecture what the host's build does here? Under qemu-user: real clients
# publish in every way, kill -9 under load, restart, everything is found again; then the emulated and the host's binary each
# seal and deliver a copy of the same spool, and must write the same bytes. On 32-bit ARM the year is 2040 once.
# HOST_FOREBAY: default target/debug/forebay.
#
# Needs python3-venv (paho-mqtt, pyarrow from PyPI), file, openssl; mosquitto-clients and, for a target that is not the
# host's, qemu-user, qemu-user-static and faketime, all of Debian. Nothing needs root.
set -euo pipefail
. "$(dirname "$0")/targets.sh"

kills=5
if [ "${1:-}" = --kills ]; then
    kills=${2:?how many}
    shift 2
fi
target "${1:?a target: $targets}"
host=${2:-$target_dir/debug/forebay}
binary=$out/forebay
[ -x "$binary" ] || die "no $binary: build.sh $1"
[ -x "$host" ] || die "no $host: cargo build --workspace"

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
emulator=()
[ "$arch" = "$(uname -m)" ] || emulator=("qemu-$arch")
for tool in file mosquitto_pub openssl "${emulator[@]}"; do
    command -v "$tool" >/dev/null || die "no $tool here: see the head of this script"
done
# What is given a path of a program gets this one.
printf '#!/bin/sh\nexec %s "%s" "$@"\n' "${emulator[*]}" "$binary" >"$work/forebay"
chmod +x "$work/forebay"
forebay=$work/forebay

say() { echo "--- $arch: $*"; }

say "what it is"
file --brief "$binary"
file --brief "$binary" | grep -q 'statically linked\|static-pie linked' || die "not static"
# It says so on standard error, and fails: that is the answer wanted.
ldd "$binary" 2>&1 | tee "$work/ldd" || true
grep -q 'not a dynamic executable\|statically linked' "$work/ldd" || die "ldd found libraries"
bytes=$(wc -c <"$binary")
echo "$bytes bytes"
[ "$arch" = x86_64 ] || [ "$bytes" -le $((12 << 20)) ] || die "above 12 MiB, which is too much for a gateway's flash"
"$forebay" --version

say "alone in an empty root"
mkdir "$work/empty"
cp "$binary" "$work/empty/forebay"
inside=(/forebay)
if [ ${#emulator[@]} != 0 ]; then
    cp "$(command -v "qemu-$arch-static")" "$work/empty/qemu"
    inside=(/qemu /forebay)
fi
enter=(chroot)
[ "$(id -u)" = 0 ] || enter=(unshare --user --map-root-user chroot)
"${enter[@]}" "$work/empty" "${inside[@]}" demo /demo | tee "$work/demo.log"
grep -q 'lost 0' "$work/demo.log"
grep -q 'verify: ok' "$work/demo.log"
rm -rf "$work/empty"

python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --disable-pip-version-check -r "$root/tests/clients/requirements.txt"
python=$work/venv/bin/python

say "real clients"
"$root/tests/clients/run.sh" "$forebay" "$python"

say "kill -9 under load"
mkdir "$work/kill9"
"$python" "$root/tests/clients/kill9.py" run "$work/kill9" "$kills" "${emulator[@]}" "$binary"

say "the same spool, sealed and delivered by either binary"
# Paths are the same for both, one after the other: the config names them.
deliver() { # NAME FOREBAY
    rm -rf "$work/kill9/upstream"
    mkdir -p "$work/kill9/upstream"
    cp -a "$work/kill9/data" "$work/$1"
    FOREBAY__DATA_DIR=$work/$1 FOREBAY__BATCH__ROWS=2000 "$2" sync --once --config "$work/kill9/forebay.toml"
    mv "$work/kill9/upstream" "$work/$1.upstream"
}
deliver there "$forebay"
deliver here "$host"
diff -r "$work/there/datasets" "$work/here/datasets"
diff -r "$work/there.upstream" "$work/here.upstream"
"$python" "$root/tests/clients/kill9.py" check "$work/kill9" "$work/there.upstream"
for name in there here; do # each by the other's
    verifier=$host
    [ "$name" = there ] || verifier=$forebay
    FOREBAY__DATA_DIR=$work/$name "$verifier" verify --config "$work/kill9/forebay.toml"
done
echo "identical: $(find "$work/here/datasets" -type f | wc -l) files, head $(cat "$work/there.upstream/temperature/refs/head")"

if [ "$arch" = arm ]; then
    say "the year 2040"
    # The emulator asks the host's C library for the time, which faketime answers.
    FAKETIME_DONT_FAKE_MONOTONIC=1 faketime -f '@2040-02-03 04:05:06' \
        "${emulator[@]}" "$binary" demo "$work/2040" | tee "$work/2040.log"
    grep -q 'lost 0' "$work/2040.log"
    grep -q 'verify: ok' "$work/2040.log"
    "$python" - "$work/2040" <<'EOF'
import pathlib, pyarrow.parquet, sys
years = {pyarrow.parquet.read_table(path)["system_time"][0].as_py().year
         for path in pathlib.Path(sys.argv[1]).glob("**/data/f1620*")}
assert years == {2040}, f"rows of {years}"
print(f"rows of {years}")
EOF
fi

say "passed"
