#!/bin/bash
# Builds the control plane of the tests, and what makes the lab's machines its nodes, from the modules that go.mod pins,
# as far as it is not there yet.
#
#   build.sh [TOOL...]      default: etcd, kube-apiserver, kube-controller-manager, kubectl, helm
#                           others: kube-scheduler, kubelet, kube-proxy, deviceplugin
#   build.sh --oldest       kube-apiserver and kube-controller-manager of the oldest Kubernetes that is supported, which
#                           oldest/go.mod pins
#   build.sh --schemas      kubeconform, grafana-dashboard, and monitoring-kinds, a directory with the CRDs of the Prometheus
#                           operator: what others take of us, by their own schemas, which schemas/go.mod pins
#
# Prints one line for each tool on stdout, "NAME<tab>PATH"; progress goes to stderr. A tool found in
# $KUBEBUILDER_ASSETS is taken from there. All others are kept in ${HYBRIDNIC_CACHE:-~/.cache/hybridnic},
# in a directory named by what they were built from, so a change of version never meets an old binary.
set -euo pipefail
shopt -s inherit_errexit
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
. "$here/../progress.sh"
. "$here/../go.sh"

declare -A package=(
  [etcd]=go.etcd.io/etcd/server/v3
  [kube-apiserver]=k8s.io/kubernetes/cmd/kube-apiserver
  [kube-controller-manager]=k8s.io/kubernetes/cmd/kube-controller-manager
  [kube-scheduler]=k8s.io/kubernetes/cmd/kube-scheduler
  [kubelet]=k8s.io/kubernetes/cmd/kubelet
  [kube-proxy]=k8s.io/kubernetes/cmd/kube-proxy
  [kubectl]=k8s.io/kubernetes/cmd/kubectl
  [deviceplugin]=hybridnic.io/e2e/controlplane/deviceplugin
  [helm]=helm.sh/helm/v4/cmd/helm
  [kubeconform]=github.com/yannh/kubeconform/cmd/kubeconform
  [grafana-dashboard]=hybridnic.io/e2e/controlplane/schemas/grafana-dashboard
  # Not built: files of a module.
  [monitoring-kinds]=""
)
module=$here
if [[ ${1:-} == --oldest ]]; then
  module=$here/oldest
  set -- kube-apiserver kube-controller-manager
elif [[ ${1:-} == --schemas ]]; then
  module=$here/schemas
  set -- kubeconform grafana-dashboard monitoring-kinds
fi
tools=("$@")
((${#tools[@]})) || tools=(etcd kube-apiserver kube-controller-manager kubectl helm)
for tool in "${tools[@]}"; do
  [[ -v package[$tool] ]] || { echo "build.sh: unknown tool '$tool'; known: ${!package[*]}" >&2; exit 2; }
done

cache=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}
sources=("$module/go.mod" "$module/go.sum")
for source in "$module"/*/*.go; do
  [[ ! -e $source ]] || sources+=("$source")
done
sum=$(cat "${sources[@]}" | sha256sum)
bin=$cache/controlplane-${sum:0:16}/bin

path_of() {
  if [[ -n ${KUBEBUILDER_ASSETS:-} && -x $KUBEBUILDER_ASSETS/$1 ]]; then
    echo "$KUBEBUILDER_ASSETS/$1"
  else
    echo "$bin/$1"
  fi
}

missing_tools() {
  missing=()
  for tool in "${tools[@]}"; do
    [[ -x $(path_of "$tool") ]] || missing+=("$tool")
  done
}

version_of() { awk -v module="$1" '$1 == module { print $2; exit }' "$module/go.mod"; }

# -X of what each project's own release build stamps: `kubectl version` and discovery report these.
stamps() {
  local kubernetes helm major minor
  kubernetes=$(version_of k8s.io/kubernetes)
  helm=$(version_of helm.sh/helm/v4)
  IFS=. read -r major minor _ <<<"${kubernetes#v}"
  for in in k8s.io/component-base/version k8s.io/client-go/pkg/version; do
    echo "-X $in.gitVersion=$kubernetes -X $in.gitMajor=$major -X $in.gitMinor=$minor -X $in.gitTreeState=archive"
  done
  echo "-X helm.sh/helm/v4/internal/version.version=$helm"
}

# The module's files are nobody's to write; a copy may be removed.
copy_kinds() {
  local operator=github.com/prometheus-operator/prometheus-operator
  "$go" mod download "$operator"
  mkdir "$1"
  install -m 644 "$("$go" list -mod=readonly -m -f '{{.Dir}}' "$operator")"/example/prometheus-operator-crd/*.yaml "$1/"
}

build() {
  local packages=() go total staging=$bin/.staging
  for tool in "${missing[@]}"; do
    [[ -z ${package[$tool]} ]] || packages+=("${package[$tool]}")
  done
  cd "$module"
  export CGO_ENABLED=0
  echo "control plane: building ${missing[*]} into $bin (once; 8 minutes on two idle cores)" >&2
  go=$(find_go "control plane")
  total=$("$go" list -deps "${packages[@]}" | wc -l)
  rm -rf "$staging"
  mkdir "$staging"
  # What a debugger would want is left out in the end: not to make it first is a sixth less work. (Not to inline would be
  # another sixth, and an API server that takes half as long again at each start.)
  "$go" build -v -mod=readonly -gcflags all=-dwarf=false -buildvcs=false -trimpath -p "$(nproc)" -ldflags "-s -w $(stamps | tr '\n' ' ')" \
    -o "$staging/" "${packages[@]}" 2>&1 | packages_only | progress "control plane" "$total" packages
  if [[ " ${missing[*]} " == *" monitoring-kinds "* ]]; then copy_kinds "$staging/monitoring-kinds"; fi
  # Go names a binary by the last element of its package that is no version.
  [[ ! -e $staging/server ]] || mv "$staging/server" "$staging/etcd"
  for tool in "${missing[@]}"; do mv "$staging/$tool" "$bin/$tool"; done
  rmdir "$staging"
}

missing_tools
if ((${#missing[@]})); then
  mkdir -p "$bin"
  exec {lock}>"$bin/.lock"
  flock "$lock"
  missing_tools # another run may have built them while this one waited for the lock
  # No `||` and no `&&` around build: within them a function runs on after an error.
  if ((${#missing[@]})); then build; fi
fi
for tool in "${tools[@]}"; do printf '%s\t%s\n' "$tool" "$(path_of "$tool")"; done
