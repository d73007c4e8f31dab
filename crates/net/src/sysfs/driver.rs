//! Which driver has a function, and giving it to another.

use std::io;

use serde::{Deserialize, Serialize};

use super::Sysfs;
use super::attr;
use crate::dev::{DevNodes, VfioUse};
use crate::types::PciAddress;

/// What `driver_override` reads as where there is none.
const NO_OVERRIDE: &str = "(null)";
/// What clears `driver_override`: a write of no bytes never reaches the kernel.
const CLEAR_OVERRIDE: &str = "\n";

/// The driver of a function and its override, enough to go back to both.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DriverState {
    /// The driver it is bound to.
    pub driver: Option<String>,
    /// The only driver it may be bound to (`driver_override`).
    pub driver_override: Option<String>,
}

/// A function could not be given to a driver.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// No such function, or it went away.
    #[error("there is no PCI function {address}")]
    NoDevice {
        /// The function.
        address: PciAddress,
    },
    /// The driver's module is not loaded, or does not exist.
    #[error("the driver {driver} is not loaded")]
    NoDriver {
        /// The driver.
        driver: String,
    },
    /// An attribute cannot be read.
    #[error("cannot read {attribute} of {address}")]
    Read {
        /// The function.
        address: PciAddress,
        /// The attribute.
        attribute: &'static str,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Somebody holds the function through vfio. Unbinding it now would block until they let go.
    #[error("{address} is in use through vfio")]
    InUse {
        /// The function.
        address: PciAddress,
    },
    /// It is unknown whether a process holds the function through vfio.
    #[error("cannot tell whether {address} is in use through vfio")]
    ProbeUse {
        /// The function.
        address: PciAddress,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// `driver_override` cannot be written.
    #[error("cannot set the driver override of {address} to {wanted:?}")]
    Override {
        /// The function.
        address: PciAddress,
        /// The override; empty for none.
        wanted: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The driver does not let go.
    #[error("cannot unbind {address} from {driver}")]
    Unbind {
        /// The function.
        address: PciAddress,
        /// The driver that has it.
        driver: String,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// The driver does not take it.
    #[error("cannot bind {address} to {driver}")]
    Bind {
        /// The function.
        address: PciAddress,
        /// The driver that should have it.
        driver: String,
        /// The kernel's error: what the driver's probe returned.
        #[source]
        source: io::Error,
    },
}

impl Sysfs {
    /// The driver of a function and its override, to be saved before [`Sysfs::bind_driver`]. Takes the device's lock: it
    /// waits for a driver that is just being bound or unbound, for ever if that hangs.
    pub fn driver_state(&self, address: PciAddress) -> Result<DriverState, DriverError> {
        let dir = self.pci_device(address);
        let read = |attribute| {
            move |source| DriverError::Read {
                address,
                attribute,
                source,
            }
        };
        let driver_override =
            attr::read_text(&dir.join("driver_override")).map_err(read("driver_override"))?;
        let driver = attr::link_name(&dir.join("driver")).map_err(read("driver"))?;
        match driver_override {
            // Every PCI function has the attribute.
            None => Err(DriverError::NoDevice { address }),
            Some(text) => {
                let set = !text.is_empty() && text != NO_OVERRIDE;
                Ok(DriverState {
                    driver,
                    driver_override: set.then_some(text),
                })
            }
        }
    }

    /// Gives a function to a driver, whatever ids the driver is made for, and keeps others from it
    /// (`driver_override`). Does nothing if it has that driver. `dev` tells whether vfio holds the function.
    ///
    /// Blocks while drivers let go and take over. On an error the function may be left without a driver;
    /// [`Sysfs::restore_driver`] goes back.
    pub fn bind_driver(&self, dev: &DevNodes, address: PciAddress, driver: &str) -> Result<(), DriverError> {
        let wanted = DriverState {
            driver: Some(driver.to_owned()),
            driver_override: Some(driver.to_owned()),
        };
        self.restore_driver(dev, address, &wanted)
    }

    /// Gives a function back to the driver it had, or to none, and sets the override it had. Does nothing if both are
    /// so already. Blocks as [`Sysfs::bind_driver`] does.
    pub fn restore_driver(
        &self,
        dev: &DevNodes,
        address: PciAddress,
        wanted: &DriverState,
    ) -> Result<(), DriverError> {
        let current = self.driver_state(address)?;
        let moves = current.driver != wanted.driver;
        if moves {
            // Both checks come before the first change.
            if let Some(driver) = wanted
                .driver
                .as_ref()
                .filter(|driver| !self.driver_dir(driver).is_dir())
            {
                return Err(DriverError::NoDriver {
                    driver: driver.clone(),
                });
            }
            self.refuse_while_in_use(dev, address)?;
        }
        // The override goes first, so that nothing else takes the function between unbind and bind.
        if current.driver_override != wanted.driver_override {
            self.set_override(address, wanted.driver_override.as_deref())?;
        }
        if !moves {
            return Ok(());
        }
        if let Some(driver) = current.driver {
            attr::write(&self.driver_dir(&driver).join("unbind"), &address.to_string()).map_err(
                |source| DriverError::Unbind {
                    address,
                    driver,
                    source,
                },
            )?;
        }
        if let Some(driver) = &wanted.driver {
            // `bind` of the driver returns what its probe returned; `drivers_probe` would swallow it.
            attr::write(&self.driver_dir(driver).join("bind"), &address.to_string()).map_err(|source| {
                DriverError::Bind {
                    address,
                    driver: driver.clone(),
                    source,
                }
            })?;
        }
        Ok(())
    }

    fn set_override(&self, address: PciAddress, wanted: Option<&str>) -> Result<(), DriverError> {
        let path = self.pci_device(address).join("driver_override");
        attr::write(&path, wanted.unwrap_or(CLEAR_OVERRIDE)).map_err(|source| DriverError::Override {
            address,
            wanted: wanted.unwrap_or_default().to_owned(),
            source,
        })
    }

    fn refuse_while_in_use(&self, dev: &DevNodes, address: PciAddress) -> Result<(), DriverError> {
        let group = attr::link_name(&self.pci_device(address).join("iommu_group")).map_err(|source| {
            DriverError::Read {
                address,
                attribute: "iommu_group",
                source,
            }
        })?;
        let Some(group) = group.and_then(|name| name.parse().ok()) else {
            return Ok(());
        };
        match dev
            .vfio_use(group)
            .map_err(|source| DriverError::ProbeUse { address, source })?
        {
            VfioUse::InUse => Err(DriverError::InUse { address }),
            VfioUse::Free | VfioUse::Unknown => Ok(()),
        }
    }

    fn driver_dir(&self, driver: &str) -> std::path::PathBuf {
        self.root().join("bus/pci/drivers").join(driver)
    }
}
