#!/usr/bin/env python3
"""notices.py TRIPLE

Prints what the licences of the linked crates ask to be passed on with the program: each crate of a build for TRIPLE with its
licence, and every licence text and notice that lies in a crate, once. Needs cargo and the crates that a build has fetched.
"""

import json
import os
import re
import subprocess
import sys

TEXTS = re.compile(r"(licen[cs]e|copying|copyright|notice|unlicense)", re.IGNORECASE)


def main(triple):
    crates = linked(triple)
    print("Forebay is linked statically with these. Where a crate offers a choice of licences, so does Forebay.\n")
    print("  musl  MIT  Copyright (c) 2005-2020 Rich Felker, et al.")
    print("  the standard library of Rust  MIT OR Apache-2.0  Copyright (c) The Rust Project Contributors")
    for crate in crates:
        print(f"  {crate['name']} {crate['version']}  {crate['license'] or 'see its text below'}")
    for text, names in texts(crates):
        print("\n" + "=" * 78 + "\n" + ", ".join(names) + "\n" + "-" * 78 + "\n\n" + text)


def linked(triple):
    """The crates that the program consists of: no tools of the build, no tests."""
    command = ["cargo", "metadata", "--locked", "--format-version", "1", "--filter-platform", triple]
    metadata = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    packages = {package["id"]: package for package in metadata["packages"]}
    nodes = {node["id"]: node for node in metadata["resolve"]["nodes"]}
    found = set()
    waiting = [id for id, package in packages.items() if package["name"] == "forebay-agent"]
    while waiting:
        id = waiting.pop()
        if id in found or is_macro(packages[id]):
            continue
        found.add(id)
        for dep in nodes[id]["deps"]:
            if any(kind["kind"] is None for kind in dep["dep_kinds"]):
                waiting.append(dep["pkg"])
    return sorted((packages[id] for id in found if packages[id]["source"]), key=lambda crate: (crate["name"], crate["version"]))


def is_macro(package):
    return any("proc-macro" in target["kind"] for target in package["targets"])


def texts(crates):
    """Each text with the crates that have it, in the order of the first of them."""
    found = {}
    for crate in crates:
        folder = os.path.dirname(crate["manifest_path"])
        for name in sorted(os.listdir(folder)):
            path = os.path.join(folder, name)
            if TEXTS.match(name) and os.path.isfile(path):
                with open(path, encoding="utf-8", errors="replace") as file:
                    text = "\n".join(line.rstrip() for line in file).strip() + "\n"
                key = " ".join(text.split())
                found.setdefault(key, (text, []))[1].append(f"{crate['name']} {crate['version']}")
    return found.values()


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
