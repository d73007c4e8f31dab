//! VFs, their settings and their drivers, and VLAN devices, on real functions. Needs root, a machine to itself with an
//! SR-IOV function (an emulated one will do), the modules vfio-pci and 8021q, and an IOMMU.
//!
//! The cases share the first PF, so run them one after the other: `--test-threads=1`.
#![cfg(feature = "sriov-tests")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails so")]

mod common;

use std::fs::OpenOptions;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use common::{Pod, on_runtime};
use futures::StreamExt;
use hybridnic_net::dev::{DevNodes, VfioUse};
use hybridnic_net::netlink::{
    Guard, LinkEvent, LinkEvents, LinkKind, MacvtapMode, MacvtapSpec, Netlink, VfConfig, VfSetting, VlanSpec,
};
use hybridnic_net::sysfs::{CreateVfsError, DriverError, Pf, Sysfs, Vf};
use hybridnic_net::uevent::{Action, DeviceEvent, Subsystem, Uevents};
use hybridnic_net::{MacAddr, VlanProtocol, interrupts};

const MAC: MacAddr = MacAddr::new([0x52, 0x54, 0, 0, 0, 1]);
const VFIO: &str = "vfio-pci";

/// The first PF with an interface; with all the VFs it can have, up to seven.
fn pf() -> Pf {
    let sysfs = Sysfs::default();
    let first = || {
        let inventory = sysfs.discover().unwrap();
        assert_eq!(inventory.problems, []);
        inventory
            .pfs
            .into_iter()
            .find(|pf| pf.name.is_some())
            .expect("an SR-IOV function with an interface")
    };
    let found = first();
    if found.num_vfs == 0 {
        sysfs.create_vfs(found.address, found.total_vfs.min(7)).unwrap();
    }
    first()
}

/// Takes a function through its own node, as QEMU does: `VFIO_DEVICE_BIND_IOMMUFD` of include/uapi/linux/vfio.h.
fn bind_iommufd(node: &OwnedFd, iommu: &OwnedFd) {
    #[repr(C)]
    struct Bind {
        size: u32,
        flags: u32,
        iommufd: i32,
        device: u32,
    }
    nix::ioctl_readwrite_bad!(bind, nix::request_code_none!(b';', 118), Bind);
    let mut request = Bind {
        size: 16,
        flags: 0,
        iommufd: iommu.as_raw_fd(),
        device: 0,
    };
    // SAFETY: the kernel reads and writes the 16 octets that the request says it has.
    unsafe { bind(node.as_raw_fd(), &raw mut request) }.unwrap();
}

/// Its last VF, the least likely to be used by anybody else.
fn vf(pf: &Pf) -> Vf {
    pf.vfs.last().expect("a VF").clone()
}

fn ifindex(pf: &Pf) -> u32 {
    pf.ifindex.expect("an interface")
}

#[test]
fn vfs_are_found_as_the_kernel_lists_them() {
    let pf = pf();
    assert!(
        pf.num_vfs > 0 && usize::from(pf.num_vfs) == pf.vfs.len(),
        "{pf:?}"
    );
    assert!(
        pf.mac.is_some_and(MacAddr::is_unicast) && pf.mtu.is_some() && pf.id.is_some(),
        "{pf:?}"
    );
    for (index, vf) in (0..).zip(&pf.vfs) {
        assert_eq!(vf.index, index);
        assert!(vf.iommu_group.is_some(), "{vf:?}");
        assert_eq!(Sysfs::default().physfn(vf.address).unwrap(), Some(pf.address));
        assert_eq!(Sysfs::default().vf(vf.address).unwrap().as_ref(), Some(vf));
    }
    let error = Sysfs::default()
        .create_vfs(pf.address, pf.num_vfs - 1)
        .unwrap_err();
    assert!(matches!(error, CreateVfsError::Exist { .. }), "{error}");
}

