//! What is seen of a VF, on a sysfs of files.

use std::fs;

use hybridnic_api::v1alpha1::Rate;
use hybridnic_net::netlink::VfConfig;

use super::*;
use crate::{
    host::tests::host,
    journal::tests::{held_vf, record},
};

const NIC: MacAddr = MacAddr::new([2, 0, 0, 0, 0, 1]);

fn held() -> Record {
    Record {
        vf: Some(held_vf(0, 1)),
        ..record("a")
    }
}

#[tokio::test]
async fn a_vf_is_gone_on_proof_only() {
    let dir = tempfile::tempdir().unwrap();
    let host = host(dir.path(), 2, 2);
    let vm = Vm::new("ns", "pod", "uid");
    let devices = dir.path().join("sys/bus/pci/devices");
    let look = async |record: &Record| {
        let now = observe(&host, &vm, record, NIC).await.unwrap();
        (now.seen.vf, now.unknown.map(|why| why.message))
    };
    let unknown = Some(VfSight::Unknown { other_pf: false });
    let held = held();
    let vf = held.vf.as_ref().unwrap();
    let (pf, net) = (
        devices.join(vf.pf.to_string()),
        devices.join(vf.pf.to_string()).join("net"),
    );

    // The PF's interface is one that has no VFs to show.
    fs::write(net.join("ens0/ifindex"), "1\n").unwrap();
    let (seen, why) = look(&held).await;
    assert_eq!(seen, unknown);
    assert!(why.unwrap().contains("does not show its VF 1"));
    // Under another name it is the same.
    fs::rename(net.join("ens0"), net.join("ens0np0")).unwrap();
    assert_eq!(look(&held).await.0, unknown);
    // It is in another namespace, or has no driver.
    fs::remove_dir_all(&net).unwrap();
    let (seen, why) = look(&held).await;
    assert_eq!(seen, unknown);
    assert!(why.unwrap().contains("no network interface here"));
    // Its name cannot be read.
    fs::write(&net, "").unwrap();
    assert_eq!(look(&held).await.0, unknown);
    // Nor can the VF's driver.
    let driver = devices.join(vf.address.to_string()).join("driver");
    fs::remove_file(&driver).unwrap();
    fs::write(&driver, "").unwrap();
    assert_eq!(look(&held).await.0, unknown);
    // Of two PFs a VF may have the MAC on the one that is not the standby's.
    let split = Record {
        standby: Some(StandbyRecord {
            macvtap: "hn-none".into(),
            pf: hybridnic_net::testing::pf_address(1),
            pf_name: "ens1".into(),
            vlan: None,
            seized: None,
        }),
        ..held.clone()
    };
    assert_eq!(look(&split).await.0, Some(VfSight::Unknown { other_pf: true }));
    // The kernel lists its functions, and it is none of them.
    fs::remove_file(devices.join(vf.address.to_string())).unwrap();
    assert_eq!(look(&held).await, (Some(VfSight::Gone), None));
    assert!(pf.exists());
    fs::remove_dir_all(&devices).unwrap();
    assert_eq!(look(&held).await.0, unknown);
}

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
    // All of it but the MAC is what a network in order has: what is left to be done at a switch is the MAC.
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
