#!/bin/bash
# boot.sh DEB BINARY
#
# The package under a real systemd: the service starts with its whole sandbox, says when it is ready, is fed to the watchdog,
# reloads, comes back after kill -9 but not with a bad configuration, is restarted by an upgrade and stopped by a removal.
#
# systemd runs as process 1 of namespaces of its own, over a copy-on-write view of this machine's files; nothing of this
# machine is changed or started. BINARY, of this machine's architecture, takes the place of the one in DEB, since emulation and
# the sandbox do not go together.
#
# Needs root, systemd, dpkg, binutils, openssl, mosquitto-clients and overlayfs. Ends with 77 where one of them cannot be had.
set -euo pipefail
case ${1:-} in
--*) die() { echo "boot.sh: $*"; exit 1; } ;; # inside, where there is no project
*) . "$(dirname "$0")/targets.sh" ;;
esac

outside() {
    [ $# = 2 ] || die "a .deb of package.sh, and a forebay of this machine's architecture"
    [ "$(id -u)" = 0 ] || cannot "needs root, for namespaces"
    [ -x /usr/lib/systemd/systemd ] || cannot "systemd is not installed"
    for tool in dpkg-deb mosquitto_pub openssl strip; do command -v $tool >/dev/null || cannot "$tool is not installed"; done
    dir=$(mktemp -d)
    trap 'rm -rf --one-file-system "$dir"' EXIT
    mkdir "$dir/root" "$dir/given"
    local here
    here="s/^Architecture: .*/Architecture: $(dpkg --print-architecture)/"
    repack "$1" "$dir/given/1.deb" "$here" with_program "$2"
    repack "$1" "$dir/given/2.deb" "$here; s/^Version: .*/&+2/" with_program "$2"
    cp "$0" "$dir/given/boot.sh"
    cp "$root/cross/systemd/usb.conf" "$dir/given"
    unshare --fork --pid --mount --cgroup --uts --ipc --net --kill-child "$0" --namespaces "$dir" >"$dir/boot.log" 2>&1 &
    for _ in $(seq 540); do
        [ ! -s "$dir/given/result" ] || break
        kill -0 $! 2>/dev/null || break
        sleep 1
    done
    # Process 1 goes with it, and with that one everything that was started or mounted in there.
    kill -KILL $! 2>/dev/null || true
    wait $! 2>/dev/null || true
    cat "$dir/given/log" 2>/dev/null || true
    case $(cat "$dir/given/result" 2>/dev/null) in
    0) echo "==> all well" ;;
    '')
        tail -20 "$dir/boot.log"
        [ ! -e "$dir/given/log" ] || die "no end after nine minutes"
        cannot "systemd did not start in a namespace"
        ;;
    *) cat "$dir/given/forebay.log" 2>/dev/null || true; die "failed" ;;
    esac
}

with_program() { # BINARY FOLDER
    strip -o "$2/usr/bin/forebay" "$1"
}

