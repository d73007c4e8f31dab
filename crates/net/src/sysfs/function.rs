//! One function by its PCI address: whether it is there, which driver it has, and which interface. Reads only, and nothing
//! that takes the device's lock, so that a driver that hangs does not block a reader.

use std::fs;
use std::io::{self, ErrorKind};

use super::Sysfs;
use super::attr;
use super::discover::is_representor;
use crate::types::PciAddress;

/// Whether a PCI function is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// There is no such function.
    Absent,
    /// It is there.
    Present {
        /// The driver that it is bound to.
        driver: Option<String>,
    },
}

impl Sysfs {
    /// Whether a function is there, and its driver. [`Presence::Absent`] is proof: the kernel lists PCI functions, and this
    /// one is not among them.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn presence(&self, address: PciAddress) -> io::Result<Presence> {
        let dir = self.pci_device(address);
        match fs::metadata(&dir) {
            Ok(_) => Ok(Presence::Present {
                driver: attr::link_name(&dir.join("driver"))?,
            }),
            // If the list is missing, nothing is known about its entries.
            Err(error) if error.kind() == ErrorKind::NotFound => {
                fs::read_dir(self.root().join("bus/pci/devices"))?;
                Ok(Presence::Absent)
            }
            Err(error) => Err(error),
        }
    }

    /// Kernel index of a PF's own interface, which stays what it is when the interface is renamed. `None` where the PF has
    /// none here: no driver, or it is in another network namespace; or there is no such PF.
    ///
    /// # Errors
    /// It cannot be told.
    pub fn interface_index(&self, pf: PciAddress) -> io::Result<Option<u32>> {
        let net = self.pci_device(pf).join("net");
        let mut names = attr::names(&net)?.into_iter();
        let Some(name) = names.find(|name| !is_representor(&net.join(name))) else {
            return Ok(None);
        };
        // Renamed since, or gone: the next look has it.
        let text = attr::read_text(&net.join(name).join("ifindex"))?;
        text.map(|text| text.parse().map_err(io::Error::other))
            .transpose()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{make_sysfs, pf_address, vf_address};

    #[test]
    fn a_function_is_absent_only_where_the_kernel_lists_others() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = make_sysfs(dir.path(), 1, 2).unwrap();
        let driver = |name: &str| Presence::Present {
            driver: Some(name.into()),
        };
        assert_eq!(sysfs.presence(vf_address(0, 0)).unwrap(), driver("vfio-pci"));
        assert_eq!(sysfs.presence(vf_address(0, 1)).unwrap(), driver("igbvf"));
        assert_eq!(sysfs.presence(vf_address(0, 2)).unwrap(), Presence::Absent);
        let vf = dir.path().join(format!("bus/pci/devices/{}", vf_address(0, 0)));
        // What is known about a driver differs from what is known about its function.
        fs::remove_file(vf.join("driver")).unwrap();
        fs::write(vf.join("driver"), "").unwrap();
        sysfs.presence(vf_address(0, 0)).unwrap_err();
        fs::remove_dir_all(dir.path().join("bus/pci/devices")).unwrap();
        sysfs.presence(vf_address(0, 0)).unwrap_err();
    }

    #[test]
    fn a_pf_that_is_renamed_is_the_same_interface() {
        let dir = tempfile::tempdir().unwrap();
        let sysfs = make_sysfs(dir.path(), 2, 0).unwrap();
        let before = sysfs.interface_index(pf_address(1)).unwrap();
        assert_eq!(before, Some(3));
        let net = dir.path().join(format!("bus/pci/devices/{}/net", pf_address(1)));
        fs::rename(net.join("ens1"), net.join("ens1np0")).unwrap();
        assert_eq!(sysfs.interface_index(pf_address(1)).unwrap(), before);
        // The port of its VF 0, whose name comes first.
        fs::create_dir(net.join("aaa")).unwrap();
        fs::write(net.join("aaa/ifindex"), "50\n").unwrap();
        fs::write(net.join("aaa/phys_port_name"), "pf1vf0\n").unwrap();
        assert_eq!(sysfs.interface_index(pf_address(1)).unwrap(), before);
        fs::remove_dir_all(&net).unwrap();
        assert_eq!(sysfs.interface_index(pf_address(1)).unwrap(), None);
        assert_eq!(sysfs.interface_index(vf_address(3, 0)).unwrap(), None);
    }
}
