//! What the guest asks its standby to receive, and what follows for the macvtap. Pure.
//!
//! A macvtap passes to the guest its own address, broadcast, and the multicast addresses of its list. So that list follows
//! the guest's, because otherwise IPv6 would not find the guest on its standby. Further unicast addresses and VLANs that the
//! guest makes reach only its VF; the NIC's status says so.

use std::collections::BTreeSet;

use hybridnic_net::{MacAddr, multicast::Received};
use hybridnic_qmp::commands::{RxFilter, RxState};

/// The most multicast addresses that a macvtap gets. QEMU keeps 64 of a guest.
const MOST: usize = 256;

/// More VLANs than this are not the guest's: QEMU, for example 10.0, then fills the table at the start, and removes only what
/// a guest gives up.
const VLANS_BELIEVED: usize = 2048;

/// How a macvtap's list becomes the guest's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Addresses to add.
    pub add: BTreeSet<MacAddr>,
    /// Addresses to take off.
    pub remove: BTreeSet<MacAddr>,
    /// Whether to take every multicast from now on; `None` leaves it.
    pub all: Option<bool>,
}

impl Change {
    /// The same, but nothing is taken off a macvtap that receives `now`, as long as there is room.
    #[must_use]
    pub fn without_loss(self, now: &Received) -> Self {
        let excess = (now.added.len() + self.add.len()).saturating_sub(MOST);
        Self {
            remove: self.remove.into_iter().take(excess).collect(),
            all: self.all.filter(|all| *all),
            add: self.add,
        }
    }
}

/// What the guest asks for that a macvtap does not do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Beyond {
    /// VLANs that the guest has made, as far as QEMU knows.
    pub vlans: BTreeSet<u16>,
    /// Whether it receives for other unicast addresses than the NIC's.
    pub macs: bool,
}

/// What to change on a macvtap that receives `now`.
pub fn change(filter: &RxFilter, now: &Received) -> Change {
    let all_of_table = filter.multicast == RxState::Normal;
    let groups = filter.multicast_table.iter().filter_map(|mac| group(mac));
    let mut wanted: BTreeSet<MacAddr> = groups.take(MOST).collect();
    if !all_of_table {
        wanted.clear();
    }
    let overflow = filter.multicast_overflow || filter.multicast_table.len() > MOST;
    let all = filter.multicast == RxState::All || (overflow && filter.multicast != RxState::None);
    if all {
        // The list comes first: some cards do not deliver every multicast to a PF that asks for it.
        let room = MOST.saturating_sub(wanted.len());
        let kept: Vec<_> = now.added.difference(&wanted).take(room).copied().collect();
        wanted.extend(kept);
    }
    Change {
        add: wanted.difference(&now.added).copied().collect(),
        remove: now.added.difference(&wanted).copied().collect(),
        all: (all != now.all).then_some(all),
    }
}

/// The part that the macvtap cannot do.
pub fn beyond(filter: &RxFilter) -> Beyond {
    let table = &filter.vlan_table;
    let known = filter.vlan == RxState::Normal && table.len() <= VLANS_BELIEVED;
    Beyond {
        // Linux adds VLAN 0, frames with a priority only, to each interface that comes up.
        vlans: table.iter().copied().filter(|id| known && *id != 0).collect(),
        // Before a guest's driver has spoken it is promiscuous, and has no multicast address.
        macs: !filter.unicast_table.is_empty()
            || filter.unicast_overflow
            || (filter.promiscuous && !filter.multicast_table.is_empty()),
    }
}

/// A multicast address. The guest chose it, so anything may be there.
fn group(text: &str) -> Option<MacAddr> {
    text.parse().ok().filter(|mac: &MacAddr| mac.is_multicast())
}

#[cfg(test)]
#[path = "rx_filter_tests.rs"]
mod tests;
