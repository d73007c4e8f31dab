#!/bin/bash
# Builds the lab's small kernel and prints the path of its vmlinux.
#
# Usage: build-kernel.sh [--path]     --path only prints where the kernel is or would be.
# Source: Debian's package linux-source-6.12, with kernel-*.patch. Takes 5 minutes on 2 cores, once: the result is cached
# under a name made of the source's, the patches' and the configuration's contents.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
. "$here/../progress.sh"
source_tar=${LINUX_SOURCE:-/usr/src/linux-source-6.12.tar.xz}
cache=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}
# Counted, to show progress; a change of the configuration need not change it.
objects=1600

[ -f "$source_tar" ] || { echo "$source_tar is missing: apt-get install linux-source-6.12" >&2; exit 1; }
# Size and name stand for the tarball: hashing 150 MB at each start of a test would cost a second.
hash=$( (basename "$source_tar"; stat -Lc %s "$source_tar"; cat "$here/kernel.config" "$here"/kernel-*.patch) | sha256sum | cut -c1-12)
out=$cache/kernel-$hash
if [ "${1:-}" = --path ]; then echo "$out/vmlinux"; exit 0; fi

# Before the lock: another configuration may be building for minutes.
if [ -f "$out/vmlinux" ]; then echo "$out/vmlinux"; exit 0; fi

mkdir -p "$cache"
exec 9>"$cache/kernel.lock"
flock 9
if [ ! -f "$out/vmlinux" ]; then
	# The build tree is kept between configurations: a change then costs minutes less.
	tree=$cache/linux-source
	echo "kernel: building it into $out (once; 5 minutes on two idle cores)" >&2
	if [ ! -f "$tree/.unpacked" ]; then
		rm -rf "$tree"
		mkdir -p "$tree"
		tar -xf "$source_tar" -C "$tree" --strip-components=1
		touch "$tree/.unpacked"
	fi
	cd "$tree"
	# They help to explain and to measure, and are not worth a failure where one does not fit a newer source.
	for patch in "$here"/kernel-*.patch; do
		if patch -p1 --silent --forward --dry-run <"$patch" >/dev/null; then
			patch -p1 --silent --forward <"$patch"
		elif ! patch -p1 --silent --force --reverse --dry-run <"$patch" >/dev/null; then
			echo "kernel: ${patch##*/} does not fit $source_tar and is left out" >&2
		fi
	done
	# A shell of its own, because one that is asked whether it succeeded would run on after an error.
	if ! bash -euo pipefail -s -- "$here/kernel.config" 2>&1 <<-'BUILD' |
		make tinyconfig
		scripts/kconfig/merge_config.sh -m .config "$1"
		make olddefconfig
		# A wish that Kconfig dropped for want of a dependency must not pass unseen.
		refused=$(grep -E '^CONFIG_' "$1" | grep -vxFf .config || true)
		if [ -n "$refused" ]; then echo "not granted by Kconfig: $refused" >&2; exit 1; fi
		make -j"$(nproc)" vmlinux </dev/null
	BUILD
		tee "$cache/kernel-build.log" | sed -un '/^  \(CC\|AS\) /p' | progress kernel "$objects" objects
	then
		tail -n 30 "$cache/kernel-build.log" >&2
		exit 1
	fi
	mkdir -p "$out.part"
	# Symbols stay out: they double the time QEMU needs to load the file.
	strip -o "$out.part/vmlinux" vmlinux
	cp .config System.map "$out.part/"
	rm -rf "$out"
	mv "$out.part" "$out"
fi
echo "$out/vmlinux"
