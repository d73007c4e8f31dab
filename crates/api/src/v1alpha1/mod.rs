//! Version `v1alpha1` of the API.

mod attachment;
mod common;
mod migration;
mod network;
mod nic;
mod node;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

pub use attachment::*;
pub use common::*;
pub use migration::*;
pub use network::*;
pub use nic::*;
pub use node::*;

/// The definitions of all kinds, those that users write first.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        HybridNetwork::crd(),
        VmHybridNic::crd(),
        QemuMigration::crd(),
        NicAttachment::crd(),
        HybridNode::crd(),
    ]
}
