#!/usr/bin/env python3
"""Writes what is compiled into our programs, as CycloneDX 1.6: the crates of Cargo.lock with the versions, checksums and licences
that cargo itself gives. The same source gives the same file, to the octet.

Usage: sbom.py OUT        for OUT/operator.cdx.json, OUT/agent.cdx.json and OUT/sidecar.cdx.json
"""
import json
import os
import pathlib
import subprocess
import sys
import tomllib

PROGRAMS = ["operator", "agent", "sidecar"]
CARGO = os.environ.get("CARGO", "cargo")
os.chdir(pathlib.Path(__file__).resolve().parents[2])


def said(*command):
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def trees():
    """The crates of each program. All at once, as they are built: each has the features of a crate that another asks for, too.
    Macros and build scripts run while it is built, and are in none of what is built; what only tests need is neither."""
    host = next(line.split()[1] for line in said("rustc", "-vV").splitlines() if line.startswith("host:"))
    packages = [option for program in PROGRAMS for option in ("--package", f"hybridnic-{program}")]
    text = said(
        CARGO, "tree", "--locked", *packages, "--edges", "normal,no-proc-macro", "--target", host,
        "--prefix", "none", "--no-dedupe", "--format", "{p}",
    )
    for tree in text.strip().split("\n\n"):
        lines = [line.split() for line in tree.splitlines()]
        crates = [(name, version.removeprefix("v")) for name, version, *_ in lines]
        yield crates[0], sorted(set(crates[1:]))


def component(crate, locked, known, kind="library"):
    name, version = crate
    component = {
        "type": kind,
        "bom-ref": f"pkg:cargo/{name}@{version}",
        "name": name,
        "version": version,
        "purl": f"pkg:cargo/{name}@{version}",
    }
    # Ours have none: they come from this repository.
    if checksum := locked[crate].get("checksum"):
        component["hashes"] = [{"alg": "SHA-256", "content": checksum}]
    if licence := known[crate]["license"]:
        component["licenses"] = [{"expression": licence.replace("/", " OR ")}]
    return component


def main():
    out = pathlib.Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    lock = tomllib.loads(pathlib.Path("Cargo.lock").read_text(encoding="utf-8"))
    locked = {(package["name"], package["version"]): package for package in lock["package"]}
    metadata = json.loads(said(CARGO, "metadata", "--locked", "--format-version", "1"))
    known = {(package["name"], package["version"]): package for package in metadata["packages"]}
    for program, crates in trees():
        sbom = {
            "bomFormat": "CycloneDX",
            "specVersion": "1.6",
            "version": 1,
            "metadata": {"component": component(program, locked, known, "application")},
            "components": [component(crate, locked, known) for crate in crates],
        }
        file = out / f"{program[0].removeprefix('hybridnic-')}.cdx.json"
        file.write_text(json.dumps(sbom, indent=1) + "\n", encoding="utf-8")
        print(f"{file}: {len(crates)} crates")


main()
