#!/bin/bash
# Gets Debian's own newest 6.12 kernel for amd64 and prints the directory it is unpacked in:
#   vmlinux        cut out of vmlinuz, bootable by PVH
#   lib/modules/   all its modules
#   version        what `uname -r` will say
#
# Usage: debian-kernel.sh [--there]     --there only says, by its exit status, whether it is here or apt can get it.
# The package comes by `apt-get download` and is not installed.
set -euo pipefail
cache=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}
mkdir -p "$cache"
exec 9>"$cache/debian-kernel.lock"
flock 9

# The newest one already here will do, so that a run needs no network.
found=$(find "$cache" -maxdepth 1 -name 'debian-kernel-*' -type d ! -name '*.part' | sort -V | tail -n 1)
package=
if [ -z "$found" ]; then
	package=$(apt-cache search '^linux-image-6\.12\..*-amd64$' | cut -d' ' -f1 |
		grep -vE 'cloud|-rt-|dbg|unsigned' | sort -V | tail -n 1 || true)
fi
if [ "${1:-}" = --there ]; then
	[ -n "$found$package" ]
	exit
fi
if [ -z "$found" ]; then
	[ -n "$package" ] || { echo "apt knows no linux-image-6.12.*-amd64: add bookworm-backports and apt-get update" >&2; exit 1; }
	echo "Debian's kernel: getting $package (once; 100 MB)" >&2
	version=${package#linux-image-}
	part=$cache/debian-kernel-$version.part
	rm -rf "$part"
	mkdir -p "$part"
	cd "$part"
	apt-get -qq -o APT::Sandbox::User=root download "$package" >&2
	dpkg-deb -x ./*.deb tree
	python3 - "tree/boot/vmlinuz-$version" vmlinux.packed <<'PY'
# The compressed kernel starts at its compressor's magic number somewhere behind the boot code.
import sys
data = open(sys.argv[1], "rb").read()
magics = {b"\x28\xb5\x2f\xfd": "zstd", b"\xfd7zXZ\x00": "xz"}
at, kind = min((data.find(m), k) for m, k in magics.items() if data.find(m) > 0)
open(sys.argv[2], "wb").write(data[at:])
open(sys.argv[2] + ".kind", "w").write(kind)
PY
	# What follows the compressed stream makes the tools complain; the ELF magic is the check that counts.
	case $(cat vmlinux.packed.kind) in
	zstd) zstd -qdc vmlinux.packed >vmlinux 2>/dev/null || true ;;
	xz) xz -qdc --single-stream vmlinux.packed >vmlinux 2>/dev/null || true ;;
	esac
	[ "$(head -c 4 vmlinux)" = $'\x7fELF' ] || { echo "no kernel found in vmlinuz-$version" >&2; exit 1; }
	mv tree/lib lib
	echo "$version" >version
	depmod -b . "$version"
	rm -rf tree ./*.deb vmlinux.packed vmlinux.packed.kind
	found=$cache/debian-kernel-$version
	mv "$part" "$found"
fi
echo "$found"
