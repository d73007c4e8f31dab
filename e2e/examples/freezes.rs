//! Counts how often an emulated guest freezes when its VF is plugged: the measure of how far the lab can be trusted.
//!
//! A measurement, not a test, and it takes as long as it is told: `LAB_PLUGS=20 make freezes`
//!
//! `HYBRIDNIC_NODE_QEMU` runs the nodes on another QEMU, `LAB_NODE_ARGS` adds to their kernels' command line. Counted on 2 cores, both nodes at once, 50 packets a second
//! during each plug: see `e2e/lab/README.md`.

#![allow(clippy::unwrap_used, clippy::panic)] // it measures tests' world, and ends where that is not as it should be

#[path = "../tests/plug/mod.rs"]
mod plug;

use std::net::Ipv4Addr;

use hybridnic_e2e::lab::{Guest, GuestSpec, Lab, LabOptions, Node};
use plug::SHORT;

#[tokio::main]
async fn main() {
    let plugs = std::env::var("LAB_PLUGS")
        .ok()
        .and_then(|n| n.parse().ok())
        .unwrap_or(10);
    let mut options = LabOptions::new("freezes");
    options.alone = true;
    options.node.kernel_args = std::env::var("LAB_NODE_ARGS").unwrap_or_default();
    let lab = Lab::start(options).await.unwrap();
    let (one, two) = tokio::join!(
        count(&lab, &lab.nodes()[0], plugs),
        count(&lab, &lab.nodes()[1], plugs)
    );
    eprintln!("frozen: {} of {}", one + two, 2 * plugs);
    assert_eq!(one + two, 0, "frozen guests");
}

async fn count(lab: &Lab, node: &Node, plugs: u32) -> u32 {
    let mac = format!("52:54:00:aa:bb:0{}", node.number());
    let pf = plug::provision(node).await;
    let mut guest = start(node, &pf, &mac).await;
    let pinger = lab
        .pinger(Ipv4Addr::new(10, 77, 0, 50 + node.number()), 50)
        .unwrap();
    let mut frozen = 0;
    for round in 1..=plugs {
        match plug_once(&guest, &pf, &mac).await {
            Ok(()) => eprintln!("{} {round}: fine", node.name()),
            Err(why) => {
                frozen += 1;
                eprintln!("{} {round}: FROZEN {why}", node.name());
                guest.kill().await.unwrap();
                guest = start(node, &pf, &mac).await;
            }
        }
    }
    let report = pinger.stop().await;
    eprintln!(
        "{}: {} of {} lost",
        node.name(),
        report.round_trip.lost(),
        report.round_trip.sent
    );
    frozen
}

async fn start(node: &Node, pf: &str, mac: &str) -> Guest {
    let cidr = format!("10.77.0.{}/24", 50 + node.number());
    let guest = node
        .start_guest(GuestSpec::new("vm").nic(mac, &cidr))
        .await
        .unwrap();
    plug::standby(&guest, pf, mac).await;
    guest
}

async fn plug_once(guest: &Guest, pf: &str, mac: &str) -> Result<(), String> {
    plug::vf(guest, pf, mac).await;
    let paired = guest
        .net_when(SHORT, |net| {
            net.failover(mac).is_some_and(|f| f.primary.is_some())
        })
        .await;
    if guest.is_frozen().await || !paired.as_ref().is_ok_and(|(_, paired)| *paired) {
        let lapic = guest.hmp("info lapic").await.unwrap_or_default();
        return Err(format!(
            "after the plug: {:?}\n{lapic}",
            paired.map(|(_, paired)| paired)
        ));
    }
    if plug::unplug_vf(guest, SHORT).await {
        Ok(())
    } else {
        Err("the VF was not let go".into())
    }
}
