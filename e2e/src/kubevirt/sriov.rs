//! KubeVirt's own `sriov: {}`, to compare with: VFs that are not ours, offered to pods by a device plugin.

use std::time::Duration;

use anyhow::{Context as _, Result};

use super::nodes::show;
use super::{OnNodes, SCRIPT};
use crate::cluster::Cluster;
use crate::controlplane::tools::Built;

/// The network's definition.
pub(super) const NETWORK: &str = "vf";
const RESOURCE: &str = "lab.hybridnic.io/vf";
const SOON: Duration = Duration::from_mins(1);

impl OnNodes {
    /// Offers one VF of each node's first PF, that of this number, which no `HybridNetwork` has; and defines their network in a
    /// namespace.
    pub async fn offer_vf(&mut self, cluster: &Cluster, namespace: &str, number: u8) -> Result<()> {
        let mut built = Built::by(SCRIPT, &["sriov"]).await?;
        let program = built.take("sriov")?;
        for node in cluster.lab.nodes() {
            show(node, &program)?;
            // A VF has its MAC only where its PF is up, as an administrator sees to.
            let script = format!(
                "set -e; ip link set dev $(ls /sys/bus/pci/devices/0000:01:00.0/net) up; ln -sf /host/bin/sriov /usr/lib/cni/sriov; \
                 vf=$(basename $(readlink /sys/bus/pci/devices/0000:01:00.0/virtfn{number})); \
                 cd /sys/bus/pci/devices/$vf; echo vfio-pci >driver_override; \
                 if [ -e driver ]; then echo $vf >driver/unbind; fi; echo $vf >/sys/bus/pci/drivers_probe; echo $vf"
            );
            let vf = node.run(&script, SOON).await.context("a VF for sriov: {}")?;
            let argv = ["/host/bin/sriov", RESOURCE, vf.trim()];
            self.offers.push(node.spawn(&argv, &[], "sriov").await?);
        }
        cluster
            .apply(&format!(
                "apiVersion: k8s.cni.cncf.io/v1\nkind: NetworkAttachmentDefinition\n\
                 metadata: {{name: {NETWORK}, namespace: {namespace}, annotations: {{k8s.v1.cni.cncf.io/resourceName: {RESOURCE}}}}}\n\
                 spec: {{config: '{{\"cniVersion\": \"1.0.0\", \"type\": \"sriov\", \"name\": \"{NETWORK}\"}}'}}\n"
            ))
            .await?;
        Ok(())
    }
}
