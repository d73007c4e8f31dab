#!/bin/bash
# Makes the root that KubeVirt's node half runs in: libvirt and QEMU of Debian 13, and KubeVirt's programs (build.sh). What its own
# images have, as far as a launcher and a virt-handler look for it; nothing in it is written to once it is made.
#
# Prints its path. Kept in ${HYBRIDNIC_CACHE:-~/.cache/hybridnic}, in a directory named by what it was made from.
set -euo pipefail
shopt -s inherit_errexit
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
programs=(virt-handler virt-chroot virt-launcher virt-launcher-monitor virt-tail virt-probe virt-freezer container-disk)
# Debian's libvirt is one daemon; a launcher starts the one for QEMU alone.
packages=(libvirt-daemon libvirt-daemon-driver-qemu libvirt-daemon-log libvirt-clients qemu-system-x86 qemu-utils
  bash coreutils gawk grep libc-bin sed util-linux)

built=$("$here/build.sh" "${programs[@]}")
sum=$({ cat "$here/root.sh" "$here/../lab/unpack.sh"; cut -f2 <<<"$built"; } | sha256sum)
root=${HYBRIDNIC_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/hybridnic}/kubevirt-root-${sum:0:16}
exec {lock}>"$root.lock"
flock "$lock"
if [ -e "$root" ]; then
  echo "$root"
  exit
fi

staging=$root.staging
rm -rf "$staging"
echo "KubeVirt: unpacking libvirt and QEMU of Debian 13 (once, 200 MB)" >&2
"$here/../lab/unpack.sh" "$staging" trixie "${packages[@]}"
while IFS=$'\t' read -r _ program; do
  cp "$program" "$staging/usr/bin/"
done <<<"$built"
cd "$staging"
rm -r usr/share/{doc,locale,man,info,bash-completion} usr/bin/qemu-system-{i386,x86_64-microvm} 2>/dev/null || true
# What a package's own scripts would have made. Relative: who looks from outside must not end in its own /run.
rm -rf var/run
ln -s ../run var/run
for link in bin lib lib64 sbin; do
  [ -e "$link" ] || ln -s "usr/$link" "$link"
done
cat >etc/passwd <<'END'
root:x:0:0:root:/root:/bin/bash
qemu:x:107:107:qemu:/home/qemu:/bin/false
nobody:x:65534:65534:nobody:/:/bin/false
END
printf '%s\n' root:x:0: tty:x:5: kvm:x:36: qemu:x:107: nogroup:x:65534: >etc/group
echo '127.0.0.1 localhost' >etc/hosts
echo /usr/lib/x86_64-linux-gnu >etc/ld.so.conf
chroot . /usr/sbin/ldconfig

# As KubeVirt's launcher has them.
printf '%s\n' 'stdio_handler = "logd"' 'dynamic_ownership = 1' 'remember_owner = 0' 'namespaces = [ ]' 'cgroup_controllers = [ ]' \
  >etc/libvirt/qemu.conf
printf '%s\n' 'auth_unix_rw = "none"' 'log_outputs = "1:stderr"' >etc/libvirt/virtqemud.conf
# By this name virt-handler finds the process whose limit of locked memory it lifts.
ln usr/sbin/libvirtd usr/bin/virtqemud
cat >usr/sbin/virtqemud <<'END'
#!/bin/bash
ln -sf libvirt-sock /var/run/libvirt/virtqemud-sock
exec /usr/bin/virtqemud "$@"
END
chmod 755 usr/sbin/virtqemud

# What a node's processor can, as virt-handler asks for it: nothing that an emulated machine would not have.
mkdir -p var/lib/kubevirt-node-labeller
cat >var/lib/kubevirt-node-labeller/capabilities.xml <<'END'
<capabilities>
  <host>
    <cpu><arch>x86_64</arch><model>qemu64</model></cpu>
    <topology><cells num='1'><cell id='0'>
      <memory unit='KiB'>4194304</memory>
      <pages unit='KiB' size='4'>1048576</pages>
      <distances><sibling id='0' value='10'/></distances>
      <cpus num='1'><cpu id='0' socket_id='0' die_id='0' core_id='0' siblings='0'/></cpus>
    </cell></cells></topology>
  </host>
  <guest><os_type>hvm</os_type><arch name='x86_64'><machine maxCpus='288'>q35</machine></arch></guest>
</capabilities>
END
cat >var/lib/kubevirt-node-labeller/virsh_domcapabilities.xml <<'END'
<domainCapabilities><cpu>
  <mode name='host-model' supported='yes'><model fallback='allow'>qemu64</model><vendor>AMD</vendor></mode>
  <mode name='custom' supported='yes'><model usable='yes'>qemu64</model></mode>
</cpu></domainCapabilities>
END
echo "<cpu mode='custom' match='exact'><model fallback='forbid'>qemu64</model></cpu>" >var/lib/kubevirt-node-labeller/supported_features.xml

# Where things are mounted.
mkdir -p dev proc sys run tmp home/qemu boot old pods var/lib/{kubelet,kubevirt} init/usr/bin
mv "$staging" "$root"
echo "$root"
