//! What the tests of the kernel run in.
#![allow(dead_code, reason = "each test program uses a part")]
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails so")]

use std::fs::File;
use std::future::Future;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use hybridnic_net::multicast::LISTING;
use hybridnic_net::netlink::{Netlink, Place};
use hybridnic_net::netns::NetNs;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, socket};
use rtnetlink::{LinkBridge, LinkUnspec, LinkVeth};

/// Longer than any test takes, shorter than any patience.
const DEADLINE: Duration = Duration::from_mins(1);

/// Runs a test on a thread of its own, in a new network namespace with its own sysfs, within a deadline. Needs root.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    let thread = std::thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS)
            .expect("a network namespace (are you root?)");
        let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
        mount(None::<&str>, "/", None::<&str>, private, None::<&str>).expect("mounts of our own");
        mount(
            Some("sysfs"),
            "/sys",
            Some("sysfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .expect("a sysfs");
        on_runtime(test);
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// Runs a test on this thread, within a deadline.
pub fn on_runtime<F: Future<Output = ()>>(test: impl FnOnce() -> F) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(DEADLINE, test())
            .await
            .expect("the test in time");
    });
}

/// Makes a pair of veths.
pub async fn add_veth(name: &str, peer: &str) {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    let connection = tokio::spawn(connection);
    handle
        .link()
        .add(LinkVeth::new(name, peer).build())
        .execute()
        .await
        .unwrap();
    connection.abort();
}

/// Makes a bridge, up, with this link as a port.
pub async fn add_to_bridge(name: &str, port: u32) {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    let connection = tokio::spawn(connection);
    let bridge = LinkBridge::new(name).up().build();
    handle.link().add(bridge).execute().await.unwrap();
    let index = Netlink::open().unwrap().link(name).await.unwrap().unwrap().index;
    let joined = LinkUnspec::new_with_index(port).controller(index).build();
    handle.link().set(joined).execute().await.unwrap();
    connection.abort();
}

/// Renames a link, as udev and people do.
pub async fn rename(index: u32, name: &str) {
    let (connection, handle, _) = rtnetlink::new_connection().unwrap();
    let connection = tokio::spawn(connection);
    let renamed = LinkUnspec::new_with_index(index).name(name.to_owned()).build();
    handle.link().set(renamed).execute().await.unwrap();
    connection.abort();
}

/// A pod's network namespace with sockets that somebody else has opened in it.
pub struct Pod {
    /// The namespace.
    pub netns: NetNs,
    /// A connection in it.
    pub inside: Netlink,
    /// Of any kind, for its multicast lists.
    pub socket: OwnedFd,
    /// Where these are listed.
    pub listing: File,
    /// Ends the thread that is in it.
    _running: std::sync::mpsc::Sender<()>,
}

impl Pod {
    /// One that lives for as long as its parts.
    pub fn new() -> Self {
        let (made, wait) = std::sync::mpsc::channel();
        let (running, ended) = std::sync::mpsc::channel::<()>();
        std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let flags = SockFlag::SOCK_CLOEXEC;
            let route = SockProtocol::NetlinkRoute;
            let netlink = socket(AddressFamily::Netlink, SockType::Raw, flags, route).unwrap();
            let any = socket(AddressFamily::Inet, SockType::Stream, flags, None).unwrap();
            let listing = File::open(LISTING).unwrap();
            made.send((NetNs::own().unwrap(), netlink, any, listing)).unwrap();
            let _ = ended.recv();
        });
        let (netns, netlink, socket, listing) = wait.recv().unwrap();
        assert_eq!(NetNs::of_socket(netlink.as_fd()).unwrap(), netns);
        Self {
            netns,
            inside: Netlink::from_socket(netlink).unwrap(),
            socket,
            listing,
            _running: running,
        }
    }

    /// Where a macvtap with that index is made.
    pub fn place(&self, index: u32) -> Place<'_> {
        Place {
            netns: &self.netns,
            inside: &self.inside,
            index,
            queues: None,
        }
    }
}