#[test]
fn settings_read_back_and_go_back() {
    on_runtime(|| async {
        let pf = pf();
        let vf = vf(&pf);
        let netlink = Netlink::open().unwrap();
        netlink.set_up(ifindex(&pf), true).await.unwrap();
        let read = async || -> VfConfig {
            let table = netlink.vf_table(ifindex(&pf)).await.unwrap().unwrap();
            assert_eq!(table.len(), pf.vfs.len());
            table.into_iter().find(|config| config.index == vf.index).unwrap()
        };
        let saved = read().await;
        let wanted = VfConfig {
            index: vf.index,
            mac: Some(MAC),
            vlan: Some(42),
            qos: Some(3),
            vlan_proto: Some(VlanProtocol::Dot1q),
            spoofchk: saved.spoofchk.map(|on| !on),
            trust: saved.trust.map(|on| !on),
            max_tx_rate: Some(100),
            min_tx_rate: None,
            link_state: None,
        };
        let mut events = LinkEvents::open().unwrap();
        let mut expected = VfConfig {
            link_state: saved.link_state,
            min_tx_rate: saved.min_tx_rate,
            ..wanted.clone()
        };
        for setting in saved.changes_to(&wanted) {
            match netlink.set_vf(ifindex(&pf), vf.index, setting).await {
                // Without a carrier there is no link speed to be below.
                Err(error) if matches!(setting, VfSetting::Rate { .. }) && pf.carrier != Some(true) => {
                    assert!(error.to_string().contains("set rate of VF"), "{error}");
                    expected.max_tx_rate = saved.max_tx_rate;
                }
                result => result.unwrap(),
            }
        }
        let set = read().await;
        assert_eq!(set, expected);
        // Other watchers hear of it.
        let heard = async {
            while let Some(event) = events.next().await {
                if matches!(event, LinkEvent::Changed(link) if link.index == ifindex(&pf)) {
                    return;
                }
            }
        };
        tokio::time::timeout(Duration::from_secs(5), heard)
            .await
            .expect("an event of the PF");
        for setting in set.changes_to(&saved) {
            netlink.set_vf(ifindex(&pf), vf.index, setting).await.unwrap();
        }
        assert_eq!(read().await, saved);
    });
}

#[test]
fn a_service_tag_is_set_or_refused_by_name() {
    on_runtime(|| async {
        let pf = pf();
        let (vf, netlink) = (vf(&pf), Netlink::open().unwrap());
        let tag = |id, qos| VfSetting::Vlan {
            id,
            qos,
            protocol: VlanProtocol::Dot1ad,
        };
        match netlink.set_vf(ifindex(&pf), vf.index, tag(42, 0)).await {
            Ok(()) => {
                let table = netlink.vf_table(ifindex(&pf)).await.unwrap().unwrap();
                assert_eq!(
                    table[usize::from(vf.index)].vlan_proto,
                    Some(VlanProtocol::Dot1ad)
                );
                netlink.set_vf(ifindex(&pf), vf.index, tag(0, 0)).await.unwrap();
            }
            Err(error) => {
                assert!(error.is_not_supported(), "{error}");
                assert!(error.to_string().contains("set VLAN of VF"), "{error}");
                assert!(error.to_string().contains("(802.1ad)"), "{error}");
            }
        }
    });
}

#[test]
fn a_vf_that_is_not_there_is_refused() {
    on_runtime(|| async {
        let pf = pf();
        let netlink = Netlink::open().unwrap();
        let error = netlink
            .set_vf(ifindex(&pf), 250, VfSetting::Mac(MAC))
            .await
            .unwrap_err();
        assert!(error.to_string().contains("set MAC of VF 250"), "{error}");
        assert!(error.errno().is_some() && !error.is_not_supported(), "{error}");
    });
}

