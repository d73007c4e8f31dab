#!/bin/bash
# The demo's first part: builds what it needs and is not there yet, all of it at once, and says how far each thing is. Prints the
# kernel that the demo is to run, as LAB_KERNEL takes it.
#
# The lab's small kernel is used if it is there already, because the tests have built it. Building it takes as long as all the
# rest, so otherwise Debian's own is used if apt can get it; on that, nodes and guests boot some seconds slower.
set -euo pipefail
cd "$(dirname "$0")/.."
. e2e/progress.sh

readonly logs=target/demo
mkdir -p "$logs"
# Here each thing's progress is only what it has said last.
export HYBRIDNIC_PROGRESS=1

choose() {
  if [[ -n ${LAB_KERNEL:-} ]]; then
    echo "$LAB_KERNEL"
  elif [[ ! -e $(e2e/lab/build-kernel.sh --path) ]] && e2e/lab/debian-kernel.sh --there; then
    echo debian
  else
    echo small
  fi
}

programs() {
  local crates
  crates=$(cargo tree --workspace --all-features --locked --edges normal,build --prefix none | sort -u | grep -c .)
  # Without the tests: they are half of it.
  cargo build --workspace --all-features --locked --bins --color never 2>&1 | tee "$logs/cargo.log" |
    sed -un '/^ *Compiling /p' | progress programs "$crates" crates
}

control_plane() { e2e/controlplane/build.sh >/dev/null; }

machines() {
  choose >"$logs/kernel"
  if [[ $(<"$logs/kernel") == debian ]]; then e2e/lab/debian-kernel.sh; else e2e/lab/build-kernel.sh; fi
  e2e/lab/node-qemu.sh
}

# A group of processes each, to be ended together.
set -m
readonly parts="programs control_plane machines"
declare -A job=()
# shellcheck disable=SC2317 # by trap
end() {
  local pid
  for pid in "${job[@]}"; do kill -- "-$pid" 2>/dev/null || true; done
}
trap end EXIT
for part in $parts; do
  "$part" >/dev/null 2>"$logs/$part.log" &
  job[$part]=$!
done

# state PART: what it has said last, and of how many things it is at which.
state() {
  local last
  last=$(tail -n 1 "$logs/$1.log" | sed -E 's|: ([0-9]+) of about ([0-9]+) .*| \1/\2|')
  echo "${last:-${1/_/ }: beginning}"
}

before='' after=$'\n' every=30 shown=0 told=
if [[ -t 2 ]]; then before=$'\r\e[K' after='' every=2; fi
while ((${#job[@]})); do
  sleep 0.2
  for part in $parts; do
    pid=${job[$part]:-}
    if [[ -z $pid ]] || kill -0 "$pid" 2>/dev/null; then continue; fi
    unset "job[$part]"
    if ! wait "$pid"; then
      printf '%s✗ %s failed:\n' "$before" "${part/_/ }" >&2
      grep -v ' of about ' "$logs/$part.log" | tail -n 30 >&2 || true
      [[ $part != programs ]] || grep -A 20 '^error' "$logs/cargo.log" >&2 || true
      exit 1
    fi
    if [[ -n $told ]]; then printf '%s%5d s ✓ %s\n' "$before" "$SECONDS" "${part/_/ }" >&2; fi
  done
  if [[ -z $told ]] && ((SECONDS >= 2)); then
    told=yes
    echo "getting ready: our programs, a control plane and a kernel are built or fetched, once: about 12 minutes on two idle cores" >&2
  fi
  if [[ -n $told ]] && ((${#job[@]} && SECONDS - shown >= every)); then
    shown=$SECONDS line=
    for part in $parts; do
      if [[ -n ${job[$part]:-} ]]; then line+=" · $(state "$part")"; fi
    done
    line="$(printf '%5d s …' "$SECONDS")${line# ·}"
    # A line that wraps could not be written over.
    [[ -z $before ]] || line=${line:0:$(($(tput cols 2>/dev/null || echo 80) - 1))}
    printf '%s%s%s' "$before" "$line" "$after" >&2
  fi
done
trap - EXIT
cat "$logs/kernel"
