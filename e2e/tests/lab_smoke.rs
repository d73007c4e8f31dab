//! The lab keeps its promises: SR-IOV cards with all their VFs, guests that run and pair, a wire to watch.
//!
//! `LAB_KERNEL=debian` runs it on Debian's kernel.

#![allow(clippy::unwrap_used, clippy::panic)] // it is all tests, helpers too

mod plug;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use hybridnic_e2e::lab::{GuestSpec, Kernel, Lab, LabOptions, NetView, Node};
use plug::SHORT;
use tokio::time::timeout;

const MAC: &str = "52:54:00:aa:bb:01";
const ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 50);

#[tokio::test]
async fn two_nodes_and_a_guest_with_a_hybrid_nic() {
    let mut options = LabOptions::new("smoke");
    if std::env::var("LAB_KERNEL").is_ok_and(|kernel| kernel == "debian") {
        options.kernel = Kernel::Debian;
    }
    // The first start builds kernels; from then on it is minutes at most.
    let lab = Lab::start(options).await.unwrap();
    let all = async { tokio::join!(smoke(&lab), a_guest_that_keeps_its_vf(&lab.nodes()[1])) };
    timeout(Duration::from_mins(3), all)
        .await
        .expect("it takes less than three minutes");
}

async fn smoke(lab: &Lab) {
    let start = Instant::now();
    let lap = |what: &str| eprintln!("{:6.1} s  {what}", start.elapsed().as_secs_f64());
    let n1 = &lab.nodes()[0];
    programs_run_and_die(n1).await;
    lap("programs run and die");

    let pf = plug::provision(n1).await;
    assert_eq!(n1.vfs(&pf).await.unwrap().len(), 7);
    lap("14 VFs on each node");

    let guest = n1
        .start_guest(GuestSpec::new("vm").nic(MAC, "10.77.0.50/24"))
        .await
        .unwrap();
    lap("the guest is up");
    plug::standby(&guest, &pf, MAC).await;
    let macvtaps = n1.macvtaps().await.unwrap();
    assert_eq!(macvtaps.len(), 1);
    assert_eq!(
        (
            macvtaps[0].mac.as_str(),
            macvtaps[0].lower.as_str(),
            macvtaps[0].up
        ),
        (MAC, pf.as_str(), true)
    );
    let pinger = lab.pinger(ADDRESS, 50).unwrap();
    assert!(pinger.answered(10, SHORT).await, "no answer on the standby");
    lap("the standby carries traffic");

    let wire = lab
        .capture(1, 0, &format!("ether host {MAC} and udp"))
        .await
        .unwrap();
    let vf = plug::vf(&guest, &pf, MAC).await;
    assert_eq!(n1.driver_of(&vf).await.unwrap().as_deref(), Some("vfio-pci"));
    assert_eq!(n1.vfs(&pf).await.unwrap()[0].mac, MAC);
    let (view, paired) = guest
        .net_when(SHORT, |net| {
            net.failover(MAC)
                .and_then(|f| f.primary)
                .is_some_and(|p| p.carrier && p.rx_packets > 20)
        })
        .await
        .unwrap();
    assert!(
        paired || !guest.is_frozen().await,
        "FROZEN: the emulation lost the guest's timer"
    );
    assert!(paired, "the VF is not paired or carries nothing: {view:#?}");
    lap("the VF is paired and carries traffic");

    n1.run("ip link set mvt0 down", SHORT).await.unwrap();
    assert!(pinger.answered(10, SHORT).await, "no answer on the VF");
    let frames = wire.stop().unwrap();
    assert!(frames.iter().any(|f| f.source == MAC) && frames.iter().any(|f| f.destination == MAC));
    assert!(frames.iter().all(|f| f.vlan.is_none()));
    assert_eq!(lab.net().learned_at(MAC).await.unwrap(), ["n1p0"]);

    n1.run("ip link set mvt0 up", SHORT).await.unwrap();
    assert!(
        plug::unplug_vf(&guest, SHORT).await,
        "the guest does not let go of the VF"
    );
    assert!(
        pinger.answered(10, SHORT).await,
        "no answer on the standby after the VF has gone"
    );
    lap("the VF is unplugged, the standby carries traffic");

    let report = pinger.stop().await;
    eprintln!(
        "there and back: {} of {} lost",
        report.round_trip.lost(),
        report.round_trip.sent
    );
    assert_eq!(guest.status().await.unwrap(), "running");
    guest.kill().await.unwrap();
    assert!(!guest.qemu().is_running());
    lap("end");
}

/// The guest that tests of refusals need: it sees a VF plugged, pairs it, and does not answer `device_del`.
async fn a_guest_that_keeps_its_vf(node: &Node) {
    let mac = "52:54:00:aa:bb:02";
    let pf = plug::provision(node).await;
    assert_eq!(node.vfs(&pf).await.unwrap().len(), 7);
    let mut spec = GuestSpec::new("stubborn").nic(mac, "10.77.0.60/24");
    spec.hotplug = false;
    let guest = node.start_guest(spec).await.unwrap();
    plug::standby(&guest, &pf, mac).await;
    plug::vf(&guest, &pf, mac).await;
    let paired = |net: &NetView| net.failover(mac).is_some_and(|f| f.primary.is_some());
    let (view, done) = guest.net_when(SHORT, paired).await.unwrap();
    assert!(
        done,
        "a guest without hot-plug driver does not find its VF: {view:#?}"
    );
    assert!(
        !plug::unplug_vf(&guest, Duration::from_secs(10)).await,
        "it lets go of the VF"
    );
    assert!(paired(&guest.net().await.unwrap()));
}

/// Commands at the same time, files, and programs that go on until they are killed.
async fn programs_run_and_die(node: &Node) {
    let (slow, quick) = tokio::join!(
        node.exec("sleep 1; echo slow; exit 3", SHORT),
        node.exec("echo quick", SHORT)
    );
    let (slow, quick) = (slow.unwrap(), quick.unwrap());
    assert_eq!(
        (slow.status, slow.stdout.as_str(), quick.stdout.as_str()),
        (3, "slow\n", "quick\n")
    );
    assert!(
        node.exec("sleep 60", Duration::from_millis(300)).await.is_err(),
        "a deadline that does not hold"
    );

    let text = vec![b'x'; 200_000];
    node.put("/run/some/where", &text, 0o600).await.unwrap();
    assert_eq!(
        node.run("stat -c '%s %a' /run/some/where", SHORT).await.unwrap(),
        "200000 600\n"
    );

    let greeting = [("GREETING", "hello")];
    let program = node
        .spawn(
            &["sh", "-c", "echo $GREETING; exec sleep 60"],
            &greeting,
            "program",
        )
        .await
        .unwrap();
    assert!(program.logged("hello", SHORT).await.unwrap());
    let alive = format!("kill -0 {}", program.pid());
    assert_eq!(node.exec(&alive, SHORT).await.unwrap().status, 0);
    program.kill(SHORT).await.unwrap();
    assert_eq!(
        (program.wait(SHORT).await.unwrap(), program.is_running()),
        (Some(137), false)
    );
    assert_ne!(node.exec(&alive, SHORT).await.unwrap().status, 0);
}
