#!/bin/bash
# `make bench`: one Markdown table on stdout, as it is kept in docs/benchmarks.md; progress on stderr.
# Times are of this machine; memory, counts and ratios hold anywhere.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

say() { echo "bench: $*" >&2; }

# One line that a benchmark prints, without its title.
figure() {
  local line
  line=$("$@")
  if [[ -z $line || $line == *$'\n'* ]]; then
    say "not one line, of $*: $line"
    return 1
  fi
  echo "${line#*: }"
}

row() { echo "| $1 | $2 |"; }

# What was measured on: processors, memory, kernel.
machine() {
  local model memory
  model=$(sed -n 's/^model name[[:space:]]*: //p' /proc/cpuinfo | sort -u | tr -s ' ' | paste -sd, -)
  memory=$(awk '/^MemTotal:/ { printf "%.0f GiB", $2 / 1048576 }' /proc/meminfo)
  echo "$(nproc) × ${model:-$(uname -m)}, $memory, Linux $(uname -r), $(rustc --version | cut -d' ' -f1,2)"
}

# Named, not installed: to measure must not change the machine. `make setup` installs.
e2e/setup/install.sh --check >&2
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")

say "building"
cargo build -q --locked --release -p hybridnic-agent -p hybridnic-operator
# As `make build` does, or cargo builds the dependencies again with other features. lab-exec, with which nodes and guests are
# spoken to, must stand beside the benchmark.
cargo build -q --locked --workspace --all-features --all-targets
cargo bench -q --locked --no-run -p hybridnic-net --features testing --bench discovery --bench interrupts
cargo bench -q --locked --no-run -p hybridnic-agent --bench plan --bench stream

echo "| what | figure |"
echo "|---|---|"
row "machine" "$(machine)"
say "discovery"
discovery=$(figure cargo bench -q --locked -p hybridnic-net --features testing --bench discovery)
row "discovery of 4 PFs × 127 VFs" "$discovery"
say "interrupts"
interrupts=$(figure cargo bench -q --locked -p hybridnic-net --features testing --bench interrupts)
row "interrupts of a VF with 9 vectors, on 512 processors" "$interrupts"
say "plan"
plan=$(figure cargo bench -q --locked -p hybridnic-agent --bench plan)
row "plan of one reconcile" "$plan"
say "stream"
stream=$(figure cargo bench -q --locked -p hybridnic-agent --bench stream)
row "stream of a VM with 512 MiB" "$stream"
say "lab"
HYBRIDNIC_BIN=$target/release "$target/debug/bench"
