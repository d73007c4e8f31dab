//! What a network's settings mean for a VF and for a standby. Pure.

use hybridnic_api::v1alpha1::{self, L2Settings};
use hybridnic_net::{
    MacAddr, VlanProtocol,
    netlink::{Guard, MacvtapMode, VfConfig, VfLinkState},
};

use crate::journal::VfRecord;

/// The VF's settings that a network's L2 settings ask for, with the NIC's MAC.
pub fn wanted(vf: &VfRecord, mac: MacAddr, l2: &L2Settings) -> VfConfig {
    let vlan = l2.vlan.as_ref();
    let (min_tx_rate, max_tx_rate) = rates(vf, l2);
    VfConfig {
        index: vf.index,
        mac: Some(mac),
        vlan: Some(vlan.and_then(|v| u16::try_from(v.id).ok()).unwrap_or(0)),
        qos: Some(vlan.and_then(|v| u8::try_from(v.qos).ok()).unwrap_or(0)),
        vlan_proto: Some(vlan.map_or(VlanProtocol::Dot1q, |v| protocol(v.protocol))),
        spoofchk: Some(l2.spoof_check),
        trust: Some(l2.trust),
        min_tx_rate,
        max_tx_rate,
        // A VF whose link is always down gives a guest none.
        link_state: vf.saved.link_state.map(|saved| match saved {
            VfLinkState::Disable => VfLinkState::Auto,
            other => other,
        }),
    }
}

/// The same for a VF that is parked. It stays in its network: a process that still has its descriptor, no matter what QEMU says, must gain
/// nothing, and without a VLAN the VF would be a trunk of all VLANs of its PF.
pub fn parked(vf: &VfRecord, l2: &L2Settings) -> VfConfig {
    VfConfig {
        spoofchk: Some(true),
        trust: Some(false),
        ..wanted(vf, vf.parking_mac, l2)
    }
}

/// The rates that a VF should have. Where the network asks for none they are left alone: some drivers always show one. One that
/// we have set is taken back.
fn rates(vf: &VfRecord, l2: &L2Settings) -> (Option<u32>, Option<u32>) {
    let rate = |n: Option<i32>| Some(n.and_then(|n| u32::try_from(n).ok()).unwrap_or(0));
    match &l2.rate {
        Some(asked) => (rate(asked.min_mbps), rate(asked.max_mbps)),
        None => saved_rates(vf),
    }
}

/// The rates to go back to; none where they were never changed.
pub fn saved_rates(vf: &VfRecord) -> (Option<u32>, Option<u32>) {
    if vf.rate_set {
        (vf.saved.min_tx_rate.or(Some(0)), vf.saved.max_tx_rate.or(Some(0)))
    } else {
        (None, None)
    }
}

/// The kernel's protocol of an API's.
pub fn protocol(protocol: v1alpha1::VlanProtocol) -> VlanProtocol {
    match protocol {
        v1alpha1::VlanProtocol::Dot1q => VlanProtocol::Dot1q,
        v1alpha1::VlanProtocol::Dot1ad => VlanProtocol::Dot1ad,
    }
}

/// The kernel's mode of an API's.
pub fn mode(l2: &L2Settings) -> MacvtapMode {
    match l2.macvtap_mode {
        v1alpha1::MacvtapMode::Bridge => MacvtapMode::Bridge,
        v1alpha1::MacvtapMode::Vepa => MacvtapMode::Vepa,
    }
}

/// What a standby lets through: as much as the VF with the network's settings.
pub fn guard(mac: MacAddr, l2: &L2Settings) -> Guard {
    let rate = l2.rate.as_ref().and_then(|rate| rate.max_mbps);
    Guard {
        mac,
        any_source: !l2.spoof_check,
        any_destination: l2.trust,
        tags: l2.guest_vlans,
        rate: rate
            .and_then(|mbps| u32::try_from(mbps).ok())
            .filter(|mbps| *mbps > 0),
    }
}

/// The MTU that a standby should have where there is room for so much.
pub fn mtu(l2: &L2Settings, room: u32) -> u32 {
    let asked = l2.mtu.and_then(|mtu| u32::try_from(mtu).ok());
    asked.map_or(room, |asked| asked.min(room))
}

#[cfg(test)]
#[path = "settings_tests.rs"]
mod tests;
