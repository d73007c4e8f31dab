//! `NetworkAttachmentDefinition` of the Network Plumbing Working Group, which Multus reads.

use kube::CustomResource;
use serde::{Deserialize, Serialize};

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
