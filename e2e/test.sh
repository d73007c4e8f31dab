#!/bin/bash
# `make test`: runs the tiers, and those that are named besides, each at its place; says how each went and how long it took.
# Fails when one failed or could not run.
#
#   test.sh [TIER...]
set -uo pipefail
cd "$(dirname "$0")/.." || exit

# In their order, the quickest to fail first, and those that run only where they are named.
readonly tiers="setup fast check unit model monitoring kernel cluster cluster-oldest kubevirt lab nodes kubevirt-nodes kubevirt-faults"
readonly named="fast cluster-oldest kubevirt nodes kubevirt-nodes kubevirt-faults"

passed=0 summary=() failures=()
logs=target/test
mkdir -p "$logs"
# A test's own words say what went wrong; the frames around them are the runtime's, and bury them.
export RUST_BACKTRACE=0

tier() {
	local name=$1 start=$SECONDS how=ok
	echo "=== $name"
	if make "$name" 2>&1 | tee "$logs/$name.log"; then
		passed=$((passed + 1))
	else
		how=FAILED
		failures+=("$logs/$name.log")
	fi
	summary+=("$(printf '%-14s %-6s %5d s' "$name" "$how" $((SECONDS - start)))")
	echo "=== ${summary[-1]}, $SECONDS s since the start"
}

for name in "$@"; do
	[[ " $tiers " == *" $name "* ]] || { echo "no such tier: $name; there are: $tiers" >&2; exit 2; }
done
for name in $tiers; do
	[[ " $named " != *" $name "* || " $* " == *" $name "* ]] || continue
	tier "$name"
	# Without its tools nothing else can run.
	[ "$name" = setup ] && [ "${#failures[@]}" -gt 0 ] && break
done

# What the emulation needed a second try for, counted: see docs/testing.md.
echo "=== started once more: $(cat "$logs"/*.log | grep -c '^AGAIN' || true)," \
	"frozen guests: $(cat "$logs"/*.log | grep -c '^FROZEN' || true)," \
	"guests that reset themselves: $(cat "$logs"/*.log | grep -c '^RESET' || true)"
# What failed, once more at the end, for a log of which only the end is kept: each place once, for a property test that
# looks for its smallest case fails hundreds of times.
for log in "${failures[@]}"; do
	echo "=== what failed in ${log##*/}"
	awk '/panicked at|^(AGAIN|FROZEN|RESET)|^error(\[|:)|\*\*\* \[/ {
			place = $0
			sub(/.*panicked at /, "", place)
			left = seen[place]++ ? 0 : 12
		}
		left-- > 0 { print substr($0, 1, 300) }' "$log" | head -n 60
done
printf '%s\n' "=== tiers" "${summary[@]}" "=== all $SECONDS s"
echo "$passed passed, ${#failures[@]} failed"
[ "${#failures[@]}" -eq 0 ]
