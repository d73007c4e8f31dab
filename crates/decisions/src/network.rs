//! What a network is to a node, and to a NIC that is attached to it.

use hybridnic_api::v1alpha1::{HybridNetworkSpec, L2Settings, NodePool, PoolTags};

/// The pool of a network on a node that it selects.
pub fn pool(name: &str, network: &HybridNetworkSpec) -> NodePool {
    NodePool {
        network: name.to_owned(),
        uplinks: network.uplinks.clone(),
        tags: tags(network),
        standby_slots: network.standby_slots,
    }
}

fn tags(network: &HybridNetworkSpec) -> PoolTags {
    let has_vlan = network.vlan.as_ref().is_some_and(|vlan| vlan.id != 0);
    match (has_vlan, network.guest_vlans) {
        (true, _) => PoolTags::Vlan,
        (false, true) => PoolTags::Guests,
        (false, false) => PoolTags::None,
    }
}

/// The settings that a network gives its NICs.
pub fn l2(network: &HybridNetworkSpec) -> L2Settings {
    L2Settings {
        vlan: network.vlan.clone(),
        port_profile: network.port_profile.clone(),
        rate: network.rate.clone(),
        spoof_check: network.spoof_check,
        trust: network.trust,
        guest_vlans: network.guest_vlans,
        mtu: network.mtu,
        on_link_loss: network.on_link_loss,
        macvtap_mode: network.macvtap_mode,
    }
}

/// The network's settings, except what is in devices that exist: a NIC that is attached keeps its VLAN, its port profile, its MTU and the mode of
/// its macvtap, no matter what the network of that name is now.
pub fn kept(network: Option<&L2Settings>, attached: Option<&L2Settings>) -> L2Settings {
    match (network, attached) {
        (Some(network), Some(attached)) => L2Settings {
            vlan: attached.vlan.clone(),
            port_profile: attached.port_profile.clone(),
            mtu: attached.mtu,
            macvtap_mode: attached.macvtap_mode,
            ..network.clone()
        },
        (settings, None) | (None, settings) => settings.cloned().unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::{MacvtapMode, PortProfile, Vlan};

    use super::*;

    #[test]
    fn a_nic_that_is_attached_keeps_what_is_in_its_devices() {
        let vlan = |id| {
            Some(Vlan {
                id,
                qos: 0,
                protocol: hybridnic_api::v1alpha1::VlanProtocol::Dot1q,
            })
        };
        let profile = |name: &str| {
            Some(PortProfile {
                name: name.to_owned(),
            })
        };
        let attached = L2Settings {
            vlan: vlan(7),
            port_profile: profile("gold"),
            mtu: Some(1500),
            macvtap_mode: MacvtapMode::Vepa,
            ..L2Settings::default()
        };
        let network = L2Settings {
            vlan: vlan(8),
            port_profile: profile("iron"),
            mtu: None,
            trust: true,
            ..L2Settings::default()
        };
        let both = kept(Some(&network), Some(&attached));
        assert_eq!(
            (
                &both.vlan,
                &both.port_profile,
                both.mtu,
                both.macvtap_mode,
                both.trust
            ),
            (
                &attached.vlan,
                &attached.port_profile,
                Some(1500),
                MacvtapMode::Vepa,
                true
            )
        );
        assert_eq!(kept(Some(&network), None), network);
        assert_eq!(kept(None, Some(&attached)), attached);
    }
}
