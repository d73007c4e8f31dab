//! `NetworkAttachmentDefinition` of the Network Plumbing Working Group, which Multus reads.

use kube::{CustomResource, ResourceExt as _};
use serde::{Deserialize, Serialize};

use crate::names::{GROUP, MADE_LABEL, NETWORK_LABEL, OPERATOR_MANAGER};

/// Annotation with the resource of which a pod needs one device for each attachment to the network.
pub const RESOURCE_ANNOTATION: &str = "k8s.v1.cni.cncf.io/resourceName";

/// How pods are attached to a network.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[kube(
    group = "k8s.cni.cncf.io",
    version = "v1",
    kind = "NetworkAttachmentDefinition",
    plural = "network-attachment-definitions",
    namespaced,
    schema = "disabled",
    derive = "PartialEq"
)]
pub struct NetworkAttachmentDefinitionSpec {
    /// Configuration of the CNI plugin, in JSON.
    #[serde(default)]
    pub config: String,
}

impl NetworkAttachmentDefinition {
    /// Whether it is one that the operator has made for this network.
    pub fn is_ours(&self, network: &str) -> bool {
        let has = |label: &str, value: &str| self.labels().get(label).is_some_and(|found| found == value);
        has(NETWORK_LABEL, network) && has(MADE_LABEL, OPERATOR_MANAGER)
    }
}

/// The resource of which a pod needs one device for each NIC on a network.
pub fn resource(network: &str) -> String {
    format!("{GROUP}/{network}")
}
