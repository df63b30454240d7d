#!/bin/bash
# chroot.sh DEB...
#
# The life of each package in a Debian of its architecture: installed, run, upgraded, removed, purged, with and without
# systemd's tools; and install.sh, from the .tar.gz beside it, where there is nothing but busybox. A foreign architecture
# runs under qemu-user.
#
# Needs root, mmdebstrap, dpkg, binutils, mosquitto-clients, qemu-user-static and binfmt_misc. Ends with 77 where one of them cannot
# be had. Mounts live in a namespace of their own; a registration in binfmt_misc is taken back at the end.
set -euo pipefail
. "$(dirname "$0")/targets.sh"

if [ "${FOREBAY_CHROOT:-}" != inside ]; then
    [ $# -gt 0 ] || die "a .deb: cross/package.sh makes it"
    [ "$(id -u)" = 0 ] || cannot "needs root, for chroot and mount"
    for tool in mmdebstrap dpkg-deb readelf mosquitto_pub; do
        command -v $tool >/dev/null || cannot "$tool is not installed"
    done
    unshare --mount true 2>/dev/null || cannot "no mount namespace can be made here"
    FOREBAY_CHROOT=inside exec unshare --mount -- "$0" "$@"
fi

work=$(mktemp -d)
registered='' agent=''
cleanup() {
    [ -z "$agent" ] || kill "$agent" 2>/dev/null || true
    [ -z "$registered" ] || echo -1 >"$binfmt/$registered"
    umount "$work"/*/proc "$work"/*/var/lib/forebay "$work"/*/noexec 2>/dev/null || true
    rm -rf --one-file-system "$work"
}
binfmt=/proc/sys/fs/binfmt_misc
trap cleanup EXIT
trap 'exit 130' INT TERM HUP

# ---- a Debian

# Packages are unpacked and none is configured, which takes seconds instead of minutes of emulation; dpkg's list of what is
# installed is empty, and what is tested depends on nothing.
debian_root() { # ARCH FOLDER
    local tar=$cross_home/root-$1.tar
    if [ ! -f "$tar" ]; then
        mkdir -p "$cross_home"
        # shellcheck disable=SC2016  # $1 is mmdebstrap's
        mmdebstrap --quiet --variant=extract --arch="$1" \
            --setup-hook='for d in bin sbin lib; do mkdir -p "$1/usr/$d"; ln -s "usr/$d" "$1/$d"; done' \
            --include=base-files,base-passwd,bash,busybox-static,coreutils,dash,diffutils,dpkg,findutils,grep,gzip,init-system-helpers \
            --include=libc-bin,passwd,perl-base,sed,systemd,tar,util-linux,xz-utils \
            bookworm "$cross_home/new-$1.tar" "deb http://deb.debian.org/debian bookworm main" >"$work/mmdebstrap.log" 2>&1 ||
            { cat "$work/mmdebstrap.log"; die "mmdebstrap failed"; }
        mv "$cross_home/new-$1.tar" "$tar"
    fi
    mkdir "$2"
    tar -xf "$tar" -C "$2"
    cp "$2/usr/share/base-passwd/passwd.master" "$2/etc/passwd"
    cp "$2/usr/share/base-passwd/group.master" "$2/etc/group"
    mkdir -p "$2/var/lib/dpkg/info" "$2/proc"
    : >"$2/var/lib/dpkg/status"
    mount -t proc proc "$2/proc"
}

# So that the kernel starts the programs in ROOT. `F` opens qemu now, which is not in the chroot; `P` keeps argv[0].
emulate() { # ROOT
    chroot "$1" /usr/bin/true 2>/dev/null && return
    local qemu magic
    qemu=$(emulator_of "$work/deb/usr/bin/forebay")
    # The first 20 bytes of an executable: class, order, version; type (2 or 3), machine.
    case $qemu in
    *-aarch64-*) magic='\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00' ;;
    *-arm-*) magic='\x01\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\x28\x00' ;;
    *) die "this machine's own programs do not run in a chroot" ;;
    esac
    qemu=$(command -v "$qemu") || cannot "$qemu is not installed"
    [ -e $binfmt/register ] || mount -t binfmt_misc binfmt_misc $binfmt 2>/dev/null || cannot "binfmt_misc cannot be mounted"
    local mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    printf '%s' ":forebay-$$:M::\x7fELF$magic:$mask:$qemu:FP" >$binfmt/register 2>/dev/null || cannot "binfmt_misc takes no registration"
    registered=forebay-$$
    chroot "$1" /usr/bin/true || die "nothing runs in $1, although qemu is registered"
}

# ---- words of the test

root() { chroot "$debian" /usr/bin/env -i PATH=/usr/sbin:/usr/bin LC_ALL=C.UTF-8 DEBIAN_FRONTEND=noninteractive "$@"; }
service() { "${as_service[@]}" "$@"; }
quietly() { "$@" >"$work/log" 2>&1 || { cat "$work/log"; die "failed: $*"; }; }
says() { # TEXT COMMAND...
    local text=$1
    shift
    quietly "$@"
    log_says "$text"
}
log_says() { grep -qF -- "$1" "$work/log" || { cat "$work/log"; die "not said: $1"; }; }
is() { # EXPECTED PATH: rights and owner
    local found
    found=$(root stat -c '%a %U:%G' "$2")
    [ "$found" = "$1" ] || die "$2 is $found, not $1"
}
there() { for path in "$@"; do [ -e "$debian$path" ] || [ -L "$debian$path" ] || die "$path is gone"; done; }
gone() { for path in "$@"; do if [ -e "$debian$path" ] || [ -L "$debian$path" ]; then die "$path is still there"; fi; done; }
ok() { echo "    ok: $*"; }

config=/etc/forebay/forebay.toml
data=/var/lib/forebay
enabled=/etc/systemd/system/multi-user.target.wants/forebay.service

# The same package with a higher version, and a line more in the configuration.
newer() { # NUMBER
    repack "$deb" "$debian/tmp/$1.deb" "s/^Version: .*/&+$1/" with_line "# of $version+$1"
}
with_line() { # LINE FOLDER
    echo "$1" >>"$2$config"
}

alone() { # the binary in a root where nothing else is
    mkdir "$work/empty"
    cp "$work/deb/usr/bin/forebay" "$work/empty/forebay"
    says "forebay $version" chroot "$work/empty" /forebay --version
    ok "runs in an empty root"
}

install() {
    cp "$deb" "$debian/tmp/1.deb"
    newer 2
    newer 3
    quietly root dpkg -i /tmp/1.deb
    is "640 root:forebay" $config
    is "750 root:forebay" /etc/forebay
    is "750 forebay:forebay" $data
    is "755 root:root" /usr/bin/forebay
    says "forebay:$data:/usr/sbin/nologin" root sh -c 'getent passwd forebay | cut -d: -f1,6,7'
    there $enabled
    says "configuration: ok" service forebay check --config $config
    says "data_dir       $data" service forebay check --config $config
    says "configuration: ok" service forebay check
    root dpkg --verify forebay
    ok "install: user, rights, service enabled, configuration checked"
}

publish() { # COUNT
    seq "$1" | mosquitto_pub --unix "$debian/run/forebay/mqtt.sock" -V mqttv5 -i chroot -q 1 -t chroot/test -l
}

# The agent by its service's configuration, but for the port, which the machine around this root may have in use.
run() { # the number of messages that it has then
    mkdir -p "$debian/run/forebay"
    chown "$(root id -u forebay)" "$debian/run/forebay"
    "${as_service[@]}" FOREBAY__LISTENER__0__BIND=unix:/run/forebay/mqtt.sock forebay run --config $config >"$work/agent.log" 2>&1 &
    agent=$!
    wait_for $agent test -S "$debian/run/forebay/mqtt.sock" || { cat "$work/agent.log"; die "the agent does not listen"; }
    publish 20 || { cat "$work/agent.log"; die "cannot publish"; }
    quietly service forebay sync --once --config $config
    says "messages" service forebay status --config $config
    kill -TERM $agent
    wait $agent || { cat "$work/agent.log"; die "the agent did not end well"; }
    agent=
    says "verify: ok" service forebay verify --config $config
    grep -Eq "^messages +$1 " "$work/log" || { cat "$work/log"; die "there are not $1 rows"; }
    ok "run: 20 messages acknowledged, sealed, verified; $1 there"
}

demo() {
    quietly service forebay demo /tmp/demo
    log_says "lost 0"
    log_says "verify: ok"
    ok "demo: $(grep 'lost 0' "$work/log")"
}

upgrade() {
    quietly root dpkg -i /tmp/2.deb
    says "# of $version+2" cat "$debian$config"
    is "640 root:forebay" $config
    ok "upgrade: an untouched configuration is renewed, with its rights"
    echo 'gateway = "gw-07"' | cat - "$debian$config" >"$work/config"
    cat "$work/config" >"$debian$config"
    echo "secret" >"$debian/etc/forebay/token"
    chmod 750 "$debian/usr/bin/forebay" # to be put right
    chmod 700 "$debian$data" # to be left
    quietly root dpkg --force-confold -i /tmp/3.deb
    says 'gateway = "gw-07"' cat "$debian$config"
    says "# of $version+3" cat "$debian$config.dpkg-dist"
    is "640 root:forebay" $config
    is "755 root:root" /usr/bin/forebay
    is "700 forebay:forebay" $data
    says "gateway        gw-07" service forebay check --config $config
    run 40
    ok "upgrade: a changed configuration is kept, and the data"
    mv "$debian/etc/forebay" "$work/etc"
    mv "$debian$data" "$work/data"
    quietly root dpkg --force-confmiss -i /tmp/3.deb
    is "750 root:forebay" /etc/forebay
    is "640 root:forebay" $config
    is "750 forebay:forebay" $data
    quietly service forebay check --config $config
    rm -rf "$debian/etc/forebay" "${debian:?}$data"
    mv "$work/etc" "$debian/etc/forebay"
    mv "$work/data" "$debian$data"
    ok "upgrade: a configuration and a data directory that were deleted come back with their rights"
}

remove() {
    rm "$debian$enabled" # the administrator has disabled it
    quietly root dpkg -r forebay
    gone /usr/bin/forebay /usr/lib/systemd/system/forebay.service
    there $config $data/datasets
    quietly root dpkg -i /tmp/3.deb
    says 'gateway = "gw-07"' cat "$debian$config"
    there $data/datasets
    gone $enabled
    ok "remove, install again: configuration, data and a disabled service as they were"
}

purge() {
    quietly root dpkg -P forebay
    gone $config $data $enabled /usr/bin/forebay
    there /etc/forebay/token
    quietly root getent passwd forebay
    ok "purge: configuration and data are gone, what the administrator has added is not"
}

elsewhere() { # data on another disk, by a mount or by a link
    mkdir -p "$debian$data" "$debian/disk"
    mount -t tmpfs tmpfs "$debian$data"
    quietly root dpkg -i /tmp/1.deb
    is "750 forebay:forebay" $data
    mkdir "$debian$data/datasets"
    quietly root dpkg -P forebay
    there $data
    gone $data/datasets
    umount "$debian$data"
    rmdir "$debian$data"
    ln -s /disk "$debian$data"
    quietly root dpkg -i /tmp/1.deb
    is "750 forebay:forebay" /disk
    mkdir -p "$debian/disk/datasets/in" "$debian/disk/.hidden"
    quietly root dpkg -P forebay
    there /disk
    gone $data /disk/datasets /disk/.hidden
    ok "purge: data on a disk of their own are gone, by mount and by link"
}

without_systemd() {
    root userdel forebay
    mkdir "$debian/away"
    for tool in systemd-sysusers deb-systemd-helper deb-systemd-invoke systemctl; do mv "$debian/usr/bin/$tool" "$debian/away"; done
    quietly root dpkg -i /tmp/1.deb
    is "640 root:forebay" $config
    is "750 forebay:forebay" $data
    quietly service forebay check --config $config
    quietly root dpkg -P forebay
    gone $data
    ok "without systemd: install and purge"
}

# ---- install.sh

# Sets $tar, the .tar.gz beside the package with the same program, and $files, the folder in it; $given: what install.sh needs.
archive() {
    for tar in "$(dirname "$deb")"/forebay-"$version"-*.tar.gz; do
        files=$(basename "$tar" .tar.gz)
        given=("$tar" "$(dirname "$deb")/install.sh" "$(dirname "$deb")/SHA256SUMS")
        tar -xOf "$tar" "$files/forebay" 2>/dev/null | cmp -s - "$work/deb/usr/bin/forebay" && return
    done
    echo "    no .tar.gz beside $deb: install.sh is not tested"
    return 1
}

# As when an image is made: systemd is installed and does not run. Nothing can be started from the folder for temporary files.
by_install_sh_beside_systemd() {
    local unit=/etc/systemd/system/forebay.service
    mkdir "$debian/packages" "$debian/noexec"
    cp "${given[@]}" "$debian/packages"
    mount -t tmpfs -o noexec tmpfs "$debian/noexec"
    root userdel forebay
    installs() { says "installed forebay $version" root TMPDIR=/noexec sh /packages/install.sh --from /packages "$@"; }
    installs --data-dir "/srv/a disk"
    log_says "data /srv/a disk"
    is "750 forebay:forebay" "/srv/a disk"
    there $unit $enabled
    says 'ReadWritePaths="/srv/a disk"' cat "$debian$unit.d/data-dir.conf"
    # The configuration decides, and a disk may be missing just now.
    echo "data_dir='/srv/another' # moved" >"$debian$config"
    installs
    log_says "/srv/another is not there"
    gone /srv/another
    says 'ReadWritePaths="/srv/another"' cat "$debian$unit.d/data-dir.conf"
    echo "data_dir = '$data'" >"$debian$config"
    installs
    gone $unit.d/data-dir.conf
    quietly root sh /packages/install.sh --uninstall
    gone $unit $enabled /usr/bin/forebay
    umount "$debian/noexec"
    rm "$debian$config"
    ok "install.sh, systemd at rest: /tmp with noexec, data elsewhere, a configuration that is there already"
}

by_install_sh() {
    bare=$work/bare
    mkdir -p "$bare/bin" "$bare/etc" "$bare/tmp" "$bare/proc" "$bare/dev" "$bare/var/lib" "$bare/packages"
    mknod -m 666 "$bare/dev/null" c 1 3
    cp "$debian/usr/bin/busybox" "$bare/bin"
    mount -t proc proc "$bare/proc"
    chroot "$bare" /bin/busybox --install -s /bin
    echo 'root:x:0:0:root:/:/bin/sh' >"$bare/etc/passwd"
    echo 'root:x:0:' >"$bare/etc/group"
    cp "${given[@]}" "$bare/packages"
    bare() { chroot "$bare" /bin/env -i PATH=/bin "$@"; }
    # Debian's busybox has no adduser.
    if bare sh /packages/install.sh --from /packages >"$work/log" 2>&1; then die "install.sh made a user by magic"; fi
    log_says "add a user and a group forebay by hand"
    echo 'forebay:x:813:813::/var/lib/forebay:/bin/false' >>"$bare/etc/passwd"
    echo 'forebay:x:813:' >>"$bare/etc/group"
    says "installed" bare sh /packages/install.sh --from /packages
    says "configuration: ok" bare /usr/bin/forebay check --config $config
    says "640 forebay" bare stat -c '%a %G' $config
    says "750 forebay" bare stat -c '%a %U' $data
    echo 'gateway = "gw-07"' >"$bare$config"
    touch "$bare$data/kept"
    quietly bare sh /packages/install.sh --from /packages
    says gw-07 cat "$bare$config"
    quietly bare sh /packages/install.sh --uninstall
    [ ! -e "$bare/usr/bin/forebay" ] || die "--uninstall leaves the program"
    for kept in "$config" "$data/kept"; do [ -e "$bare$kept" ] || die "--uninstall has removed $kept"; done
    mkdir "$bare/unpacked"
    bare tar -xzf "/packages/$files.tar.gz" -C /unpacked
    says "installed" bare sh "/unpacked/$files/install.sh"
    echo >>"$bare/packages/$files.tar.gz"
    if bare sh /packages/install.sh --from /packages >"$work/log" 2>&1; then die "install.sh takes a damaged archive"; fi
    log_says SHA256SUMS
    ok "install.sh, busybox only: install, again, uninstall, from the unpacked archive; a damaged archive is refused"
    openwrt
    umount "$bare/proc"
}

openwrt() { # what its firmware has, as far as install.sh looks
    mkdir -p "$bare/sbin" "$bare/lib/upgrade/keep.d"
    : >"$bare/etc/openwrt_release"
    : >"$bare/sbin/procd"
    chmod +x "$bare/sbin/procd"
    rm "$bare$config"
    quietly bare sh "/unpacked/$files/install.sh" --uninstall
    quietly bare sh "/unpacked/$files/install.sh" --no-start
    log_says "data /srv/forebay"
    says "750 forebay" bare stat -c '%a %U' /srv/forebay
    mkdir "$bare/etc/rc.d"
    ln -s ../init.d/forebay "$bare/etc/rc.d/S95forebay"
    # The files that sysupgrade finds, as it looks for them.
    # shellcheck disable=SC2016  # bare's
    quietly bare sh -c 'find $(cat /lib/upgrade/keep.d/*) -type f -o -type l'
    for kept in $config /usr/bin/forebay /etc/init.d/forebay /etc/rc.d/S95forebay /lib/upgrade/keep.d/forebay; do
        grep -qx "$kept" "$work/log" || die "sysupgrade does not keep $kept"
    done
    quietly bare sh "/unpacked/$files/install.sh" --uninstall
    [ ! -e "$bare/lib/upgrade/keep.d/forebay" ] || die "--uninstall leaves sysupgrade's list"
    ok "install.sh, OpenWrt: data in /srv/forebay; sysupgrade keeps program, configuration and script"
}

for deb in "$@"; do
    deb=$(realpath "$deb")
    debian_arch=$(dpkg-deb -f "$deb" Architecture)
    version=$(dpkg-deb -f "$deb" Version)
    echo "==> $(basename "$deb")"
    rm -rf --one-file-system "$work/deb"
    dpkg-deb -x "$deb" "$work/deb"
    debian=$work/$debian_arch
    as_service=(chroot --userspec=forebay:forebay "$debian" /usr/bin/env -i PATH=/usr/bin LC_ALL=C.UTF-8)
    debian_root "$debian_arch" "$debian"
    emulate "$debian"
    alone
    install
    run 20
    demo
    upgrade
    remove
    purge
    elsewhere
    if archive; then
        by_install_sh_beside_systemd
        by_install_sh
    fi
    without_systemd
    umount "$debian/proc"
    rm -rf --one-file-system "$debian" "$work/empty" "$work/bare"
done
echo "==> all well"
