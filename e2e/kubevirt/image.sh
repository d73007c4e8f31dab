#!/bin/bash
# Makes an image of the root that root.sh makes, as a docker-archive: localhost/virt-launcher:none, which KubeVirt's launchers are
# started from. Prints its path, beside the root's.
set -euo pipefail
shopt -s inherit_errexit
PATH=$PATH:/usr/sbin:/sbin
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$("$here/root.sh")
image=$root-$(sha256sum <"$here/image.sh" | cut -c1-8).tar
exec {lock}>"$root.lock"
flock "$lock"
if [ ! -e "$image" ]; then
  work=$(mktemp -d "$image.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  # Put together by hand: buildah would copy it three times.
  # Without what a launcher does not need: an emulated node takes its time with each megabyte.
  tar --create --file "$work/layer.tar" --directory "$root" --numeric-owner --sort=name \
    --exclude=./usr/bin/{virt-handler,virt-chroot,virt-freezer,virt-probe,qemu-storage-daemon,qemu-nbd,qemu-io,qemu-pr-helper} .
  # As in KubeVirt's image: an ordinary user's process has no other way to a capability.
  mkdir -p "$work/right/usr/bin"
  cp "$root/usr/bin/virt-launcher-monitor" "$work/right/usr/bin/"
  setcap cap_net_bind_service=ep "$work/right/usr/bin/virt-launcher-monitor"
  # By this name the pod that has a plugged volume looks for a shell.
  ln -s bash "$work/right/usr/bin/sh"
  tar --create --file "$work/right.tar" --directory "$work/right" --numeric-owner --xattrs --xattrs-include=security.capability usr
  sum() { sha256sum <"$work/$1" | cut -d' ' -f1; }
  printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s","sha256:%s"]}}' \
    "$(sum layer.tar)" "$(sum right.tar)" >"$work/config.json"
  printf '[{"Config":"config.json","RepoTags":["localhost/virt-launcher:none"],"Layers":["layer.tar","right.tar"]}]' \
    >"$work/manifest.json"
  tar --create --file "$image.part" --directory "$work" manifest.json config.json layer.tar right.tar
  mv "$image.part" "$image"
fi
echo "$image"
