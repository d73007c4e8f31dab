//! Making VFs.

use std::io;

use super::Sysfs;
use super::attr;
use crate::types::PciAddress;

/// The VFs of a PF could not be made.
#[derive(Debug, thiserror::Error)]
pub enum CreateVfsError {
    /// An attribute of the PF cannot be read.
    #[error("cannot read {attribute} of {pf}")]
    Read {
        /// The PF.
        pf: PciAddress,
        /// `sriov_totalvfs` or `sriov_numvfs`.
        attribute: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The function cannot have VFs, or is gone.
    #[error("{pf} is not an SR-IOV physical function")]
    NotPf {
        /// The function.
        pf: PciAddress,
    },
    /// It can have fewer.
    #[error("{pf} can have {total} VFs, not {wanted}")]
    TooMany {
        /// The PF.
        pf: PciAddress,
        /// VFs asked for.
        wanted: u16,
        /// VFs it can have.
        total: u16,
    },
    /// It has another number of VFs already; changing that would take all of them away from their users.
    #[error("{pf} has {existing} VFs already, not {wanted}; their number is never changed")]
    Exist {
        /// The PF.
        pf: PciAddress,
        /// VFs asked for.
        wanted: u16,
        /// VFs it has.
        existing: u16,
    },
    /// The driver or the PCI core refused.
    #[error("the kernel does not make {wanted} VFs on {pf}")]
    Write {
        /// The PF.
        pf: PciAddress,
        /// VFs asked for.
        wanted: u16,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl Sysfs {
    /// Makes `wanted` VFs on a PF that has none (`sriov_numvfs`); does nothing if it has exactly that many. Never
    /// changes a number other than zero.
    ///
    /// Blocks until the driver has made them, for seconds with some hardware.
    pub fn create_vfs(&self, pf: PciAddress, wanted: u16) -> Result<(), CreateVfsError> {
        let total = self.vf_count(pf, "sriov_totalvfs")?;
        if wanted > total {
            return Err(CreateVfsError::TooMany { pf, wanted, total });
        }
        match self.vf_count(pf, "sriov_numvfs")? {
            existing if existing == wanted => Ok(()),
            0 => attr::write(&self.pci_device(pf).join("sriov_numvfs"), &wanted.to_string())
                .map_err(|source| CreateVfsError::Write { pf, wanted, source }),
            existing => Err(CreateVfsError::Exist { pf, wanted, existing }),
        }
    }

    fn vf_count(&self, pf: PciAddress, attribute: &'static str) -> Result<u16, CreateVfsError> {
        let read = |source| CreateVfsError::Read {
            pf,
            attribute,
            source,
        };
        let text = attr::read_text(&self.pci_device(pf).join(attribute)).map_err(read)?;
        let text = text.ok_or(CreateVfsError::NotPf { pf })?;
        text.parse()
            .map_err(|e| read(io::Error::new(io::ErrorKind::InvalidData, e)))
    }
}
