//! Whether a guest sends through its standby although its VF should carry the traffic. Pure.
//!
//! While the standby is down the kernel drops what the guest sends through it, and counts that (`noop_enqueue` in
//! `net/sched/sch_generic.c`). A guest whose driver of the VF runs may still not use it: net_failover could not join the two
//! (the VF refused a VLAN of the guest's), or somebody in the guest has set the VF down. Nothing else shows this, and such a guest
//! has no network. A few packets say nothing: a DHCP client that was left on the standby's own device sends some, too. So the
//! VF must show no sign of life meanwhile: no interrupt. If the hardware posts interrupts into the guest, there is none to
//! see in any case, and nothing is concluded.

/// Packets that the standby has dropped since the VF's last sign of life that make a guest one without network.
const DROPPED: u64 = 10;

/// What had been counted at the VF's last sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disuse {
    dropped: u64,
    interrupts: Option<u64>,
}

impl Disuse {
    /// Begins to watch a guest that is on its VF.
    pub fn new(dropped: u64, interrupts: Option<u64>) -> Self {
        Self { dropped, interrupts }
    }

    /// Whether the guest does not use its VF, by the packets that the standby has dropped and the interrupts that the VF has
    /// had (`None` while the guest has none switched on), which are asked for only where it matters.
    pub fn is_disused(&mut self, dropped: u64, interrupts: impl FnOnce() -> Option<u64>) -> bool {
        if dropped < self.dropped + DROPPED {
            return false;
        }
        let interrupts = interrupts();
        let are_counted = interrupts != Some(0);
        if are_counted && interrupts == self.interrupts {
            return true;
        }
        *self = Self::new(dropped, interrupts);
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vf_that_is_still_while_the_standby_drops_is_not_used() {
        let mut disuse = Disuse::new(100, Some(7));
        assert!(!disuse.is_disused(109, || Some(7)), "a few packets say nothing");
        assert!(disuse.is_disused(110, || Some(7)));
    }

    #[test]
    fn a_vf_that_lives_is_used_whatever_is_sent_by_the_standby() {
        let mut disuse = Disuse::new(0, Some(7));
        assert!(!disuse.is_disused(50, || Some(8)));
        assert!(!disuse.is_disused(59, || Some(8)));
        assert!(!disuse.is_disused(60, || Some(9)));
        assert!(disuse.is_disused(70, || Some(9)), "until it does not");
    }

    #[test]
    fn a_vf_without_driver_is_not_used() {
        let mut disuse = Disuse::new(0, Some(7));
        assert!(
            !disuse.is_disused(10, || None),
            "it has been, until some time ago"
        );
        assert!(disuse.is_disused(20, || None));
    }

    /// Posted interrupts go past the host.
    #[test]
    fn what_is_not_counted_says_nothing() {
        let mut disuse = Disuse::new(0, Some(0));
        assert!(!disuse.is_disused(1000, || Some(0)));
    }
}
