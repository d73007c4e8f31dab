#!/bin/bash
# `make test`: runs the tiers, and those that are named besides, each at its place; says how each went and how long it took.
# Fails when one failed or could not run.
#
#   test.sh [TIER...]
set -uo pipefail
cd "$(dirname "$0")/.." || exit

# In their order, and those that run only where they are named.
readonly tiers="setup check lint unit kernel cluster cluster-oldest kubevirt lab nodes kubevirt-nodes kubevirt-faults model monitoring fast"
readonly named="fast cluster-oldest kubevirt nodes kubevirt-nodes kubevirt-faults"
# The lab takes half an hour, and leaves more than half of two processors. So it begins with this tier, beside it and those that follow, which get
# what it leaves: emulated machines have deadlines. When it is the lab's turn, a second run goes through its tests from the end, where those are
# that can wait, and gets what the first one leaves.
readonly lab_from=unit
# These only compute: from then on too, on what is left.
readonly in_idle_time="monitoring fast"
# So does this one, and takes more: after the lab, because two runs of it leave nothing.
readonly in_idle_time_late="model"

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
	if is_wanted cluster-oldest; then e2e/controlplane/build.sh --oldest; fi
	if is_wanted kubevirt || is_wanted kubevirt-nodes || is_wanted kubevirt-faults; then
		e2e/kubevirt/build.sh --all
		e2e/kubevirt/root.sh
	fi
	if is_wanted nodes || is_wanted kubevirt-nodes || is_wanted kubevirt-faults; then
		e2e/controlplane/build.sh kube-scheduler kubelet kube-proxy deviceplugin
	fi
}

# aside NAME [TIER]: runs a tier beside others, with its result in a file; as NAME if that is not the tier's.
aside() {
	local start=$SECONDS rc
	make "${2:-$1}" >"$logs/$1.log" 2>&1
	rc=$?
	echo "$rc $((SECONDS - start))" >"$RUN/$1.result"
}

run_lab() {
	# Most of its tests need these, and would wait for what is built in idle time.
	e2e/lab/build-kernel.sh
	e2e/lab/node-qemu.sh
	# Not before: what compiles has no deadlines, and the tests beside it have.
	set_nice $$ -10
	aside lab
}

run_lab_from_end() { LAB_LAST_FIRST=1 aside lab-from-end lab; }

run_idle() {
	local name
	# What others wait for comes first.
	build_ahead >"$logs/build_ahead.log" 2>&1
	for name in $in_idle_time; do
		if is_wanted "$name"; then aside "$name"; fi
	done
}

run_idle_late() {
	local name
	for name in $in_idle_time_late; do aside "$name"; done
}

# collect NAME: reports a tier that ran beside others. One without a result has not ended by itself, and that is a failure.
collect() {
	local rc=1 took=0
	[ -s "$RUN/$1.result" ] && read -r rc took <"$RUN/$1.result"
	ended "$1" "$rc" "$took" ", beside others"
}

# follow NAME FUNCTION: shows what a tier that was begun by a function says, from its beginning to its end.
follow() {
	echo "=== $1, beside others"
	# The log may not be there yet.
	tail --pid="${begun[$2]}" -n +1 -F "$logs/$1.log" 2>/dev/null
	wait "${begun[$2]}"
	collect "$1"
}

# is_wanted NAME: whether a tier runs, without being named or because it is.
is_wanted() { [[ " $named " != *" $1 "* || " $wanted " == *" $1 "* ]]; }

# set_nice SESSION N: by how much others come before it, or after it. Linux gives each session a share of its own, in which alone its processes'
# nice values and classes count, unless that is switched off (sched_autogroup_enabled): so the session gets the value, too.
set_nice() {
	renice -n "$2" -g "$1" >/dev/null
	[ ! -w "/proc/$1/autogroup" ] || echo "$2" >"/proc/$1/autogroup"
}

# begin FUNCTION N [COMMAND...]: begins it by that command, in a session of its own with that nice value, to be ended with all that it has
# started.
declare -A begun=()
begin() {
	setsid "${@:3}" "$BASH" e2e/test.sh --function "$1" "$2" "$wanted" >"$logs/$1.log" 2>&1 &
	begun[$1]=$!
}
end_begun() {
	local pid
	# Of one that has ended, the number may be another process's.
	for pid in $(jobs -pr); do kill -- "-$pid" 2>/dev/null; done
}

if [ "${1:-}" = --function ]; then
	readonly wanted=$4
	set_nice $$ "$3"
	"$2"
	exit
fi
for name in "$@"; do
	[[ " $tiers " == *" $name "* ]] || { echo "no such tier: $name; there are: $tiers" >&2; exit 2; }
done
readonly wanted=$*
rm -rf "$logs"/*.log "$logs"/run.*
trap end_begun EXIT
# This run's own: what a killed one has left running must neither take our tests nor give us results.
RUN=$(mktemp -d "$PWD/$logs/run.XXXXXX") || exit
export RUN LAB_SHARED=$RUN/lab
mkdir "$LAB_SHARED"
for name in $tiers; do
	is_wanted "$name" || continue
	[[ " $in_idle_time $in_idle_time_late " != *" $name "* ]] || continue
	case $name in
	# Before that, compiling takes all there is.
	"$lab_from")
		begin run_lab 0
		begin run_idle 19 chrt --idle 0 ionice -c 3
		;;
	lab)
		begin run_lab_from_end 0
		follow lab run_lab
		follow lab-from-end run_lab_from_end
		begin run_idle_late 19 chrt --idle 0 ionice -c 3
		continue
		;;
	esac
	tier "$name"
	# Without its tools nothing else can run.
	[ "$name" = setup ] && [ "${#failures[@]}" -gt 0 ] && break
done
for function in run_idle run_idle_late; do
	[[ -v begun[$function] ]] && wait "${begun[$function]}"
done
for name in $in_idle_time $in_idle_time_late; do
	is_wanted "$name" || continue
	# After a set-up that failed nothing has begun.
	[[ -v begun[run_idle] ]] || continue
	echo "=== $name, beside others"
	cat "$logs/$name.log"
	collect "$name"
done

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
