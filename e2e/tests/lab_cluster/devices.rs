//! Pods that ask the scheduler for VFs: no VF is given twice, whichever program restarts.

use hybridnic_api::v1alpha1::HybridNode;
use hybridnic_e2e::cluster::{Cluster, SYSTEM};

use super::{SOON, agent_is_back, agent_of};

/// The devices of the example's network.
pub const RESOURCE: &str = "hybridnic.io/fast";
/// So many VFs a node has.
const VFS: usize = 14;

/// On n1, where a VM of the namespace has one of the node's VFs by a device.
pub async fn are_given_once(cluster: &mut Cluster, namespace: &str) {
    cluster.until_allocatable(1, RESOURCE, VFS).await.unwrap();
    of_its_pf(cluster, namespace).await;
    // Another pod has all others, and the next one finds none.
    cluster
        .start_asking(namespace, "greedy", 1, RESOURCE, VFS - 1)
        .await
        .unwrap();
    cluster.until_running(namespace, "greedy").await.unwrap();
    cluster
        .start_asking(namespace, "late", 1, RESOURCE, 1)
        .await
        .unwrap();
    cluster.until_unschedulable(namespace, "late").await.unwrap();

    let agent = agent_of(cluster, "n1").await;
    let joined = cluster.joined(1);
    joined.kill_kubelet().await.unwrap();
    joined.start_kubelet().await.unwrap();
    cluster.ready("n1").await.unwrap();
    cluster
        .kubectl(&[
            "delete",
            "pod",
            "-n",
            SYSTEM,
            &agent,
            "--force",
            "--grace-period=0",
        ])
        .await
        .unwrap();
    agent_is_back(cluster, "n1", &agent).await;
    cluster.until_allocatable(1, RESOURCE, VFS).await.unwrap();
    cluster.until_unschedulable(namespace, "late").await.unwrap();
    of_its_pf(cluster, namespace).await;

    // What a pod leaves the next one gets.
    cluster.delete_pod(namespace, "greedy").await.unwrap();
    cluster.until_running(namespace, "late").await.unwrap();
    of_its_pf(cluster, namespace).await;
}

/// The VM has one VF, of the PF of its device.
async fn of_its_pf(cluster: &Cluster, namespace: &str) {
    let device = "for p in $(pidof qemu-system-x86_64); do tr '\\0' '\\n' </proc/$p/environ | sed -n s/^HYBRIDNIC_FAST=//p; done";
    let device = cluster.node(1).run(device, SOON).await.unwrap();
    let (pf, _slot) = device.trim().rsplit_once('-').expect("no device");
    let ours = format!("{namespace}/db-0");
    let held = |node: &HybridNode| -> Vec<String> {
        let pfs = node.status.iter().flat_map(|status| &status.pfs);
        pfs.flat_map(|pf| pf.vfs.iter().map(move |vf| (pf, vf)))
            .filter(|(_, vf)| vf.held_by.as_deref() == Some(&ours))
            .map(|(pf, _)| pf.pci_address.clone())
            .collect()
    };
    cluster
        .until_node(1, "with the VM's VF on the PF of its device", |node| {
            held(node) == [pf]
        })
        .await
        .unwrap();
}
