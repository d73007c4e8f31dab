//! Macvtaps in network namespaces of pods, made and served from outside.

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use common::Pod;
use hybridnic_net::netlink::{NetlinkError, Place};
use hybridnic_net::netns::NetNs;
use hybridnic_net::tap_node::{self, NodeError, Owner};
use nix::sys::stat::{Mode, SFlag, mknod};

use super::*;

const QEMU: Owner = Owner { uid: 107, gid: 107 };

/// An index that no other test uses: `/dev` is the machine's.
fn index() -> u32 {
    static NEXT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    0x4000_0000 + (std::process::id() & 0xffff) * 0x100 + number
}

fn give(index: u32) -> Result<PathBuf, NodeError> {
    tap_node::give(&Sysfs::default(), &DevNodes::default(), index, QEMU)
}

fn errno(made: Result<Link, NetlinkError>) -> Option<Errno> {
    made.unwrap_err().errno()
}

#[test]
fn a_macvtap_is_made_in_a_pod_with_an_index_of_choice() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        let (pod, index) = (Pod::new(), index());
        assert_ne!(pod.netns, NetNs::own().unwrap());
        // Something has the name of the node, and nothing the index.
        let (sysfs, dev) = (Sysfs::default(), DevNodes::default());
        let null = nix::sys::stat::makedev(1, 3);
        let node = tap_node::path(&dev, index);
        mknod(&node, SFlag::S_IFCHR, Mode::S_IRUSR, null).unwrap();
        tap_node::make_room(&sysfs, &dev, index).unwrap();
        let place = Place {
            queues: Some(4),
            ..pod.place(index)
        };
        let made = netlink
            .create_macvtap_in(&place, &spec("podabc", &lower))
            .await
            .unwrap();
        assert_eq!(
            (made.index, made.name.as_str(), made.mac, made.mtu, made.up),
            (index, "podabc", Some(MAC), 1400, false)
        );
        assert_eq!(made.kind, LinkKind::Macvtap { bridge: true });
        assert_eq!(made.alias.as_deref(), Some("hybridnic test"));
        assert_eq!(netlink.link("podabc").await.unwrap(), None, "it is not ours");
        assert_eq!(pod.inside.link(&lower.name).await.unwrap(), None);

        // The node is root's until it is given away.
        let taken = tap_node::make_room(&sysfs, &dev, index);
        assert!(matches!(taken, Err(NodeError::Taken(_))));
        assert_eq!(std::fs::metadata(&node).unwrap().uid(), 0);
        for _ in 0..2 {
            assert_eq!(give(index).unwrap(), node);
            let meta = std::fs::metadata(&node).unwrap();
            assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (107, 107, 0o600));
        }

        pod.inside.set_up(index, true).await.unwrap();
        let up = pod.inside.link_by_index(index).await.unwrap().unwrap();
        assert_eq!((up.up, up.carrier), (true, Some(true)));
        pod.inside.set_up(index, false).await.unwrap();
        assert!(!pod.inside.link_by_index(index).await.unwrap().unwrap().up);

        // It is made once more, when the link below it has come back.
        assert!(netlink.delete_link(lower.index).await.unwrap());
        assert_eq!(pod.inside.link_by_index(index).await.unwrap(), None);
        assert!(!node.exists());
        let gone = netlink.create_macvtap_in(&place, &spec("podabc", &lower)).await;
        assert_eq!(errno(gone), Some(Errno::ENODEV));
        assert!(matches!(give(index), Err(NodeError::NoMacvtap(_))));
        let (lower, _) = veth(&netlink).await;
        let made = netlink
            .create_macvtap_in(&place, &spec("podabc", &lower))
            .await
            .unwrap();
        assert_eq!(made.index, index);
        give(index).unwrap();
        assert_eq!(std::fs::metadata(&node).unwrap().uid(), 107);
    });
}

