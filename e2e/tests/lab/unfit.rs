//! Nodes that cannot give a VM a VF: they say why, and the VM has its standby.

use std::sync::Arc;

use hybridnic_api::{
    conditions,
    v1alpha1::{HybridNetwork, HybridNode, Path},
};
use hybridnic_e2e::{
    lab::{Node, NodeOptions},
    world::{NETWORK, NETWORK_YAML, NicSpec, VmSpec, World, WorldOptions},
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use libtest_mimic::Trial;

use crate::{
    common::{LATER, SOON, condition, on},
    suite::Suite,
};

pub fn tests(suite: &Arc<Suite>) -> Vec<Trial> {
    vec![suite.alone(
        "a_node_without_iommu_driver_or_cards_says_so_and_vms_have_their_standby",
        without_iommu,
        async |w| unfit(w).await,
    )]
}

/// Whether a list says that its object is not ready, for this reason, with these words.
fn not_ready(list: &[Condition], reason: &str, words: &str) -> bool {
    conditions::find(list, "Ready")
        .is_some_and(|c| c.status == "False" && c.reason == reason && c.message.contains(words))
}

async fn until_node(world: &World, reason: &str, words: &str) -> HybridNode {
    let is = |node: &HybridNode| {
        let status = node.status.as_ref();
        status.is_some_and(|s| not_ready(&s.conditions, reason, words))
    };
    world.until_node(1, SOON, reason, is).await.unwrap()
}

async fn until_network(world: &World, reason: &str, words: &str) {
    let is = |network: &HybridNetwork| {
        let status = network.status.as_ref();
        status.is_some_and(|s| not_ready(&s.conditions, reason, words))
    };
    world.until_network(NETWORK, SOON, reason, is).await.unwrap();
}

fn without_iommu(name: &str) -> WorldOptions {
    WorldOptions {
        nodes: 1,
        node: NodeOptions {
            kernel_args: "intel_iommu=off".into(),
            ..NodeOptions::default()
        },
        ..WorldOptions::new(name)
    }
}

async fn unfit(world: &World) {
    let node = world.node(1);
    let cards = [0, 1].map(Node::pf_address);

    // VFs there are, and none can be passed through.
    world.apply(NETWORK_YAML).await.unwrap();
    until_node(world, "NoIommu", "intel_iommu=on").await;
    // The cards get their VFs one after the other.
    let all = |node: &HybridNode| {
        let status = node.status.as_ref();
        status.is_some_and(|s| (s.vfs.total, s.vfs.unhealthy) == (14, 14))
    };
    world.until_node(1, SOON, "with all its VFs", all).await.unwrap();
    until_network(
        world,
        "PoolUnhealthy",
        "14 of its 14 VFs cannot be used: it has no IOMMU group",
    )
    .await;

    // A VM has its network all the same.
    let spec = VmSpec::new("vm", &[NicSpec::new(0, 53)]);
    world.start_vm(&spec, "vm-a", 1, false).await.unwrap();
    world.apply(&spec.nic_yaml(0, NETWORK)).await.unwrap();
    let standby = |nic: &_| on(nic, Path::Standby) && condition(nic, "FastPath") == "NoFreeVf";
    world
        .until_nic(&spec.nic_name(0), LATER, "on its standby", standby)
        .await
        .unwrap();
    let pinger = world.lab.pinger(spec.nics[0].address, 50).unwrap();
    assert!(pinger.answered(20, SOON).await, "no answer");
    pinger.stop().await;
    let nic = world.nic(&spec.nic_name(0)).await.unwrap().status.unwrap();
    let carrier = nic.standby.unwrap().pf;
    world.clear(NETWORK).await.unwrap();

    // A card without a driver is reported, and the other one is not touched.
    let first = node.netdev_of(&cards[0]).await.unwrap();
    let gone = usize::from(first == Some(carrier));
    let unbind = format!("echo {} >/sys/bus/pci/drivers/igb/unbind", cards[gone]);
    node.run(&unbind, SOON).await.unwrap();
    let is = |node: &HybridNode| {
        node.status.as_ref().is_some_and(|s| {
            let pf = s.pfs.iter().find(|pf| pf.pci_address == cards[gone]);
            s.vfs.total == 7 && pf.is_some_and(|pf| pf.message.contains("no driver is bound"))
        })
    };
    world.until_node(1, SOON, "without a driver", is).await.unwrap();

    // And a node that has no such card at all.
    for card in &cards {
        let remove = format!("echo 1 >/sys/bus/pci/devices/{card}/remove");
        node.run(&remove, SOON).await.unwrap();
    }
    until_node(world, "NoUplink", "no PF").await;
    until_network(world, "PoolEmpty", "no PF of the node").await;
}
