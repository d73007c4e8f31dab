use hybridnic_api::v1alpha1::Rate;
use hybridnic_net::netlink::VfSetting;

use super::*;
use crate::journal::tests::held_vf;

const NIC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

#[test]
fn a_rate_that_nobody_asked_for_is_left_alone() {
    let always = VfConfig {
        min_tx_rate: Some(0),
        max_tx_rate: Some(10_000),
        ..VfConfig::default()
    };
    let mut vf = VfRecord {
        saved: always.clone(),
        ..held_vf(0, 1)
    };
    let rates = |vf: &VfRecord, l2: &L2Settings| {
        let wanted = wanted(vf, NIC, l2);
        (wanted.min_tx_rate, wanted.max_tx_rate)
    };
    let (none, limit) = (
        L2Settings::default(),
        L2Settings {
            rate: Some(Rate {
                max_mbps: Some(500),
                min_mbps: None,
            }),
            ..L2Settings::default()
        },
    );
    assert_eq!(rates(&vf, &none), (None, None));
    assert_eq!(rates(&vf, &limit), (Some(0), Some(500)));
    // One that was set is taken back when the network asks for none any more.
    vf.rate_set = true;
    assert_eq!(rates(&vf, &none), (Some(0), Some(10_000)));
    vf.saved = VfConfig::default();
    assert_eq!(rates(&vf, &none), (Some(0), Some(0)));
}

/// A QEMU that says that the VF is gone may still use it.
#[test]
fn a_parked_vf_stays_in_its_network() {
    let vf = VfRecord {
        saved: VfConfig {
            vlan: Some(0),
            spoofchk: Some(false),
            trust: Some(true),
            ..VfConfig::default()
        },
        ..held_vf(0, 1)
    };
    let l2 = L2Settings {
        vlan: Some(hybridnic_api::v1alpha1::Vlan {
            id: 42,
            qos: 0,
            protocol: hybridnic_api::v1alpha1::VlanProtocol::Dot1q,
        }),
        spoof_check: false,
        trust: true,
        rate: Some(Rate {
            max_mbps: Some(500),
            min_mbps: None,
        }),
        ..L2Settings::default()
    };
    let parked = parked(&vf, &l2);
    assert_eq!((parked.vlan, parked.mac), (Some(42), Some(vf.parking_mac)));
    assert_eq!((parked.spoofchk, parked.trust), (Some(true), Some(false)));
    assert_eq!(parked.max_tx_rate, Some(500));
    // Everything but the MAC is as in a valid network: only the MAC is left to set at a switch.
    let l2 = L2Settings {
        spoof_check: true,
        trust: false,
        ..l2
    };
    let active = wanted(&vf, NIC, &l2);
    assert_eq!(parked.changes_to(&active), [VfSetting::Mac(NIC)]);
}

#[test]
fn a_vf_whose_link_was_switched_off_has_one_in_the_guest() {
    let wants = |saved| {
        let mut vf = held_vf(0, 1);
        vf.saved.link_state = saved;
        wanted(&vf, NIC, &L2Settings::default()).link_state
    };
    assert_eq!(wants(Some(VfLinkState::Disable)), Some(VfLinkState::Auto));
    assert_eq!(wants(Some(VfLinkState::Auto)), Some(VfLinkState::Auto));
    assert_eq!(wants(Some(VfLinkState::Enable)), Some(VfLinkState::Enable));
    assert_eq!(wants(None), None);
}

#[test]
fn an_mtu_is_what_the_network_asks_for_as_far_as_there_is_room() {
    let asked = |mtu| L2Settings {
        mtu,
        ..L2Settings::default()
    };
    assert_eq!(mtu(&asked(Some(9000)), 1500), 1500);
    assert_eq!(mtu(&asked(Some(9000)), 9216), 9000);
    assert_eq!(mtu(&asked(None), 9216), 9216);
}
