#!/bin/bash
# Gets the mdBook that the documentation is built with and prints its path.
#
# Debian has it since 13. Where the system's own release does not, the package is unpacked, with the C library that it
# wants, beside the system.
#
# Usage: mdbook.sh. HYBRIDNIC_MDBOOK names another one.
set -euo pipefail
cache=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}
wanted=0.4.40

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
out=$cache/mdbook
if [ ! -x "$out/mdbook" ]; then
	part=$out.part
	rm -rf "$part"
	mkdir -p "$part"/apt/{lists/partial,cache/archives/partial} "$part/root"
	cd "$part/apt"
	# An apt of its own: another release's packages must not come near the system's.
	: >status
	keys=/usr/share/keyrings/debian-archive-keyring.gpg
	# From the mirror that the system's own release comes from.
	mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
		awk -v release="$(. /etc/os-release; echo "$VERSION_CODENAME")" '$1 == release && $2 == "main" && !found { print $3; found = 1 }')
	[ -n "$mirror" ] && [ -e "$keys" ] || { echo "apt has no Debian source: install mdBook $wanted or newer by hand" >&2; exit 1; }
	echo "deb [signed-by=$keys] $mirror trixie main" >sources.list
	cat >apt.conf <<-CONF
		Dir::Etc::sourcelist "$PWD/sources.list";
		Dir::Etc::sourceparts "-";
		Dir::State::lists "$PWD/lists";
		Dir::State::status "$PWD/status";
		Dir::Cache "$PWD/cache";
		APT::Sandbox::User "$(id -un)";
		APT::Install-Recommends "false";
		Acquire::Languages "none";
	CONF
	export APT_CONFIG=$PWD/apt.conf
	apt-get -qq update >&2
	apt-get -qq -y -o Debug::NoLocking=true --download-only install mdbook >&2
	unset APT_CONFIG
	for package in cache/archives/*.deb; do
		dpkg-deb -x "$package" "$part/root"
	done
	cd "$part"
	rm -rf apt
	cat >mdbook <<-'RUN'
		#!/bin/sh
		root=$(dirname "$(readlink -f "$0")")/root
		exec "$root/usr/lib64/ld-linux-x86-64.so.2" --library-path "$root/usr/lib/x86_64-linux-gnu" "$root/usr/bin/mdbook" "$@"
	RUN
	chmod +x mdbook
	./mdbook --version >&2
	rm -rf "$out"
	mv "$part" "$out"
fi
echo "$out/mdbook"
