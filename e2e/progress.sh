# shellcheck shell=bash
# Shows how far something is. Sourced.
#
#   ... | progress WHAT TOTAL UNIT
#
# counts lines, and says on stderr how many there have been of about how many, and for how long: in one line every two seconds on a
# terminal, otherwise a line each 30 s, or each $HYBRIDNIC_PROGRESS seconds.
progress() {
  local what=$1 total=$2 unit=$3 count=0 start=$SECONDS shown=$SECONDS every=30 before='' after=$'\n'
  if [[ -t 2 ]]; then every=2 before=$'\r\e[K' after=''; fi
  every=${HYBRIDNIC_PROGRESS:-$every}
  say_progress() {
    printf '%s%s: %d of about %d %s, %d s%s' "$before" "$what" "$count" "$total" "$unit" $((SECONDS - start)) "$after" >&2
    shown=$SECONDS
  }
  while :; do
    # At a time-out there is no new line, only time: that is said too.
    if read -r -t "$every"; then count=$((count + 1)); elif (($? <= 128)); then break; fi
    if ((SECONDS - shown >= every)); then say_progress; fi
  done
  # What took no time is not worth a line.
  if ((SECONDS - start >= every)); then
    say_progress
    [[ -z $before ]] || echo >&2
  fi
}
