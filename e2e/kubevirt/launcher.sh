#!/bin/bash
# Runs a launcher pod's compute container, as the kubelet and a container runtime would: namespaces of its own but for the
# pod's network, the volumes, the devices, QEMU's user without capabilities.
#
#   launcher.sh NODE ROOT SANDBOX MOUNTS DEVICES ENV... COMMAND...
#     NODE      the first process of the node's namespace of processes
#     ROOT      made by root.sh
#     SANDBOX   a process in the pod's network namespace
#     MOUNTS    a file of lines "SOURCE<tab>TARGET", parents first
#     DEVICES   a file of lines "PATH<tab>MAJOR<tab>MINOR"
set -euo pipefail
case $1 in
inside) shift ;;
*)
  # The first process in there is the container's own, and all others end with it.
  exec nsenter --net="/proc/$3/ns/net" --pid="/proc/$1/ns/pid" setpriv --pdeathsig=KILL \
    unshare --mount --pid --fork --kill-child --propagation private "${BASH_SOURCE[0]}" inside "${@:2}"
  ;;
esac
root=$1 mounts=$3 devices=$4
shift 4
mount --bind "$root" "$root"
mount -t tmpfs tmpfs "$root/dev"
mkdir "$root"/dev/{net,pts,shm}
chmod 1777 "$root/dev/shm"
for device in null zero random urandom full tty; do
  cp -a "/dev/$device" "$root/dev/"
done
mknod -m 666 "$root/dev/net/tun" c 10 200
mount -t devpts -o newinstance,ptmxmode=0666,mode=620 devpts "$root/dev/pts"
ln -s pts/ptmx "$root/dev/ptmx"
mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
# The launcher asks which processors it may use.
mount -t tmpfs tmpfs "$root/sys/fs/cgroup"
mkdir "$root/sys/fs/cgroup/cpuset"
echo "0-$(($(nproc) - 1))" >"$root/sys/fs/cgroup/cpuset/cpuset.cpus"
for directory in run tmp home/qemu; do
  mount -t tmpfs tmpfs "$root/$directory"
done
chmod 1777 "$root/tmp"
chown 107:107 "$root/run" "$root/home/qemu"
while IFS=$'\t' read -r source target; do
  mkdir -p "$root$target"
  mount --bind "$source" "$root$target"
done <"$mounts"
while IFS=$'\t' read -r path major minor; do
  mknod -m 600 "$root$path" c "$major" "$minor"
  chown 107:107 "$root$path"
done <"$devices"
cd "$root"
pivot_root . old
cd /
umount --lazy /old
# A launcher that finds no /dev/kvm emulates, which works on any machine. virt-handler wants one all the same, whatever it is: one
# that nobody may open, or libvirt would ask QEMU again and again what it can with it.
(
  PATH=/usr/bin
  until [ -S /var/run/kubevirt/sockets/launcher-sock ]; do sleep 0.02; done
  umask 777
  : >/dev/kvm
) &
exec /usr/bin/env -i PATH=/usr/sbin:/usr/bin HOME=/home/qemu \
  /usr/bin/setpriv --pdeathsig=KILL --reuid=107 --regid=107 --clear-groups --bounding-set=-all,+net_bind_service \
  --inh-caps=-all,+net_bind_service --ambient-caps=-all,+net_bind_service /usr/bin/env "$@"
