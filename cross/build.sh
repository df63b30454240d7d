#!/bin/sh
# build.sh [--with auto|rustup|cross|debian] [--profile P] [--no-default-features] [--features F] [--no-sbom] TARGET
#
# One static, stripped binary: target/dist/TRIPLE/forebay, beside it SHA256SUMS, a bill of materials and what it was built
# with. TARGET: aarch64, armv7 (hard float), x86_64. The same input gives the same bytes, wherever the folder is.
#
#   rustup   rustup's compiler and standard library of TARGET, if they are installed; zig links
#   cross    the tool `cross` and its images, with Docker
#   debian   Debian's compiler, and a standard library built from source; zig links. Nothing to install but python3-venv
#   auto     the first of these that this machine has
set -eu
. "$(dirname "$0")/targets.sh"

with=auto profile=release sbom=yes
features=
while [ $# -gt 1 ]; do
    case $1 in
    --with) with=$2; shift 2 ;;
    --profile) profile=$2; shift 2 ;;
    --features) features="$features --features $2"; shift 2 ;;
    --no-default-features) features="$features $1"; shift ;;
    --no-sbom) sbom=no; shift ;;
    *) die "unknown: $1" ;;
    esac
done
target "${1:?"a target: $targets"}"
one_word "$root" "${CARGO_HOME:-$HOME/.cargo}"
command -v readelf >/dev/null || die "no readelf here, which tells whether the binary is static: install binutils"

has_std() { [ -d "$(rustc --print target-libdir --target "$triple" 2>/dev/null)" ]; }
# rustup's library for 32-bit musl keeps time in 32 bits: toolchain.sh.
is_32_bit() { [ "$arch" = arm ]; }
# Debian's compiler is here, or can be had; not every system with apt has it.
has_debian() { [ -e "$cross_home/rust/.done" ] || [ -n "$(rustc_web)" ]; }

why="as told"
if [ "$with" = auto ]; then
    if is_32_bit && has_debian; then
        with=debian why="only it has a 64-bit clock on 32-bit ARM"
    elif has_std; then
        with=rustup why="its standard library of $triple is installed"
    elif command -v cross >/dev/null && docker info >/dev/null 2>&1; then
        with=cross why="cross and Docker are here"
    else
        with=debian why="no standard library of $triple is installed, nor cross with Docker"
    fi
fi
echo "==> $triple, profile $profile, with $with ($why)"
if is_32_bit && [ "$with" != debian ]; then
    echo "!!! $with's standard library has a clock of 32 bits on $triple: this binary ends in 2038, or when a clock says so." >&2
fi

cd "$root"
unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
# Paths of this machine in panic messages would make every folder's bytes different.
flags="--remap-path-prefix=$root=/forebay --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo $code"
# mimalloc: an arena whose memory is used as it comes takes 30 MiB less, and it would say when it was compiled.
export CFLAGS="-DMI_DEFAULT_ARENA_EAGER_COMMIT=0 -Wno-builtin-macro-redefined -D__DATE__=\"\" -D__TIME__=\"\" -ffile-prefix-map=$root=/forebay -ffile-prefix-map=${CARGO_HOME:-$HOME/.cargo}=/cargo"
build="--locked --profile $profile --target $triple -p forebay-agent --bin forebay $features"
case $with in
rustup | debian)
    tools linker
    if [ "$with" = debian ]; then
        tools rust "$triple"
        flags="$flags -C link-self-contained=no" # zig has what rustup's library would bring
    fi
    # $build is words: no path is in it.
    # shellcheck disable=SC2086
    # What no output depends on would have the C of ring built again after each commit.
    RUSTFLAGS="$flags" env -u SOURCE_DATE_EPOCH cargo zigbuild $build
    ;;
cross)
    # shellcheck disable=SC2086
    CROSS_CONFIG=cross/Cross.toml RUSTFLAGS="$flags" cross build $build
    ;;
*) die "--with $with: auto, rustup, cross or debian" ;;
esac

folder=$profile
[ "$profile" != dev ] || folder=debug
rm -rf "$out"
mkdir -p "$out"
cp "$target_dir/$triple/$folder/forebay" "$out/forebay"
if readelf -lW "$out/forebay" | grep -q INTERP; then die "$out/forebay is not static"; fi

if [ "$sbom" = yes ]; then
    tools sbom
    # It writes beside every Cargo.toml, and into what it writes where that was: done in a copy.
    copy=$(mktemp -d)
    trap 'rm -rf "$copy"' EXIT
    tar -cf - --exclude=target Cargo.toml Cargo.lock agent broker storage tests | tar -xf - -C "$copy"
    # shellcheck disable=SC2086
    cargo cyclonedx -qq --format json --spec-version 1.5 --no-build-deps --target "$triple" $features \
        --manifest-path "$copy/agent/Cargo.toml" --override-filename sbom
    sed "s|file://$copy|file:///forebay|g" "$copy/agent/sbom.json" >"$out/forebay.cdx.json"
fi

{
    echo "forebay $version for $triple, profile $profile${features:+,}$features"
    echo "source: $(git describe --always --dirty --abbrev=40 --exclude='*' 2>/dev/null || echo unknown), SOURCE_DATE_EPOCH=$SOURCE_DATE_EPOCH"
    echo "compiler: $with, $("${RUSTC:-rustc}" --version)"
    [ "$with" = cross ] || echo "linker and C compiler: zig $(python-zig version)"
} >"$out/BUILDINFO"
(cd "$out" && sha256sum -- * >.sums && mv .sums SHA256SUMS)
cat "$out/BUILDINFO" "$out/SHA256SUMS"
ls -l "$out/forebay"
