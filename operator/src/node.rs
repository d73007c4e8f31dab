//! `HybridNode.spec`: which networks' pools a node is part of.

use std::collections::BTreeMap;
use std::sync::Arc;

use hybridnic_api::limits;
use hybridnic_api::v1alpha1::{Drain, HybridNetwork, HybridNode, HybridNodeSpec, NodePool};
use hybridnic_decisions::network::pool;
use kube::{Api, Client, ResourceExt};

use crate::controller::{Done, Reconciler};
use crate::select::selects;
use crate::world::World;
use crate::write;

/// Reconciles the specs of nodes. The nodes' agents make the objects and write their status.
pub struct NodeReconciler {
    client: Client,
    world: World,
}

impl NodeReconciler {
    /// A reconciler that reads from `world`.
    pub fn new(client: Client, world: World) -> Self {
        Self { client, world }
    }
}

impl Reconciler for NodeReconciler {
    type Kind = HybridNode;

    async fn reconcile(&self, object: Arc<HybridNode>) -> Result<Done, write::Error> {
        // Without its Node it is part of nothing; the agent goes with the node.
        let labels = self
            .world
            .nodes
            .get("", &object.name_any())
            .map(|node| node.labels().clone());
        let spec = HybridNodeSpec {
            pools: pools(&self.world.networks.all(), labels.as_ref()),
            // An administrator's: what is not written stays.
            drain: Drain::default(),
        };
        if object.spec.pools != spec.pools && object.metadata.deletion_timestamp.is_none() {
            write::apply_spec(&Api::all(self.client.clone()), object.as_ref(), &spec).await?;
        }
        Ok(Done::default())
    }
}

/// The pools of a node with these labels, by network; none if there is no such node. A network whose selector is not
/// valid selects nothing, and says so in its own status.
fn pools(networks: &[Arc<HybridNetwork>], labels: Option<&BTreeMap<String, String>>) -> Vec<NodePool> {
    let Some(labels) = labels else { return Vec::new() };
    let selected = networks.iter().filter(|network| {
        // Also one that is to be deleted, while NICs are attached to it: they may still migrate.
        selects(network.spec.node_selector.as_ref(), labels).unwrap_or(false)
    });
    let pool = |network: &Arc<HybridNetwork>| pool(&network.name_any(), &network.spec);
    let mut pools: Vec<_> = selected.map(pool).collect();
    pools.sort_by(|a, b| a.network.cmp(&b.network));
    if pools.len() > limits::POOLS {
        tracing::warn!(
            networks = pools.len(),
            "more networks select a node than it can be part of: it gets the first by name"
        );
    }
    limits::first(pools, limits::POOLS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::network;

    #[test]
    fn a_node_gets_the_pools_of_all_networks_that_select_it() {
        let mut picky = network("b");
        picky.spec.node_selector =
            serde_json::from_value(serde_json::json!({"matchLabels": {"zone": "x"}})).ok();
        let mut broken = network("0");
        let odd = serde_json::json!({"matchExpressions": [{"key": "zone", "operator": "Near"}]});
        broken.spec.node_selector = serde_json::from_value(odd).ok();
        let networks = [network("c"), picky, network("a"), broken].map(Arc::new);
        let names = |labels: Option<&BTreeMap<String, String>>| {
            pools(&networks, labels)
                .into_iter()
                .map(|pool| pool.network)
                .collect::<Vec<_>>()
        };
        assert_eq!(
            names(Some(&BTreeMap::from([("zone".to_owned(), "x".to_owned())]))),
            ["a", "b", "c"]
        );
        assert_eq!(names(Some(&BTreeMap::new())), ["a", "c"]);
        assert_eq!(names(None), Vec::<String>::new());
        assert_eq!(
            pools(&networks, Some(&BTreeMap::new()))[0].uplinks,
            networks[0].spec.uplinks
        );
        let mut roomy = network("d");
        roomy.spec.standby_slots = 2;
        let slots = pools(&[Arc::new(roomy)], Some(&BTreeMap::new()));
        assert_eq!(slots[0].standby_slots, 2);
    }
}
