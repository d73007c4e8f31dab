//! Version `v1alpha1` of the API.

mod attachment;
mod common;
mod migration;
mod network;
mod nic;
mod node;
mod save;
mod vm;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

pub use attachment::*;
pub use common::*;
pub use migration::*;
pub use network::*;
pub use nic::*;
pub use node::*;
pub use save::*;
pub use vm::*;

/// The definitions of all kinds, those that users write first.
pub fn crds() -> Vec<CustomResourceDefinition> {
    vec![
        HybridNetwork::crd(),
        VmHybridNic::crd(),
        QemuMigration::crd(),
        QemuSave::crd(),
        QemuRestore::crd(),
        NicAttachment::crd(),
        HybridNode::crd(),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde::Serialize;
    use strum::VariantArray;

    fn words<T: VariantArray + Serialize + ToString + Copy + Into<&'static str> + 'static>() {
        for value in T::VARIANTS {
            let word: &str = (*value).into();
            assert_eq!(serde_json::to_value(value).unwrap(), word);
            assert_eq!(value.to_string(), word);
        }
    }

    #[test]
    fn a_value_is_shown_by_its_word_in_the_api() {
        words::<Goal>();
        words::<Aside>();
        words::<AfterSave>();
        words::<WantedPath>();
        words::<AttachmentState>();
        words::<MigrationStep>();
        words::<MigrationState>();
        words::<MigrationPhase>();
        words::<NicPhase>();
        words::<Path>();
        words::<Pairing>();
        words::<StandbyKind>();
        words::<SwitchOrder>();
        words::<Runtime>();
    }
}
