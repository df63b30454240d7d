#!/bin/bash
# check-unit.sh BINARY...
#
# What the service files say, compared with what the program does, without systemd or procd running (boot.sh: with systemd):
#
#   - systemd-analyze finds the unit correct, and exposed by 2.0 of 10 at the most;
#   - each BINARY does its main work under strace: everything that it asks the kernel for is what the unit's sandbox allows. A
#     binary of another architecture runs under qemu-user, which can trace as well;
#   - the script for OpenWrt asks procd for what it should, and for nothing with a bad configuration;
#   - the recipe for Yocto names files and checksums that are there.
#
# Needs systemd, strace, binutils, mosquitto-clients, openssl, and qemu-user-static for other architectures.
set -euo pipefail
. "$(dirname "$0")/targets.sh"
[ $# -gt 0 ] || die "a forebay binary, or several"

unit=$root/cross/systemd/forebay.service
work=$(mktemp -d)
agent=''
cleanup() {
    # strace has a child, which outlives it.
    [ -z "$agent" ] || pkill -KILL -P "$agent" || kill -KILL "$agent" || true
    rm -rf "$work"
}
trap cleanup EXIT
ok() { echo "    ok: $*"; }

analyze() {
    systemd-analyze security --offline=true --threshold=20 "$unit" >"$work/security" || { cat "$work/security"; die "exposed too much"; }
    ok "$(sed -n 's/^→ \(.*\) .*/\1/p' "$work/security")"
    mkdir "$work/unit"
    sed "s|/usr/bin/forebay|$1|" "$unit" >"$work/unit/forebay.service"
    systemd-analyze verify --man=no "$work/unit/forebay.service" >"$work/verify" 2>&1 || { cat "$work/verify"; die "the unit is not correct"; }
    if grep forebay "$work/verify"; then die "the unit is not correct"; fi
    ok "systemd-analyze verify"
}

# ---- the sandbox

# SystemCallFilter= of the unit: groups are looked up, `~` takes away, @default is always allowed.
members() { # NAME: a call, or the calls of a @group
    case $1 in
    @*) systemd-analyze syscall-filter "$1" 2>/dev/null </dev/null | sed -n 's/^ \+\([@a-z_0-9-]*\)$/\1/p' | while read -r name; do members "$name"; done ;;
    *) echo "$1" ;;
    esac
}
allowed_calls() {
    local names name
    members @default >"$work/allowed"
    sed -n 's/^SystemCallFilter=//p' "$unit" >"$work/filters"
    while read -r names; do
        for name in ${names#\~}; do members "$name"; done | sort -u >"$work/named"
        case $names in
        ~*) grep -vxFf "$work/named" "$work/allowed" >"$work/rest" && mv "$work/rest" "$work/allowed" ;;
        *) cat "$work/named" >>"$work/allowed" ;;
        esac
    done <"$work/filters"
    sort -u -o "$work/allowed" "$work/allowed"
    # That this was read as systemd reads it.
    for name in futex read fdatasync; do grep -qx $name "$work/allowed" || die "$name should be allowed"; done
    for name in mount chown setuid setpriority ptrace; do ! grep -qx $name "$work/allowed" || die "$name should not be allowed"; done
    ok "$(wc -l <"$work/allowed") system calls are allowed"
}

# Sets $emulator: what runs BINARY here, and $tracer: the same with its system calls written to the file that follows.
how_to_run() { # BINARY
    emulator=$(emulator_of "$1")
    tracer="strace -f -qq -o"
    [ -z "$emulator" ] || tracer="$emulator -strace -D"
}

