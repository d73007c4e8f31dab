#!/bin/bash
# `make test`: runs every tier, says how each went and how long it took. Fails when one failed or could not run.
set -uo pipefail
cd "$(dirname "$0")/.."

passed=0 failed=0 summary=()
logs=target/test
mkdir -p "$logs"
# A test's own words say what went wrong; the frames around them are the runtime's, and bury them.
export RUST_BACKTRACE=0

tier() {
	local name=$1 start=$SECONDS
	echo "=== $name"
	if make "$name" 2>&1 | tee "$logs/$name.log"; then
		passed=$((passed + 1))
		summary+=("$(printf '%-8s ok      %4d s' "$name" $((SECONDS - start)))")
	else
		failed=$((failed + 1))
		summary+=("$(printf '%-8s FAILED  %4d s' "$name" $((SECONDS - start)))")
	fi
}

for name in setup check unit monitoring kernel cluster lab nodes; do
	tier "$name"
	# Without its tools nothing else can run.
	[ "$name" = setup ] && [ "$failed" -gt 0 ] && break
done

# What the emulation needed a second try for, counted: see docs/testing.md.
echo "=== started once more: $(cat "$logs"/*.log | grep -c '^AGAIN' || true)," \
	"frozen guests: $(cat "$logs"/*.log | grep -c '^FROZEN' || true)"
# What failed, once more at the end, for a log of which only the end is kept.
if [ "$failed" -gt 0 ]; then
	grep -hE -A12 "panicked at|^(AGAIN|FROZEN)|^error(\[|:)|\*\*\* \[" "$logs"/*.log | cut -c1-300 | tail -n 150
fi
printf '%s\n' "=== tiers" "${summary[@]}" "=== all $SECONDS s"
echo "$passed passed, $failed failed"
[ "$failed" -eq 0 ]
