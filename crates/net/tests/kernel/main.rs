//! Links, macvtaps and their descriptors on the running kernel. Needs root and a kernel with veth and macvtap.
#![cfg(feature = "kernel-tests")]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails so")]

#[path = "../common/mod.rs"]
mod common;
mod frames;
mod pods;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use common::{add_to_bridge, add_veth, in_namespace, rename};
use futures::StreamExt;
use hybridnic_net::MacAddr;
use hybridnic_net::VlanProtocol;
use hybridnic_net::announce::send_rarp;
use hybridnic_net::dev::DevNodes;
use hybridnic_net::multicast::{Multicast, Received};
use hybridnic_net::netlink::{
    Link, LinkEvent, LinkEvents, LinkKind, MacvtapMode, MacvtapSpec, Netlink, VfLinkState, VfSetting,
};
use hybridnic_net::sysfs::Sysfs;
use hybridnic_net::tap::{has_virtio_header, open_tap};
use hybridnic_net::uevent::{Action, DeviceEvent, Subsystem, Uevents};
use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, SockFlag, SockType};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::MacVtapMode;
use rtnetlink::{LinkMacVtap, MulticastGroup};
use tokio::io::unix::AsyncFd;
use tokio_util::task::AbortOnDropHandle;

const MAC: MacAddr = MacAddr::new([0x52, 0x54, 0, 0, 0, 1]);
/// `struct virtio_net_hdr`, in front of each frame.
const VIRTIO_HEADER: usize = 10;

/// A veth `v0` with its peer `v1`, both up, so both with a carrier.
async fn veth(netlink: &Netlink) -> (Link, Link) {
    add_veth("v0", "v1").await;
    let mut links = Vec::new();
    for name in ["v0", "v1"] {
        let link = netlink.link(name).await.unwrap().unwrap();
        netlink.set_up(link.index, true).await.unwrap();
        links.push(link);
    }
    let peer = links.pop().unwrap();
    (links.pop().unwrap(), peer)
}

fn spec(name: &str, lower: &Link) -> MacvtapSpec {
    MacvtapSpec {
        name: name.into(),
        lower: lower.index,
        mac: MAC,
        mtu: Some(1400),
        mode: MacvtapMode::Bridge,
        alias: Some("hybridnic test".into()),
    }
}

#[test]
fn a_macvtap_comes_up_goes_down_and_goes_away() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        let made = netlink.create_macvtap(&spec("hn0", &lower)).await.unwrap();
        assert_eq!(
            (made.name.as_str(), made.mac, made.mtu, made.up),
            ("hn0", Some(MAC), 1400, false)
        );
        assert_eq!(
            (&made.kind, made.lower),
            (&LinkKind::Macvtap { bridge: true }, Some(lower.index))
        );
        assert_eq!(
            netlink.link("hn0").await.unwrap().unwrap().alias.as_deref(),
            Some("hybridnic test")
        );
        assert_eq!(
            netlink.macvtaps_on(lower.index).await.unwrap(),
            [netlink.link("hn0").await.unwrap().unwrap()]
        );
        assert_eq!(netlink.macvtaps_on(made.index).await.unwrap(), []);

        netlink.set_up(made.index, true).await.unwrap();
        let up = netlink.link_by_index(made.index).await.unwrap().unwrap();
        assert_eq!((up.up, up.carrier), (true, Some(true)));
        netlink.set_mtu(made.index, 1300).await.unwrap();
        netlink.set_up(made.index, false).await.unwrap();
        let down = netlink.link("hn0").await.unwrap().unwrap();
        assert_eq!((down.up, down.mtu), (false, 1300));

        assert!(netlink.delete_link(made.index).await.unwrap());
        assert!(!netlink.delete_link(made.index).await.unwrap());
        assert_eq!(netlink.link("hn0").await.unwrap(), None);
        assert_eq!(netlink.link_by_index(made.index).await.unwrap(), None);
    });
}

/// Why PFs are found by their PCI address and links by their index.
#[test]
fn a_link_may_be_renamed_under_a_macvtap_that_is_up() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        let made = netlink.create_macvtap(&spec("hn0", &lower)).await.unwrap();
        netlink.set_up(made.index, true).await.unwrap();
        rename(lower.index, "v0np0").await;
        assert_eq!(netlink.link(&lower.name).await.unwrap(), None);
        let renamed = netlink.link_by_index(lower.index).await.unwrap().unwrap();
        assert_eq!(renamed.name, "v0np0");
        let macvtap = netlink.link("hn0").await.unwrap().unwrap();
        assert_eq!((macvtap.lower, macvtap.up), (Some(lower.index), true));
    });
}

