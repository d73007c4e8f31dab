#!/bin/bash
# Makes the lab's initramfs and prints where everything is, one NAME=PATH a line:
#   NODE_QEMU                 the QEMU that nodes run on
#   NODE_KERNEL NODE_INITRD   a node: QEMU, iproute2, tcpdump, no product; of kube, containerd and runc instead of QEMU
#   GUEST_KERNEL GUEST_INITRD a virtual machine inside a node
#   LAB_EXEC                  the helper for nodes, stripped
#
# Usage: build-images.sh small|debian|kube|kube-debian LAB_EXEC [managed|ssh]
#   small|debian  which kernel: our own without modules, or Debian's with its modules
#   kube          our own kernel, and nodes on which a kubelet can run pods
#   kube-debian   Debian's kernel, and such nodes
#   LAB_EXEC      the helper that runs in guests (target/debug/lab-exec)
#   managed       this one only, MANAGED_INITRD: a virtual machine with Debian's systemd and network managers
#   ssh           this one only, SSH_FILES: OpenSSH for a node that runs already
# Each image is cached under a name made of its inputs' contents; making both takes 4 seconds, the managed one half a minute
# with its packages.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
flavour=${1:?small, debian, kube or kube-debian}
lab_exec=${2:?path of lab-exec}
cache=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}
PATH=$PATH:/usr/sbin:/sbin

node_programs="dash ip tc bridge tcpdump qemu-system-x86_64 kmod ethtool"
guest_programs="dash ip kmod"
kube_programs="dash ip kmod ethtool mount umount nft containerd containerd-shim-runc-v2 ctr runc"
kube_packages="containerd runc containernetworking-plugins nftables mount iproute2 kmod dash ethtool"
cni_plugins="usr/lib/cni/bridge usr/lib/cni/host-local usr/lib/cni/loopback"
node_modules="virtio_pci virtio_net virtio_console 9pnet_virtio 9p igb igbvf vfio-pci vfio_iommu_type1 macvtap
	vhost_net vhost_vsock tun kvm-amd bridge 8021q veth dummy af_packet overlay sch_ingress cls_flower
	act_gact act_police"
# What the kubelet, kube-proxy and the bridge of the pods want of a kernel, beside that.
kube_modules="br_netfilter nf_conntrack_netlink nf_tables nft_chain_nat nft_compat nft_ct nft_fib_inet nft_fib_ipv4 nft_fib_ipv6
	nft_hash nft_limit nft_log nft_masq nft_nat nft_numgen nft_redir nft_reject_inet nft_reject_ipv4 nft_reject_ipv6
	xt_addrtype xt_comment xt_conntrack xt_mark xt_multiport xt_nat xt_statistic xt_MASQUERADE"
# Guests with Debian's own systemd, whose network is systemd-networkd's or NetworkManager's.
managed_packages="systemd udev dbus network-manager dash iproute2 kmod"
managed_programs="dash ip kmod dbus-daemon dbus-send systemctl journalctl networkctl udevadm NetworkManager nmcli busctl
	usr/lib/systemd/systemd usr/lib/systemd/systemd-executor usr/lib/systemd/systemd-journald
	usr/lib/systemd/systemd-udevd usr/lib/systemd/systemd-networkd usr/lib/systemd/systemd-sysctl
	usr/lib/x86_64-linux-gnu/libkmod.so.2"
managed_units="dbus.service dbus.socket NetworkManager.service systemd-journald.service systemd-journald.socket
	systemd-journald-dev-log.socket systemd-networkd.service systemd-networkd.socket systemd-udevd.service
	systemd-udevd-control.socket systemd-udevd-kernel.socket systemd-udev-trigger.service sockets.target.wants
	sysinit.target.wants systemd-udevd.service.d"
guest_modules="virtio_pci virtio_net virtio_console net_failover bonding igbvf af_packet
	vmw_vsock_virtio_transport 8021q"

case $flavour in
small | kube)
	kernel=$("$here/build-kernel.sh")
	modules=
	;;
debian | kube-debian)
	modules=$("$here/debian-kernel.sh")
	kernel=$modules/vmlinux
	;;
