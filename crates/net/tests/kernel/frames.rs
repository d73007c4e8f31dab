//! What passes through a macvtap's descriptor, and what does not.

use std::time::Duration;

use super::*;

/// Frames go both ways through the descriptor that QEMU will get, and the counters tell.
async fn frames_pass(dev: &DevNodes) {
    let netlink = Netlink::open().unwrap();
    let (lower, peer) = veth(&netlink).await;
    let macvtap = netlink.create_macvtap(&spec("hn0", &lower)).await.unwrap();
    let fd = open_tap(&Sysfs::default(), dev, "hn0", macvtap.index).unwrap();
    assert!(has_virtio_header(fd.as_fd()).unwrap());
    // SAFETY: a File owns its descriptor, and is the same one until it is dropped.
    let mut tap = unsafe { AsyncFd::register(File::from(fd)) }.unwrap();
    netlink.set_up(macvtap.index, true).await.unwrap();

    let sender: MacAddr = "52:54:00:00:00:99".parse().unwrap();
    send_rarp(peer.index, sender, None).unwrap();
    let mut buffer = [0; 2048];
    let frame = loop {
        let mut ready = tap.readable_mut().await.unwrap();
        match ready.try_io(|tap| tap.get_mut().read(&mut buffer)) {
            // The peer's own IPv6 frames come by as well.
            Ok(read) => {
                let frame = &buffer[VIRTIO_HEADER..read.unwrap()];
                if frame[12..14] == [0x80, 0x35] {
                    break frame;
                }
            }
            Err(_would_block) => {}
        }
    };
    assert_eq!(frame[..6], [0xff; 6]);
    assert_eq!(frame[6..12], sender.octets());
    assert_eq!(frame[32..38], sender.octets());

    let before = netlink
        .link_by_index(macvtap.index)
        .await
        .unwrap()
        .unwrap()
        .counters;
    assert!(before.rx_packets > 0, "{before:?}");
    let mut guests = [0; VIRTIO_HEADER + 60];
    guests[VIRTIO_HEADER..VIRTIO_HEADER + 6].fill(0xff);
    guests[VIRTIO_HEADER + 6..VIRTIO_HEADER + 12].copy_from_slice(&MAC.octets());
    tap.get_mut().write_all(&guests).unwrap();
    let after = netlink
        .link_by_index(macvtap.index)
        .await
        .unwrap()
        .unwrap()
        .counters;
    assert_eq!(after.tx_packets, before.tx_packets + 1);
}

#[test]
fn frames_pass_through_the_descriptor() {
    in_namespace(|| async { frames_pass(&DevNodes::default()).await });
}

#[test]
fn a_missing_node_is_made_and_taken_away() {
    in_namespace(|| async {
        // Not below /tmp, which may be mounted `nodev`.
        let dir = tempfile::tempdir_in("/dev").unwrap();
        frames_pass(&DevNodes::new(dir.path())).await;
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    });
}

/// A guest's end of a macvtap, and the other end of its wire.
pub(crate) struct Wire {
    pub(crate) tap: AsyncFd<File>,
    pub(crate) peer: OwnedFd,
    pub(crate) macvtap: u32,
}

impl Wire {
    async fn new(netlink: &Netlink) -> Self {
        let (lower, peer) = veth(netlink).await;
        let macvtap = netlink.create_macvtap(&spec("hn0", &lower)).await.unwrap();
        let fd = open_tap(&Sysfs::default(), &DevNodes::default(), "hn0", macvtap.index).unwrap();
        // SAFETY: a File owns its descriptor, and is the same one until it is dropped.
        let tap = unsafe { AsyncFd::register(File::from(fd)) }.unwrap();
        netlink.set_up(macvtap.index, true).await.unwrap();
        Self {
            tap,
            peer: packet_socket(peer.index),
            macvtap: macvtap.index,
        }
    }

    /// Whether a frame to this address reaches the guest. A broadcast is sent after it, which always does.
    pub(crate) async fn passes(&mut self, to: &str) -> bool {
        for (to, mark) in [(to.parse().unwrap(), TRIED), (MacAddr::BROADCAST, LAST)] {
            assert_eq!(nix::unistd::write(&self.peer, &frame(STRANGER, to, mark)), Ok(60));
        }
        arrives(&mut self.tap).await
    }
}

