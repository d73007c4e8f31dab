#!/bin/bash
# Builds KubeVirt and Multus from the modules that go.mod and multus/go.mod pin, as far as they are not there yet.
#
#   build.sh [NAME...]      default: virt-api, virt-controller, objects.json
#                           of a node: virt-handler, virt-chroot, virt-launcher, virt-launcher-monitor, virt-tail, virt-probe,
#                           virt-freezer, container-disk, multus-daemon, multus-shim
#                           others: multus (the thin one), sriov (what `sriov: {}` needs of a cluster), virt-operator, virtctl
#   build.sh --all          all of them
#
# objects.json is what virt-operator would install: its CRDs, rights and webhooks. virt-launcher loads libvirt when it runs, so
# that no libvirt is needed here; its incremental backups do not work (libnbd/libnbd.go).
#
# Prints one line for each on stdout, "NAME<tab>PATH"; progress goes to stderr. All are kept in
# ${HYBRIDNIC_CACHE:-~/.cache/hybridnic}, in a directory named by what they were built from.
set -euo pipefail
shopt -s inherit_errexit
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../progress.sh"
. "$here/../go.sh"

readonly kubevirt=kubevirt.io/kubevirt
readonly programs="virt-api virt-chroot virt-controller virt-freezer virt-handler virt-launcher virt-launcher-monitor virt-operator
  virt-probe virt-tail virtctl"
readonly known=" ${programs//$'\n'/ } container-disk multus multus-daemon multus-shim objects.json sriov "

wanted=("$@")
((${#wanted[@]})) || wanted=(virt-api virt-controller objects.json)
if [[ ${wanted[0]} == --all ]]; then read -ra wanted <<<"$known"; fi
for name in "${wanted[@]}"; do
  [[ $known == *" $name "* ]] || { echo "build.sh: '$name' is not one of:$known" >&2; exit 2; }
done

# This script decides how they are built; there is no other record of it.
sum=$(cat "$here"/{build.sh,go.mod,go.sum,multus/go.mod,multus/go.sum} "$here"/*/*.go | sha256sum)
bin=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}/kubevirt-${sum:0:16}/bin

is_missing() { [[ " ${missing[*]} " == *" $1 "* ]]; }

missing_names() {
  missing=()
  for name in "${wanted[@]}"; do
    [[ -s $bin/$name ]] || missing+=("$name")
  done
}

# go_build WHAT LDFLAGS PACKAGE...: in the module of the working directory, into the staging directory.
go_build() {
  local what=$1 flags=$2 total
  shift 2
  total=$("$go" list -deps "$@" | wc -l)
  # Without what a debugger would want, from the beginning.
  "$go" build -v -mod=readonly -gcflags all=-dwarf=false -buildvcs=false -trimpath -ldflags "-s -w $flags" -o "$staging/" "$@" 2>&1 |
    packages_only | progress "$what" "$total" packages
}

build_kubevirt() {
  local packages=() name version
  for name in $programs; do
    if is_missing "$name"; then packages+=("$kubevirt/cmd/$name"); fi
  done
  if is_missing objects.json; then packages+=(hybridnic.io/e2e/kubevirt/install); fi
  if is_missing sriov; then packages+=(hybridnic.io/e2e/kubevirt/sriov); fi
  ((${#packages[@]})) || return 0
  cd "$here"
  version=$("$go" list -mod=readonly -m -f '{{.Version}}' "$kubevirt")
  # C for two of them: virt-handler asks KVM what it can, virt-launcher calls libvirt. For all, and then without the resolver of
  # the C library, since otherwise what they share would be compiled twice.
  export CGO_ENABLED=1 GOFLAGS="${GOFLAGS:-} -tags=libvirt_dlopen,netgo,osusergo"
  go_build KubeVirt "-X kubevirt.io/client-go/version.gitVersion=$version -X kubevirt.io/client-go/version.gitTreeState=clean" \
    "${packages[@]}"
  if is_missing objects.json; then
    # What it logs matters only where it fails.
    "$staging/install" >"$staging/objects.json" 2>"$staging/install.log" || { cat "$staging/install.log" >&2; exit 1; }
    rm "$staging"/install{,.log}
  fi
}

build_multus() (
  packages=()
  for name in multus multus-daemon multus-shim; do
    if is_missing "$name"; then packages+=("gopkg.in/k8snetworkplumbingwg/multus-cni.v4/cmd/$name"); fi
  done
  ((${#packages[@]})) || return 0
  cd "$here/multus"
  export CGO_ENABLED=0
  go_build Multus "" "${packages[@]}"
)

# It runs in images that have no C library.
build_container_disk() (
  cd "$here"
  gcc -static -O2 -o "$staging/container-disk" \
    "$("$go" list -mod=readonly -m -f '{{.Dir}}' "$kubevirt")/cmd/container-disk-v2alpha/main.c"
)

build() {
  local go staging=$bin/.staging start=$SECONDS
  echo "KubeVirt: building ${missing[*]} into $bin (once; all of them take 4 minutes on two idle cores)" >&2
  go=$(find_go KubeVirt)
  rm -rf "$staging"
  mkdir "$staging"
  build_multus
  build_kubevirt
  if is_missing container-disk; then build_container_disk; fi
  for name in "${missing[@]}"; do mv "$staging/$name" "$bin/$name"; done
  rmdir "$staging"
  echo "KubeVirt: built in $((SECONDS - start)) s" >&2
}

missing_names
if ((${#missing[@]})); then
  mkdir -p "$bin"
  exec {lock}>"$bin/.lock"
  flock "$lock"
  missing_names # another run may have built them while this one waited for the lock
  # No `||` and no `&&` around build: within them a function runs on after an error.
  if ((${#missing[@]})); then build; fi
fi
for name in "${wanted[@]}"; do printf '%s\t%s\n' "$name" "$bin/$name"; done
