//! Waiting for a state of objects, and seeing that a node is as clean as it was.

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use hybridnic_api::v1alpha1::{
    HybridNetwork, HybridNode, NicAttachment, QemuMigration, QemuRestore, QemuSave, VmHybridNic,
};
use kube::{Api, Resource};

use super::{NAMESPACE, World};
use crate::{lab::Node, until::until};

/// How long a node may take to be as it was.
const NODE_CLEAN: Duration = Duration::from_secs(30);

impl World {
    fn namespaced<K>(&self) -> Api<K>
    where
        K: Resource<Scope = k8s_openapi::NamespaceResourceScope>,
        K::DynamicType: Default,
    {
        Api::namespaced(self.client(), NAMESPACE)
    }

    /// A NIC.
    pub async fn nic(&self, name: &str) -> Result<VmHybridNic> {
        Ok(self.namespaced().get(name).await?)
    }

    /// All attachments of the test's namespace.
    pub async fn attachments(&self) -> Result<Vec<NicAttachment>> {
        Ok(self
            .namespaced::<NicAttachment>()
            .list(&kube::api::ListParams::default())
            .await?
            .items)
    }

    /// A network.
    pub async fn network(&self, name: &str) -> Result<HybridNetwork> {
        Ok(Api::all(self.client()).get(name).await?)
    }

    /// Waits until a NIC is as `is` says.
    pub async fn until_nic(
        &self,
        name: &str,
        deadline: Duration,
        what: &str,
        is: impl Fn(&VmHybridNic) -> bool,
    ) -> Result<VmHybridNic> {
        until(self.namespaced(), name, deadline, what, is).await
    }

    /// Waits until a migration is as `is` says.
    pub async fn until_migration(
        &self,
        name: &str,
        deadline: Duration,
        what: &str,
        is: impl Fn(&QemuMigration) -> bool,
    ) -> Result<QemuMigration> {
        until(self.namespaced(), name, deadline, what, is).await
    }

    /// Waits until a save is as `is` says.
    pub async fn until_save(
        &self,
        name: &str,
        deadline: Duration,
        what: &str,
        is: impl Fn(&QemuSave) -> bool,
    ) -> Result<QemuSave> {
        until(self.namespaced(), name, deadline, what, is).await
    }

    /// Waits until a restore is as `is` says.
    pub async fn until_restore(
        &self,
        name: &str,
        deadline: Duration,
        what: &str,
        is: impl Fn(&QemuRestore) -> bool,
    ) -> Result<QemuRestore> {
        until(self.namespaced(), name, deadline, what, is).await
    }

    /// Waits until a node's object is as `is` says.
    pub async fn until_node(
        &self,
        number: usize,
        deadline: Duration,
        what: &str,
        is: impl Fn(&HybridNode) -> bool,
    ) -> Result<HybridNode> {
        until(
            Api::all(self.client()),
            self.node(number).name(),
            deadline,
            what,
            is,
        )
        .await
    }

    /// Waits until a network is as `is` says.
    pub async fn until_network(
        &self,
        name: &str,
        deadline: Duration,
        what: &str,
        is: impl Fn(&HybridNetwork) -> bool,
    ) -> Result<HybridNetwork> {
        until(Api::all(self.client()), name, deadline, what, is).await
    }

    /// What a node's PFs and VFs look like: settings of every VF, drivers, macvtaps, VLAN devices.
    pub async fn footprint(&self, number: usize) -> Result<String> {
        footprint(self.node(number)).await
    }

    /// Waits until a node's footprint is as it was; a difference is the error.
    pub async fn until_footprint(&self, number: usize, wanted: &str) -> Result<()> {
        let end = tokio::time::Instant::now() + NODE_CLEAN;
        loop {
            let now = self.footprint(number).await?;
            if now == wanted {
                return Ok(());
            }
            if tokio::time::Instant::now() >= end {
                bail!("node {number} is not as it was:\n{now}\ninstead of\n{wanted}");
            }
            // A node does not report by itself what is on it; a look costs some milliseconds.
            tokio::time::sleep(Duration::from_millis(300)).await;
        }
    }
}

/// What a node's PFs and VFs look like, no matter what runs on it.
pub async fn footprint(node: &Node) -> Result<String> {
    let script = "for pf in 0000:01:00.0 0000:02:00.0; do \
                    n=$(ls /sys/bus/pci/devices/$pf/net); \
                    ip link show dev $n | grep ' vf ' | sed 's/  */ /g'; \
                    for vf in /sys/bus/pci/devices/$pf/virtfn*; do \
                      echo $(basename $(readlink $vf)) $(basename $(readlink $vf/driver) 2>/dev/null) $(cat $vf/driver_override); \
                    done; \
                  done; ip -br link show type macvtap; ip -br link show type vlan";
    node.run(script, Duration::from_secs(20))
        .await
        .context("a node's footprint")
}