*) echo "no such kernel: $flavour" >&2; exit 1 ;;
esac

# A directory tree merged as Debian's is: /bin, /sbin and /lib lead into /usr.
new_root() {
	mkdir -p "$1"/{usr/{bin,sbin,lib,lib64},proc,sys,dev,run,tmp,etc,root,host,var}
	ln -s usr/bin usr/sbin usr/lib usr/lib64 "$1/"
	ln -s ../run "$1/var/run"
	install /bin/busybox "$1/usr/bin/busybox"
	local applet
	for applet in $(busybox --list); do
		# busybox's own versions of these lack what we need; real ones are added where wanted.
		case $applet in busybox | ip | modprobe | depmod | lsmod | rmmod | insmod | modinfo | sh | ash) ;;
		*) ln -s busybox "$1/usr/bin/$applet" ;;
		esac
	done
}

# Copies programs and the libraries they are linked with.
add_programs() {
	local root=$1 program path library
	shift
	for program in "$@"; do
		path=$(command -v "$program") || { echo "$program is not installed" >&2; exit 1; }
		rm -f "$root/usr/bin/${program##*/}"
		install "$(readlink -f "$path")" "$root/usr/bin/${program##*/}"
		for library in $(ldd "$path" 2>/dev/null | grep -oE '/[^ ]+' | sort -u); do
			mkdir -p "$root$(dirname "$library")"
			[ -e "$root$library" ] || cp -L "$library" "$root$library"
		done
	done
	ln -sf dash "$root/usr/bin/sh"
	ln -sf ../bin/kmod "$root/usr/sbin/modprobe"
	ln -sf ../bin/kmod "$root/usr/sbin/lsmod"
}

# The same out of an unpacked release, whose programs run by its own libraries; by name, or by path where one has a namesake.
add_foreign() {
	local root=$1 from=$2 libraries=usr/lib/x86_64-linux-gnu program path library
	shift 2
	for program in "$@"; do
		for path in "$from"/{usr/bin,usr/sbin,.}/"$program"; do [ ! -e "$path" ] || break; done
		[ -e "$path" ] || { echo "$program is in no package" >&2; exit 1; }
		path=$(realpath -s "$path")
		rm -f "$root/usr/bin/${program##*/}"
		install -D "$path" "$root/${path#"$from"/}"
		"$from/usr/lib64/ld-linux-x86-64.so.2" --library-path "$from/$libraries:$from/$libraries/systemd" --list "$path" 2>/dev/null |
			grep -oE "$from/[^ ]+" || true
	done | sort -u | while read -r library; do
		install -D "$library" "$root/$libraries/${library##*/}"
	done
	for library in libgcc_s.so.1 libm.so.6; do cp -L "$from/$libraries/$library" "$root/$libraries/"; done
	cp -L "$from/usr/lib64/ld-linux-x86-64.so.2" "$root/usr/lib64/"
}

# Copies modules of Debian's kernel with what they depend on, uncompressed for speed.
add_modules() {
	local root=$1 version module file to
	shift
	[ -n "$modules" ] || return 0
	version=$(cat "$modules/version")
	mkdir -p "$root/lib/modules/$version"
	cp "$modules/lib/modules/$version"/modules.{builtin,builtin.modinfo,order} "$root/lib/modules/$version/"
	for module in "$@"; do
		modprobe -d "$modules" -S "$version" --show-depends "$module" |
			awk '$1 == "insmod" { print $2 } $1 != "insmod" && $1 != "builtin" { exit 1 }' ||
			{ echo "no module $module in $version" >&2; exit 1; }
	done | sort -u | while read -r file; do
		to=$root/${file#"$modules"/}
		mkdir -p "$(dirname "$to")"
		case $file in
		*.xz) xz -dc "$file" >"${to%.xz}" ;;
		*) cp "$file" "$to" ;;
		esac
	done
	depmod -b "$root" "$version"
	printf '%s\n' "$@" >"$root/etc/modules"
}

pack() { (cd "$1" && find . | cpio --quiet -o -H newc) >"$2.part" && mv "$2.part" "$2"; }

