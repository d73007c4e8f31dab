#!/bin/bash
# Checks each crate alone: with only the features that it asks for itself. In the workspace it also has those that the others
# ask for, so a missing feature would show only where the crate is built alone, as for the images.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."

crates=$(cargo tree --workspace --locked --depth 0 --prefix none | awk 'NF { print $1 }' | sort -u)
for crate in $crates; do
	echo "--- $crate"
	cargo check --locked --package "$crate"
done
