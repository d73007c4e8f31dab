//! KubeVirt and Multus, as far as VMs of KubeVirt with hybrid NICs need them.

use std::fmt;

use hybridnic_api::foreign::{
    kubevirt::{KubeVirt, VirtualMachineInstance, VirtualMachineInstanceMigration},
    multus::NetworkAttachmentDefinition,
};
use kube::{Api, Resource, ResourceExt as _, api::ListParams};
use serde::de::DeserializeOwned;

use super::observed::{Fetched, Observed};
use crate::connect::Cluster;

/// The objects of a kind that a cluster need not have; none if it does not serve the kind.
pub type Optional<K> = Fetched<Option<Vec<K>>>;

/// What there is of both.
pub struct Objects {
    /// KubeVirt's installations.
    pub installed: Optional<KubeVirt>,
    /// Definitions of networks.
    pub definitions: Optional<NetworkAttachmentDefinition>,
    /// VMs that run, or are about to.
    pub vmis: Optional<VirtualMachineInstance>,
    /// Their migrations.
    pub migrations: Optional<VirtualMachineInstanceMigration>,
}

impl Objects {
    /// Fetches all.
    pub async fn fetch(cluster: &Cluster) -> Self {
        let (installed, definitions, vmis, migrations) = tokio::join!(
            all(cluster, "KubeVirts"),
            all(cluster, "NetworkAttachmentDefinitions"),
            all(cluster, "VirtualMachineInstances"),
            all(cluster, "VirtualMachineInstanceMigrations"),
        );
        Self {
            installed,
            definitions,
            vmis,
            migrations,
        }
    }
}

async fn all<K>(cluster: &Cluster, what: &str) -> Optional<K>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + fmt::Debug,
{
    let api: Api<K> = Api::all(cluster.client.clone());
    let list = async {
        match api.list(&ListParams::default()).await {
            Ok(list) => Ok(Some(list.items)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error),
        }
    };
    Ok(cluster.ask(what, list).await?)
}

/// How the operator serves VMs of KubeVirt, by its arguments.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The operator's namespace, in which each network has its definition.
    pub namespace: String,
    /// Whether it serves them.
    pub enabled: bool,
    /// Whether it registers the binding.
    pub registers: bool,
    /// The sidecar's image; empty if the operator does not touch the binding.
    pub sidecar: String,
}

impl Settings {
    /// None where no Deployment says so.
    pub fn of(observed: &Observed) -> Option<Self> {
        let operator = observed.operators.as_ref().ok()?.first()?;
        let template = &operator.spec.as_ref()?.template;
        let containers = &template.spec.as_ref()?.containers;
        let arguments = || {
            containers
                .iter()
                .flat_map(|container| container.args.iter().flatten())
        };
        let has = |argument: &str| arguments().any(|other| other == argument);
        let sidecar = arguments().find_map(|argument| argument.strip_prefix("--kubevirt-sidecar="));
        Some(Self {
            namespace: operator.namespace().unwrap_or_default(),
            enabled: has("--kubevirt"),
            registers: has("--kubevirt-register"),
            sidecar: sidecar.unwrap_or_default().to_owned(),
        })
    }
}