#[test]
fn a_name_or_an_index_that_is_taken_in_the_pod_is_refused() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        let (pod, first, second) = (Pod::new(), index(), index());
        netlink
            .create_macvtap_in(&pod.place(first), &spec("poda", &lower))
            .await
            .unwrap();
        let same_index = netlink
            .create_macvtap_in(&pod.place(first), &spec("podb", &lower))
            .await;
        let error = same_index.unwrap_err();
        // EBUSY, before kernels looked for it there (6.15).
        let refused = matches!(error.errno(), Some(Errno::EBUSY | Errno::EEXIST));
        assert!(refused, "{error}");
        let named = format!(
            "and index {first} on link {}, in network namespace {}",
            lower.index,
            pod.netns.inode()
        );
        assert!(error.to_string().contains(&named), "{error}");
        let same_name = netlink
            .create_macvtap_in(&pod.place(second), &spec("poda", &lower))
            .await;
        assert_eq!(errno(same_name), Some(Errno::EEXIST));
        assert_eq!(pod.inside.link("podb").await.unwrap(), None);
        let left = pod.inside.link("poda").await.unwrap().unwrap();
        assert_eq!(left.index, first);
    });
}

/// KubeVirt's `networkInterfaceMultiqueue`: libvirt opens the node once for each queue of the VM's NIC.
#[test]
fn a_macvtap_can_be_opened_for_several_queues() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        let (pod, index) = (Pod::new(), index());
        netlink
            .create_macvtap_in(&pod.place(index), &spec("poda", &lower))
            .await
            .unwrap();
        let node = give(index).unwrap();
        let open = |_| File::options().read(true).write(true).open(&node);
        let queues: Result<Vec<_>, _> = (0..4).map(open).collect();
        assert_eq!(queues.unwrap().len(), 4);
    });
}

/// Each attempt of the kubelet to start a pod has a namespace of its own.
#[test]
fn a_macvtap_lasts_as_long_as_anybody_holds_its_namespace() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, _) = veth(&netlink).await;
        let (first, second, index) = (Pod::new(), Pod::new(), index());
        netlink
            .create_macvtap_in(&first.place(index), &spec("poda", &lower))
            .await
            .unwrap();
        give(index).unwrap();
        let sysfs = Sysfs::default();
        assert_eq!(tap_node::numbers(&sysfs, index).unwrap().len(), 1);

        // In another namespace the kernel takes the same index, and its device has no node: so one is taken away first.
        netlink
            .create_macvtap_in(&second.place(index), &spec("poda", &lower))
            .await
            .unwrap();
        assert!(matches!(give(index), Err(NodeError::Several { count: 2, .. })));
        assert!(second.inside.delete_link(index).await.unwrap());

        // The pod's own processes are gone, and its socket keeps all.
        let inside = first.inside.clone();
        drop(first);
        assert!(inside.link_by_index(index).await.unwrap().is_some());
        drop(inside);
        // The kernel takes namespaces down by and by.
        while !tap_node::numbers(&sysfs, index).unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        netlink
            .create_macvtap_in(&second.place(index), &spec("poda", &lower))
            .await
            .unwrap();
        give(index).unwrap();
    });
}

#[test]
fn a_macvtap_in_a_pod_receives_the_groups_of_its_list() {
    in_namespace(|| async {
        let netlink = Netlink::open().unwrap();
        let (lower, peer) = veth(&netlink).await;
        let (pod, index) = (Pod::new(), index());
        netlink
            .create_macvtap_in(&pod.place(index), &spec("poda", &lower))
            .await
            .unwrap();
        let node = give(index).unwrap();
        let file = File::options().read(true).write(true).open(node).unwrap();
        nix::fcntl::fcntl(
            &file,
            nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
        )
        .unwrap();
        // SAFETY: a File owns its descriptor, and is the same one until it is dropped.
        let tap = unsafe { AsyncFd::register(file) }.unwrap();
        pod.inside.set_up(index, true).await.unwrap();
        let mut wire = frames::Wire {
            tap,
            peer: frames::packet_socket(peer.index),
            macvtap: index,
        };
        let group = "33:33:00:01:00:02";
        let lists = Multicast::of(pod.socket, pod.listing).unwrap();
        lists
            .change(index, frames::macs(&[group]), BTreeSet::new())
            .await
            .unwrap();
        assert_eq!(lists.received(index).await.unwrap().added, frames::macs(&[group]));
        assert!(wire.passes(group).await);
    });
}
