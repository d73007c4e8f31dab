//! What the agent does in the network namespace of a pod, through the broker. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails so"
)]

use std::{
    os::fd::AsFd as _,
    path::Path,
    process::{Child, Command, Stdio},
};

use hybridnic_agent::{
    broker::{Broker as _, Pod, Process, Started},
    machine::process::ProcessId,
};
use hybridnic_net::{netlink::Netlink, netns::NetNs};

/// A pod's only process.
struct Running(Child);

impl Running {
    fn new() -> Self {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo up; exec cat"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut up = [0; 3];
        std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut up).unwrap();
        Self(child)
    }

    fn id(&self) -> ProcessId {
        ProcessId::of(self.0.id().cast_signed()).unwrap().unwrap()
    }

    fn netns(&self) -> NetNs {
        NetNs::open(format!("/proc/{}/ns/net", self.0.id()).as_ref()).unwrap()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn broker() -> Process {
    let program = Path::new(env!("CARGO_BIN_EXE_hybridnic-agent"));
    Started::new(program).unwrap().run().unwrap()
}

async fn is_up(netlink: &Netlink) -> bool {
    netlink.link("lo").await.unwrap().unwrap().up
}

#[tokio::test]
async fn links_of_a_pod_go_up_and_down_from_outside() {
    let (broker, pod) = (broker(), Running::new());
    let (process, netns) = (pod.id(), pod.netns());
    let by_process = broker.netlink(Pod::Process(&process)).await.unwrap();
    let by_namespace = broker.netlink(Pod::NetNs(&netns)).await.unwrap();
    for (socket, up) in [(by_process, true), (by_namespace, false)] {
        assert_eq!(NetNs::of_socket(socket.as_fd()).unwrap(), netns);
        let inside = Netlink::from_socket(socket).unwrap();
        let lo = inside.link("lo").await.unwrap().unwrap();
        inside.set_up(lo.index, up).await.unwrap();
        assert_eq!(is_up(&inside).await, up);
    }
    assert!(is_up(&Netlink::open().unwrap()).await, "this one was never meant");

    let listing = broker.groups(Pod::Process(&process)).await.unwrap();
    let text = std::io::read_to_string(std::fs::File::from(listing)).unwrap();
    assert!(!text.contains("lo "), "it has no group: {text}");

    // Of a pod that has ended there is none; by what was kept of its namespace there is.
    drop(pod);
    assert!(broker.netlink(Pod::Process(&process)).await.is_err());
    let kept = broker.netlink(Pod::NetNs(&netns)).await.unwrap();
    assert!(!is_up(&Netlink::from_socket(kept).unwrap()).await);
}
