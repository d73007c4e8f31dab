//! The nodes of a network's pool, and which part of each belongs to the network.

use hybridnic_api::v1alpha1::{HybridNode, HybridNodeSpec, HybridNodeStatus, NodePool, PoolStatus};
use kube::ResourceExt;

/// The nodes of a network's pool.
#[derive(Clone, Default)]
pub struct Nodes {
    /// Those whose VFs count.
    pub there: Vec<HybridNode>,
    /// Those that are not ready.
    pub not_ready: Vec<HybridNode>,
    /// Those whose agent is away.
    pub without_agent: Vec<HybridNode>,
}

impl Nodes {
    /// Those whose VFs do not count, though the network selects them: what one of them is called, what several are, and their
    /// names.
    pub(super) fn away(&self, network: &str) -> [(&'static str, &'static str, Vec<String>); 2] {
        let selected = |node: &&HybridNode| node.spec.pools.iter().any(|pool| pool.network == network);
        let names = |nodes: &[HybridNode]| nodes.iter().filter(selected).map(ResourceExt::name_any).collect();
        [
            (
                "node that is not ready",
                "nodes that are not ready",
                names(&self.not_ready),
            ),
            (
                "node whose agent is away",
                "nodes whose agents are away",
                names(&self.without_agent),
            ),
        ]
    }
}

/// The part of a node that belongs to a network: all of 5,000 nodes are looked at together.
pub fn of_network(node: &HybridNode, network: &str) -> HybridNode {
    let pools = node.spec.pools.iter().filter(|pool| pool.network == network);
    let pools = pools.map(|pool| NodePool {
        network: pool.network.clone(),
        uplinks: Vec::new(),
        tags: pool.tags,
        standby_slots: pool.standby_slots,
        l2: None,
    });
    let mut slim = HybridNode::new(
        &node.name_any(),
        HybridNodeSpec {
            pools: pools.collect(),
            ..HybridNodeSpec::default()
        },
    );
    slim.status = node.status.as_ref().map(|status| HybridNodeStatus {
        pools: status
            .pools
            .iter()
            .filter(|pool| pool.network == network)
            .cloned()
            .collect(),
        ..HybridNodeStatus::default()
    });
    slim
}

/// What a node has for a network, while the network selects it.
pub fn pool<'a>(node: &'a HybridNode, network: &str) -> Option<&'a PoolStatus> {
    node.spec.pools.iter().find(|pool| pool.network == network)?;
    node.status
        .as_ref()?
        .pools
        .iter()
        .find(|pool| pool.network == network)
}
