//! Whether a guest sends through its standby although its VF should carry the traffic. Pure.
//!
//! While the standby is down the kernel drops what the guest sends through it, and counts that (`noop_enqueue` in
//! `net/sched/sch_generic.c`). A guest whose driver of the VF runs may still not use it: net_failover could not join the two
//! (the VF refused a VLAN of the guest's), or somebody in the guest has set the VF down. Nothing else shows this, and such a guest
//! has no network. A few packets say nothing: a DHCP client that was left on the standby's own device sends some, too. So the
//! VF must show no sign of life meanwhile: no interrupt. If the hardware posts interrupts into the guest, there is none to
//! see in any case, and nothing is concluded.
//!
//! A guest that should bond the two may not have done it, and send through the standby as through an interface of its own. Its VF, which is
//! up too, then has an interrupt for each broadcast that it receives. So for such a guest it is enough that it sends much through
//! the standby. A bond sends nothing through an inactive member, but a program may, as an LLDP daemon does every half minute.

use std::time::Duration;

use hybridnic_api::v1alpha1::Pairing;
use tokio::time::Instant;

use super::plan::Sends;

/// Packets that the standby has dropped since the VF's last sign of life that make a guest one without network.
const DROPPED: u64 = 10;
/// How quickly a guest that is to have a bond must send as many for that to count though its VF shows signs of life.
const MUCH: Duration = Duration::from_mins(2);

/// What had been counted at the VF's last sign of life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Disuse {
    pairing: Pairing,
    dropped: u64,
    interrupts: Option<u64>,
    since: Instant,
}

impl Disuse {
    /// Begins to watch a guest that is on its VF.
    pub fn new(pairing: Pairing, now: Instant, dropped: u64, interrupts: Option<u64>) -> Self {
        Self {
            pairing,
            dropped,
            interrupts,
            since: now,
        }
    }

    /// Whether the guest does not use its VF, and through what it sends instead. Judged from the packets that the standby has dropped and
    /// the interrupts that the VF has had (`None` while the guest has none switched on), which are read only where it matters.
    pub fn found(
        &mut self,
        now: Instant,
        dropped: u64,
        interrupts: impl FnOnce() -> Option<u64>,
    ) -> Option<Sends> {
        if dropped < self.dropped + DROPPED {
            return None;
        }
        let interrupts = interrupts();
        let are_counted = interrupts != Some(0);
        if are_counted && interrupts == self.interrupts {
            return Some(Sends::ByStandby);
        }
        if self.pairing == Pairing::Bond && now - self.since <= MUCH {
            return Some(Sends::BesideVf);
        }
        *self = Self::new(self.pairing, now, dropped, interrupts);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Copy)]
    struct Guest {
        disuse: Disuse,
        start: Instant,
    }

    impl Guest {
        fn new(pairing: Pairing, dropped: u64, interrupts: Option<u64>) -> Self {
            let start = Instant::now();
            Self {
                disuse: Disuse::new(pairing, start, dropped, interrupts),
                start,
            }
        }

        fn at(&mut self, seconds: u64, dropped: u64, interrupts: Option<u64>) -> Option<Sends> {
            let now = self.start + Duration::from_secs(seconds);
            self.disuse.found(now, dropped, || interrupts)
        }
    }

    #[test]
    fn a_vf_that_is_still_while_the_standby_drops_is_not_used() {
        for pairing in [Pairing::NetFailover, Pairing::Bond] {
            let mut guest = Guest::new(pairing, 100, Some(7));
            assert_eq!(guest.at(1, 109, Some(7)), None, "a few packets say nothing");
            assert_eq!(guest.at(9000, 110, Some(7)), Some(Sends::ByStandby));
        }
    }

    #[test]
    fn a_vf_that_lives_is_used_whatever_is_sent_by_the_standby() {
        let mut guest = Guest::new(Pairing::NetFailover, 0, Some(7));
        assert_eq!(guest.at(1, 50, Some(8)), None);
        assert_eq!(guest.at(2, 59, Some(8)), None);
        assert_eq!(guest.at(3, 60, Some(9)), None);
        assert_eq!(
            guest.at(4, 70, Some(9)),
            Some(Sends::ByStandby),
            "until it does not"
        );
    }

    #[test]
    fn a_guest_with_a_bond_sends_next_to_nothing_by_its_standby() {
        // A program's own packets.
        let mut guest = Guest::new(Pairing::Bond, 0, Some(7));
        for nth in 1..100 {
            assert_eq!(guest.at(nth * 30, nth, Some(7 + nth)), None);
        }
        // Two interfaces: it looks for its neighbours through the one that is down, once a second; or sends hardly anything.
        for pause in [1, 10] {
            let mut guest = guest;
            let mut found = (1..=20).map(|nth| guest.at(3000 + pause * nth, 99 + nth, Some(200 + nth)));
            assert!(found.any(|sends| sends == Some(Sends::BesideVf)), "{pause}");
        }
    }

    #[test]
    fn a_vf_without_driver_is_not_used() {
        let mut guest = Guest::new(Pairing::NetFailover, 0, Some(7));
        assert_eq!(guest.at(1, 10, None), None, "it has been, until some time ago");
        assert_eq!(guest.at(2, 20, None), Some(Sends::ByStandby));
    }

    /// Posted interrupts go past the host.
    #[test]
    fn what_is_not_counted_says_nothing() {
        let mut guest = Guest::new(Pairing::NetFailover, 0, Some(0));
        assert_eq!(guest.at(1, 1000, Some(0)), None);
        let mut guest = Guest::new(Pairing::Bond, 0, Some(0));
        assert_eq!(guest.at(1, 1000, Some(0)), Some(Sends::BesideVf));
    }
}
