//! The product as users run it: a Helm chart on a real two-node cluster, VMs in pods that kubelets start.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

use hybridnic_e2e::cluster::Cluster;

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_of_real_nodes() {
    let cluster = Cluster::start("cluster", |what| eprintln!("--- {what}")).await.unwrap();
    eprintln!("{}", cluster.kubectl(&["get", "nodes", "-o", "wide"]).await.unwrap());
}
