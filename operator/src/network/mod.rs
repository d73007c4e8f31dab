//! `HybridNetwork.status`: what the cluster has for a network; and its finalizer, while NICs are attached to it.

mod nodes;
mod status;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hybridnic_api::names::NETWORK_FINALIZER;
use hybridnic_api::v1alpha1::{HybridNetwork, NicAttachment};
use jiff::Timestamp;
use kube::{Api, Client, ResourceExt};
use tokio::time::Instant;

use crate::cache::{Key, Object};
use crate::controller::{Done, Reconciler};
use crate::events::Events;
use crate::kubevirt::Definitions;
use crate::presence::Presence;
use crate::world::World;
use crate::write;
use nodes::{Nodes, of_network};
use status::{build_status, notes};

/// All nodes of a network are looked at, and its status is written, no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Counts of thousands of NICs change all the time; no reader needs them more often than this.
const COUNT_EVERY: Duration = Duration::from_secs(5);
/// How many nodes are looked at before others have a turn: 5,000 at once would hold up all migrations.
const NODES_AT_ONCE: usize = 32;

/// Reconciles the status of networks.
pub struct NetworkReconciler {
    client: Client,
    world: World,
    definitions: Definitions,
    events: Events,
    times: Mutex<HashMap<String, Times>>,
}

/// When a network was last looked at, and when its status was written.
#[derive(Clone, Copy, Debug)]
struct Times {
    looked: Instant,
    written: Option<Instant>,
}

impl NetworkReconciler {
    /// A reconciler that reads from `world`.
    pub fn new(client: Client, world: World, definitions: Definitions, events: Events) -> Self {
        Self {
            client,
            world,
            definitions,
            events,
            times: Mutex::default(),
        }
    }

    /// How long a network is not to be looked at again. If it is, that is noted.
    fn rest(&self, network: &str) -> Option<Duration> {
        let (mut times, looked) = (self.times(), Instant::now());
        times.retain(|_, times| times.looked.elapsed() < COUNT_EVERY);
        let before = times.get(network).copied();
        let rest = before.map_or(Duration::ZERO, |before| left(before.looked, LOOK_EVERY));
        if rest.is_zero() {
            let written = before.and_then(|before| before.written);
            times.insert(network.to_owned(), Times { looked, written });
        }
        (!rest.is_zero()).then_some(rest)
    }

    /// How long its counts must stay as they were written last.
    fn counts_rest(&self, network: &str) -> Option<Duration> {
        let written = self.times().get(network)?.written?;
        Some(left(written, COUNT_EVERY)).filter(|rest| !rest.is_zero())
    }

    fn times(&self) -> MutexGuard<'_, HashMap<String, Times>> {
        self.times.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The nodes of a network's pool, and when one of them may have been away for too long.
    async fn nodes(&self, network: &str) -> (Nodes, Option<Duration>) {
        let key = Key::Network(network.to_owned());
        let mut names = self.world.hybrid_nodes.names(&key);
        names.sort_by(|a, b| a.name().cmp(b.name()));
        let (mut nodes, mut again) = (Nodes::default(), None::<Duration>);
        for some in names.chunks(NODES_AT_ONCE) {
            let now = std::time::Instant::now();
            for name in some {
                let node = self.world.hybrid_nodes.peek(name);
                let Some(node) = node.filter(|node| node.keys().contains(&key)) else {
                    continue;
                };
                let list = match self.world.presence(name.name(), now) {
                    Presence::There => &mut nodes.there,
                    Presence::Awaited(left) => {
                        again = Some(again.map_or(left, |again| again.min(left)));
                        &mut nodes.there
                    }
                    Presence::NotReady => &mut nodes.not_ready,
                    Presence::NoAgent => &mut nodes.without_agent,
                };
                list.push(of_network(&node, network));
            }
            tokio::task::yield_now().await;
        }
        (nodes, again)
    }
}

/// What is left of a time.
fn left(since: Instant, of: Duration) -> Duration {
    of.saturating_sub(since.elapsed())
}

