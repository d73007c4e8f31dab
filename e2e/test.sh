#!/bin/bash
# `make test`: runs the tiers, and those that are named besides, each at its place; says how each went and how long it took.
# Fails when one failed or could not run.
#
#   test.sh [TIER...]
set -uo pipefail
cd "$(dirname "$0")/.." || exit

# In their order, and those that run only where they are named.
readonly tiers="setup check unit kernel cluster lab cluster-oldest kubevirt nodes kubevirt-nodes kubevirt-faults lint model monitoring fast"
readonly named="fast cluster-oldest kubevirt nodes kubevirt-nodes kubevirt-faults"
# The lab leaves half of two processors. These only compute, so they run from its beginning on, on what is left.
readonly beside="lint model monitoring fast"

passed=0 summary=() failures=()
logs=target/test
mkdir -p "$logs"
# A test's own words say what went wrong; the frames around them are the runtime's, and bury them.
export RUST_BACKTRACE=0

# ended NAME RC TOOK [NOTE]
ended() {
	local how=ok
	if [ "$2" -eq 0 ]; then
		passed=$((passed + 1))
	else
		how=FAILED
		failures+=("$logs/$1.log")
	fi
	summary+=("$(printf '%-14s %-6s %5d s%s' "$1" "$how" "$3" "${4:-}")")
	echo "=== ${summary[-1]}, $SECONDS s since the start"
}

tier() {
	local name=$1 start=$SECONDS rc
	echo "=== $name"
	make "$name" 2>&1 | tee "$logs/$name.log"
	rc=$?
	ended "$name" "$rc" $((SECONDS - start))
}

# Builds what later tiers need from sources of others, in their order. No tier of its own, because those tiers build what is missing here, and
# say why they cannot.
build_ahead() {
	e2e/lab/build-kernel.sh
	e2e/lab/node-qemu.sh
	if is_wanted cluster-oldest; then e2e/controlplane/build.sh --oldest; fi
	if is_wanted kubevirt || is_wanted kubevirt-nodes || is_wanted kubevirt-faults; then
		e2e/kubevirt/build.sh --all
		e2e/kubevirt/root.sh
	fi
	if is_wanted nodes || is_wanted kubevirt-nodes || is_wanted kubevirt-faults; then
		e2e/controlplane/build.sh kube-scheduler kubelet kube-proxy deviceplugin
	fi
}

# Runs what goes beside others, one tier after the other, each with its result in a file.
run_beside() {
	local name start rc
	# What others wait for comes first.
	flock "$logs/build_ahead.lock" true
	for name in $beside; do
		is_wanted "$name" || continue
		start=$SECONDS
		make "$name" >"$logs/$name.log" 2>&1
		rc=$?
		echo "$rc $((SECONDS - start))" >"$logs/$name.result"
	done
}

# Waits for them, and says what they said. One without a result has not ended by itself, and that is a failure.
collect_beside() {
	local name rc took
	wait "${idle[run_beside]}"
	for name in $beside; do
		is_wanted "$name" || continue
		echo "=== $name, beside others"
		cat "$logs/$name.log"
		rc=1 took=0
		[ -s "$logs/$name.result" ] && read -r rc took <"$logs/$name.result"
		ended "$name" "$rc" "$took" ", beside others"
	done
}

# is_wanted NAME: whether a tier runs, without being named or because it is.
is_wanted() { [[ " $named " != *" $1 "* || " $wanted " == *" $1 "* ]]; }

# in_idle_time FUNCTION: begins it in the class that gets what nobody else wants, in a process group of its own, to be ended with all that it
# has started. It has a lock of its name while it runs.
declare -A idle=()
in_idle_time() {
	setsid chrt --idle 0 nice -n 19 ionice -c 3 flock "$logs/$1.lock" "$BASH" e2e/test.sh --function "$1" "$wanted" >"$logs/$1.log" 2>&1 &
	idle[$1]=$!
}
end_idle() {
	local pid
	# Of one that has ended, the number may be another process's.
	for pid in $(jobs -pr); do kill -- "-$pid" 2>/dev/null; done
}

if [ "${1:-}" = --function ]; then
	readonly wanted=$3
	"$2"
	exit
fi
for name in "$@"; do
	[[ " $tiers " == *" $name "* ]] || { echo "no such tier: $name; there are: $tiers" >&2; exit 2; }
done
readonly wanted=$*
rm -f "$logs"/*.{log,result}
trap end_idle EXIT
for name in $tiers; do
	is_wanted "$name" || continue
	[[ " $beside " != *" $name "* ]] || continue
	case $name in
	# Before that, compiling takes all there is.
	unit) in_idle_time build_ahead ;;
	lab) in_idle_time run_beside ;;
	esac
	tier "$name"
	# Without its tools nothing else can run.
	[ "$name" = setup ] && [ "${#failures[@]}" -gt 0 ] && break
done
[[ -v idle[run_beside] ]] && collect_beside

# What the emulation needed a second try for, counted: see docs/testing.md.
echo "=== started once more: $(cat "$logs"/*.log | grep -c '^AGAIN' || true)," \
	"frozen guests: $(cat "$logs"/*.log | grep -c '^FROZEN' || true)," \
	"guests that reset themselves: $(cat "$logs"/*.log | grep -c '^RESET' || true)"
# said_by LINES LOG: what tests said of their failures, each place once, for a property test that looks for its smallest case fails hundreds
# of times.
said_by() {
	awk -v lines="$1" '/panicked at|^(AGAIN|FROZEN|RESET)|^error(\[|:)|\*\*\* \[/ {
			place = $0
			sub(/.*panicked at /, "", place)
			left = seen[place]++ ? 0 : lines
		}
		left-- > 0 { print substr($0, 1, 300) }' "$2" | head -n 60
}

# Once more at the end, for a log of which only the end is kept.
for log in "$logs"/*.log; do
	[[ " ${failures[*]} " == *" $log "* ]] && continue
	grep -q '^AGAIN' "$log" || continue
	echo "=== what was started once more in ${log##*/}"
	said_by 2 "$log"
done
for log in "${failures[@]}"; do
	echo "=== what failed in ${log##*/}"
	said_by 12 "$log"
done
printf '%s\n' "=== tiers" "${summary[@]}" "=== all $SECONDS s"
echo "$passed passed, ${#failures[@]} failed"
[ "${#failures[@]}" -eq 0 ]