make_node() {
	local root=$1 name
	new_root "$root"
	# shellcheck disable=SC2086
	add_programs "$root" $node_programs
	# Rust programs of the product need these beside what QEMU brings.
	for name in libgcc_s.so.1 libm.so.6; do
		cp -L "$(ldconfig -p | awk -v n="$name" '$1 == n && /x86-64/ { print $NF; exit }')" "$root/lib/x86_64-linux-gnu/"
	done
	# shellcheck disable=SC2086
	add_modules "$root" $node_modules
	mkdir -p "$root"/usr/share/{qemu,seabios}
	cp /usr/share/qemu/{pvh,kvmvapic,linuxboot_dma}.bin "$root/usr/share/qemu/"
	cp /usr/share/seabios/bios{,-256k}.bin "$root/usr/share/seabios/"
	install "$here/node-init" "$root/init"
}

# Debian 13's containerd is older than what Kubernetes supports; that of the next release is not.
make_kube_node() {
	local root=$1 release=$work.release
	new_root "$root"
	# shellcheck disable=SC2086
	"$here/unpack.sh" "$release" forky $kube_packages
	# shellcheck disable=SC2086
	add_foreign "$root" "$release" $kube_programs $cni_plugins
	ln -sf ../bin/kmod "$root/usr/sbin/modprobe"
	ln -sf dash "$root/usr/bin/sh"
	# shellcheck disable=SC2086
	add_modules "$root" $node_modules $kube_modules
	mkdir -p "$root/opt/cni" && ln -s /usr/lib/cni "$root/opt/cni/bin"
	install "$here/node-init" "$root/init"
	rm -rf "$release"
}

make_guest() {
	local root=$1
	new_root "$root"
	# shellcheck disable=SC2086
	add_programs "$root" $guest_programs "$lab_exec"
	# Built for debugging it is larger than all the rest; a node runs the same stripped one.
	strip "$root/usr/bin/lab-exec"
	cp "$root/usr/bin/lab-exec" "$2.lab-exec"
	# shellcheck disable=SC2086
	add_modules "$root" $guest_modules
	install "$here/guest-init" "$root/init"
}