/// Why the agent raises it again.
#[test]
fn an_mtu_follows_the_lower_link_down_and_not_up() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        netlink.set_mtu(lower.index, 9000).await.unwrap();
        let mut with_its_mtu = spec("hn0", &lower);
        with_its_mtu.mtu = None;
        let macvtap = netlink.create_macvtap(&with_its_mtu).await.unwrap();
        assert_eq!(macvtap.mtu, 9000);
        let mtu = async || netlink.link("hn0").await.unwrap().unwrap().mtu;
        netlink.set_mtu(lower.index, 1500).await.unwrap();
        assert_eq!(mtu().await, 1500);
        netlink.set_mtu(macvtap.index, 9000).await.unwrap_err();
        netlink.set_mtu(lower.index, 9000).await.unwrap();
        assert_eq!(mtu().await, 1500);
        netlink.set_mtu(macvtap.index, 9000).await.unwrap();
        assert_eq!(mtu().await, 9000);
    });
}

#[test]
fn a_mac_that_is_taken_is_refused_when_it_comes_up() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        let first = netlink.create_macvtap(&spec("hn0", &lower)).await.unwrap();
        let second = netlink.create_macvtap(&spec("hn1", &lower)).await.unwrap();
        netlink.set_up(first.index, true).await.unwrap();
        let error = netlink.set_up(second.index, true).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EADDRINUSE));
        let expected = format!(
            "the kernel refused to set link {} up: Address already in use (EADDRINUSE)",
            second.index
        );
        assert_eq!(error.to_string(), expected);
        netlink.set_up(first.index, false).await.unwrap();
        netlink.set_up(second.index, true).await.unwrap();
    });
}

#[test]
fn a_name_that_is_taken_is_refused() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        let error = netlink.create_macvtap(&spec("v1", &lower)).await.unwrap_err();
        assert_eq!(error.errno(), Some(Errno::EEXIST));
        assert!(
            error
                .to_string()
                .contains("create macvtap v1 with MAC 52:54:00:00:00:01 on link"),
            "{error}"
        );
    });
}

#[test]
fn a_macvtap_that_cannot_be_finished_is_taken_away() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        // One octet more than IFALIASZ takes.
        let spec = MacvtapSpec {
            alias: Some("x".repeat(256)),
            ..spec("hn0", &lower)
        };
        let error = netlink.create_macvtap(&spec).await.unwrap_err();
        assert!(error.to_string().contains("set the alias"), "{error}");
        assert_eq!(netlink.link("hn0").await.unwrap(), None);
    });
}

/// Beside a plain macvtap, which comes up later and gets an address.
#[test]
fn the_host_has_no_address_on_a_macvtap() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        let (connection, handle, mut addresses) =
            rtnetlink::new_multicast_connection(&[MulticastGroup::Ipv6Ifaddr]).unwrap();
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        let plain = LinkMacVtap::new("plain", lower.index, MacVtapMode::Bridge).build();
        handle.link().add(plain).execute().await.unwrap();
        let plain = netlink.link("plain").await.unwrap().unwrap();
        let ours = netlink.create_macvtap(&spec("hn0", &lower)).await.unwrap();
        netlink.set_up(ours.index, true).await.unwrap();
        netlink.set_up(plain.index, true).await.unwrap();
        let mut given = Vec::new();
        while !given.contains(&plain.index) {
            let (message, _) = addresses.next().await.unwrap();
            if let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewAddress(address)) = message.payload {
                given.push(address.header.index);
            }
        }
        assert!(!given.contains(&ours.index), "{given:?}");
        let listing = std::fs::read_to_string("/proc/thread-self/net/if_inet6").unwrap();
        assert!(listing.contains("plain") && !listing.contains("hn0"), "{listing}");
    });
}

