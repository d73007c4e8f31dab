//! The id of a device that the kubelet gives to a pod: a slot of a PF. A macvtap that is made for it has an index, and so a
//! device node, that follow from the id: the node's path is known before there is a macvtap.

use std::{fmt, path::PathBuf, str::FromStr};

use crate::{ParsePciError, PciAddress};

/// How many slots a PF can have.
pub const SLOTS: u16 = 1 << 12;
/// PCI domains that fit into an index.
const DOMAINS: u32 = 4;
/// Above all indexes that the kernel chooses by itself, because it counts from one.
const BASE: u32 = 1 << 30;

/// A slot of a PF; `0000:01:00.0-3` as text.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceId {
    pf: PciAddress,
    slot: u16,
}

/// A text that is no device's id.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseDeviceIdError {
    /// Not a PF and a slot.
    #[error("`{0}` is not the id of a device like 0000:01:00.0-3")]
    Form(String),
    /// What is before the slot is no PF's address.
    #[error(transparent)]
    Pf(#[from] ParsePciError),
}

impl DeviceId {
    /// A slot of a PF; `None` if no index can stand for it: the PF is in a PCI domain above 3, or it has too many slots.
    pub const fn new(pf: PciAddress, slot: u16) -> Option<Self> {
        if pf.domain() >= DOMAINS || slot >= SLOTS {
            return None;
        }
        Some(Self { pf, slot })
    }

    /// The PF.
    pub const fn pf(self) -> PciAddress {
        self.pf
    }

    /// The slot.
    pub const fn slot(self) -> u16 {
        self.slot
    }

    /// The index of its macvtap.
    pub fn ifindex(self) -> u32 {
        let function =
            u32::from(self.pf.bus()) << 8 | u32::from(self.pf.device()) << 3 | u32::from(self.pf.function());
        BASE | self.pf.domain() << 28 | function << 12 | u32::from(self.slot)
    }

    /// Whose macvtap has this index; `None` where the kernel chose it.
    pub fn of_ifindex(index: u32) -> Option<Self> {
        let rest = index.checked_sub(BASE).filter(|rest| *rest < BASE)?;
        let [_, _, bus, devfn] = (rest >> 12 & 0xffff).to_be_bytes();
        let pf = PciAddress::new(rest >> 28, bus, devfn >> 3, devfn & 7)?;
        Self::new(pf, u16::try_from(rest & 0xfff).ok()?)
    }

    /// The device node of its macvtap, on the node and in the pod: libvirt looks for it by the index.
    pub fn node(self) -> PathBuf {
        PathBuf::from(format!("/dev/tap{}", self.ifindex()))
    }
}

impl fmt::Display for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.pf, self.slot)
    }
}

impl fmt::Debug for DeviceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for DeviceId {
    type Err = ParseDeviceIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let form = || ParseDeviceIdError::Form(text.to_owned());
        let (pf, slot) = text.rsplit_once('-').ok_or_else(form)?;
        let number = slot.parse().map_err(|_| form())?;
        // One id has one form: `+3` and `03` are none.
        if slot != u16::to_string(&number) {
            return Err(form());
        }
        Self::new(pf.parse()?, number).ok_or_else(form)
    }
}

super::serde_as_string!(DeviceId);

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn an_id_says_its_index_and_its_node() {
        let id: DeviceId = "0000:01:00.0-3".parse().unwrap();
        assert_eq!(id.ifindex(), 0x4010_0003);
        assert_eq!(id.node(), PathBuf::from("/dev/tap1074790403"));
        let last = DeviceId::new(PciAddress::new(3, 0xff, 0x1f, 7).unwrap(), 4095).unwrap();
        assert_eq!(last.ifindex(), 0x7fff_ffff, "the largest that the kernel takes");
        let far = PciAddress::new(4, 0, 0, 0).unwrap();
        assert_eq!(DeviceId::new(far, 0), None);
        assert_eq!(DeviceId::new(id.pf(), 4096), None);
        for none in [0, 1, 1_000_123, 0x3fff_ffff, 0x8000_0000, u32::MAX] {
            assert_eq!(DeviceId::of_ifindex(none), None, "{none}");
        }
    }

    #[test]
    fn what_is_no_id_is_refused() {
        for text in [
            "",
            "3",
            "0000:01:00.0",
            "0000:01:00.0-",
            "0000:01:00.0-03",
            "0000:01:00.0-+3",
            "0000:01:00.0--3",
        ] {
            assert!(text.parse::<DeviceId>().is_err(), "{text}");
        }
        for text in ["0000:01:00.0-4096", "0004:01:00.0-1", "0000:01:00.0-70000", "x-1"] {
            assert!(text.parse::<DeviceId>().is_err(), "{text}");
        }
    }

    fn ids() -> impl Strategy<Value = DeviceId> {
        (0..4u32, any::<u8>(), 0..32u8, 0..8u8, 0..4096u16).prop_map(
            |(domain, bus, device, function, slot)| {
                DeviceId::new(PciAddress::new(domain, bus, device, function).unwrap(), slot).unwrap()
            },
        )
    }

    proptest! {
        #[test]
        fn an_id_its_text_and_its_index_are_one_to_one(ids in prop::collection::vec(ids(), 1..50)) {
            let mut seen = HashMap::new();
            for id in ids {
                prop_assert_eq!(id.to_string().parse::<DeviceId>(), Ok(id));
                prop_assert_eq!(DeviceId::of_ifindex(id.ifindex()), Some(id));
                prop_assert!(id.to_string().len() <= 63 && i32::try_from(id.ifindex()).is_ok());
                prop_assert_eq!(*seen.entry(id.ifindex()).or_insert(id), id);
            }
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,20}") {
            let _ = text.parse::<DeviceId>();
        }
    }
}