# Everything that happens in the service: devices by TLS and a Unix socket, sealing, delivery to a directory and to a node
# that is not there, its questions for a name, a configuration that is read again, stopping.
service() { # BINARY
    rm -rf "$work/data" "$work/upstream" "$work/bundle" "$work"/*.trace
    mkdir "$work/upstream"
    : >"$work/agent.log" # of the binary before
    cat >"$work/forebay.toml" <<END
data_dir = "$work/data"
[[listener]]
bind = "unix:$work/mqtt.sock"
[[listener]]
bind = "127.0.0.1:0"
[listener.tls]
cert = "$work/cert.pem"
key_file = "$work/key.pem"
[[upstream]]
url = "file://$work/upstream"
[[upstream]]
url = "odf+https://node.invalid/acme"
END
    # $tracer and $emulator are words, or none.
    # shellcheck disable=SC2086
    $tracer "$work/run.trace" "$1" run --config "$work/forebay.toml" >"$work/agent.log" 2>&1 &
    agent=$!
    # shellcheck disable=SC2086
    forebay() { $emulator "$binary" "$@" --config "$work/forebay.toml"; }
    local port=''
    listens() {
        port=$(sed -n 's/.*Listening.*127\.0\.0\.1:\([0-9]*\).*/\1/p' "$work/agent.log")
        [ -n "$port" ]
    }
    wait_for $agent listens || failed "the agent does not listen"
    seq 100 | mosquitto_pub --unix "$work/mqtt.sock" -V mqttv5 -i one -q 2 -t check/one -l || failed "cannot publish"
    seq 100 | mosquitto_pub -h localhost -p "$port" --cafile "$work/cert.pem" -i two -q 1 -t check/two -l || failed "cannot publish by TLS"
    forebay sync --once >"$work/sync.log" 2>&1 && failed "delivered to a node that is not there"
    grep -q 'node.invalid' "$work/sync.log" || failed "nothing was tried: $(cat "$work/sync.log")"
    [ -s "$work/upstream/messages/refs/head" ] || failed "nothing was delivered: $(cat "$work/sync.log")"
    forebay export --to "$work/bundle" --for "odf+https://node.invalid/acme" >"$work/export.log" 2>&1 || failed "$(cat "$work/export.log")"
    echo '[batch]
rows = 7' >>"$work/forebay.toml"
    # What ExecReload= runs, it runs in the sandbox, too.
    # shellcheck disable=SC2086
    $tracer "$work/reload.trace" "$1" reload --config "$work/forebay.toml" >"$work/reload.log" 2>&1 || failed "$(cat "$work/reload.log")"
    kill -TERM "$(pgrep -P $agent || echo $agent)" # strace has a child, qemu is the agent
    wait $agent || failed "the agent did not end well"
    agent=''
}
failed() {
    cat "$work/agent.log"
    die "$*"
}

# Each call of a trace is what the unit allows.
compare() { # BINARY
    # qemu writes a call when it begins and its result when it ends. What another thread calls in between is on the same line, and
    # a call whose result is elsewhere passes for one that succeeded.
    sed 's/)\([0-9]\+ [a-z0-9_]\+(\)/)\n\1/g' "$work"/*.trace >"$work/trace"
    sed -n 's/^[0-9]\+ \+\([a-z0-9_]\+\)(.*/\1/p' "$work/trace" | sort -u >"$work/called"
    grep -qx fdatasync "$work/called" || die "the trace has no fdatasync: this is not the agent's main work"
    grep -vxFf "$work/allowed" "$work/called" >"$work/excess" && die "SystemCallFilter= does not allow: $(xargs <"$work/excess")"

    families=$(sed -n 's/^RestrictAddressFamilies=//p' "$unit")
    # glibc asks for interfaces when it looks a name up, and does without an answer. musl, which is what is shipped, does not ask.
    ! readelf -lW "$1" | grep -q INTERP || families="$families AF_NETLINK"
    sed -n 's/^[0-9]\+ \+socket(\([A-Z0-9_]*\),.*/\1/p' "$work/trace" | sed 's/^PF_/AF_/; s/_LOCAL$/_UNIX/' | sort -u >"$work/families"
    tr ' ' '\n' <<<"$families" | grep -vxFf - "$work/families" && die "RestrictAddressFamilies= does not allow these"

    grep -E '(mmap2?|mprotect|pkey_mprotect)\(.*PROT_WRITE\|PROT_EXEC|mprotect\(.*PROT_EXEC' "$work/trace" &&
        die "MemoryDenyWriteExecute= does not allow these"

    # What failed would fail in the sandbox, too. Nobody can write to the directories that $work is in, only find them there.
    local around=$work
    while [ "$around" != / ]; do
        around=$(dirname "$around")
        echo "$around"
    done >"$work/around"
    grep -E '^[0-9]+ +(open|openat|creat|mkdir|mkdirat|rename|renameat2?|unlink|unlinkat|link|linkat|symlink|symlinkat)\(' "$work/trace" |
        grep -E 'O_WRONLY|O_RDWR|O_CREAT|^[0-9]+ +[^o ]' | grep -v ' = -1 ' | grep -oE '"/[^"]*"' | tr -d '"' | sort -u |
        grep -vxFf "$work/around" >"$work/written" || true
    grep -q "^$work/data/" "$work/written" || die "the trace has no file that was written"
    grep -vE "^($work|/dev/null|/proc/self/)" "$work/written" && die "ProtectSystem= does not let it write to these"
    ok "${1#"$root"/}: $(wc -l <"$work/called") different system calls of $(wc -l <"$work/trace"), $(xargs <"$work/families"): all allowed"
}

