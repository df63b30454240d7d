#!/bin/bash
# check-oci.sh ARCHIVE
#
# Reads an image of `package.sh --oci` by other programs than the one that wrote it: skopeo finds each platform, umoci unpacks
# it, and the agent runs in it as the image's user. Before, what build.sh and package.sh refuse.
#
# Needs root, skopeo, umoci, binutils, ca-certificates, mosquitto-clients, and qemu-user-static for other architectures. Ends with
# 77 where one of them is missing.
set -euo pipefail
. "$(dirname "$0")/targets.sh"

[ $# = 1 ] || die "an archive of package.sh --oci"
[ "$(id -u)" = 0 ] || cannot "needs root, for the owners of the image's files"
for tool in skopeo umoci readelf mosquitto_pub; do command -v $tool >/dev/null || cannot "$tool is not installed"; done
archive=$1
work=$(mktemp -d)
agent=''
trap '[ -z "$agent" ] || kill "$agent" 2>/dev/null || true; rm -rf "$work"' EXIT
ok() { echo "    ok: $*"; }
failed() {
    cat "$work/log"
    die "$*"
}

# A program of another commit, or another program, would pass for one of this version.
stale() {
    local out=$work/target/dist/x86_64-unknown-linux-musl head
    head=$(git -C "$root" rev-parse HEAD 2>/dev/null || echo unknown)
    mkdir -p "$out"
    refused() { # COMMIT WHY
        echo "forebay $version for x86_64-unknown-linux-musl, profile release
source: $1, SOURCE_DATE_EPOCH=0" >"$out/BUILDINFO"
        echo "no program" >"$out/forebay"
        (cd "$out" && sha256sum BUILDINFO forebay >SHA256SUMS)
        [ "$1" != "$head" ] || echo damaged >>"$out/forebay"
        ! FOREBAY_ALLOW_STALE='' CARGO_TARGET_DIR=$work/target "$root/cross/package.sh" --oci x86_64 >"$work/log" 2>&1 || failed "packs what is stale"
        grep -qF "$2" "$work/log" || failed "does not say: $2"
        grep -q FOREBAY_ALLOW_STALE=1 "$work/log" || failed "does not say how to pack it all the same"
    }
    refused "$head-dirty" "built of commit $head-dirty, not of $head"
    refused "$head" "not what its SHA256SUMS says"
    ok "package.sh refuses what was built of something else, and what is damaged"
}
stale

# In RUSTFLAGS and CFLAGS a space would be the end of a flag; without readelf every binary would pass for static.
cannot_build() {
    local place tool
    mkdir "$work/a folder"
    cp -r "$root/cross" "$root/Cargo.toml" "$work/a folder"
    for place in "$root" "$work/a folder"; do
        ! CARGO_HOME="$work/a home" "$place/cross/build.sh" aarch64 >"$work/log" 2>&1 || failed "builds with a space in a path"
        grep -qF 'with a space in the path' "$work/log" || failed "does not say what is wrong with a space"
    done
    mkdir "$work/bin"
    for tool in sh dirname mkdir git sed head; do ln -s "$(command -v $tool)" "$work/bin"; done
    ! PATH=$work/bin "$root/cross/build.sh" aarch64 >"$work/log" 2>&1 || failed "builds without readelf"
    grep -q 'no readelf here' "$work/log" || failed "does not say that readelf is missing"
    ok "build.sh refuses paths with a space, and to build without readelf"
}
cannot_build

platforms() { python3 -c 'import json, sys
for entry in json.load(sys.stdin)["manifests"]: print("/".join(entry["platform"].get(key, "") for key in ("architecture", "variant")))'; }

all=$(skopeo inspect --raw "oci-archive:$archive" | platforms)
# As a registry gets it.
skopeo copy --all --insecure-policy --quiet "oci-archive:$archive" "oci:$work/all:$version"
[ "$(skopeo inspect --raw "oci:$work/all:$version" | platforms)" = "$all" ] || die "skopeo copy --all copies less than all"
# As podman and containerd call it.
tar -xOf "$archive" index.json >"$work/log"
grep -qF "\"io.containerd.image.name\":\"localhost/forebay:$version\"" "$work/log" || failed "index.json does not name the image"
ok "skopeo copies all of it, it has a name"

for platform in $all; do
    rm -rf "${work:?}"/*
    arch=${platform%/*} variant=${platform#*/}
    choose=(--override-os linux --override-arch "$arch")
    [ -z "$variant" ] || choose+=(--override-variant "$variant")
    skopeo "${choose[@]}" inspect "oci-archive:$archive" >"$work/inspect.json"
    for words in "\"Architecture\": \"$arch\"" "\"org.opencontainers.image.version\": \"$version\""; do
        grep -qF "$words" "$work/inspect.json" || { cat "$work/inspect.json"; die "skopeo does not see: $words"; }
    done
    skopeo "${choose[@]}" copy --insecure-policy --quiet "oci-archive:$archive" "oci:$work/image:$version"
    umoci unpack --image "$work/image:$version" "$work/bundle" >"$work/log" 2>&1 || failed "umoci"
    files=$work/bundle/rootfs
    [ "$(stat -c '%a %u:%g' "$files/var/lib/forebay")" = "750 65532:65532" ] || die "/var/lib/forebay is not the user's"
    diff <(sort -u "$files/etc/ssl/certs/ca-certificates.crt") <(sort -u /usr/share/ca-certificates/mozilla/*.crt) >"$work/log" ||
        failed "trusts others than Debian does"
    grep -q '"uid": 65532' "$work/bundle/config.json" || die "runs as another user"

    inside=(chroot --userspec=65532:65532 "$files" /usr/bin/forebay)
    emulator=$(emulator_of "$files/usr/bin/forebay")
    if [ -n "$emulator" ]; then
        qemu=$(command -v "$emulator") || cannot "$emulator is not installed"
        cp "$qemu" "$files/qemu"
        inside=(chroot --userspec=65532:65532 "$files" /qemu /usr/bin/forebay)
    fi
    mapfile -t command < <(sed -n '/"args": \[/,/\]/s/^\s*"\([^[].*\)",\?$/\1/p' "$work/bundle/config.json")
    [ "${command[*]}" = "/usr/bin/forebay run --config /etc/forebay/forebay.toml" ] || die "starts ${command[*]}"

    # Who can be reached must say who may come in, in a container, too.
    FOREBAY__LISTENER__0__BIND=0.0.0.0:1883 "${inside[@]}" "${command[@]:1}" >"$work/log" 2>&1 && failed "starts open to everybody"
    grep -q 'can be reached from other machines' "$work/log" || failed "does not say what is wrong"

    FOREBAY__GATEWAY=gw-07 FOREBAY__LISTENER__0__BIND=unix:/run/forebay/mqtt.sock "${inside[@]}" "${command[@]:1}" >"$work/log" 2>&1 &
    agent=$!
    wait_for $agent test -S "$files/run/forebay/mqtt.sock" || failed "the agent does not listen"
    seq 20 | mosquitto_pub --unix "$files/run/forebay/mqtt.sock" -i oci -q 1 -t oci/test -l || failed "cannot publish"
    "${inside[@]}" status >"$work/status" || failed "no status"
    kill -TERM $agent
    wait $agent || failed "the agent did not end well"
    agent=''
    ok "$platform: found by skopeo, unpacked by umoci, runs as 65532, refuses to be open to everybody"
done