#[test]
fn a_vf_goes_to_vfio_and_back() {
    let (sysfs, dev, vf) = (Sysfs::default(), DevNodes::default(), vf(&pf()));
    let saved = sysfs.driver_state(vf.address).unwrap();
    let group = vf.iommu_group.unwrap();
    sysfs.bind_driver(&dev, vf.address, VFIO).unwrap();
    sysfs.bind_driver(&dev, vf.address, VFIO).unwrap();
    let bound = sysfs.driver_state(vf.address).unwrap();
    assert_eq!(
        (bound.driver.as_deref(), bound.driver_override.as_deref()),
        (Some(VFIO), Some(VFIO))
    );
    assert_eq!(dev.vfio_use(group).unwrap(), VfioUse::Free);

    let held = OpenOptions::new()
        .read(true)
        .write(true)
        .open(dev.vfio_group(group))
        .unwrap();
    assert_eq!(dev.vfio_use(group).unwrap(), VfioUse::InUse);
    if saved.driver.as_deref() != Some(VFIO) {
        let error = sysfs.restore_driver(&dev, vf.address, &saved).unwrap_err();
        assert!(matches!(error, DriverError::InUse { .. }), "{error}");
        assert_eq!(sysfs.driver_state(vf.address).unwrap(), bound);
    }
    drop(held);
    assert_eq!(interrupts::read(vf.address).unwrap().vectors, 0);

    // Where the kernel has nodes of functions, sysfs names this one's.
    let now = sysfs.vf(vf.address).unwrap().unwrap();
    let has_nodes = dev.root().join("vfio/devices").is_dir();
    let node = now.vfio_cdev.and_then(|name| dev.open_vfio_cdev(&name).unwrap());
    assert_eq!(node.is_some(), has_nodes);
    if let Some(node) = node {
        let iommu = dev
            .open_iommu()
            .unwrap()
            .expect("iommufd, which the function's own node needs");
        assert_eq!(dev.vfio_use(group).unwrap(), VfioUse::Free);
        bind_iommufd(&node, &iommu);
        assert_eq!(dev.vfio_use(group).unwrap(), VfioUse::InUse);
    }

    sysfs.restore_driver(&dev, vf.address, &saved).unwrap();
    assert_eq!(sysfs.driver_state(vf.address).unwrap(), saved);
}

#[test]
fn uevents_tell_of_drivers() {
    on_runtime(|| async {
        let (sysfs, dev, vf) = (Sysfs::default(), DevNodes::default(), vf(&pf()));
        let saved = sysfs.driver_state(vf.address).unwrap();
        let unbound = hybridnic_net::sysfs::DriverState::default();
        sysfs.restore_driver(&dev, vf.address, &unbound).unwrap();
        let mut uevents = Uevents::open().unwrap();
        sysfs.bind_driver(&dev, vf.address, VFIO).unwrap();
        sysfs.restore_driver(&dev, vf.address, &unbound).unwrap();
        let mut seen = Vec::new();
        while seen.last() != Some(&Action::Unbind) {
            match uevents.next().await.unwrap() {
                DeviceEvent::Device(event)
                    if event.subsystem == Subsystem::Pci && event.address == Some(vf.address) =>
                {
                    seen.push(event.action);
                }
                _ => {}
            }
        }
        assert_eq!(seen, [Action::Bind, Action::Unbind]);
        sysfs.restore_driver(&dev, vf.address, &saved).unwrap();
    });
}

#[test]
fn a_driver_that_does_not_take_the_function_says_so() {
    let (sysfs, dev, vf) = (Sysfs::default(), DevNodes::default(), vf(&pf()));
    let saved = sysfs.driver_state(vf.address).unwrap();
    // The driver of the PF does not know how to drive a VF.
    let pf_driver = pf().driver.unwrap();
    let error = sysfs.bind_driver(&dev, vf.address, &pf_driver).unwrap_err();
    assert!(matches!(error, DriverError::Bind { .. }), "{error}");
    sysfs.restore_driver(&dev, vf.address, &saved).unwrap();
    assert_eq!(sysfs.driver_state(vf.address).unwrap(), saved);
}

