//! What a node is made of: its processors, memory and cards, as QEMU is told.

use std::process::Command;

use super::accel::Accel;
use super::image::Images;
use super::net::Net;
use super::site::Site;
use super::tsc;

/// VFs that each emulated card has.
pub const VFS_PER_PF: u8 = 7;
/// Cards in each node.
pub const PFS: u8 = 2;
/// The tag of a 9p file system that all nodes of a run share: a directory of this host, which a test mounts where it needs it.
pub const COMMON: &str = "common";

/// What a node is to be like.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// In MiB. A guest needs its own memory and 60 MiB more.
    pub memory: u32,
    /// Virtual processors.
    pub cpus: u8,
    /// More of the node kernel's command line.
    pub kernel_args: String,
}

impl Default for NodeOptions {
    fn default() -> Self {
        Self {
            memory: 3072,
            cpus: 2,
            kernel_args: String::new(),
        }
    }
}

/// What the node's QEMU calls the netdev of a card.
pub(super) fn netdev(pf: u8) -> String {
    format!("p{pf}")
}

/// How node `number` is started.
pub(super) fn command_line(
    number: u8,
    site: Site,
    options: &NodeOptions,
    images: &Images,
    accel: Accel,
) -> Command {
    let mut command = Command::new(&images.node_qemu);
    let mut args = |args: &[&str]| {
        command.args(args);
    };
    args(&[
        "-name",
        &format!("n{number}"),
        "-nodefaults",
        "-nographic",
        "-no-reboot",
    ]);
    args(&["-M", "q35,kernel-irqchip=split"]);
    args(&accel.args());
    args(&[
        "-smp",
        &options.cpus.to_string(),
        "-m",
        &options.memory.to_string(),
    ]);
    args(&["-device", "intel-iommu,intremap=on"]);
    args(&[
        "-chardev",
        "stdio,id=console,signal=off",
        "-serial",
        "chardev:console",
    ]);
    args(&["-qmp", "unix:qmp.sock,server=on,wait=off"]);
    args(&[
        "-virtfs",
        "local,path=share,mount_tag=host,security_model=none,multidevs=remap",
    ]);
    args(&[
        "-netdev",
        &format!("tap,id=adm,ifname=n{number}adm,script=no,downscript=no"),
    ]);
    args(&[
        "-device",
        &format!("virtio-net-pci,netdev=adm,mac=52:54:00:ad:00:0{number},romfile="),
    ]);
    // After all existing devices, so that none changes its place.
    args(&[
        "-virtfs",
        &format!("local,path=../common,mount_tag={COMMON},security_model=none,multidevs=remap"),
    ]);
    for port in 0..PFS {
        // The root ports are the first bridges, so that the cards are buses 1 and 2.
        args(&[
            "-device",
            &format!(
                "pcie-root-port,id=rp{port},chassis={},addr={:#x}",
                port + 1,
                port + 0x10
            ),
        ]);
        let tap = Net::tap(number, port);
        args(&[
            "-netdev",
            &format!("tap,id={},ifname={tap},script=no,downscript=no", netdev(port)),
        ]);
        let mac = format!("52:54:00:1{number}:0{port}:00");
        args(&[
            "-device",
            &format!("igb,bus=rp{port},netdev={},mac={mac},romfile=", netdev(port)),
        ]);
    }
    command
        .arg("-kernel")
        .arg(&images.node_kernel)
        .arg("-initrd")
        .arg(&images.node_initrd);
    let clock = match (accel, tsc::khz()) {
        (Accel::Tcg, Some(khz)) => format!("tsc_early_khz={khz}"),
        _ => String::new(),
    };
    command.arg("-append").arg(format!(
        "console=ttyS0 quiet panic=-1 mitigations=off intel_iommu=on iommu=pt tsc=reliable no_timer_check {clock} \
         {KVM_ARGS} lab.name=n{number} lab.address={}/24 lab.address6={}/64 lab.gateway={} {}",
        site.node(number),
        site.node6(number),
        site.host(),
        options.kernel_args
    ));
    command
}

/// The first: KVM keeps for its guests the TSC frequency that a node assumed first. What the kernel measures later differs from
/// that by up to a hundredth, and beyond 250 ppm KVM wants to scale, which emulated SVM cannot: such a guest's timers fire later and
/// later, until it seems frozen. The next three save exits. The last lets KVM report where a guest was that ends in a triple fault
/// (e2e/lab/kernel-triple-fault.patch).
const KVM_ARGS: &str = "kvm.tsc_tolerance_ppm=100000 kvm_amd.vgif=0 kvm_amd.vls=0 kvm_amd.avic=0 \
                        kvm_amd.dump_invalid_vmcb=1";
