#!/bin/sh
# install.sh [--from FOLDER|URL] [--data-dir FOLDER] [--no-start]
# install.sh --uninstall
#
# Installs Forebay where there is no dpkg: Yocto, Buildroot, OpenWrt, any Linux. Needs a shell, tar, gzip, sha256sum; busybox
# has them.
#
#   --from        where forebay-VERSION-MACHINE.tar.gz and SHA256SUMS lie; default: this folder, and in an unpacked archive
#                 its files as they are. SHA256SUMS tells damage. It tells forgery only if it came another way than the
#                 archive, or both came by https.
#   --data-dir    where data are kept, at the first installation; default: /var/lib/forebay, on OpenWrt /srv/forebay, since its /var is memory
#   --no-start    neither enables nor starts the service; without it, where systemd is there but does not run, as in an
#                 image that is being made, the service is enabled
#   --uninstall   stops and removes all but configuration, data and user
set -eu

die() {
    echo "install.sh: $*" >&2
    exit 1
}

here=$(cd "$(dirname "$0")" && pwd)
from=$here start=yes what=install data_dir=/var/lib/forebay
[ ! -f /etc/openwrt_release ] || data_dir=/srv/forebay
while [ $# -gt 0 ]; do
    case $1 in
    --from) from=${2:?--from needs a folder or a URL}; shift ;;
    --data-dir) data_dir=${2:?--data-dir needs a folder}; shift ;;
    --no-start) start=no ;;
    --uninstall) what=uninstall ;;
    *) die "unknown: $1. There are --from FOLDER|URL, --data-dir FOLDER, --no-start, --uninstall" ;;
    esac
    shift
