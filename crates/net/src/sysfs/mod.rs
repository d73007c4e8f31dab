//! Physical and virtual functions as sysfs shows them, and the few writes that change them.
//!
//! Everything here blocks, as file access does. Reads return at once, except for [`Sysfs::driver_state`], which takes the
//! device's lock. It and the writes of [`Sysfs::create_vfs`], [`Sysfs::bind_driver`] and [`Sysfs::restore_driver`] wait for
//! drivers and may take seconds, or forever if a driver hangs: run them on a thread of their own, one at a time for each
//! device, and give the wait a deadline.

mod attr;
mod discover;
mod driver;
mod function;
mod model;
mod provision;
#[cfg(test)]
mod tests;

use std::{
    fs, io,
    path::{Path, PathBuf},
};

pub use discover::DiscoverError;
pub use driver::{DriverError, DriverState};
pub use function::Presence;
pub use model::{Inventory, LinkLayer, Master, MasterKind, Pf, Problem, Vf, VfNetdev};
pub use provision::CreateVfsError;

use crate::types::{PciAddress, Uuid};

/// A sysfs, by the path it is mounted at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysfs {
    root: PathBuf,
}

impl Default for Sysfs {
    /// The one at `/sys`.
    fn default() -> Self {
        Self::new("/sys")
    }
}

impl Sysfs {
    /// The sysfs mounted at `root`. Its network devices are those of the network namespace it was mounted in.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Where it is mounted.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Packets that a network interface has dropped instead of sending them: the kernel's `statistics/tx_dropped`
    /// (`Documentation/ABI/testing/sysfs-class-net-statistics`). Meant for repeated reads: netlink reports all of an interface or
    /// nothing.
    ///
    /// # Errors
    /// There is no such interface, or its file does not contain a number.
    pub fn tx_dropped(&self, interface: &str) -> io::Result<u64> {
        let path = self.net_device(interface).join("statistics/tx_dropped");
        let text = fs::read_to_string(path)?;
        text.trim().parse().map_err(io::Error::other)
    }

    /// The UUID that the firmware gives the machine (`product_uuid` of `/sys/class/dmi/id`); `None` if it has none, or a meaningless one.
    pub fn machine_uuid(&self) -> Option<Uuid> {
        let text = fs::read_to_string(self.root.join("class/dmi/id/product_uuid")).ok()?;
        text.trim().parse().ok().filter(|uuid: &Uuid| !uuid.is_blank())
    }

    /// Directory of a PCI function.
    pub(crate) fn pci_device(&self, address: PciAddress) -> PathBuf {
        self.root.join("bus/pci/devices").join(address.to_string())
    }

    /// Directory of a network interface.
    pub(crate) fn net_device(&self, name: &str) -> PathBuf {
        self.root.join("class/net").join(name)
    }
}
