use std::fmt;
use std::str::FromStr;

use super::serde_as_string;

/// The address of a PCI function; `0000:01:10.0` as text, as sysfs names it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciAddress {
    domain: u32,
    bus: u8,
    /// Device (5 bits) and function (3 bits), as the kernel keeps them.
    devfn: u8,
}

/// A text that is not what sysfs writes for a PCI address or a PCI id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParsePciError {
    /// Not a domain, bus, device and function.
    #[error("`{0}` is not a PCI address like 0000:01:10.0")]
    Address(String),
    /// Not a vendor and a device id.
    #[error("`{0}` is not a PCI id like 8086:10c9")]
    Id(String),
}

impl PciAddress {
    /// The address of a function; `None` where `device` exceeds 31 or `function` 7.
    pub const fn new(domain: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 0x1f || function > 7 {
            return None;
        }
        Some(Self {
            domain,
            bus,
            devfn: device << 3 | function,
        })
    }

    /// The PCI domain (segment); more than 16 bits behind some host bridges.
    pub const fn domain(self) -> u32 {
        self.domain
    }

    /// The bus number.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// The device (slot) number, 0 to 31.
    pub const fn device(self) -> u8 {
        self.devfn >> 3
    }

    /// The function number, 0 to 7.
    pub const fn function(self) -> u8 {
        self.devfn & 7
    }
}

impl fmt::Display for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:04x}:{:02x}:{:02x}.{:x}",
            self.domain,
            self.bus,
            self.device(),
            self.function()
        )
    }
}

impl fmt::Debug for PciAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PciAddress {
    type Err = ParsePciError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        parse_address(text).ok_or_else(|| ParsePciError::Address(text.to_owned()))
    }
}

fn parse_address(text: &str) -> Option<PciAddress> {
    let (domain, rest) = text.split_once(':')?;
    let (bus, rest) = rest.split_once(':')?;
    let (device, function) = rest.split_once('.')?;
    PciAddress::new(
        hex(domain, 4..=8)?,
        u8::try_from(hex(bus, 2..=2)?).ok()?,
        u8::try_from(hex(device, 2..=2)?).ok()?,
        u8::try_from(hex(function, 1..=1)?).ok()?,
    )
}

/// A hexadecimal number of so many digits, without the sign that `from_str_radix` would take.
fn hex(text: &str, digits: std::ops::RangeInclusive<usize>) -> Option<u32> {
    let fits = digits.contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

serde_as_string!(PciAddress);

/// Vendor and device id of a PCI function; `8086:10c9` as text, as `lspci -n` writes it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PciId {
    /// Vendor id (sysfs `vendor`).
    pub vendor: u16,
    /// Device id (sysfs `device`).
    pub device: u16,
}

impl fmt::Display for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:04x}", self.vendor, self.device)
    }
}

impl fmt::Debug for PciId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PciId {
    type Err = ParsePciError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let parse = || {
            let (vendor, device) = text.split_once(':')?;
            Some(Self {
                vendor: u16::try_from(hex(vendor, 4..=4)?).ok()?,
                device: u16::try_from(hex(device, 4..=4)?).ok()?,
            })
        };
        parse().ok_or_else(|| ParsePciError::Id(text.to_owned()))
    }
}

serde_as_string!(PciId);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_parts() {
        let address: PciAddress = "10000:e1:1f.7".parse().unwrap();
        assert_eq!(
            (
                address.domain(),
                address.bus(),
                address.device(),
                address.function()
            ),
            (0x10000, 0xe1, 31, 7)
        );
        assert_eq!(address.to_string(), "10000:e1:1f.7");
    }

    #[test]
    fn refuses_what_is_no_address() {
        for text in [
            "",
            "01:10.0",
            "0000:01:20.0",
            "0000:01:10.8",
            "0000:1:10.0",
            "0000:01:10",
            "0000:01:10.0 ",
            "+000:01:10.0",
            "../0000:01:10.0",
            "000:01:10.0",
        ] {
            assert_eq!(
                text.parse::<PciAddress>(),
                Err(ParsePciError::Address(text.to_owned()))
            );
        }
        for text in ["8086", "8086:10c9:1", "0x8086:0x10c9", "8086:+0c9"] {
            assert_eq!(text.parse::<PciId>(), Err(ParsePciError::Id(text.to_owned())));
        }
    }

    proptest! {
        #[test]
        fn addresses_round_trip(domain: u32, bus: u8, device in 0u8..32, function in 0u8..8) {
            let address = PciAddress::new(domain, bus, device, function).unwrap();
            prop_assert_eq!(address.to_string().parse::<PciAddress>(), Ok(address));
            let json = serde_json::to_string(&address).unwrap();
            prop_assert_eq!(serde_json::from_str::<PciAddress>(&json).unwrap(), address);
        }

        #[test]
        fn ids_round_trip(vendor: u16, device: u16) {
            let id = PciId { vendor, device };
            prop_assert_eq!(id.to_string().parse::<PciId>(), Ok(id));
        }

        #[test]
        fn no_text_makes_the_parser_panic(text in "\\PC{0,20}") {
            let _ = text.parse::<PciAddress>();
            let _ = text.parse::<PciId>();
        }
    }
}
