use std::fmt;
use std::str::FromStr;

use super::serde_as_string;

/// An Ethernet MAC address; `52:54:00:0a:0b:0c` as text, in lower case.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

/// A text that is not a MAC address of six hexadecimal pairs with colons between them.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a MAC address like 52:54:00:0a:0b:0c")]
pub struct ParseMacError(pub(crate) String);

impl MacAddr {
    /// `00:00:00:00:00:00`, which drivers take as "no address set" for a VF.
    pub const ZERO: Self = Self([0; 6]);
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// The address made of these octets, in the order of transmission.
    pub const fn new(octets: [u8; 6]) -> Self {
        Self(octets)
    }

    /// The octets, in the order of transmission.
    pub const fn octets(self) -> [u8; 6] {
        self.0
    }

    /// The address in the first six octets, as netlink pads it; `None` of a shorter slice.
    pub fn from_prefix(bytes: &[u8]) -> Option<Self> {
        bytes.first_chunk().copied().map(Self)
    }

    /// Whether all octets are zero.
    pub const fn is_zero(self) -> bool {
        matches!(self.0, [0, 0, 0, 0, 0, 0])
    }

    /// Whether one interface can own it: not a group address and not all zeroes (`is_valid_ether_addr` of the
    /// kernel).
    pub const fn is_unicast(self) -> bool {
        self.0[0] & 0x01 == 0 && !self.is_zero()
    }

    /// Whether it is a group's: one that interfaces receive besides their own. Broadcast, which all receive, does not count.
    pub const fn is_multicast(self) -> bool {
        self.0[0] & 0x01 == 1 && !matches!(self.0, [0xff, 0xff, 0xff, 0xff, 0xff, 0xff])
    }

    /// Whether it is locally administered (the U/L bit), so no vendor's.
    pub const fn is_local(self) -> bool {
        self.0[0] & 0x02 != 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [first, rest @ ..] = self.0;
        write!(f, "{first:02x}")?;
        rest.iter().try_for_each(|octet| write!(f, ":{octet:02x}"))
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for MacAddr {
    type Err = ParseMacError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            *octet = parts
                .next()
                .and_then(hex_pair)
                .ok_or_else(|| ParseMacError(text.to_owned()))?;
        }
        if parts.next().is_some() {
            return Err(ParseMacError(text.to_owned()));
        }
        Ok(Self(octets))
    }
}

/// `from_str_radix` alone would take a sign.
fn hex_pair(text: &str) -> Option<u8> {
    let fits = text.len() == 2 && text.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| u8::from_str_radix(text, 16).ok()).flatten()
}

serde_as_string!(MacAddr);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn tells_kinds_of_addresses_apart() {
        let mac = |text: &str| text.parse::<MacAddr>().unwrap();
        assert!(mac("52:54:00:00:00:01").is_unicast());
        assert!(mac("52:54:00:00:00:01").is_local());
        assert!(!mac("00:1b:21:00:00:01").is_local());
        assert!(!mac("01:00:5e:00:00:01").is_unicast());
        assert!(!MacAddr::ZERO.is_unicast());
        assert!(!MacAddr::BROADCAST.is_unicast());
    }

    #[test]
    fn refuses_what_is_no_mac() {
        for text in [
            "",
            "52:54:00:00:00",
            "52:54:00:00:00:01:02",
            "52-54-00-00-00-01",
            "5:54:00:00:00:01",
            "+2:54:00:00:00:01",
            "52:54:00:00:00:0g",
            " 52:54:00:00:00:01",
        ] {
            assert_eq!(text.parse::<MacAddr>(), Err(ParseMacError(text.to_owned())));
        }
    }

    #[test]
    fn upper_case_is_read_and_lower_case_written() {
        assert_eq!(
            "AA:BB:CC:DD:EE:FF".parse::<MacAddr>().unwrap().to_string(),
            "aa:bb:cc:dd:ee:ff"
        );
    }

    proptest! {
        #[test]
        fn text_and_json_round_trip(octets: [u8; 6]) {
            let mac = MacAddr::new(octets);
            prop_assert_eq!(mac.to_string().parse::<MacAddr>(), Ok(mac));
            let json = serde_json::to_string(&mac).unwrap();
            prop_assert_eq!(serde_json::from_str::<MacAddr>(&json).unwrap(), mac);
        }

        #[test]
        fn any_text_is_refused_or_means_itself(text in "\\PC{0,20}") {
            if let Ok(mac) = text.parse::<MacAddr>() {
                prop_assert_eq!(mac.to_string(), text.to_lowercase());
            }
        }
    }
}
