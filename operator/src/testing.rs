//! Objects for the unit tests.

use hybridnic_api::features::AgentFeature;
use hybridnic_api::v1alpha1::{HybridNetwork, HybridNode, HybridNodeSpec, HybridNodeStatus, NodePool};
use kube::api::ObjectMeta;

pub use hybridnic_flight::testing::*;

pub fn network(name: &str) -> HybridNetwork {
    let mut network = HybridNetwork::new(
        name,
        serde_json::from_value(serde_json::json!({ "uplinks": [{ "pfNames": ["ens*"] }] })).unwrap(),
    );
    network.metadata = ObjectMeta {
        namespace: None,
        ..meta(name, 1)
    };
    network
}

/// A node whose agent is there and of our version, with pools of these networks.
pub fn node(name: &str, networks: &[&str]) -> HybridNode {
    let pool = |network: &&str| NodePool {
        network: (*network).to_owned(),
        uplinks: Vec::new(),
        tags: hybridnic_api::v1alpha1::PoolTags::None,
        standby_slots: 0,
        l2: None,
    };
    let mut node = HybridNode::new(
        name,
        HybridNodeSpec {
            pools: networks.iter().map(pool).collect(),
            ..HybridNodeSpec::default()
        },
    );
    node.metadata = ObjectMeta {
        namespace: None,
        ..meta(name, 1)
    };
    node.status = Some(HybridNodeStatus {
        agent_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
        features: AgentFeature::words(),
        ..HybridNodeStatus::default()
    });
    node
}