#[test]
fn a_device_without_vfs_refuses_each_setting_by_name() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (link, _) = veth(&netlink).await;
        assert_eq!(netlink.vf_table(link.index).await.unwrap(), Some(vec![]));
        assert_eq!(netlink.vf_table(9999).await.unwrap(), None);
        for setting in [
            VfSetting::Trust(true),
            VfSetting::SpoofCheck(false),
            VfSetting::Rate { min: 0, max: 100 },
            VfSetting::Vlan {
                id: 42,
                qos: 3,
                protocol: VlanProtocol::Dot1q,
            },
            VfSetting::Vlan {
                id: 42,
                qos: 3,
                protocol: VlanProtocol::Dot1ad,
            },
            VfSetting::LinkState(VfLinkState::Enable),
            VfSetting::Mac(MAC),
        ] {
            let error = netlink.set_vf(link.index, 3, setting).await.unwrap_err();
            assert!(error.is_not_supported(), "{setting}: {error}");
            let named = format!("set {} of VF 3 of link {} to ", setting.name(), link.index);
            assert!(error.to_string().contains(&named), "{error}");
        }
    });
}

#[test]
fn the_kernels_own_text_is_in_the_error() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (link, _) = veth(&netlink).await;
        let error = netlink.set_mtu(link.index, 1).await.unwrap_err();
        assert!(
            error
                .to_string()
                .ends_with("(EINVAL): mtu less than device minimum"),
            "{error}"
        );
    });
}

#[test]
fn events_tell_of_a_links_life() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        let mut events = LinkEvents::open().unwrap();
        let link = netlink.create_macvtap(&spec("hn0", &lower)).await.unwrap();
        netlink.set_up(link.index, true).await.unwrap();
        netlink.delete_link(link.index).await.unwrap();
        let (mut added, mut came_up) = (false, false);
        loop {
            match events.next().await.unwrap() {
                LinkEvent::Changed(event) if event.index == link.index => {
                    assert_eq!(event.name, "hn0");
                    added |= !event.up;
                    came_up |= event.up;
                }
                LinkEvent::Removed { index, name } => {
                    assert_eq!((index, name.as_str()), (link.index, "hn0"));
                    break;
                }
                _ => {}
            }
        }
        assert!(added && came_up);
    });
}

#[test]
fn addresses_and_routes_are_those_that_somebody_gave() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (link, peer) = veth(&netlink).await;
        let mut events = LinkEvents::open().unwrap();
        assert_eq!(
            netlink.routed().await.unwrap(),
            [].into(),
            "the kernel's own do not count"
        );
        let given: std::net::IpAddr = "10.7.0.1".parse().unwrap();
        let (connection, handle, _) = rtnetlink::new_connection().unwrap();
        let _connection = AbortOnDropHandle::new(tokio::spawn(connection));
        for address in [given, "169.254.3.3".parse().unwrap(), "fe80::77".parse().unwrap()] {
            let added = handle.address().add(link.index, address, 24).execute().await;
            // A kernel without IPv6 has no such address.
            assert!(added.is_ok() || address.is_ipv6(), "{added:?}");
        }
        assert_eq!(netlink.addresses().await.unwrap(), [(link.index, given)]);
        let is_told = |event| event == LinkEvent::Address { index: link.index };
        while !is_told(events.next().await.unwrap()) {}
        assert_eq!(netlink.routed().await.unwrap(), [link.index].into());
        let route = rtnetlink::RouteMessageBuilder::<std::net::Ipv4Addr>::new()
            .output_interface(peer.index)
            .build();
        handle.route().add(route).execute().await.unwrap();
        assert_eq!(netlink.routed().await.unwrap(), [link.index, peer.index].into());
        netlink.set_up(link.index, false).await.unwrap();
        assert_eq!(netlink.routed().await.unwrap(), [peer.index].into());
    });
}

#[test]
fn uevents_tell_of_interfaces() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let mut uevents = Uevents::open().unwrap();
        let (link, _) = veth(&netlink).await;
        netlink.delete_link(link.index).await.unwrap();
        let mut seen = Vec::new();
        while seen.last() != Some(&Action::Remove) {
            match uevents.next().await.unwrap() {
                DeviceEvent::Device(event) if event.interface.as_deref() == Some("v0") => {
                    assert_eq!((event.subsystem, event.address), (Subsystem::Net, None));
                    assert_eq!(event.devpath, "/devices/virtual/net/v0");
                    seen.push(event.action);
                }
                _ => {}
            }
        }
        assert_eq!(seen, [Action::Add, Action::Remove]);
    });
}