# Debian's own units, rules and policies, with the programs that they name; nothing of ours but what starts lab-exec.
make_managed() {
	local root=$1 release=$work.release unit
	new_root "$root"
	# shellcheck disable=SC2086
	"$here/unpack.sh" "$release" trixie $managed_packages
	# shellcheck disable=SC2086
	add_foreign "$root" "$release" $managed_programs
	ln -sf ../bin/kmod "$root/usr/sbin/modprobe"
	ln -sf dash "$root/usr/bin/sh"
	install "$lab_exec" "$root/usr/bin/lab-exec"
	strip "$root/usr/bin/lab-exec"
	# shellcheck disable=SC2086
	add_modules "$root" $guest_modules
	(cd "$release" && cp -R --parents etc/{NetworkManager,systemd} usr/share/dbus-1 usr/lib/udev/rules.d \
		usr/lib/systemd/{network,system/*.target} usr/lib/NetworkManager "$root")
	for unit in $managed_units; do cp -R "$release/usr/lib/systemd/system/$unit" "$root/usr/lib/systemd/system/"; done
	cat >"$root/usr/lib/systemd/system/lab.service" <<-'UNIT'
		[Unit]
		Description=What the harness asks, and the answer to its packets
		After=dbus.socket systemd-udevd.service
		StartLimitIntervalSec=0

		[Service]
		ExecStart=/init serve
		Restart=always

		[Install]
		WantedBy=multi-user.target
	UNIT
	mkdir -p "$root/etc/systemd/system/multi-user.target.wants"
	ln -s /usr/lib/systemd/system/lab.service "$root/etc/systemd/system/multi-user.target.wants/"
	ln -sf multi-user.target "$root/usr/lib/systemd/system/default.target"
	printf '%s\n' root:x:0:0:::/bin/sh messagebus:x:101:101::/: systemd-network:x:102:102::/: nobody:x:65534:65534::/: \
		>"$root/etc/passwd"
	printf '%s\n' root:x:0: tty:x:5: disk:x:6: kmem:x:15: dialout:x:20: audio:x:29: video:x:44: input:x:50: \
		messagebus:x:101: systemd-network:x:102: systemd-journal:x:103: nogroup:x:65534: >"$root/etc/group"
	# Without an id of its machine systemd takes this for the first boot, and enables whatever it finds.
	echo 68796272696476696d6e696373746279 >"$root/etc/machine-id"
	echo guest >"$root/etc/hostname"
	install "$here/managed-init" "$root/init"
	rm -rf "$release"
}

# OpenSSH of the system's own release, as its packages configure it; only PAM, which no node has, is off. A node's own libraries, which
# are the system's, go before those that come with it: /usr/lib is where libraries are looked for last.
make_ssh() {
	local root=$1 release=$work.release program library
	# A command substitution, in which this runs, has forgotten it.
	set -e
	"$here/unpack.sh" "$release" "$(. /etc/os-release && echo "$VERSION_CODENAME")" openssh-server openssh-client
	mkdir -p "$root/usr/lib"
	# What sshd runs for a connection is a program of its own since 9.8.
	for program in usr/bin/ssh usr/bin/ssh-keygen usr/sbin/sshd \
		$(cd "$release" && find usr/lib/openssh -name 'sshd-*'); do
		install -D "$release/$program" "$root/$program"
		/lib64/ld-linux-x86-64.so.2 --library-path "$release/lib/x86_64-linux-gnu:$release/usr/lib/x86_64-linux-gnu" \
			--list "$release/$program" | grep -oE "$release/[^ ]+"
	done | sort -u | while read -r library; do
		# Only the node's own fits its loader.
		case $library in */libc.so.6) ;; *) install "$library" "$root/usr/lib/" ;; esac
	done
	mkdir -p "$root"/etc/ssh/ssh{,d}_config.d
	cp "$release/etc/ssh/ssh_config" "$release/usr/share/openssh/sshd_config" "$root/etc/ssh/"
	echo "UsePAM no" >"$root/etc/ssh/sshd_config.d/node.conf"
	printf '%s\n' 'root:*:0:0::/root:/bin/sh' 'sshd:*:100:65534::/run/sshd:/usr/sbin/nologin' >"$root/etc/passwd"
	rm -rf "$release"
}

# cached NAME INPUT...: prints the image's path; makes it with make_NAME if its inputs changed.
cached() {
	local name=$1 hash image
	shift
	hash=$({ cat "${BASH_SOURCE[0]}" "$@"; echo "$flavour $kernel"; } | sha256sum | cut -c1-12)
	image=$cache/$name-$flavour-$hash.cpio
	if [ ! -f "$image" ]; then
		# Only the newest few of each kind are kept: a node's image is 100 MB.
		# shellcheck disable=SC2012 # we name them ourselves
		ls -t "$cache/$name-$flavour"-*.cpio 2>/dev/null | tail -n +3 | while read -r old; do rm -f "$old"*; done
		work=$(mktemp -d)
		"make_$name" "$work" "$image"
		pack "$work" "$image"
		rm -rf "$work"
		work=
	fi
	touch "$image"
	echo "$image"
}

mkdir -p "$cache"
exec 8>"$cache/images.lock"
flock 8
work=
trap 'rm -rf "$work" "$work.release"' EXIT
if [ "${3:-}" = managed ]; then
	echo "MANAGED_INITRD=$(cached managed "$here/managed-init" "$here/unpack.sh" "$lab_exec")"
	exit
fi
if [ "${3:-}" = ssh ]; then
	files=$(cached ssh "$here/unpack.sh" /etc/os-release)
	echo "SSH_FILES=$files"
	exit
fi
case $flavour in
kube | kube-debian) node=$(cached kube_node "$here/node-init") ;;
*) node=$(cached node "$here/node-init" "$(command -v qemu-system-x86_64)") ;;
esac
guest=$(cached guest "$here/guest-init" "$lab_exec")
echo "NODE_QEMU=$("$here/node-qemu.sh")"
echo "NODE_KERNEL=$kernel"
echo "NODE_INITRD=$node"
echo "GUEST_KERNEL=$kernel"
echo "GUEST_INITRD=$guest"
echo "LAB_EXEC=$guest.lab-exec"
