//! Other programs that give away VFs: sriov-network-operator, SR-IOV device plugins, DRA drivers.

use std::ops::RangeInclusive;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::{
    Api, ResourceExt as _,
    api::{DynamicObject, ListParams},
    core::{ApiResource, GroupVersionKind},
    discovery,
};
use serde_json::Value;

use super::observed::Fetched;
use crate::connect::Cluster;

/// The CRD in which sriov-network-operator keeps what it does to each node.
const NODE_STATES: &str = "sriovnetworknodestates.sriovnetwork.openshift.io";

/// A PF that another program sets up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ForeignPf {
    /// The node.
    pub node: String,
    /// PCI address; empty where the other's object says nothing of a PF.
    pub pci_address: String,
    /// The VFs that the other sets up, by their index, where it leaves the rest of the PF alone (`externallyManaged`); `None` if it does
    /// not, or says so in words that are not understood.
    pub vfs: Option<Vec<RangeInclusive<i32>>>,
}

/// Devices that a DRA driver offers on a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    /// The driver.
    pub driver: String,
    /// The node.
    pub node: String,
    /// The devices' PCI addresses, as far as they say.
    pub pci_addresses: Vec<String>,
}

/// The PFs that sriov-network-operator sets up; none where it is not there.
pub async fn sriov_operator(cluster: &Cluster, crds: &[CustomResourceDefinition]) -> Fetched<Vec<ForeignPf>> {
    let Some(crd) = crds.iter().find(|crd| crd.name_any() == NODE_STATES) else {
        return Ok(Vec::new());
    };
    let version = crd
        .spec
        .versions
        .iter()
        .find(|version| version.served)
        .map_or("v1", |version| &version.name);
    let kind = GroupVersionKind::gvk(&crd.spec.group, version, &crd.spec.names.kind);
    let resource = ApiResource::from_gvk_with_plural(&kind, &crd.spec.names.plural);
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let states = cluster
        .ask("SriovNetworkNodeStates", api.list(&ListParams::default()))
        .await;
    Ok(states?
        .items
        .iter()
        .flat_map(|state| configured(&state.name_any(), &state.data))
        .collect())
}

/// What a node's state says is to be configured. Its name is the node's.
fn configured(node: &str, state: &Value) -> Vec<ForeignPf> {
    let interfaces = state.pointer("/spec/interfaces").and_then(Value::as_array);
    interfaces
        .into_iter()
        .flatten()
        .map(|interface| ForeignPf {
            node: node.to_owned(),
            pci_address: interface["pciAddress"].as_str().unwrap_or_default().to_owned(),
            vfs: shared(interface),
        })
        .collect()
}

/// The VFs that it sets up of a PF of which it leaves the rest alone: `api/v1/sriovnetworknodestate_types.go` of sriov-network-operator.
fn shared(interface: &Value) -> Option<Vec<RangeInclusive<i32>>> {
    interface["externallyManaged"]
        .as_bool()
        .filter(|managed| *managed)?;
    let groups = interface["vfGroups"].as_array();
    groups
        .into_iter()
        .flatten()
        .map(|group| {
            let (first, last) = group["vfRange"].as_str()?.split_once('-')?;
            Some(first.parse().ok()?..=last.parse().ok()?)
        })
        .collect()
}

/// What DRA drivers offer; nothing where the API server has no DRA.
pub async fn slices(cluster: &Cluster) -> Fetched<Vec<Slice>> {
    // Which versions are served differs between releases.
    let group = match discovery::group(&cluster.client, "resource.k8s.io").await {
        Ok(group) => group,
        Err(kube::Error::Discovery(_)) => return Ok(Vec::new()),
        Err(error) => return Err(cluster.unanswered("resource.k8s.io", &error)),
    };
    let Some((resource, _)) = group.recommended_kind("ResourceSlice") else {
        return Ok(Vec::new());
    };
    let api: Api<DynamicObject> = Api::all_with(cluster.client.clone(), &resource);
    let slices = cluster
        .ask("ResourceSlices", api.list(&ListParams::default()))
        .await;
    Ok(slices?
        .items
        .iter()
        .filter_map(|slice| offered(&slice.data))
        .collect())
}

/// What a slice offers; nothing if it does not belong to one node.
fn offered(slice: &Value) -> Option<Slice> {
    let spec = slice.get("spec")?;
    let devices = spec.get("devices").and_then(Value::as_array);
    let address = |device: &Value| {
        // Older versions have the attributes one level deeper.
        let attributes = device
            .get("attributes")
            .or_else(|| device.pointer("/basic/attributes"))?;
        let named = |key: &str| {
            key.rsplit('/')
                .next()
                .is_some_and(|name| name == "pciBusID" || name == "pciAddress")
        };
        let (_, value) = attributes.as_object()?.iter().find(|(key, _)| named(key))?;
        Some(value.get("string")?.as_str()?.to_owned())
    };
    Some(Slice {
        driver: spec.get("driver")?.as_str()?.to_owned(),
        node: spec.get("nodeName")?.as_str()?.to_owned(),
        pci_addresses: devices.into_iter().flatten().filter_map(address).collect(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn pfs_of_the_other_operator() {
        let state = json!({"spec": {"interfaces": [{"pciAddress": "0000:01:00.0", "numVfs": 4}, {}]}});
        let pfs = configured("n1", &state);
        assert_eq!(pfs.len(), 2);
        assert_eq!(
            (pfs[0].node.as_str(), pfs[0].pci_address.as_str()),
            ("n1", "0000:01:00.0")
        );
        assert_eq!(configured("n1", &json!({})), []);
    }

    #[test]
    fn vfs_of_a_divided_pf() {
        let interface = |managed: bool, ranges: &[&str]| {
            let groups: Vec<_> = ranges.iter().map(|range| json!({ "vfRange": range })).collect();
            json!({ "externallyManaged": managed, "vfGroups": groups })
        };
        assert_eq!(
            shared(&interface(true, &["0-3", "6-6"])),
            Some(vec![0..=3, 6..=6])
        );
        assert_eq!(shared(&interface(true, &[])), Some(vec![]));
        assert_eq!(shared(&interface(false, &["0-3"])), None);
        assert_eq!(shared(&interface(true, &["0-3", "all"])), None);
        assert_eq!(shared(&json!({})), None);
    }

    #[test]
    fn slices_old_and_new() {
        let new = json!({"spec": {"driver": "d", "nodeName": "n1", "devices": [
            {"name": "a", "attributes": {"resource.kubernetes.io/pciBusID": {"string": "0000:01:10.0"}}},
            {"name": "b", "attributes": {"x": {"int": 1}}},
        ]}});
        assert_eq!(offered(&new).unwrap().pci_addresses, ["0000:01:10.0"]);
        let old = json!({"spec": {"driver": "d", "nodeName": "n1", "devices": [
            {"name": "a", "basic": {"attributes": {"dra.net/pciAddress": {"string": "0000:01:10.1"}}}},
        ]}});
        assert_eq!(offered(&old).unwrap().pci_addresses, ["0000:01:10.1"]);
        assert_eq!(offered(&json!({"spec": {"driver": "d", "allNodes": true}})), None);
    }
}
