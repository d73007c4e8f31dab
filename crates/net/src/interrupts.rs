//! Whether a guest uses its VF: the interrupts that vfio holds for it.
//!
//! A guest's driver that takes up a VF makes QEMU ask vfio for its vectors, and each of them is an interrupt of the kernel's
//! with vfio's name. Their counts move with traffic, but not where the hardware posts interrupts straight into the guest; the
//! number of vectors tells in either case.
//!
//! The function's own interrupts are read one by one in sysfs (`Documentation/ABI/testing/sysfs-bus-pci` and
//! `sysfs-kernel-irq`): a microsecond each. `/proc/interrupts` has them too, among those of all others: on a large machine the
//! kernel takes a tenth of a second to write it.

use std::io;
use std::path::Path;

use crate::types::PciAddress;

/// The interrupts vfio holds for a function.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VfioInterrupts {
    /// Vectors that are set up; none while no driver in a guest uses the function.
    pub vectors: u32,
    /// Interrupts so far, over all vectors and CPUs.
    pub total: u64,
}

/// Reads the interrupts of a function that has message signalled ones, as each VF has.
pub fn read(address: PciAddress) -> io::Result<VfioInterrupts> {
    read_below(Path::new("/sys"), address)
}

/// The same, from a sysfs mounted elsewhere.
///
/// # Errors
/// The kernel has no `/sys/kernel/irq` (`CONFIG_SPARSE_IRQ`, which x86-64 and arm64 always have), or a file that cannot be read.
pub fn read_below(sysfs: &Path, address: PciAddress) -> io::Result<VfioInterrupts> {
    let irqs = sysfs
        .join("bus/pci/devices")
        .join(address.to_string())
        .join("msi_irqs");
    let all = sysfs.join("kernel/irq");
    if !all.is_dir() {
        let text = format!("{} is not there", all.display());
        return Err(io::Error::new(io::ErrorKind::Unsupported, text));
    }
    let mut sum = VfioInterrupts::default();
    // Without vectors there is no such directory.
    for entry in found(std::fs::read_dir(irqs))?.into_iter().flatten() {
        let irq = all.join(entry?.file_name());
        // An interrupt may be freed while it is read.
        let Some(names) = found(std::fs::read_to_string(irq.join("actions")))? else {
            continue;
        };
        // drivers/vfio/pci/vfio_pci_intrs.c names its handlers `vfio-msix[0](0000:01:10.0)`.
        if !names
            .split(',')
            .any(|name| name.trim_start().starts_with("vfio-"))
        {
            continue;
        }
        sum.vectors += 1;
        let counts = found(std::fs::read_to_string(irq.join("per_cpu_count")))?;
        sum.total = sum.total.wrapping_add(count(&counts.unwrap_or_default()));
    }
    Ok(sum)
}

/// The sum of `12,0,7`: one count for each CPU. A counter that overflows starts again at 0.
pub(crate) fn count(text: &str) -> u64 {
    text.trim()
        .split(',')
        .filter_map(|count| count.parse::<u64>().ok())
        .fold(0, u64::wrapping_add)
}

fn found<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(e) => Err(e),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn of(sysfs: &Path, address: &str) -> VfioInterrupts {
        read_below(sysfs, address.parse().unwrap()).unwrap()
    }

    #[test]
    fn counts_only_vfios_own_of_the_function() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = dir.path();
        let add = |address: &str, irq: u32, names: &str, counts: &str| {
            let irqs = sysfs.join("bus/pci/devices").join(address).join("msi_irqs");
            fs::create_dir_all(&irqs).unwrap();
            fs::write(irqs.join(irq.to_string()), "msix\n").unwrap();
            let irq = sysfs.join("kernel/irq").join(irq.to_string());
            fs::create_dir_all(&irq).unwrap();
            fs::write(irq.join("actions"), names).unwrap();
            fs::write(irq.join("per_cpu_count"), counts).unwrap();
        };
        let (vf, other, host) = ("0000:01:10.0", "0000:01:10.2", "0000:01:10.4");
        fs::create_dir_all(sysfs.join("kernel/irq")).unwrap();
        assert_eq!(of(sysfs, vf), VfioInterrupts::default(), "no driver has vectors");
        add(vf, 45, "vfio-msix[0](0000:01:10.0)\n", "10,32\n");
        add(vf, 46, "vfio-msix[1](0000:01:10.0)\n", "0,1\n");
        // Allotted, and not asked for by the guest.
        add(vf, 47, "\n", "0,0\n");
        add(other, 48, "vfio-msix[0](0000:01:10.2)\n", "7,7\n");
        add(host, 49, "eth3-TxRx-0\n", "9,9\n");
        assert_eq!(
            of(sysfs, vf),
            VfioInterrupts {
                vectors: 2,
                total: 43
            }
        );
        assert_eq!(
            of(sysfs, other),
            VfioInterrupts {
                vectors: 1,
                total: 14
            }
        );
        assert_eq!(of(sysfs, host), VfioInterrupts::default());
        // Freed between the look at the one directory and the other.
        fs::remove_dir_all(sysfs.join("kernel/irq/46")).unwrap();
        assert_eq!(
            of(sysfs, vf),
            VfioInterrupts {
                vectors: 1,
                total: 42
            }
        );
    }

    #[test]
    fn counts_that_are_too_large_for_their_sum_are_no_end_of_the_agent() {
        assert_eq!(count("12,0,7\n"), 19);
        assert_eq!(count(&format!("{},2\n", u64::MAX)), 1);
        assert_eq!(count("12,,x,-1,7"), 19);
    }

    #[test]
    fn a_kernel_that_cannot_say_is_no_guest_without_a_driver() {
        let dir = tempfile::tempdir().unwrap();
        read_below(dir.path(), "0000:01:10.0".parse().unwrap()).unwrap_err();
    }
}
