//! `HybridNode`.

use hybridnic_api::v1alpha1::{HybridNode, PfStatus};
use kube::ResourceExt;

use super::{Watched, unread};
use crate::cache::{Key, Name, Object};
use crate::queue::Urgency;
use crate::triggers::Triggers;
use crate::version::{self, Support};

/// What is known of a node's agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Agent {
    /// This operator works with its version.
    Supported,
    /// It does not.
    Unsupported,
    /// The agent has not said its version yet.
    Unknown,
}

/// Its pools matter, and the MACs of its PFs; not the VFs in them.
impl Object for HybridNode {
    type Glance = Agent;

    fn keys(&self) -> Vec<Key> {
        let pools = self.status.iter().flat_map(|status| &status.pools);
        let reported = pools.map(|pool| &pool.network);
        let selected = self.spec.pools.iter().map(|pool| &pool.network);
        let mut networks: Vec<_> = selected.chain(reported).collect();
        networks.sort();
        networks.dedup();
        let networks = networks.into_iter().cloned().map(Key::Network);
        networks.chain(macs(self).map(Key::Mac)).collect()
    }

    fn glance(&self) -> Agent {
        match version::of_agent(self) {
            Support::Yes => Agent::Supported,
            Support::No(_) => Agent::Unsupported,
            Support::Unknown => Agent::Unknown,
        }
    }

    fn trim(&mut self) {
        unread(self);
        if let Some(status) = &mut self.status {
            let macs = std::mem::take(&mut status.pfs)
                .into_iter()
                .filter_map(|pf| pf.mac);
            let bare = |mac| PfStatus {
                mac: Some(mac),
                ..PfStatus::default()
            };
            status.pfs = macs.map(bare).collect();
        }
    }
}

/// The MACs of a node's PFs, lower case.
fn macs(node: &HybridNode) -> impl Iterator<Item = String> {
    let pfs = node.status.iter().flat_map(|status| &status.pfs);
    pfs.filter_map(|pf| Some(pf.mac.as_ref()?.to_ascii_lowercase()))
}

impl Watched for HybridNode {
    fn changed(triggers: &Triggers, old: Option<&Self>, new: Option<&Self>) {
        let Some(node) = new.or(old) else { return };
        let name = node.name_any();
        if new.is_none() {
            triggers.world.agents.forget(&name);
        }
        triggers.queues.hybrid_nodes.add(Name::of(node), Urgency::Usual);
        // What of a node decides whether it can take a NIC.
        let admits = |node: &Self| {
            let status = node.status.as_ref();
            (
                node.spec.pools.clone(),
                status.map(|s| (s.agent_version.clone(), s.features.clone())),
            )
        };
        // It belongs to no node any more.
        let now: Vec<_> = new.into_iter().flat_map(macs).collect();
        for mac in old.into_iter().flat_map(macs).filter(|mac| !now.contains(mac)) {
            triggers.nics(&Key::Mac(mac), Urgency::Usual);
        }
        let pools = |node: &Self| node.status.as_ref().map(|status| status.pools.clone());
        let all = |node: &Self| (admits(node), pools(node));
        if old.map(all) == new.map(all) {
            return;
        }
        for node in [old, new].into_iter().flatten() {
            triggers.networks_of(node);
        }
        if old.map(admits) != new.map(admits) {
            triggers.nics(&Key::Node(name.clone()), Urgency::Usual);
            triggers.moves_on(&name);
        }
    }
}
