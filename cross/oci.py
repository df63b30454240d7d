#!/usr/bin/env python3
"""oci.py OUT VERSION CONFIG NOTICES PLATFORM=BINARY...

Writes OUT, an image for several architectures as an OCI archive, without a container engine: `skopeo copy`, `podman load` and
`ctr image import` take it. PLATFORM is OCI's: arm64/v8, arm/v7, amd64. There is no distribution in it: the program, the
certificates of Debian's ca-certificates, CONFIG as /etc/forebay/forebay.toml, NOTICES of licences, and a user of its own, 65532.

SOURCE_DATE_EPOCH stands in every file, so that the same input, those certificates included, gives the same bytes.
"""

import datetime
import gzip
import hashlib
import io
import json
import os
import sys
import tarfile

CERTIFICATES = "/usr/share/ca-certificates/mozilla"  # not /etc/ssl/certs, where this machine's own authorities are, too
USER = 65532
EPOCH = int(os.environ.get("SOURCE_DATE_EPOCH", "0"))
CREATED = datetime.datetime.fromtimestamp(EPOCH, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
OCI = "application/vnd.oci.image."


def main(out, version, config, notices, *binaries):
    if not os.path.isdir(CERTIFICATES):
        sys.exit(f"oci.py: {CERTIFICATES} is not there: install ca-certificates")
    blobs = {}
    system = layer(blobs, files(config, notices))
    manifests = []
    for binary in binaries:
        platform, path = binary.split("=", 1)
        architecture, _, variant = platform.partition("/")
        platform = {"architecture": architecture, "os": "linux"}
        if variant:
            platform["variant"] = variant
        program = layer(blobs, [("usr/", 0o755, 0, None), ("usr/bin/", 0o755, 0, None), ("usr/bin/forebay", 0o755, 0, read(path))])
        manifests.append(blob(blobs, "manifest.v1+json", manifest(blobs, version, platform, [system, program])) | {"platform": platform})
    index = {"schemaVersion": 2, "mediaType": OCI + "index.v1+json", "manifests": manifests, "annotations": annotations(version)}
    # podman and containerd read the second, where it is; the first alone would be podman's name of the image.
    names = {"org.opencontainers.image.ref.name": version, "io.containerd.image.name": f"localhost/forebay:{version}"}
    top = blob(blobs, "index.v1+json", index) | {"annotations": names}
    archive = [("oci-layout", 0o644, 0, text({"imageLayoutVersion": "1.0.0"}))]
    archive += [("index.json", 0o644, 0, text({"schemaVersion": 2, "manifests": [top]}))]
    archive += [("blobs/", 0o755, 0, None), ("blobs/sha256/", 0o755, 0, None)]
    archive += [(f"blobs/sha256/{digest}", 0o644, 0, data) for digest, data in sorted(blobs.items())]
    with open(out, "wb") as file:
        file.write(tar(archive))


def files(config, notices):
    """The layer that all platforms share: (path, mode, owner, content; None: a folder)."""
    return [
        ("etc/", 0o755, 0, None),
        ("etc/forebay/", 0o755, 0, None),
        ("etc/forebay/forebay.toml", 0o644, 0, read(config)),
        ("etc/group", 0o644, 0, f"root:x:0:\nforebay:x:{USER}:\n".encode()),
        ("etc/passwd", 0o644, 0, f"root:x:0:0::/:/\nforebay:x:{USER}:{USER}::/var/lib/forebay:/\n".encode()),
        ("etc/ssl/", 0o755, 0, None),
        ("etc/ssl/certs/", 0o755, 0, None),
        ("etc/ssl/certs/ca-certificates.crt", 0o644, 0, certificates()),
        ("run/", 0o755, 0, None),
        ("run/forebay/", 0o755, USER, None),
        ("tmp/", 0o1777, 0, None),
        ("usr/", 0o755, 0, None),
        ("usr/share/", 0o755, 0, None),
        ("usr/share/doc/", 0o755, 0, None),
        ("usr/share/doc/forebay/", 0o755, 0, None),
        ("usr/share/doc/forebay/NOTICES", 0o644, 0, read(notices)),
        ("var/", 0o755, 0, None),
        ("var/lib/", 0o755, 0, None),
        ("var/lib/forebay/", 0o750, USER, None),
    ]


def certificates():
    """One bundle of them all, as programs read it."""
    names = sorted(name for name in os.listdir(CERTIFICATES) if name.endswith(".crt"))
    return b"".join(read(os.path.join(CERTIFICATES, name)).strip() + b"\n" for name in names)


def manifest(blobs, version, platform, layers):
    """The manifest of one platform."""
    config = platform | {
        "created": CREATED,
        "config": {
            "User": f"{USER}:{USER}",
            "Env": ["MIMALLOC_PURGE_DELAY=10"],  # as in forebay.service
            "Entrypoint": ["/usr/bin/forebay"],
            "Cmd": ["run", "--config", "/etc/forebay/forebay.toml"],
            "WorkingDir": "/var/lib/forebay",
            "Volumes": {"/var/lib/forebay": {}},
            "ExposedPorts": {"1883/tcp": {}, "8883/tcp": {}},
            "StopSignal": "SIGTERM",
            "Labels": annotations(version),
        },
        "rootfs": {"type": "layers", "diff_ids": [diff_id for _, diff_id in layers]},
        "history": [{"created": CREATED, "created_by": f"forebay {version}"} for _ in layers],
    }
    return {
        "schemaVersion": 2,
        "mediaType": OCI + "manifest.v1+json",
        "config": blob(blobs, "config.v1+json", config),
        "layers": [descriptor for descriptor, _ in layers],
        "annotations": annotations(version),
    }


def annotations(version):
    """What registries and `inspect` show."""
    return {
        "org.opencontainers.image.created": CREATED,
        "org.opencontainers.image.description": "MQTT messages on disk before they are acknowledged, then verifiable datasets",
        "org.opencontainers.image.licenses": "MIT OR Apache-2.0",
        "org.opencontainers.image.source": "https://github.com/forebay/forebay",
        "org.opencontainers.image.title": "forebay",
        "org.opencontainers.image.version": version,
    }


def layer(blobs, entries):
    """Adds a layer; answers its descriptor and the hash of the tar in it."""
    data = tar(entries)
    return blob(blobs, "layer.v1.tar+gzip", gzip.compress(data, 9, mtime=0)), "sha256:" + hashlib.sha256(data).hexdigest()


def blob(blobs, kind, content):
    """Adds a blob; answers its descriptor."""
    data = content if isinstance(content, bytes) else text(content)
    digest = hashlib.sha256(data).hexdigest()
    blobs[digest] = data
    return {"mediaType": OCI + kind, "digest": "sha256:" + digest, "size": len(data)}


def tar(entries):
    """A tar without anything of this machine in it."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.USTAR_FORMAT) as archive:
        for path, mode, owner, data in entries:
            info = tarfile.TarInfo(path.rstrip("/"))
            info.mode, info.uid, info.gid, info.mtime = mode, owner, owner, EPOCH
            if data is None:
                info.type = tarfile.DIRTYPE
            else:
                info.size = len(data)
            archive.addfile(info, None if data is None else io.BytesIO(data))
    return out.getvalue()


def text(value):
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


def read(path):
    with open(path, "rb") as file:
        return file.read()


if __name__ == "__main__":
    if len(sys.argv) < 6:
        sys.exit(__doc__)
    main(*sys.argv[1:])
