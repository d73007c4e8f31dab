#!/bin/bash
# Gets the QEMU that nodes run on and prints its path.
#
# On QEMU 10.0 the nodes' kernels now and then report stalls of many seconds under multi-threaded emulation; on 11.1
# they have not. 10.2 is the first to change a processor's pending interrupts by atomic operations only. Where the
# system's QEMU is older, Debian 13's backport is unpacked, with the libraries it wants, beside the system, and patched
# (patch-qemu.py).
#
# Usage: node-qemu.sh. HYBRIDNIC_NODE_QEMU names another one.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
cache=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}
wanted=10.2

if [ -n "${HYBRIDNIC_NODE_QEMU:-}" ]; then
	echo "$HYBRIDNIC_NODE_QEMU"
	exit
fi

installed=$(qemu-system-x86_64 --version 2>/dev/null | sed -n 's/.* version \([0-9.]*\).*/\1/p')
if [ -n "$installed" ] && printf '%s\n' "$wanted" "$installed" | sort -VC; then
	command -v qemu-system-x86_64
	exit
fi

mkdir -p "$cache"
exec 9>"$cache/node-qemu.lock"
flock 9
out=$cache/node-qemu-$(cat "$here/patch-qemu.py" "$here/node-qemu.sh" "$here/unpack.sh" | sha256sum | cut -c1-12)
if [ ! -x "$out/qemu-system-x86_64" ]; then
	echo "QEMU: getting a newer one for the nodes (once; 100 MB)" >&2
	part=$out.part
	rm -rf "$part"
	mkdir -p "$part"
	"$here/unpack.sh" "$part/root" "trixie trixie-backports" qemu-system-x86
	python3 "$here/patch-qemu.py" "$part/root/usr/bin/qemu-system-x86_64" >&2 || touch "$part/unpatched"
	cd "$part"
	cat >qemu-system-x86_64 <<-'RUN'
		#!/bin/sh
		here=$(dirname "$(readlink -f "$0")")
		root=$here/root
		exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" \
			"$root/usr/bin/qemu-system-x86_64" -L "$root/usr/share/qemu" -L "$root/usr/share/seabios" \
			-L "$root/usr/lib/ipxe/qemu" "$@"
	RUN
	chmod +x qemu-system-x86_64
	./qemu-system-x86_64 --version >&2
	rm -rf "$out"
	mv "$part" "$out"
fi
# It works, but not always: a test that fails so is started once more.
if [ -e "$out/unpatched" ]; then
	echo "QEMU: $out has faults that could not be patched: nodes panic, and guests freeze or reset themselves, now and then (e2e/lab/README.md)" >&2
fi
echo "$out/qemu-system-x86_64"
