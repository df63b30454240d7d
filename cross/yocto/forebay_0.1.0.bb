# Forebay from the .tar.gz that cross/package.sh makes: put it beside this recipe, in a folder `files`.
#
# The program is taken as it is built, not compiled by bitbake: it needs Rust 1.90, which is newer than what Yocto's long-term
# releases have, and it depends on nothing in the image.
#
# Tested: the names of the archives, the paths in them and the checksums of the licences (cross/check-unit.sh).
# Not tested: bitbake itself has never read this file.

SUMMARY = "MQTT messages on disk before they are acknowledged, then verifiable datasets"
HOMEPAGE = "https://github.com/forebay/forebay"
LICENSE = "MIT | Apache-2.0"
LIC_FILES_CHKSUM = " \
    file://LICENSE-MIT;md5=216b95624d01a332991de6cd991b4872 \
    file://LICENSE-APACHE;md5=22a53954e4e0ec258dfce4391e905dac \
"

COMPATIBLE_HOST = "(aarch64|arm|x86_64).*-linux"
COMPATIBLE_HOST:armv4 = "null"
COMPATIBLE_HOST:armv5 = "null"
COMPATIBLE_HOST:armv6 = "null"
FOREBAY_MACHINE = "${TARGET_ARCH}"
FOREBAY_MACHINE:arm = "armv7"
SRC_URI = "file://forebay-${PV}-${FOREBAY_MACHINE}.tar.gz"
S = "${@d.getVar('UNPACKDIR') or d.getVar('WORKDIR')}/forebay-${PV}-${FOREBAY_MACHINE}"

inherit systemd useradd

SYSTEMD_SERVICE:${PN} = "forebay.service"
USERADD_PACKAGES = "${PN}"
GROUPADD_PARAM:${PN} = "--system forebay"
USERADD_PARAM:${PN} = "--system --gid forebay --home-dir /var/lib/forebay --no-create-home --shell /sbin/nologin forebay"
RRECOMMENDS:${PN} = "ca-certificates"
CONFFILES:${PN} = "${sysconfdir}/forebay/forebay.toml"

do_configure[noexec] = "1"
do_compile[noexec] = "1"

do_install() {
    install -D -m 0755 ${S}/forebay ${D}${bindir}/forebay
    install -d -m 0750 -g forebay ${D}${sysconfdir}/forebay
    install -m 0640 -g forebay ${S}/forebay.toml ${D}${sysconfdir}/forebay/forebay.toml
    install -D -m 0644 ${S}/systemd/forebay.service ${D}${systemd_system_unitdir}/forebay.service
}

# Stripped and static as it comes.
INHIBIT_PACKAGE_STRIP = "1"
INHIBIT_PACKAGE_DEBUG_SPLIT = "1"
INSANE_SKIP:${PN} = "already-stripped"