const STRANGER: MacAddr = MacAddr::new([0x52, 0x54, 0, 0, 0, 0x99]);
/// Marks a frame that may pass or not, and one that always does.
const TRIED: u8 = 1;
const LAST: u8 = 2;

fn frame(from: MacAddr, to: MacAddr, mark: u8) -> [u8; 60] {
    let mut frame = [0; 60];
    frame[..6].copy_from_slice(&to.octets());
    frame[6..12].copy_from_slice(&from.octets());
    // An EtherType for experiments.
    frame[12..15].copy_from_slice(&[0x88, 0xb5, mark]);
    frame
}

/// Whether a frame has come that was tried, once the last one has.
async fn arrives(tap: &mut AsyncFd<File>) -> bool {
    let mut passed = false;
    let mut buffer = [0; 2048];
    loop {
        let mut ready = tap.readable_mut().await.unwrap();
        let Ok(read) = ready.try_io(|tap| tap.get_mut().read(&mut buffer)) else {
            continue;
        };
        match &buffer[VIRTIO_HEADER..read.unwrap()][12..15] {
            [0x88, 0xb5, TRIED] => passed = true,
            [0x88, 0xb5, LAST] => return passed,
            // The peer's own IPv6 frames come by as well.
            _ => {}
        }
    }
}

/// Whether a guest reaches another one on the same link, whose other end is a port of a bridge.
async fn reaches(mode: MacvtapMode, hairpin: bool) -> bool {
    let netlink = Netlink::open().unwrap();
    let (lower, port) = veth(&netlink).await;
    add_to_bridge("br0", port.index).await;
    let hairpin = if hairpin { "1" } else { "0" };
    std::fs::write("/sys/class/net/v1/brport/hairpin_mode", hairpin).unwrap();
    let other = MacAddr::new([0x52, 0x54, 0, 0, 0, 2]);
    let mut taps = Vec::new();
    for (name, mac) in [("hn0", MAC), ("hn1", other)] {
        let spec = MacvtapSpec {
            mac,
            mode,
            ..spec(name, &lower)
        };
        let macvtap = netlink.create_macvtap(&spec).await.unwrap();
        let fd = open_tap(&Sysfs::default(), &DevNodes::default(), name, macvtap.index).unwrap();
        // SAFETY: a File owns its descriptor, and is the same one until it is dropped.
        taps.push(unsafe { AsyncFd::register(File::from(fd)) }.unwrap());
        netlink.set_up(macvtap.index, true).await.unwrap();
    }
    until_forwarding("v1").await;
    let outside = packet_socket(port.index);
    let (mut to, mut from) = (taps.pop().unwrap(), taps.pop().unwrap());
    let mut sent = [0; VIRTIO_HEADER + 60];
    sent[VIRTIO_HEADER..].copy_from_slice(&frame(MAC, other, TRIED));
    let mut reached = false;
    // The way by the bridge is the longer one: the last frame may overtake the one that is tried.
    for _ in 0..3 {
        from.get_mut().write_all(&sent).unwrap();
        let last = frame(STRANGER, MacAddr::BROADCAST, LAST);
        assert_eq!(nix::unistd::write(&outside, &last), Ok(60));
        reached |= arrives(&mut to).await;
    }
    reached
}

/// Waits until a bridge forwards from a port and to it (`BR_STATE_FORWARDING`, include/uapi/linux/if_bridge.h): not before it has heard of the
/// port's link.
async fn until_forwarding(port: &str) {
    let state = format!("/sys/class/net/{port}/brport/state");
    let forwards = async {
        while std::fs::read_to_string(&state).unwrap().trim() != "3" {
            // The file tells of no change.
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), forwards)
        .await
        .expect("the bridge forwards");
}

#[test]
fn in_vepa_mode_the_switch_decides_which_standbys_reach_each_other() {
    for (mode, hairpin, reach) in [
        (MacvtapMode::Bridge, false, true),
        (MacvtapMode::Vepa, false, false),
        (MacvtapMode::Vepa, true, true),
    ] {
        in_namespace(move || async move {
            assert_eq!(
                reaches(mode, hairpin).await,
                reach,
                "{mode:?}, hairpin: {hairpin}"
            );
        });
    }
}

