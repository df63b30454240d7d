#!/usr/bin/env bash
# vm.sh [TARGET...]      default: aarch64 and armv7, those that build.sh has built
#
# The static binary on an emulated gateway of two cores and 512 MiB: Debian's kernel, ext4 on a disk whose cache is lost
# when the power goes. Shows what an emulated process cannot: memory, time to the first acknowledgement, power cuts, a
# clock beyond 2038. The processor is emulated too, and shares this machine with others: every duration is an upper bound.
#
# FOREBAY_VM_MESSAGES    so many under load (110000: a full batch, and some)
# FOREBAY_VM_CUTS        so many power cuts (6)
#
# Needs Debian packages: see `needs` below. A kernel is downloaded once, to $CROSS_HOME (~/.cache/forebay-cross).
set -euo pipefail
# shellcheck source=cross/targets.sh
. "$(dirname "$0")/targets.sh"

messages=${FOREBAY_VM_MESSAGES:-110000} cuts=${FOREBAY_VM_CUTS:-6}
work=$(mktemp -d)
console=$work/console
qemu=

end() {
    power_cut
    rm -rf "$work"
}
trap end EXIT

row() { # NAME VALUE: a line of the table, as soon as it is known
    printf '%-46s %s\n' "$1" "$2"
}

keyring=/usr/share/keyrings/debian-archive-keyring.gpg
needs() {
    local missing=() program package
    while read -r program package; do
        PATH=$PATH:/usr/sbin:/sbin command -v "$program" >/dev/null || missing+=("$package")
    done <<'EOF'
qemu-system-aarch64 qemu-system-arm
qemu-img qemu-utils
mke2fs e2fsprogs
cpio cpio
apt-get apt
python3 python3-venv
EOF
    [ -e $keyring ] || missing+=(debian-archive-keyring)
    [ ${#missing[@]} = 0 ] || die "missing; install these: ${missing[*]}"
}

# Kernel, modules and busybox of the target's Debian, by an apt of its own: this machine's knows one architecture.
debian() {
    files=$cross_home/vm/$deb_arch
    [ -e "$files/.done" ] && return
    local apt=$work/apt image
    rm -rf "$files" "$apt"
    mkdir -p "$files" "$apt"/etc/apt/{apt.conf.d,preferences.d} "$apt"/var/{lib/apt/lists,cache/apt/archives}/partial
    touch "$apt/status"
    echo "deb [signed-by=$keyring] ${DEBIAN_MIRROR:-http://deb.debian.org/debian} bookworm main" \
        >"$apt/etc/apt/sources.list"
    local of=(-o "Dir=$apt" -o "Dir::State::status=$apt/status" -o "APT::Architecture=$deb_arch"
        -o "APT::Architectures=$deb_arch" -o APT::Sandbox::User=root -o Acquire::Languages=none)
    apt-get "${of[@]}" -qq update
    image=$(apt-cache "${of[@]}" depends "$kernel" | sed -n 's/ *Depends: \(linux-image-.*\)/\1/p')
    [ -n "$image" ] || die "Debian has no $kernel for $deb_arch"
    (cd "$apt" && apt-get "${of[@]}" -qq download "$image" busybox-static)
    dpkg-deb -x "$apt"/busybox-static_*.deb "$apt/busybox"
    dpkg-deb -x "$apt"/linux-image-*.deb "$apt/image"
    cp "$apt"/busybox/bin/busybox "$files/"
    cp "$apt"/image/boot/vmlinuz-* "$files/vmlinuz"
    local module number=10
    for module in virtio_mmio virtio_blk crc32c_generic libcrc32c crc16 mbcache jbd2 ext4; do # in this order
        find "$apt/image" -name "$module.ko" -exec cp {} "$files/$number-$module.ko" \;
        number=$((number + 1))
    done
    echo "$image" >"$files/.done"
}

initramfs() {
    local tree=$work/initramfs
    rm -rf "$tree"
    mkdir -p "$tree/bin" "$tree/modules"
    cp "$files/busybox" "$tree/bin/"
    cp "$files"/*.ko "$tree/modules/"
    cp "$root/cross/vm/init" "$tree/init"
    python-zig cc -target "$zig" -static -Os -s -o "$tree/bin/guest" "$root/cross/vm/guest.c"
    (cd "$tree" && find . | cpio --quiet --create --format=newc --owner=0:0 | gzip -1) >"$work/initrd"
}

# A qcow2 image over what was there before is the disk's volatile cache: where a block is that is written for the first
# time stands in a table that qemu keeps in its memory until the guest flushes.
boot() { # TASK NEXT [OPTIONS]
    qemu-img create -q -f qcow2 -o cluster_size=4096 -b "$disk" -F "$format" "$disk+"
    disk=$disk+ format=qcow2
    : >"$console"
    # $machine is words.
    # shellcheck disable=SC2086
    "qemu-system-$arch" $machine -smp 2 -m 512 -nodefaults -display none -monitor none -no-reboot \
        -serial "file:$console" -kernel "$files/vmlinuz" -initrd "$work/initrd" \
        -append "console=ttyAMA0 quiet panic=-1 task=$1 next=$2 options=${3:-defaults}" \
        -drive "file=$disk,if=none,id=disk,format=qcow2" -device virtio-blk-device,drive=disk </dev/null &
    qemu=$!
}

power_cut() {
    [ -n "$qemu" ] || return 0
    kill -9 "$qemu" 2>/dev/null || true
    wait "$qemu" 2>/dev/null || true
    qemu=
}

said() { # PATTERN: the guest's lines, whole ones
    tr -d '\r' <"$console" | sed '$d' | grep -E "$1" || true
}

trouble() {
    power_cut
    tr -d '\r' <"$console" | tail -25 >&2
    die "$triple: $1; above are the last lines of the guest's console"
}

until_said() { # PATTERN SECONDS [TIMES]
    local deadline=$((SECONDS + $2))
    local is_on=yes
    until [ "$(said "$1" | wc -l)" -ge "${3:-1}" ]; do
        [ $is_on = yes ] || trouble "the guest ended"
        kill -0 "$qemu" 2>/dev/null || is_on=no
        [ $SECONDS -lt $deadline ] || trouble "no \`$1\` within $2 s"
        sleep 0.1
    done
}

figures() { # TASK NEXT
    boot "$1" "$2"
    until_said '^done' 1800
    wait "$qemu" || true
    qemu=
    local name value
    while IFS='|' read -r name value; do row "$name" "$value"; done < <(said '^figure ' | sed 's/^figure //')
    if said '^figure (demo|what is)' | grep -vE '(lost 0 |\|)verify: ok'; then trouble "see above"; fi
}

# Each time what was acknowledged before, as the guest's console says, is compared with what is on the disk.
power_cuts() { # TIMES OPTIONS
    local acknowledged=$work/acknowledged stored=$work/stored number lost
    disk=$work/disk format=raw
    rm -f "$disk"+*
    : >"$acknowledged"
    for ((number = 1; ; number++)); do
        boot cut $((number <= $1 ? number * 1000000 : 0)) "$2"
        if [ "$number" -gt 1 ]; then
            until_said '^listed' 600
            said '^n.":' | sed 's/.*://' | sort >"$stored"
            lost=$(sort "$acknowledged" | comm -23 - "$stored" | wc -l)
            [ "$lost" = 0 ] || trouble "$lost of $(wc -l <"$acknowledged") acknowledged messages are lost"
            [ "$(said '^verified')" = "verified verify: ok" ] || trouble "verify finds fault"
        fi
        [ "$number" -le "$1" ] || break
        until_said '^acknowledged ' 600 $((RANDOM % 400 + 20))
        power_cut
        said '^acknowledged ' | sed 's/.* //' >>"$acknowledged"
    done
    power_cut
    row "$1 power cuts, $(wc -l <"$acknowledged") messages acknowledged" "lost 0, verify: ok"
}

# A disk that is never told to flush, so that the cuts above prove something.
control() {
    if (trap power_cut EXIT && power_cuts 5 barrier=0) 2>"$work/control"; then
        die "$triple: nothing was lost on a disk that is never told to flush: these power cuts prove nothing"
    fi
    row "power cut, the disk is never told to flush" "$(sed -n 's/^vm.sh: [^:]*: \([^;]*\).*/\1/p' "$work/control")"
}

run() { # TARGET
    target "$1"
    case $arch in
    aarch64) kernel=linux-image-arm64 zig=aarch64-linux-musl machine="-M virt -cpu cortex-a53" ;;
    arm) kernel=linux-image-armmp-lpae zig=arm-linux-musleabihf machine="-M virt -cpu cortex-a15" ;;
    *) die "no emulated gateway for $triple; there are: aarch64 armv7" ;;
    esac
    [ -e "$out/forebay" ] || die "no $out/forebay: run cross/build.sh $1"
    debian
    initramfs
    rm -rf "$work"/disk*
    mkdir "$work/disk.d"
    cp "$out/forebay" "$work/disk.d/"
    disk=$work/disk format=raw
    PATH=$PATH:/usr/sbin:/sbin mke2fs -q -t ext4 -d "$work/disk.d" "$disk" 1G >/dev/null
    row "$triple" "$("qemu-system-$arch" --version | sed 's/.*version \([0-9.]*\).*/qemu \1/;q'), $(cat "$files/.done")"
    figures figures "$messages"
    [ "$arch" != arm ] || figures 2040 0
    power_cuts "$cuts" defaults
    control
}

needs
tools linker
if [ $# = 0 ]; then
    for name in aarch64 armv7; do
        target $name
        [ ! -e "$out/forebay" ] || set -- "$@" $name
    done
    [ $# -gt 0 ] || die "nothing is built: run cross/build.sh aarch64"
fi
for name in "$@"; do run "$name"; done
