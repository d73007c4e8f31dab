//! The lab holds what it promises: SR-IOV cards with all their VFs, guests that run and pair, a wire to watch.
//!
//! `LAB_KERNEL=debian` runs it on Debian's kernel.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use hybridnic_e2e::lab::{Guest, GuestSpec, Kernel, Lab, LabOptions, Node};
use tokio::time::timeout;

const MAC: &str = "52:54:00:aa:bb:01";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);
const SHORT: Duration = Duration::from_secs(60);

#[tokio::test]
async fn two_nodes_and_a_guest_with_a_hybrid_nic() {
    let mut options = LabOptions::new("smoke");
    if std::env::var("LAB_KERNEL").is_ok_and(|kernel| kernel == "debian") {
        options.kernel = Kernel::Debian;
    }
    // The first start builds kernels; from then on it is minutes at most.
    let lab = Lab::start(options).await.unwrap();
    timeout(Duration::from_mins(3), smoke(&lab)).await.expect("it takes less than three minutes");
}

async fn smoke(lab: &Lab) {
    let start = Instant::now();
    let lap = |what: &str| eprintln!("{:6.1} s  {what}", start.elapsed().as_secs_f64());
    let (n1, n2) = (&lab.nodes()[0], &lab.nodes()[1]);
    let (pf, other) = tokio::join!(provision(n1), provision(n2));
    assert_eq!(n1.vfs(&pf).await.unwrap().len(), 7);
    assert_eq!(n2.vfs(&other).await.unwrap().len(), 7);
    lap("14 VFs on each node");

    let guest = n1.start_guest(GuestSpec::new("vm").nic(MAC, "10.77.0.50/24")).await.unwrap();
    lap("the guest is up");
    plug_standby(&guest, &pf).await;
    let pinger = lab.pinger(ADDRESS, 100).unwrap();
    assert!(pinger.answered(10, SHORT).await, "no answer on the standby");
    lap("the standby carries traffic");

    let wire = lab.capture(1, 0, &format!("ether host {MAC} and udp")).await.unwrap();
    plug_vf(&guest, &pf).await;
    let (view, paired) = guest
        .net_when(SHORT, |net| {
            net.failover(MAC).and_then(|f| f.primary).is_some_and(|p| p.carrier && p.rx_packets > 20)
        })
        .await
        .unwrap();
    if !paired && guest.is_frozen().await {
        panic!("FROZEN: the emulated machine lost the guest's timer; see the lab's documentation");
    }
    assert!(paired, "the VF is not paired or carries nothing: {view:#?}");
    lap("the VF is paired and carries traffic");

    n1.run("ip link set mvt0 down", SHORT).await.unwrap();
    assert!(pinger.answered(10, SHORT).await, "no answer on the VF");
    let frames = wire.stop().unwrap();
    assert!(frames.iter().any(|f| f.source == MAC) && frames.iter().any(|f| f.destination == MAC));
    assert!(frames.iter().all(|f| f.vlan.is_none()));
    assert_eq!(lab.net().learned_at(MAC).await.unwrap(), ["n1p0"]);
    let report = pinger.stop().await;
    eprintln!("{report:#?}");
    lap("end");
}

/// All VFs of both cards; gives the first card's netdev.
async fn provision(node: &Node) -> String {
    for pf in 0..2 {
        let pci = Node::pf_address(pf);
        let netdev = node.netdev_of(&pci).await.unwrap().expect("the card has a driver");
        node.run(&format!("ip link set {netdev} up && echo 7 >/sys/bus/pci/devices/{pci}/sriov_numvfs"), SHORT)
            .await
            .unwrap();
    }
    node.netdev_of(&Node::pf_address(0)).await.unwrap().expect("the card has a driver")
}

/// A macvtap on the PF, handed to QEMU by descriptor, and the virtio device on it.
async fn plug_standby(guest: &Guest, pf: &str) {
    let script = format!(
        r#"set -e
        ip link add link {pf} name mvt0 address {MAC} type macvtap mode bridge
        ip link set mvt0 up
        mknod /run/tap0 c $(cat /sys/class/net/mvt0/tap*/dev | tr : ' ')
        /host/lab-exec qmp {} tap0=/run/tap0 \
            '{{"execute":"netdev_add","arguments":{{"type":"tap","id":"hn0","fds":"tap0"}}}}' \
            '{{"execute":"device_add","arguments":{{"driver":"virtio-net-pci","id":"sb0","netdev":"hn0","mac":"{MAC}",
               "bus":"rp0","failover":true,"romfile":""}}}}'"#,
        guest.qmp_socket()
    );
    guest.node().run(&script, SHORT).await.unwrap();
    let (view, made) = guest.net_when(SHORT, |net| net.failover(MAC).is_some_and(|f| f.master.up)).await.unwrap();
    assert!(made, "no standby in the guest: {view:#?}");
    let macvtaps = guest.node().macvtaps().await.unwrap();
    assert_eq!(macvtaps.len(), 1);
    assert_eq!((macvtaps[0].mac.as_str(), macvtaps[0].lower.as_str(), macvtaps[0].up), (MAC, pf, true));
}

/// VF 0 with the guest's MAC, bound to vfio-pci, plugged.
async fn plug_vf(guest: &Guest, pf: &str) {
    let node = guest.node();
    let script = format!(
        r#"set -e
        ip link set {pf} vf 0 mac {MAC}
        vf=$(basename $(readlink /sys/class/net/{pf}/device/virtfn0))
        modprobe vfio-pci 2>/dev/null || true
        echo vfio-pci >/sys/bus/pci/devices/$vf/driver_override
        [ -e /sys/bus/pci/devices/$vf/driver ] && echo $vf >/sys/bus/pci/devices/$vf/driver/unbind
        echo $vf >/sys/bus/pci/drivers_probe
        /host/lab-exec qmp {} '{{"execute":"device_add","arguments":{{"driver":"vfio-pci","id":"vf0",
            "host":"'$vf'","bus":"rp1"}}}}' >&2
        echo $vf"#,
        guest.qmp_socket()
    );
    let vf = node.run(&script, SHORT).await.unwrap();
    assert_eq!(node.driver_of(vf.trim()).await.unwrap().as_deref(), Some("vfio-pci"));
    assert_eq!(node.vfs(pf).await.unwrap()[0].mac, MAC);
}