pub(crate) fn packet_socket(index: u32) -> OwnedFd {
    let socket =
        nix::sys::socket::socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None).unwrap();
    // SAFETY: a sockaddr_ll is integers and an array of them, for all of which zero is a valid value.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = libc::sa_family_t::try_from(libc::AF_PACKET).unwrap();
    address.sll_ifindex = i32::try_from(index).unwrap();
    let length = libc::socklen_t::try_from(size_of_val(&address)).unwrap();
    // SAFETY: the address lives through the call and has the length that is passed.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), length) };
    assert_eq!(bound, 0);
    socket
}

/// Neighbour solicitations, DHCPv6, mDNS, VRRP, OSPF, LLDP.
const GROUPS: [&str; 8] = [
    "33:33:ff:12:34:56",
    "33:33:ff:ab:cd:ef",
    "33:33:ff:00:00:05",
    "33:33:00:01:00:02",
    "01:00:5e:00:00:fb",
    "01:00:5e:00:00:12",
    "01:00:5e:00:00:05",
    "01:80:c2:00:00:0e",
];

pub(crate) fn macs(groups: &[&str]) -> BTreeSet<MacAddr> {
    groups.iter().map(|mac| mac.parse().unwrap()).collect()
}

impl Wire {
    /// How many of these pass. Macvlan filters by a hash of eight bits, another for each macvtap, so now and then one
    /// passes by chance.
    async fn passing(&mut self, groups: &[&str]) -> usize {
        let mut passing = 0;
        for group in groups {
            passing += usize::from(self.passes(group).await);
        }
        passing
    }
}

#[test]
fn a_guest_receives_the_groups_of_its_macvtaps_list() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let mut wire = Wire::new(&netlink).await;
        let index = wire.macvtap;
        let (wanted, others) = GROUPS.split_at(4);
        assert!(wire.passing(&GROUPS).await < 4);
        let lists = Multicast::open().unwrap();
        let none = lists.received(index).await.unwrap();
        assert_eq!(none, Received::default(), "what the host has joined is not ours");
        // Twice, as after a crash, and one that the host has joined.
        let ours = &macs(wanted) | &macs(&["33:33:00:00:00:01"]);
        for _ in 0..2 {
            lists.change(index, ours.clone(), BTreeSet::new()).await.unwrap();
        }
        assert_eq!(lists.received(index).await.unwrap().added, ours);
        // It stays while the standby does not carry the traffic.
        netlink.set_up(index, false).await.unwrap();
        netlink.set_up(index, true).await.unwrap();
        // As an agent that has started again sees it.
        let restarted = Multicast::open().unwrap();
        assert_eq!(restarted.received(index).await.unwrap().added, ours);
        assert_eq!(wire.passing(wanted).await, wanted.len());
        assert!(wire.passing(others).await < 3);

        for _ in 0..2 {
            let change = restarted.change(index, macs(others), ours.clone());
            change.await.unwrap();
        }
        assert_eq!(restarted.received(index).await.unwrap().added, macs(others));
        assert_eq!(wire.passing(others).await, others.len());
        assert!(wire.passing(wanted).await < 3);
        let hosts = wire.passes("33:33:00:00:00:01").await;
        assert!(hosts, "what the host has joined is left alone");
    });
}

#[test]
fn every_multicast_passes_where_the_list_does_not_do() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let mut wire = Wire::new(&netlink).await;
        let lists = Multicast::open().unwrap();
        netlink.set_all_multicast(wire.macvtap, true).await.unwrap();
        assert!(lists.received(wire.macvtap).await.unwrap().all);
        assert_eq!(wire.passing(&GROUPS).await, GROUPS.len());
        netlink.set_all_multicast(wire.macvtap, false).await.unwrap();
        let received = lists.received(wire.macvtap).await.unwrap();
        assert_eq!(received, Received::default());
        assert!(wire.passing(&GROUPS).await < 4);
        let link = netlink.link_by_index(wire.macvtap).await.unwrap().unwrap();
        assert!(link.up, "no other flag is touched");
    });
}

#[test]
fn a_link_that_is_down_sends_nothing() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        add_veth("v0", "v1").await;
        let link = netlink.link("v0").await.unwrap().unwrap();
        assert_eq!(
            send_rarp(link.index, MAC, None).unwrap_err().kind(),
            ErrorKind::NetworkDown
        );
    });
}
