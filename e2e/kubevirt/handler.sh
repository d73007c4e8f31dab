#!/bin/bash
# Runs virt-handler as its DaemonSet would: its own root and /run, the node's devices, processes and control groups, and the
# kubelet's directories.
#
#   handler.sh NODE ROOT KUBELET PRIVATE ENV... -- ARG...
#     NODE      the first process of the node's own namespace of processes: virt-handler enters it, and this machine's own may refuse
#     ROOT      made by root.sh
#     KUBELET   the node's /var/lib/kubelet
#     PRIVATE   its /var/lib/kubevirt
set -euo pipefail
if [ "$1" != inside ]; then
  exec nsenter --pid="/proc/$1/ns/pid" setpriv --pdeathsig=KILL \
    unshare --mount --propagation private "${BASH_SOURCE[0]}" inside "${@:2}"
fi
root=$2 kubelet=$3 private=$4
shift 4
environment=()
while [ "$1" != -- ]; do
  environment+=("$1")
  shift
done
shift
mount --bind "$root" "$root"
for directory in dev sys; do
  mount --rbind "/$directory" "$root/$directory"
done
mount -t proc proc "$root/proc"
for directory in run tmp; do
  mount -t tmpfs tmpfs "$root/$directory"
done
mkdir -p "$kubelet"/{pods,device-plugins} "$private" "$root/run/kubevirt" "$root/run/kubevirt-libvirt-runtimes"
mount --bind "$kubelet" "$root/var/lib/kubelet"
mount --bind "$kubelet/pods" "$root/pods"
mount --bind "$private" "$root/var/lib/kubevirt"
exec chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin "${environment[@]}" /usr/bin/virt-handler "$@"