impl NetworkReconciler {
    /// Keeps the finalizer for as long as NICs are attached; says whether it wrote.
    async fn guard(&self, network: &HybridNetwork, in_use: bool) -> Result<bool, write::Error> {
        let Some(finalizers) = finalizers(network, in_use) else {
            return Ok(false);
        };
        write::finalizers(&Api::all(self.client.clone()), network, &finalizers).await?;
        Ok(true)
    }
}

/// The NICs that are attached to a network.
fn attached(world: &World, network: &Key) -> Vec<String> {
    let attachments = world.attachments.by(network);
    let nic = |a: &Arc<NicAttachment>| format!("{}/{}", a.namespace().unwrap_or_default(), a.spec.nic.name);
    // During a migration a NIC has two.
    attachments
        .iter()
        .map(nic)
        .collect::<BTreeSet<_>>()
        .into_iter()
        .collect()
}

/// The finalizers that a network should have, where it has others.
fn finalizers(network: &HybridNetwork, in_use: bool) -> Option<Vec<String>> {
    let mut finalizers = network.finalizers().to_vec();
    let guarded = finalizers.iter().any(|finalizer| finalizer == NETWORK_FINALIZER);
    match (guarded, in_use) {
        (true, false) => finalizers.retain(|finalizer| finalizer != NETWORK_FINALIZER),
        // The API server does not allow to add one to an object that is being deleted.
        (false, true) if network.metadata.deletion_timestamp.is_none() => {
            finalizers.push(NETWORK_FINALIZER.to_owned());
        }
        _ => return None,
    }
    Some(finalizers)
}

impl Reconciler for NetworkReconciler {
    type Kind = HybridNetwork;

    async fn reconcile(&self, network: Arc<HybridNetwork>) -> Result<Done, write::Error> {
        let name = network.name_any();
        let key = Key::Network(name.clone());
        if self.guard(&network, self.world.attachments.any(&key)).await? {
            return Ok(Done {
                wrote: true,
                again: None,
            });
        }
        let after = |rest| Done {
            wrote: false,
            again: Some(rest),
        };
        if let Some(rest) = self.rest(&name) {
            return Ok(after(rest));
        }
        self.definitions.keep(&network).await?;
        let (nodes, again) = self.nodes(&name).await;
        let leaves = network.metadata.deletion_timestamp.is_some();
        let attached = if leaves {
            attached(&self.world, &key)
        } else {
            Vec::new()
        };
        let new = build_status(
            &network,
            &nodes,
            &self.world.nics.glances(&key),
            &attached,
            Timestamp::now(),
        );
        if network.status.as_ref() != Some(&new) {
            let counts = network.status.as_ref().is_some_and(|old| {
                (&old.conditions, old.observed_generation) == (&new.conditions, new.observed_generation)
            });
            if let Some(rest) = self.counts_rest(&name).filter(|_| counts) {
                return Ok(after(rest));
            }
            write::apply_status(&Api::all(self.client.clone()), network.as_ref(), &new).await?;
            let written = Instant::now();
            let times = Times {
                looked: written,
                written: Some(written),
            };
            self.times().insert(name, times);
            let old = network.status.clone().unwrap_or_default();
            self.events.tell(network.as_ref(), notes(&old, &new));
        }
        Ok(Done { wrote: false, again })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::network;

    #[test]
    fn a_network_in_use_keeps_its_finalizer() {
        let mut network = network("net");
        network.metadata.finalizers = Some(vec!["other".to_owned()]);
        assert_eq!(finalizers(&network, false), None);
        let guarded = finalizers(&network, true).unwrap();
        assert_eq!(guarded, ["other", NETWORK_FINALIZER]);
        network.metadata.finalizers = Some(guarded);
        assert_eq!(finalizers(&network, true), None);
        assert_eq!(finalizers(&network, false).unwrap(), ["other"]);

        network.metadata.deletion_timestamp = network.metadata.creation_timestamp.clone();
        assert_eq!(finalizers(&network, true), None);
        // It is let go of, whatever else still names it.
        assert_eq!(finalizers(&network, false).unwrap(), ["other"]);
    }
}