done
case $data_dir in /*) ;; *) die "--data-dir $data_dir: an absolute path" ;; esac
[ "$(id -u)" = 0 ] || die "needs root, for the user and the service"

program=/usr/bin/forebay
config=/etc/forebay/forebay.toml
unit=/etc/systemd/system/forebay.service
init=/etc/init.d/forebay
keep=/lib/upgrade/keep.d/forebay
has() { command -v "$1" >/dev/null 2>&1; }
has_systemd() { has systemctl; }
runs_systemd() { [ -d /run/systemd/system ]; }
has_procd() { [ -x /sbin/procd ]; }

uninstall() {
    if has_systemd && [ -f $unit ]; then systemctl disable --now forebay.service || true; fi
    if has_procd && [ -f $init ]; then
        $init stop || true
        $init disable || true
    fi
    rm -f $program $unit $unit.d/data-dir.conf $init $keep
    if runs_systemd; then systemctl daemon-reload || true; fi
    echo "uninstalled; kept: /etc/forebay, the user forebay, and the data that $config names"
}

machine() { # as the archives are called
    case $(uname -m) in
    aarch64 | arm64) echo aarch64 ;;
    armv7* | armv8l) echo armv7 ;; # armv8l: a 32-bit shell on a 64-bit kernel
    x86_64) echo x86_64 ;;
    *) die "there is no Forebay for this machine, $(uname -m); there is for aarch64, armv7 and x86_64" ;;
    esac
}

fetch() { # FILE: from $from into $work
    case $from in
    *://*)
        case $from in
        http://*) echo "install.sh: warning: what comes by http may be anybody's: compare SHA256SUMS with what you know" >&2 ;;
        esac
        if has curl; then
            curl --fail --silent --show-error --location --output "$work/$1" "$from/$1"
        elif has wget; then
            wget -q -O "$work/$1" "$from/$1"
        else
            die "neither curl nor wget is here: download $from/$1 and SHA256SUMS by other means, then --from FOLDER"
        fi || die "cannot fetch $from/$1"
        ;;
    *) cp "$from/$1" "$work/$1" || die "cannot read $from/$1" ;;
    esac
}

# Sets $files: a folder with what is to be installed.
unpack() {
    if [ "$from" = "$here" ] && [ -f "$here/forebay" ]; then
        files=$here
        return
    fi
    machine=$(machine)
    fetch SHA256SUMS
    archive=$(sed -n "s/^[0-9a-f]\{64\}  \(forebay-[0-9][^ /]*-$machine\.tar\.gz\)\$/\1/p" "$work/SHA256SUMS" | tail -n 1)
    [ -n "$archive" ] || die "$from/SHA256SUMS names no archive for $machine"
    fetch "$archive"
    grep "  $archive\$" "$work/SHA256SUMS" >"$work/sum"
    (cd "$work" && sha256sum -c sum >/dev/null 2>&1) || die "$from/$archive is not what SHA256SUMS says: damaged, or of another version"
    tar -xzf "$work/$archive" -C "$work"
    files=$work/${archive%.tar.gz}
}

add_user() {
    if grep -q '^forebay:' /etc/passwd; then return; fi
    echo "adding the user forebay"
    if has useradd; then
        groupadd --system --force forebay
        useradd --system --gid forebay --home-dir "$data_dir" --no-create-home --shell /bin/false forebay
    elif has adduser && has addgroup; then # busybox
        grep -q '^forebay:' /etc/group || addgroup -S forebay
        adduser -S -D -H -h "$data_dir" -s /bin/false -G forebay -g Forebay forebay
    elif [ -f /lib/functions.sh ]; then # OpenWrt
        # shellcheck disable=SC1091
        (set +eu; . /lib/functions.sh && group_add forebay 813 && user_add forebay 813 813 forebay "$data_dir" /bin/false)
        grep -q '^forebay:' /etc/passwd || die "OpenWrt's user_add did not add the user forebay"
    else
        die "no useradd and no adduser here: add a user and a group forebay by hand, then run this again"
    fi
}

# Under another name first: a program that runs cannot be overwritten, and a power cut leaves the old one or the new one.
put() { # MODE FILE PATH
    beside "$@"
    in_place "$3"
}
beside() { # MODE FILE PATH
    mkdir -p "$(dirname "$3")"
    cp "$2" "$3.new"
    chmod "$1" "$3.new"
}
in_place() { # PATH
    sync
    mv "$1.new" "$1"
}

install() {
    unpack
    first=no
    [ -e $program ] || first=yes
    beside 755 "$files/forebay" $program # from where it was unpacked it may not be started: /tmp with noexec
    $program.new --version >/dev/null 2>&1 || die "$files/forebay does not run here ($(uname -m))"
    add_user
    in_place $program
    mkdir -p /etc/forebay
    if [ ! -e $config ]; then
        sed "s|^data_dir = .*|data_dir = \"$data_dir\"|" "$files/forebay.toml" >"$work/forebay.toml"
        put 640 "$work/forebay.toml" $config
        chgrp forebay /etc/forebay $config
        chmod 750 /etc/forebay
    fi
    # What the configuration says, which may be older than this command line.
    if said=$($program check --config $config); then
        data_dir=$(printf '%s\n' "$said" | sed -n 's/^data_dir  *//p')
        make_data_dir
    else
        data_dir=
        echo "install.sh: warning: $config cannot be read, see above: its data directory is left as it is" >&2
    fi
    if has_systemd; then
        put 644 "$files/systemd/forebay.service" $unit
        let_write
        ! runs_systemd || systemctl daemon-reload
        if [ $start = yes ]; then
            systemctl enable forebay.service
            if ! runs_systemd; then
                echo "systemd does not run here: the service starts when it does"
            else
                systemctl restart forebay.service || echo "install.sh: the service does not start: journalctl -u forebay" >&2
            fi
        fi
    elif has_procd; then
        put 755 "$files/openwrt/forebay.init" $init
        if [ -d "$(dirname $keep)" ]; then # what sysupgrade takes over; of data there may be too many
            printf '%s\n' /etc/forebay $program $init '/etc/rc.d/*forebay' $keep >"$work/keep"
            put 644 "$work/keep" $keep
        fi
        if [ $start = yes ]; then
            $init enable
            $init restart
        fi
    else
        echo "no systemd and no procd here: start \`forebay run --config $config\` as user forebay by whatever starts services here"
    fi
    echo "installed $($program --version): configuration $config${data_dir:+, data $data_dir}"
}

# At the first installation only: later it may be a disk that is not mounted just now.
make_data_dir() {
    case $data_dir in /*) ;; *) return 0 ;; esac # below the folder that the service starts in
    if [ "$first" = yes ]; then
        mkdir -p "$data_dir"
        chown forebay:forebay "$data_dir"
        chmod 750 "$data_dir"
    elif [ ! -d "$data_dir" ]; then
        echo "install.sh: warning: $data_dir is not there; the service needs it: mount its disk, or make it, for the user forebay" >&2
    fi
}

# The unit's sandbox may write to /var/lib/forebay and nowhere else, and the disk may be mounted late.
let_write() {
    case $data_dir in
    '') ;; # not known: as it was
    /var/lib/forebay | /var/lib/forebay/* | [!/]*) rm -f $unit.d/data-dir.conf ;;
    *)
        quoted=$(printf '%s' "$data_dir" | sed 's/["\\]/\\&/g; s/%/%%/g')
        printf '[Unit]\nRequiresMountsFor="%s"\n[Service]\nReadWritePaths="%s"\n' "$quoted" "$quoted" >"$work/data-dir.conf"
        put 644 "$work/data-dir.conf" $unit.d/data-dir.conf
        ;;
    esac
}

work=$(mktemp -d)
trap 'rm -rf "$work" $program.new' EXIT
$what