namespaces() { # DIR: becomes systemd
    local new=$1/root
    mount -t tmpfs tmpfs "$new"
    mkdir "$new/upper" "$new/work" "$new/root"
    mount -t overlay overlay -o "lowerdir=/,upperdir=$new/upper,workdir=$new/work" "$new/root"
    new=$new/root
    mount -t proc proc "$new/proc"
    mount --rbind /dev "$new/dev"
    mount -t sysfs -o ro sysfs "$new/sys"
    mount -t cgroup2 cgroup2 "$new/sys/fs/cgroup"
    for folder in run tmp mnt; do mount -t tmpfs -o mode=1777 tmpfs "$new/$folder"; done
    mkdir "$new/mnt/given" "$new/mnt/usb"
    mount --bind "$1/given" "$new/mnt/given"
    # As on a real machine: what systemd mounts for a service, such as its credentials, comes to where the service sees it.
    mount --make-rshared "$new"
    # Of this machine's services none: only what Debian's systemd itself brings for early boot, and the test.
    rm -rf "$new"/etc/systemd/system/* "$new/usr/sbin/policy-rc.d" # the latter forbids to start anything, in containers
    cat >"$new/etc/systemd/system/test.service" <<'END'
[Unit]
Requires=sysinit.target
After=sysinit.target
[Service]
Type=oneshot
ExecStart=/mnt/given/boot.sh --test
StandardOutput=file:/mnt/given/log
StandardError=inherit
ExecStopPost=/bin/sh -c 'echo $EXIT_STATUS >/mnt/given/result'
END
    for unit in systemd-udevd systemd-udev-trigger systemd-modules-load systemd-journal-flush systemd-timesyncd keyboard-setup; do
        ln -s /dev/null "$new/etc/systemd/system/$unit.service"
    done
    export container=forebay-test
    exec chroot "$new" /usr/lib/systemd/systemd --system --unit=test.service --log-target=console --show-status=no </dev/null
}

# ---- inside

ok() { echo "    ok: $*"; }
state() { systemctl show --property "$1" --value forebay.service; }
is() { # PROPERTY VALUE
    local found
    found=$(state "$1")
    [ "$found" = "$2" ] || die "$1 is $found, not $2"
}
until_is() { # PROPERTY VALUE: within a minute
    for _ in $(seq 600); do
        [ "$(state "$1")" != "$2" ] || return 0
        sleep 0.1
    done
    is "$1" "$2"
}
pid() { state MainPID; }
drop_in() { # NAME TEXT
    mkdir -p /etc/systemd/system/forebay.service.d
    echo "$2" >"/etc/systemd/system/forebay.service.d/$1.conf"
    systemctl daemon-reload
}
publish() { seq "$1" | mosquitto_pub -h 127.0.0.1 -V mqttv5 -i boot -q 1 -t boot/test -l; }
rows() { forebay verify --config $config | sed -n 's/^messages *\([0-9]*\) .*/\1/p'; }
config=/etc/forebay/forebay.toml

test() {
    drop_in log '[Service]
StandardError=append:/mnt/given/forebay.log'
    dpkg -i /mnt/given/1.deb
    is ActiveState active
    is UnitFileState enabled
    is Type notify
    ok "installed: enabled, started, ready; status: $(state StatusText)"

    local status
    status=$(cat "/proc/$(pid)/status")
    for line in 'Seccomp:.2' 'NoNewPrivs:.1' 'CapBnd:.0000000000000000' 'CapEff:.0000000000000000' "Uid:.$(id -u forebay)"; do
        grep -q "^$line" <<<"$status" || die "no $line in /proc/PID/status"
    done
    grep -q '^Max open files *16384 ' "/proc/$(pid)/limits" || die "no 16384 open files"
    ok "sandbox: seccomp, no capabilities, no new privileges, user forebay"

    publish 100
    forebay sync --once --config $config
    [ "$(rows)" = 100 ] || die "there are not 100 rows"
    ok "100 messages acknowledged and sealed in the sandbox"

    local before
    before=$(pid)
    echo 'on_refused = "disconnect"' | cat - $config >/run/config && cat /run/config >$config
    systemctl reload forebay
    is MainPID "$before"
    ok "reload: $(state StatusText)"

    kill -KILL "$before"
    until_is NRestarts 1
    until_is ActiveState active
    publish 100
    forebay sync --once --config $config
    [ "$(rows)" = 200 ] || die "there are not 200 rows"
    ok "kill -9: started again, nothing lost"

    drop_in watchdog '[Service]
WatchdogSec=20s
TimeoutAbortSec=2s'
    systemctl restart forebay
    sleep 30 # longer than the watchdog waits
    is NRestarts 0
    is ActiveState active
    kill -STOP "$(pid)"
    until_is NRestarts 1
    until_is ActiveState active
    ok "watchdog: fed while it runs, started again when it hangs"

    echo '[[upstream]]
url = "file:///mnt/usb/forebay"' >>$config
    mkdir /mnt/usb/forebay
    chown forebay /mnt/usb/forebay
    systemctl restart forebay
    ! forebay sync --once --config $config || die "the sandbox lets it write to /mnt/usb"
    drop_in usb "$(cat /mnt/given/usb.conf)"
    systemctl restart forebay
    forebay sync --once --config $config
    [ -s /mnt/usb/forebay/messages/refs/head ] || die "nothing is on the disk"
    ok "/mnt/usb: read-only, and with usb.conf an upstream"

    (
        umask 077 # root's alone
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=localhost -days 2 \
            -addext "subjectAltName=DNS:localhost" -keyout /root/server.key -out /root/server.crt 2>/dev/null
    )
    install -m 644 /root/server.crt /etc/forebay/server.crt
    echo '[[listener]]
bind = "127.0.0.1:8883"
[listener.tls]
cert = "/etc/forebay/server.crt"
key_file = "credential:server.key"' >>$config
    drop_in credential '[Service]
LoadCredential=server.key:/root/server.key'
    systemctl restart forebay
    mosquitto_pub -h localhost -p 8883 --cafile /root/server.crt -i tls -q 1 -t boot/tls -m 1
    ok "TLS: a key that only root may read, as a credential"

    cp $config /run/good
    echo 'nonsense = 1' | cat - /run/good >$config
    ! systemctl restart forebay 2>/dev/null || die "started with a bad configuration"
    is ExecMainStatus 78
    sleep 7 # longer than RestartSec
    is ActiveState failed
    is NRestarts 0
    ok "bad configuration: exit status 78, not started again"

    cat /run/good >$config
    systemctl start forebay
    before=$(pid)
    dpkg --force-confold -i /mnt/given/2.deb
    [ "$(pid)" != "$before" ] || die "an upgrade does not restart the service"
    is ActiveState active
    ok "upgrade: restarted"

    before=$(pid)
    dpkg -r forebay
    [ ! -e "/proc/$before" ] || die "a removed service runs on"
    grep -q 'SIGTERM' /mnt/given/forebay.log || die "it was not stopped by SIGTERM"
    [ -d /var/lib/forebay/datasets ] || die "data are gone"
    dpkg -P forebay
    [ ! -e /var/lib/forebay ] || die "data are there after a purge"
    ok "remove, purge: stopped; data kept, then gone"
}

case ${1:-} in
--namespaces) namespaces "$2" ;;
--test) test ;;
*) outside "$@" ;;
esac
