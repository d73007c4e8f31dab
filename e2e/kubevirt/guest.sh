#!/bin/bash
# Makes an image with the lab's kernel and its guest, as a docker-archive: localhost/hybridnic-guest:lab, from which a VM of KubeVirt
# boots without a disk (`kernelBoot`). Prints its path.
#
#   guest.sh KERNEL INITRD
set -euo pipefail
shopt -s inherit_errexit
kernel=${1:?kernel} initrd=${2:?initrd}
name=localhost/hybridnic-guest:lab
cache=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}
# Both have names that say what they were made from.
sum=$(printf '%s\n' "$(sha256sum <"${BASH_SOURCE[0]}")" "$kernel" "$initrd" | sha256sum | cut -c1-16)
image=$cache/kubevirt-guest-$sum.tar
if [ ! -e "$image" ]; then
  rm -f "$cache"/kubevirt-guest-*.tar
  work=$(mktemp -d "$image.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  mkdir -p "$work/root/boot"
  install -m 644 "$kernel" "$work/root/boot/vmlinux"
  install -m 644 "$initrd" "$work/root/boot/initrd"
  chmod 755 "$work/root" "$work/root/boot"
  tar --create --file "$work/layer.tar" --directory "$work/root" --owner=0 --group=0 .
  sum=$(sha256sum <"$work/layer.tar" | cut -d' ' -f1)
  printf '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' "$sum" \
    >"$work/config.json"
  printf '[{"Config":"config.json","RepoTags":["%s"],"Layers":["layer.tar"]}]' "$name" >"$work/manifest.json"
  tar --create --file "$image.part" --directory "$work" manifest.json config.json layer.tar
  mv "$image.part" "$image"
fi
echo "$image"
