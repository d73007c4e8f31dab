#!/bin/bash
# Unpacks packages of another Debian release, with all they depend on, into a directory, beside the system and without a
# trace in it.
#
# Usage: unpack.sh DIRECTORY SUITES PACKAGE...
#   DIRECTORY   made; must not exist
#   SUITES      such as "trixie trixie-backports"; the last one is preferred
# They come from the mirror that the system's own release comes from.
set -euo pipefail
out=$1 suites=$2
shift 2
keys=/usr/share/keyrings/debian-archive-keyring.gpg
mirror=$(apt-get indextargets --format '$(RELEASE) $(COMPONENT) $(REPO_URI)' 'Created-By: Packages' |
	awk -v release="$(. /etc/os-release; echo "$VERSION_CODENAME")" '$1 == release && $2 == "main" && !found { print $3; found = 1 }')
[ -n "$mirror" ] || { echo "apt has no source for this release, so there is nowhere to look for $*" >&2; exit 1; }
mkdir "$out"
apt=$(mktemp -d)
trap 'rm -rf "$apt"' EXIT
# An apt of its own: another release's packages must not come near the system's.
mkdir -p "$apt"/{lists/partial,cache/archives/partial}
: >"$apt/status"
for suite in $suites; do
	echo "deb [signed-by=$keys] $mirror $suite main"
done >"$apt/sources.list"
cat >"$apt/conf" <<-CONF
	Dir::Etc::sourcelist "$apt/sources.list";
	Dir::Etc::sourceparts "-";
	Dir::State::lists "$apt/lists";
	Dir::State::status "$apt/status";
	Dir::Cache "$apt/cache";
	APT::Sandbox::User "root";
	APT::Default-Release "${suites##* }";
	APT::Install-Recommends "false";
	Acquire::Languages "none";
CONF
export APT_CONFIG=$apt/conf
apt-get -qq update >&2
apt-get -qq -y --download-only install "$@" >&2
unset APT_CONFIG
for package in "$apt"/cache/archives/*.deb; do
	dpkg-deb -x "$package" "$out"
done
