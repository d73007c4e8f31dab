//! Whether a guest uses its VF: the interrupts that vfio holds for it.
//!
//! A guest's driver that takes up a VF makes QEMU ask vfio for its vectors, and `/proc/interrupts` then has a line for
//! each. Their counts move with traffic, but not where the hardware posts interrupts straight into the guest; the
//! number of vectors tells in either case.

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

/// Reads the interrupts of a function from `/proc/interrupts`.
pub fn read(address: PciAddress) -> io::Result<VfioInterrupts> {
    read_from(Path::new("/proc/interrupts"), address)
}

/// The same, from another file.
pub fn read_from(path: &Path, address: PciAddress) -> io::Result<VfioInterrupts> {
    Ok(parse(&std::fs::read_to_string(path)?, address))
}

/// Sums up the lines of a function, which end as in `vfio-msix[0](0000:01:10.0)`: drivers/vfio/pci/vfio_pci_intrs.c
/// names the handlers so.
pub fn parse(text: &str, address: PciAddress) -> VfioInterrupts {
    let suffix = format!("({address})");
    let handlers = text.lines().filter_map(|line| {
        let (numbers, rest) = line.trim_start().split_once(':')?;
        numbers.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
        // Handlers that share a line are separated by commas.
        let ours = |word: &str| word.starts_with("vfio-") && word.trim_end_matches(',').ends_with(&suffix);
        rest.split_whitespace().any(ours).then_some(rest)
    });
    handlers.fold(VfioInterrupts::default(), |sum, line| VfioInterrupts {
        vectors: sum.vectors + 1,
        // One count for each CPU, then the controller's name.
        total: sum.total
            + line
                .split_whitespace()
                .map_while(|word| word.parse::<u64>().ok())
                .sum::<u64>(),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = "\
           CPU0       CPU1
  4:          0       1234  IO-APIC    4-edge      ttyS0
 16:          5          0  IO-APIC   16-fasteoi   ehci_hcd:usb1, vfio-intx(0000:02:00.0)
 45:         10         32  PCI-MSIX-0000:01:10.0    0-edge      vfio-msix[0](0000:01:10.0)
 46:          0          1  PCI-MSIX-0000:01:10.0    1-edge      vfio-msix[1](0000:01:10.0)
 47:          7          7  PCI-MSIX-0000:01:10.2    0-edge      vfio-msix[0](0000:01:10.2)
 48:          9          9  PCI-MSIX-0000:01:10.4    0-edge      eth3-TxRx-0
NMI:          0          0   Non-maskable interrupts
";

    fn of(address: &str) -> VfioInterrupts {
        parse(TEXT, address.parse().unwrap())
    }

    #[test]
    fn counts_only_the_functions_own() {
        assert_eq!(
            of("0000:01:10.0"),
            VfioInterrupts {
                vectors: 2,
                total: 43
            }
        );
        assert_eq!(
            of("0000:01:10.2"),
            VfioInterrupts {
                vectors: 1,
                total: 14
            }
        );
        assert_eq!(of("0000:02:00.0"), VfioInterrupts { vectors: 1, total: 5 });
        assert_eq!(of("0000:01:10.4"), VfioInterrupts::default());
    }

    #[test]
    fn the_machines_own_file_has_none_for_a_function_it_lacks() {
        assert_eq!(
            read("ffff:ff:1f.7".parse().unwrap()).unwrap(),
            VfioInterrupts::default()
        );
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,200}") {
            let _ = parse(&text, PciAddress::new(0, 1, 0x10, 0).unwrap());
        }
    }
}