#[test]
fn a_vlan_device_carries_a_macvtap() {
    on_runtime(|| async {
        let pf = pf();
        let netlink = Netlink::open().unwrap();
        netlink.set_up(ifindex(&pf), true).await.unwrap();
        for protocol in [VlanProtocol::Dot1q, VlanProtocol::Dot1ad] {
            let spec = VlanSpec {
                name: "hnvlan".into(),
                lower: ifindex(&pf),
                id: 77,
                protocol,
                qos: 5,
            };
            assert_eq!(netlink.vlan_on(ifindex(&pf), 77, protocol).await.unwrap(), None);
            let vlan = netlink.create_vlan(&spec).await.unwrap();
            assert_eq!(
                (&vlan.kind, vlan.lower),
                (&LinkKind::Vlan { id: 77, protocol }, Some(ifindex(&pf)))
            );
            assert!(!vlan.up);
            netlink.set_up(vlan.index, true).await.unwrap();
            let found = netlink
                .vlan_on(ifindex(&pf), 77, protocol)
                .await
                .unwrap()
                .unwrap();
            assert_eq!((found.index, found.up), (vlan.index, true));
            // The map is in the kernel's own listing: 0:5 to 7:5.
            let listing = std::fs::read_to_string("/proc/net/vlan/hnvlan").unwrap();
            let map = listing.lines().find(|line| line.contains("EGRESS")).unwrap();
            assert!(map.contains("0:5") && map.contains("7:5"), "{listing}");
            let error = netlink
                .create_vlan(&VlanSpec {
                    name: "hnvlan2".into(),
                    ..spec
                })
                .await
                .unwrap_err();
            assert_eq!(error.errno(), Some(nix::errno::Errno::EEXIST), "{error}");

            let macvtap = MacvtapSpec {
                name: "hntap".into(),
                lower: vlan.index,
                mac: MAC,
                mtu: None,
                mode: MacvtapMode::Bridge,
                alias: None,
            };
            let macvtap = netlink.create_macvtap(&macvtap).await.unwrap();
            assert_eq!(netlink.macvtaps_on(vlan.index).await.unwrap().len(), 1);
            netlink.set_up(macvtap.index, true).await.unwrap();
            // Both go, the macvtap with what it stands on.
            assert!(netlink.delete_link(vlan.index).await.unwrap());
            assert_eq!(netlink.link_by_index(macvtap.index).await.unwrap(), None);
        }
    });
}

#[test]
fn a_macvtap_in_a_pod_is_guarded_from_outside() {
    on_runtime(|| async {
        let netlink = Netlink::open().unwrap();
        let (pod, index) = (Pod::new(), 0x4000_0007);
        let spec = MacvtapSpec {
            name: "poda".into(),
            lower: ifindex(&pf()),
            mac: MAC,
            mtu: None,
            mode: MacvtapMode::Bridge,
            alias: None,
        };
        netlink.create_macvtap_in(&pod.place(index), &spec).await.unwrap();
        let guard = Guard {
            mac: MAC,
            any_source: false,
            any_destination: false,
            tags: false,
            rate: Some(1000),
        };
        assert!(!pod.inside.is_guarded(index, &guard).await.unwrap());
        for rate in [None, Some(1000)] {
            let guard = Guard { rate, ..guard };
            pod.inside.guard(index, &guard).await.unwrap();
            assert!(pod.inside.is_guarded(index, &guard).await.unwrap());
        }
        assert!(pod.inside.delete_link(index).await.unwrap());
    });
}

#[test]
fn vlan_devices_of_one_id_and_two_protocols_are_two_and_their_mtu_does_not_rise_by_itself() {
    on_runtime(|| async {
        let pf = pf();
        let netlink = Netlink::open().unwrap();
        let spec = |name: &str, protocol| VlanSpec {
            name: name.into(),
            lower: ifindex(&pf),
            id: 78,
            protocol,
            qos: 0,
        };
        let (q, ad) = (VlanProtocol::Dot1q, VlanProtocol::Dot1ad);
        let first = netlink.create_vlan(&spec("hnv1.78", q)).await.unwrap();
        let taken = netlink.create_vlan(&spec("hnv1.78", ad)).await.unwrap_err();
        assert_eq!(
            taken.errno(),
            Some(nix::errno::Errno::EEXIST),
            "a name is one device's"
        );
        let second = netlink.create_vlan(&spec("hnv1s78", ad)).await.unwrap();
        let mtu = async |index| netlink.link_by_index(index).await.unwrap().unwrap().mtu;
        let before = mtu(ifindex(&pf)).await;
        for now in [before - 100, before] {
            netlink.set_mtu(ifindex(&pf), now).await.unwrap();
        }
        for (protocol, device) in [(q, &first), (ad, &second)] {
            let found = netlink.vlan_on(ifindex(&pf), 78, protocol).await.unwrap();
            assert_eq!(found.unwrap().index, device.index);
            assert_eq!(mtu(device.index).await, before - 100);
            netlink.set_mtu(device.index, before).await.unwrap();
            assert!(netlink.delete_link(device.index).await.unwrap());
        }
    });
}
