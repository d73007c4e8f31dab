//! Validated newtypes for what the kernel writes as text: MAC and PCI addresses, PCI ids, VLAN protocols, UUIDs; and for the ids of
//! devices.
//!
//! Each one prints the form the kernel prints, parses what it prints, and is a string in serde.

mod device_id;
mod mac;
mod pci;
mod uuid;
mod vlan;

pub use device_id::{DeviceId, ParseDeviceIdError, SLOTS};
pub use mac::{MacAddr, ParseMacError};
pub use pci::{ParsePciError, PciAddress, PciId};
pub use uuid::{ParseUuidError, Uuid};
pub use vlan::{ParseVlanProtocolError, VlanProtocol};

/// Gives a type with `Display` and `FromStr` the serde form of a string.
macro_rules! serde_as_string {
    ($name:ty) => {
        impl serde::Serialize for $name {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> serde::Deserialize<'de> for $name {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = <std::borrow::Cow<'de, str>>::deserialize(deserializer)?;
                text.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}
use serde_as_string;
