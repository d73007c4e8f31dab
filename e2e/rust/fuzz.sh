#!/bin/bash
# Fuzzes whatever reads what others write: QMP, files and messages of the kernel, text for a terminal. `make fuzz`.
#
#   fuzz.sh SECONDS|RUNS=N [TARGET...]
#
# The targets are in fuzz/, in the layout of cargo-fuzz. cargo-fuzz is not needed: its part is the flags below, and these are the
# stable compiler's. There is no sanitizer, which would need another compiler: the parsers are safe Rust, so what there is to find is
# panics, overflows, broken promises, and what hangs or fills the memory; and without, twice as much is tried.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
limit=$1
shift
targets=("$@")
((${#targets[@]})) || mapfile -t targets < <(sed -n '/^\[\[bin\]\]/,/^$/s/^name = "\(.*\)"/\1/p' fuzz/Cargo.toml)

host=$(rustc -vV | sed -n 's/^host: //p')
out=$(realpath -m "${CARGO_TARGET_DIR:-target}")/fuzz
flags=(--cfg fuzzing -Cpasses=sancov-module)
for flag in level=4 inline-8bit-counters pc-table trace-compares; do
	flags+=("-Cllvm-args=-sanitizer-coverage-$flag")
done
# `--target`, so that build scripts and macros are built without them.
RUSTFLAGS=${flags[*]} CARGO_TARGET_DIR=$out \
	cargo build --manifest-path fuzz/Cargo.toml --locked --release --target "$host" "${targets[@]/#/--bin=}"

case $limit in
RUNS=*) bound=-runs=${limit#RUNS=} ;;
*) bound=-max_total_time=$limit ;;
esac
for target in "${targets[@]}"; do
	# What is found on the way is kept there, for the next time.
	mkdir -p "$out/corpus/$target" "$out/artifacts"
	log=$out/$target.log
	if ! "$out/$host/release/$target" "$bound" -timeout=60 -rss_limit_mb=1024 -malloc_limit_mb=256 -max_len=4096 \
		-print_final_stats=1 -artifact_prefix="$out/artifacts/$target-" "$out/corpus/$target" "fuzz/seeds/$target" \
		>"$log" 2>&1; then
		tail -n 60 "$log"
		echo "$target FAILED: $log"
		exit 1
	fi
	awk -v target="$target" '/DONE/ { for (i = 1; i < NF; i++) if ($i == "cov:") cov = $(i + 1) }
		/number_of_executed_units/ { runs = $2 } /average_exec_per_sec/ { rate = $2 }
		END { printf "%-12s %12d inputs, %8d a second, coverage %d\n", target, runs, rate, cov }' "$log"
done
