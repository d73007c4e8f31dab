//! A device node that is made for one descriptor: the kernel reports when nobody has that any more. Needs root.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test fails so"
)]

use std::{fs, io::Read as _, os::fd::OwnedFd, path::Path};

use hybridnic_agent::handouts::Handouts;
use hybridnic_net::{dev::DevNodes, testing::vf_address};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use tokio::sync::watch;

/// `/dev/zero` stands for a VF.
#[test]
fn a_device_is_out_until_its_own_node_is_closed() {
    // Other file systems are often mounted `nodev`.
    let dev = tempfile::tempdir_in("/dev").unwrap();
    let vf = vf_address(0, 0);
    fs::create_dir_all(dev.path().join("vfio/devices")).unwrap();
    let node = dev.path().join("vfio/devices/vfio0");
    mknod(&node, SFlag::S_IFCHR, Mode::S_IRWXU, makedev(1, 5)).unwrap();
    let agent = || {
        Handouts::new(
            DevNodes::new(dev.path()),
            Path::new("/proc"),
            watch::Sender::new(0),
        )
    };
    let handouts = agent();
    let given: OwnedFd = handouts.open(vf, "vfio0").unwrap();
    let mut given = fs::File::from(given);
    given.read_exact(&mut [1; 8]).unwrap();
    // Another process that opens the device opens another node.
    drop(fs::File::open(&node).unwrap());
    assert!(handouts.is_out(vf));
    let child = std::process::Command::new("sleep")
        .arg("600")
        .stdin(given)
        .spawn();
    let mut child = child.unwrap();
    assert!(handouts.is_out(vf));
    // So it is for the next agent.
    drop(handouts);
    let handouts = agent();
    handouts.take_over(vf).unwrap();
    assert!(handouts.is_out(vf) && !handouts.is_unsure(vf));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(!handouts.is_out(vf));

    // What is closed while no agent is there is closed.
    let given = handouts.open(vf, "vfio0").unwrap();
    drop((handouts, given));
    let handouts = agent();
    handouts.take_over(vf).unwrap();
    assert!(!handouts.is_out(vf) && !handouts.is_unsure(vf));
    assert!(handouts.open(vf, "vfio1").is_err(), "there is none");
}
