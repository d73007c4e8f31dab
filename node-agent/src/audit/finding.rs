//! What may be found that is not as it should be.

use std::fmt;

/// Something that is not as it should be.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Finding {
    /// A macvtap of ours that the journal does not have.
    LeakedMacvtap {
        /// Its name.
        macvtap: String,
        /// Its alias, which names the NIC.
        alias: String,
    },
    /// A VF with its parking MAC that the journal does not have.
    LeakedVf {
        /// Its PCI address.
        vf: String,
        /// Its PF.
        pf: String,
    },
    /// A NIC's MAC that is live on more than one PF.
    MacTwoOwners {
        /// The MAC.
        mac: String,
        /// Where: PF and what is on it.
        places: Vec<String>,
    },
}

impl Finding {
    /// All kinds.
    pub const KINDS: &[&str] = &["leaked_macvtap", "leaked_vf", "mac_two_owners"];

    /// A word for metrics.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::LeakedMacvtap { .. } => "leaked_macvtap",
            Self::LeakedVf { .. } => "leaked_vf",
            Self::MacTwoOwners { .. } => "mac_two_owners",
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::LeakedMacvtap { macvtap, alias } => write!(
                f,
                "the macvtap {macvtap} ({alias}) looks like ours and is not in the journal"
            ),
            Self::LeakedVf { vf, pf } => write!(
                f,
                "the VF {vf} of {pf} has a parking MAC of ours, and no record of the journal holds it"
            ),
            Self::MacTwoOwners { mac, places } => {
                write!(f, "the MAC {mac} is live on two PFs: {}", places.join("; "))
            }
        }
    }
}
