//! The answers to the kubelet about one network's devices.

use std::{collections::BTreeMap, sync::Arc};

use futures::future::BoxFuture;
use hybridnic_kubelet::device_plugin::{Allocation, Device, Node, Plugin};
use hybridnic_net::{DeviceId, PciAddress, dev::VfioNodes};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{lend, placeholder, prefer::prefer};
use crate::host::Host;

/// The devices of one network.
#[derive(Debug)]
pub(super) struct Network {
    pub(super) host: Arc<Host>,
    pub(super) name: String,
    pub(super) devices: watch::Sender<Vec<Device>>,
}

impl Network {
    async fn give(&self, ids: &[String]) -> Result<Allocation, String> {
        let parse = |id: &String| id.parse::<DeviceId>().map_err(|error| error.to_string());
        let ids: Vec<DeviceId> = ids.iter().map(parse).collect::<Result<_, _>>()?;
        let by_group = self.host.offers.nodes() == VfioNodes::Groups;
        if by_group {
            lend::until_left(&self.host, &ids).await;
        }
        // Before the node is there, because nodes of devices that no pod has are removed.
        self.host.offers.promise(&self.host.pools, &self.name, &ids)?;
        for id in &ids {
            placeholder::make(self.host.dev.root(), *id)
                .map_err(|error| format!("{} cannot be made: {error}", id.node().display()))?;
        }
        let mut nodes: Vec<Node> = ids
            .iter()
            .map(|id| Node::same(id.node().display().to_string()))
            .collect();
        if by_group {
            let lent = lend::lend(&self.host, &self.name, &ids).await;
            nodes.extend(lent.inspect_err(|_| self.host.offers.retract(&self.host.pools, &self.name, &ids))?);
        }
        let list = ids.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        info!(
            network = self.name,
            devices = list,
            "given to a pod by the kubelet"
        );
        Ok(Allocation {
            nodes,
            env: BTreeMap::from([(variable(&self.name), list)]),
        })
    }
}

impl Plugin for Network {
    fn devices(&self) -> watch::Receiver<Vec<Device>> {
        self.devices.subscribe()
    }

    fn prefer(&self, available: &[String], included: &[String], count: usize) -> Vec<String> {
        let offers = self.host.offers.offers();
        let given = |pf: PciAddress| {
            let devices = offers.iter().flat_map(|offer| &offer.devices);
            devices
                .filter(|device| device.given && device.id.pf() == pf)
                .count()
        };
        prefer(available, included, count, given, |id| {
            self.host.offers.comes_without(&self.host.pools, id)
        })
    }

    fn allocate<'a>(&'a self, ids: &'a [String]) -> BoxFuture<'a, Result<Allocation, String>> {
        Box::pin(async move {
            let given = self.give(ids).await;
            given.inspect_err(|why| warn!(network = self.name, ?ids, why, "refused to the kubelet"))
        })
    }
}

/// In the container, which devices it has: `HYBRIDNIC_FAST=0000:01:00.0-3`.
fn variable(network: &str) -> String {
    let word = |c: char| {
        if c.is_ascii_alphanumeric() {
            c.to_ascii_uppercase()
        } else {
            '_'
        }
    };
    format!("HYBRIDNIC_{}", network.chars().map(word).collect::<String>())
}
