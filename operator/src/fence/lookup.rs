//! Looks nodes up: in the cache, and if they are not there, at the API server, because only its answer proves that a node is gone.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

pub use hybridnic_flight::migration::step::AGAIN;
use k8s_openapi::api::core::v1::Node;
use kube::{Api, Client};

use super::NodeState;
use crate::world::World;

/// A request that has not been answered for so long is given up.
const DEADLINE: Duration = Duration::from_secs(10);

/// Looks at nodes.
#[derive(Clone)]
pub struct NodeLookup {
    nodes: Api<Node>,
    world: World,
}

impl NodeLookup {
    /// Looks into `world` first.
    pub fn new(client: Client, world: World) -> Self {
        Self {
            nodes: Api::all(client),
            world,
        }
    }

    /// What is known of a node.
    pub async fn node(&self, name: &str) -> NodeState {
        if let Some(node) = self.world.nodes.get("", name) {
            return NodeState::of(&node);
        }
        // The cache of nodes may be behind that of attachments.
        match tokio::time::timeout(DEADLINE, self.nodes.get_metadata_opt(name)).await {
            Ok(Ok(None)) => NodeState::Deleted,
            Ok(Ok(Some(_))) => NodeState::Unknown,
            Ok(Err(error)) => {
                tracing::warn!(node = name, %error, "cannot see whether the node exists");
                NodeState::Unknown
            }
            Err(_) => {
                tracing::warn!(node = name, "cannot see whether the node exists: no answer");
                NodeState::Unknown
            }
        }
    }

    /// What is known of each of these nodes.
    pub async fn nodes(&self, names: BTreeSet<String>) -> BTreeMap<String, NodeState> {
        let mut states = BTreeMap::new();
        for name in names {
            let state = self.node(&name).await;
            states.insert(name, state);
        }
        states
    }
}
