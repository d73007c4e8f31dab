//! What the switch is asked for the VF's port, where the network has a port profile.
//!
//! A port is preassociated while its VF waits for a VM that migrates here, associated before the VF is plugged, and disassociated
//! once the VF is parked. A VF that has failed is left alone until its pause is over.

use super::{Learnt, Step};
use crate::nic::seen::{Port, Seen};

/// The VF is reserved for a VM that is not here yet.
pub(super) fn keep(seen: &Seen, learnt: &Learnt) -> Option<Step> {
    match port(seen) {
        _ if learnt.vf_failed.is_some() => None,
        Port::NoProfile | Port::Preassociated => None,
        Port::Free | Port::Associated | Port::Unsettled => Some(Step::Preassociate),
    }
}

/// The VF, which has the NIC's MAC, is to carry its traffic.
pub(super) fn take(seen: &Seen) -> Option<Step> {
    match port(seen) {
        Port::NoProfile | Port::Associated => None,
        Port::Free | Port::Preassociated | Port::Unsettled => Some(Step::Associate),
    }
}

/// The VF is parked, and the standby carries the traffic.
pub(super) fn leave(seen: &Seen, learnt: &Learnt) -> Option<Step> {
    let leaves = is_left_over(seen) && learnt.vf_failed.is_none();
    leaves.then_some(Step::Disassociate)
}

/// Whether the port of a VF that carries nothing has something. What is kept for a VM does not count: the VM may just have arrived.
pub(super) fn is_left_over(seen: &Seen) -> bool {
    matches!(port(seen), Port::Associated | Port::Unsettled)
}

fn port(seen: &Seen) -> Port {
    seen.there().map_or(Port::NoProfile, |vf| vf.port)
}

pub(super) const LEFT_OVER: &str = "the switch has not taken the port profile from the port of the VF, which is parked; tried again after a pause";
