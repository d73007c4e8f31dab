#!/bin/bash
# Gets the mdBook that the documentation is built with and prints its path.
#
# Debian 12 has none, and those of 13 and of testing cannot be unpacked beside the system: the former lacks book.js, the latter
# looks for its icons in /usr/share.
#
# Usage: mdbook.sh. HYBRIDNIC_MDBOOK names another one.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

if [ -n "${HYBRIDNIC_MDBOOK:-}" ]; then
	echo "$HYBRIDNIC_MDBOOK"
	exit
fi
exec "$here/../setup/by-pip.sh" mdbook 0.5 "$here/requirements.txt"
