# shellcheck shell=bash
# What the scripts that build Go programs share. Sourced.

# go.mod may want a newer Go than the distribution has; Go then fetches it, checksummed as any module. The compiler lives for
# seconds: to collect its garbage costs more than the memory.
export GOTOOLCHAIN=${GOTOOLCHAIN:-auto} GOGC=${GOGC:-400}

# Distributions keep newer versions of Go beside the default one, out of the path.
find_go() {
  local go
  for go in go $(printf '%s\n' /usr/lib/go-*/bin/go | sort -rV); do
    if "$go" version &>/dev/null; then
      command -v "$go"
      return
    fi
  done
  echo "$1: no Go found; e2e/setup/install.sh installs it" >&2
  return 1
}

# `go build -v` names each package as it is compiled, and there is no blank in such a name: everything else is a message.
packages_only() {
  local line
  while IFS= read -r line; do
    if [[ $line == *[[:space:]]* ]]; then echo "$line" >&2; else echo "$line"; fi
  done
}
