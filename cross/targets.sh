#!/bin/sh
# shellcheck disable=SC2034  # used by those that source it
# Sourced: what each target is called by whom. `target NAME` takes a short name or a triple and sets
#   triple    Rust's
#   arch      that of qemu-user and of `uname -m`
#   code      how rustc is told to write code for it, beyond what the triple says
#   deb_arch  Debian's
#   oci       OCI's architecture and variant
#   out       where what is built of it goes
target() {
    code=
    case $1 in
    aarch64 | arm64 | aarch64-unknown-linux-musl)
        triple=aarch64-unknown-linux-musl arch=aarch64 deb_arch=arm64 oci=arm64/v8 ;;
    armv7 | armhf | armv7-unknown-linux-musleabihf)
        triple=armv7-unknown-linux-musleabihf arch=arm deb_arch=armhf oci=arm/v7
        code="-C target-feature=+thumb-mode" ;; # instructions of 16 bits where they do: a quarter less to load
    x86_64 | amd64 | x86_64-unknown-linux-musl)
        triple=x86_64-unknown-linux-musl arch=x86_64 deb_arch=amd64 oci=amd64 ;;
    *) die "no target \`$1\`; there are: $targets" ;;
    esac
    out=$target_dir/dist/$triple
}
targets="aarch64 armv7 x86_64"

die() {
    echo "${0##*/}: $*" >&2
    exit 1
}

# A test that this machine cannot do, which is not one that failed.
cannot() {
    echo "${0##*/}: NOT TESTED: $*" >&2
    exit 77
}

# Compilers are told of these folders in RUSTFLAGS and CFLAGS, which are words.
one_word() { # PATH...
    for path in "$@"; do
        case $path in
        *[[:space:]]*) die "cannot build with a space in the path \`$path\`: move it, or what CARGO_HOME or CROSS_HOME names" ;;
        esac
    done
}

# The version of Debian's compiler that apt would install, if any.
rustc_web() { apt-cache policy rustc-web 2>/dev/null | sed -n 's/ *Candidate: \([^(].*\)/\1/p'; }

# Makes what toolchain.sh makes, and puts it on the PATH. In two steps, so that what fails ends the caller.
tools() { # WHAT...
    tools=$("$root/cross/toolchain.sh" "$@")
    eval "$tools"
}

# The folder of this project, and cargo's, both absolute.
root=$(cd "$(dirname "$0")/.." && pwd)
target_dir=$(cd "$root" && mkdir -p "${CARGO_TARGET_DIR:-target}" && cd "${CARGO_TARGET_DIR:-target}" && pwd)
# Toolchains: a download and a standard library each; kept, since they are large.
cross_home=${CROSS_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/forebay-cross}
# Time stamps in everything that is packed: of the last commit, so that the same input gives the same bytes.
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git -C "$root" log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
version=$(sed -n 's/^version = "\(.*\)"/\1/p' "$root/Cargo.toml" | head -1)
# The packages of every target, and their SHA256SUMS: what is given to others.
packages=$target_dir/dist/packages

# The configuration that packages install: the sample, with the data where the system keeps such.
packaged_config() {
    sed 's|^#data_dir = "\./forebay-data"$|data_dir = "/var/lib/forebay"|' "$root/agent/src/config/sample.toml" >"$1"
    grep -q '^data_dir = "/var/lib/forebay"$' "$1" || die "agent/src/config/sample.toml: no line #data_dir = \"./forebay-data\""
}

# ---- for the tests

# Prints what runs EXECUTABLE here, a program of qemu-user; nothing if it is this machine's own.
emulator_of() { # EXECUTABLE
    machine=$(readelf -h "$1" | sed -n 's/ *Machine: *//p')
    case $(uname -m):$machine in
    x86_64:*X86-64 | aarch64:AArch64) ;;
    *:AArch64) echo qemu-aarch64-static ;;
    *:ARM) echo qemu-arm-static ;;
    *) cannot "nothing here runs $1: $machine" ;;
    esac
}

# Gives COMMAND two minutes to succeed, as long as process PID runs.
wait_for() { # PID COMMAND...
    of=$1 tries=1200
    shift
    until "$@"; do
        tries=$((tries - 1))
        [ $tries -gt 0 ] || return 1
        kill -0 "$of" 2>/dev/null || return 1
        sleep 0.1
    done
}

# Makes the package NEW of DEB: its control file is changed by sed, its files by a command that is given their folder.
repack() { # DEB NEW SED COMMAND...
    deb_before=$1 deb_after=$2 deb_control=$3
    shift 3
    rm -rf "$deb_after.d"
    dpkg-deb -R "$deb_before" "$deb_after.d"
    sed -i "$deb_control" "$deb_after.d/DEBIAN/control"
    "$@" "$deb_after.d"
    (cd "$deb_after.d" && find . -type f ! -path './DEBIAN/*' -exec md5sum {} + | sed 's|\./||' >DEBIAN/md5sums)
    dpkg-deb -Znone --root-owner-group -b "$deb_after.d" "$deb_after" >/dev/null
    rm -r "$deb_after.d"
}