# ---- OpenWrt, Yocto

# The script for procd by busybox's shell, with words instead of procd.
openwrt() {
    local script=$work/forebay.init
    cat >"$script" <<'END'
procd_open_instance() { echo open; }
procd_close_instance() { echo close; }
procd_set_param() { echo "$*"; }
procd_send_signal() { echo "signal $*"; }
procd_add_restart_mount_trigger() { echo "after the mount of $*"; }
logger() { echo "$*"; }
chown() { :; }
END
    sed "s|/tmp|$work/memory|g; s|/srv/forebay|$work/flash|g; s|/var/run/forebay|$work/run|g
        s|^PROGRAM=.*|PROGRAM=$binary|; s|^CONFIG=.*|CONFIG=$work/openwrt.toml|" \
        "$root/cross/openwrt/forebay.init" >>"$script"
    procd() { busybox sh -c ". $script && $1" >"$work/procd.log" 2>&1; }
    says() { grep -qF -- "$1" "$work/procd.log" || { cat "$work/procd.log"; die "the script for procd does not say: $1"; }; }

    refused() { # WHY
        ! procd start_service || { cat "$work/procd.log"; die "the script for procd starts, although: $1"; }
        says "$1"
        if grep -qx open "$work/procd.log"; then die "the script for procd starts, although: $1"; fi
    }

    # As TOML may write it.
    local data="$work/a \"disk\"/data"
    echo "data_dir='$data' # not \"/tmp\"" >"$work/openwrt.toml"
    refused "data_dir $data is not there"
    [ ! -e "$data" ] || die "the script for procd makes a directory where a disk may be missing"
    procd service_triggers || die "the script for procd does not wait for the disk"
    says "after the mount of $data"
    mkdir -p "$data"
    procd start_service || { cat "$work/procd.log"; die "the script for procd fails"; }
    says "command $binary run --config $work/openwrt.toml"
    says "user forebay"
    says "respawn 3600 5 0"
    says close
    procd reload_service || die "the script for procd does not reload"
    says "signal forebay"

    echo "data_dir = \"$work/flash\"" >"$work/openwrt.toml"
    procd start_service || { cat "$work/procd.log"; die "the script for procd does not start after a firmware upgrade"; }

    mkdir -p "$work/memory/forebay"
    ln -s "$work/memory" "$work/var"
    echo "data_dir = \"$work/var/forebay\"" >"$work/openwrt.toml"
    refused "would be in memory"
    : >"$work/openwrt.toml"
    refused "an absolute path"
    echo 'date_dir = "x"' >"$work/openwrt.toml"
    refused "forebay check --config"
    ok "OpenWrt's script, with stand-ins for procd"
}

yocto() {
    local recipe=$root/cross/yocto/forebay_$version.bb file
    [ -f "$recipe" ] || die "$recipe: the recipe has another version than Cargo.toml"
    sed -n 's|.*file://\(LICENSE-[A-Z]*\);md5=\([0-9a-f]*\).*|\2  \1|p' "$recipe" >"$work/md5"
    [ "$(wc -l <"$work/md5")" = 2 ] || die "$recipe: two licences"
    (cd "$root" && md5sum --quiet -c "$work/md5") || die "$recipe: md5= of a licence"
    # shellcheck disable=SC2016  # ${S} is bitbake's
    sed -n 's|.*${S}/\([a-z./]*\) .*|\1|p' "$recipe" >"$work/files"
    grep -qx forebay "$work/files" || die "$recipe: the program is not installed"
    while read -r file; do
        case $file in
        forebay | forebay.toml) ;; # package.sh makes them
        *) [ -f "$root/cross/$file" ] || die "$recipe: $file is not in the archive" ;;
        esac
    done <"$work/files"
    ok "Yocto's recipe: version, licences, files"
}

openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 2 \
    -addext "subjectAltName=DNS:localhost" -keyout "$work/key.pem" -out "$work/cert.pem" 2>"$work/openssl.log"
analyze "$(realpath "$1")"
allowed_calls
for binary in "$@"; do
    binary=$(realpath "$binary")
    how_to_run "$binary"
    service "$binary"
    compare "$binary"
done
binary=$(realpath "$1")
openwrt
yocto
echo "==> all well"
