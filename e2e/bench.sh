#!/bin/bash
# `make bench`: prints a table. Speeds are of this machine; counts and ratios hold anywhere.
set -euo pipefail
cd "$(dirname "$0")/.."

echo "| what | figure |"
echo "| --- | --- |"
cargo bench -q -p hybridnic-net --features testing --bench discovery 2>/dev/null | sed 's/^/| discovery, 4 PFs × 127 VFs | /; s/$/ |/'
cargo bench -q -p hybridnic-agent --bench plan 2>/dev/null | sed 's/^/| plan of one reconcile | /; s/$/ |/'
cargo build -q --release -p hybridnic-agent
HYBRIDNIC_BIN=target/release cargo run -q -p hybridnic-e2e --bin bench
