#!/bin/bash
# Whether our programs build with the oldest Rust that Cargo.toml says will do (`rust-version`).
#
# With that very toolchain, which rustup gets. Where it cannot be had, this is said, and what is left of the check is: cargo
# refuses a dependency that wants a newer Rust when it resolves (resolver 3), Cargo.lock is held against that here, and clippy
# reports what the standard library has only since (incompatible_msrv, in `make lint`).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

oldest=$(sed -n '/^\[workspace.package\]/,/^$/s/^rust-version = "\(.*\)"/\1/p' Cargo.toml)

newer=$(cargo metadata --format-version 1 --locked | python3 -c '
import json, sys
ours = tuple(map(int, sys.argv[1].split(".")))
for package in json.load(sys.stdin)["packages"]:
    wants = package.get("rust_version") or "0"
    if tuple(map(int, wants.split(".")[:2])) > ours:
        print(package["name"], package["version"], "wants Rust", wants)
' "$oldest")
if [ -n "$newer" ]; then
	echo "$newer" >&2
	exit 1
fi
echo "no dependency wants a newer Rust than $oldest"

if ! rustup run "$oldest" cargo --version >/dev/null 2>&1 &&
	! timeout 120 rustup toolchain install "$oldest" --profile minimal >&2; then
	echo "Rust $oldest NOT TRIED: it cannot be had from here"
	exit
fi
# Apart: the toolchains would take each other's output for outdated. What was built is of no other use.
CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-target}")/oldest-rust \
	cargo "+$oldest" check --workspace --all-features --locked
echo "builds with Rust $oldest"
