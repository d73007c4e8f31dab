use std::fmt;
use std::str::FromStr;

use super::serde_as_string;

/// The tag protocol of a VLAN; `802.1Q` or `802.1ad` as text, as `ip link` prints it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VlanProtocol {
    /// IEEE 802.1Q, the customer tag (EtherType 0x8100).
    #[default]
    Dot1q,
    /// IEEE 802.1ad, the service tag of "QinQ" (EtherType 0x88a8).
    Dot1ad,
}

/// A text that is neither `802.1Q` nor `802.1ad`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a VLAN protocol: write 802.1Q or 802.1ad")]
pub struct ParseVlanProtocolError(pub(crate) String);

impl fmt::Display for VlanProtocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dot1q => "802.1Q",
            Self::Dot1ad => "802.1ad",
        })
    }
}

impl FromStr for VlanProtocol {
    type Err = ParseVlanProtocolError;

    /// Case does not matter: iproute2 itself prints one form and reads another.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        [Self::Dot1q, Self::Dot1ad]
            .into_iter()
            .find(|protocol| protocol.to_string().eq_ignore_ascii_case(text))
            .ok_or_else(|| ParseVlanProtocolError(text.to_owned()))
    }
}

serde_as_string!(VlanProtocol);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_protocols_round_trip() {
        for (protocol, text) in [(VlanProtocol::Dot1q, "802.1Q"), (VlanProtocol::Dot1ad, "802.1ad")] {
            assert_eq!(text.parse(), Ok(protocol));
            assert_eq!(text.to_lowercase().parse(), Ok(protocol));
            assert_eq!(serde_json::to_string(&protocol).unwrap(), format!("\"{text}\""));
            assert_eq!(
                serde_json::from_str::<VlanProtocol>(&format!("\"{text}\"")).unwrap(),
                protocol
            );
        }
        assert!("802.1".parse::<VlanProtocol>().is_err());
    }
}
