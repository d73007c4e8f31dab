//! Whether a NIC whose VF and standby are on two PFs may go back to a VF of its standby's. Pure.
//!
//! A standby in the guest cannot move (`docs/decisions/0012-a-removed-macvtap.md`), so only the VF can end the split. That costs the
//! guest a gap, and a PF that has just come back may go again: so the NIC has been split for a while, and all that while its standby's
//! PF could have carried the VF.

use std::time::Duration;

use hybridnic_net::PciAddress;
use tokio::time::Instant;

/// The way of a NIC's VF back to its standby's PF.
#[derive(Clone, Copy, Debug)]
pub struct WayHome {
    /// How long the NIC must have been split, and its standby's PF fit.
    steady: Duration,
    split: Option<Split>,
}

#[derive(Clone, Copy, Debug)]
struct Split {
    /// The PFs of VF and standby.
    pfs: (PciAddress, PciAddress),
    since: Instant,
    clear: bool,
}

impl WayHome {
    /// The way is clear once the NIC has been split, and its standby's PF fit, for as long as `steady`.
    pub fn new(steady: Duration) -> Self {
        Self { steady, split: None }
    }

    /// Notes the PFs of VF and standby where the NIC is split and its standby's PF is fit for a VF, and `None` otherwise; returns whether
    /// that has lasted.
    pub fn is_clear(&mut self, pfs: Option<(PciAddress, PciAddress)>, now: Instant) -> bool {
        self.split = pfs.map(|pfs| match self.split {
            Some(split) if split.pfs == pfs => Split {
                clear: now >= split.since + self.steady,
                ..split
            },
            _ => Split {
                pfs,
                since: now,
                clear: false,
            },
        });
        self.split.is_some_and(|split| split.clear)
    }

    /// When to look again although nothing tells to.
    pub fn next_look(&self) -> Option<Instant> {
        let split = self.split.filter(|split| !split.clear)?;
        Some(split.since + self.steady)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pf(n: u8) -> PciAddress {
        hybridnic_net::testing::pf_address(n)
    }

    #[test]
    fn it_is_clear_after_a_while_in_which_nothing_has_changed() {
        let (start, mut way) = (Instant::now(), WayHome::new(Duration::from_mins(1)));
        let at = |seconds| start + Duration::from_secs(seconds);
        let split = Some((pf(1), pf(0)));
        assert!(!way.is_clear(None, at(0)));
        assert_eq!(way.next_look(), None);
        assert!(!way.is_clear(split, at(1)) && !way.is_clear(split, at(60)));
        assert_eq!(way.next_look(), Some(at(61)));
        assert!(way.is_clear(split, at(61)) && way.is_clear(split, at(62)));
        assert_eq!(way.next_look(), None, "nothing is waited for any more");
        // The standby's PF has lost its link, or is drained.
        assert!(!way.is_clear(None, at(63)) && !way.is_clear(split, at(64)));
        assert!(!way.is_clear(split, at(123)) && way.is_clear(split, at(124)));
        // Another VF on another PF.
        assert!(!way.is_clear(Some((pf(2), pf(0))), at(125)));
    }
}
