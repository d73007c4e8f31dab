#!/bin/bash
# Makes the container images, without a registry and without a daemon: each is a docker-archive that `docker load`, `podman
# load` and `ctr images import` take.
#
# Usage: build.sh OUT TAG BIN [IMAGE...]
#   OUT     directory for IMAGE.tar
#   TAG     tag, as the version
#   BIN     directory with the programs, such as target/release
#   IMAGE   operator, agent, sidecar, qemu, pause; without any, the first three
# An image is the program and the libraries that it is linked with, from this system, and nothing else: no shell (but for
# QEMU's), no package manager. Names are localhost/hybridnic-IMAGE:TAG, or ${HYBRIDNIC_REPOSITORY}-IMAGE:TAG.
set -euo pipefail
shopt -s inherit_errexit
out=${1:?directory for the images} tag=${2:?tag} bin=${3:?directory of the programs}
shift 3
(($#)) || set -- operator agent sidecar
repository=${HYBRIDNIC_REPOSITORY:-localhost/hybridnic}
# Bytes that the sidecar's image may have.
most_sidecar=15000000
PATH=$PATH:/usr/sbin:/sbin
mkdir -p "$out"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# Neither overlayfs nor user namespaces are needed to put files together.
storage=(--storage-driver vfs --root "$work/storage" --runroot "$work/run")

# Copies programs to /usr/bin of a root, and the libraries they are linked with to where the loader looks.
add() {
	local root=$1 program library
	shift
	mkdir -p "$root/usr/bin"
	for program in "$@"; do
		install "$program" "$root/usr/bin/"
		strip --strip-unneeded "$root/usr/bin/${program##*/}"
		for library in $(ldd "$program" 2>/dev/null | grep -oE '/[^ ]+' | sort -u); do
			[ -e "$root$library" ] || install -D "$(readlink -f "$library")" "$root$library"
		done
	done
}

make_operator() {
	add "$1" "$bin/hybridnic-operator"
	config=(--entrypoint '["/usr/bin/hybridnic-operator"]' --user 65532:65532)
}

# Says of a program that should need no library that it does, as in a debug build.
static() {
	! ldd "$bin/$1" 2>/dev/null | grep '=>' >/dev/null || echo "build.sh: $1 is not linked statically: $2; see make images" >&2
}

make_agent() {
	# It runs outside of the image, on nodes with another C library.
	static hybridnic-cni "good for nodes with this system's libraries only"
	add "$1" "$bin/hybridnic-agent" "$bin/hybridnic-cni" "$(readlink -f "$(command -v kmod)")"
	mkdir -p "$1/usr/sbin"
	ln -s ../bin/kmod "$1/usr/sbin/modprobe"
	config=(--entrypoint '["/usr/bin/hybridnic-agent"]' --env PATH=/usr/sbin:/usr/bin)
}

# It edits a text. KubeVirt runs it as QEMU's user, in the pod of each VM, so each node of a VM pulls it.
make_sidecar() {
	static hybridnic-sidecar "its image is larger than it need be"
	add "$1" "$bin/hybridnic-sidecar"
	config=(--entrypoint '["/usr/bin/hybridnic-sidecar"]' --user 107:107)
}

# Debian's QEMU with the firmware of a q35 machine, and a shell to decide how it is started. It runs as a user of its own and
# needs no right but /dev/kvm.
make_qemu() {
	add "$1" "$(command -v qemu-system-x86_64)" "$(command -v busybox)"
	mkdir -p "$1/bin"
	ln -s ../usr/bin/busybox "$1/bin/sh"
	for applet in mkdir rmdir; do
		ln -s busybox "$1/usr/bin/$applet"
	done
	local share=/usr/share/qemu
	mkdir -p "$1$share" "$1/usr/share/seabios"
	cp $share/{pvh,kvmvapic,linuxboot_dma,linuxboot,multiboot}.bin $share/efi-virtio.rom "$1$share/" 2>/dev/null ||
		cp $share/{pvh,kvmvapic,linuxboot_dma,linuxboot,multiboot}.bin "$1$share/"
	cp /usr/share/seabios/bios{,-256k}.bin "$1/usr/share/seabios/"
	config=(--entrypoint '["/usr/bin/qemu-system-x86_64"]' --user 107:107)
}

# What holds a pod's namespaces, for clusters that get no images from elsewhere.
make_pause() {
	add "$1" "$(command -v catatonit)"
	config=(--entrypoint '["/usr/bin/catatonit", "-P"]' --user 65535:65535)
}

for image in "$@"; do
	declare -F "make_$image" >/dev/null || { echo "no such image: $image" >&2; exit 2; }
	root=$work/$image
	mkdir -p "$root/tmp"
	chmod 1777 "$root/tmp"
	config=()
	"make_$image" "$root"
	container=$(buildah "${storage[@]}" from scratch)
	buildah "${storage[@]}" copy -q "$container" "$root" / >/dev/null
	buildah "${storage[@]}" config "${config[@]}" --label org.opencontainers.image.licenses=Apache-2.0 "$container"
	name=$repository-$image:$tag
	buildah "${storage[@]}" commit -q --timestamp 0 "$container" "$name" >/dev/null
	rm -f "$out/$image.tar"
	buildah "${storage[@]}" push -q "$name" "docker-archive:$out/$image.tar:$name"
	size=$(stat -c %s "$out/$image.tar")
	if [[ $image == sidecar ]] && ((size > most_sidecar)); then
		echo "build.sh: the sidecar's image has $size bytes, and should have at most $most_sidecar" >&2
		exit 1
	fi
	printf '%s\t%s\t%s\n' "$name" "$size" "$out/$image.tar"
done
