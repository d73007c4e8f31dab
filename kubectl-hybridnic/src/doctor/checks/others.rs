//! Whether another program gives away the same VFs.

use std::collections::BTreeSet;

use hybridnic_api::{
    names,
    v1alpha1::{HybridNode, VfState},
};
use kube::ResourceExt as _;

use crate::doctor::{
    finding::{Finding, some},
    foreign::ForeignPf,
    observed::{self, Observed},
};

/// Addresses of PFs and VFs in our pools, as `node/address`.
fn ours(nodes: &[HybridNode]) -> BTreeSet<String> {
    let mut ours = BTreeSet::new();
    for node in nodes {
        for pf in node.status.iter().flat_map(|status| &status.pfs) {
            let mine = |address: &str| format!("{}/{address}", node.name_any());
            let selected: Vec<_> = pf
                .vfs
                .iter()
                .filter(|vf| vf.state != VfState::Unselected)
                .collect();
            if !selected.is_empty() {
                ours.insert(mine(&pf.pci_address));
            }
            ours.extend(selected.iter().map(|vf| mine(&vf.pci_address)));
        }
    }
    ours
}

fn pools(observed: &Observed) -> BTreeSet<String> {
    ours(observed.hybrid_nodes.as_deref().unwrap_or_default())
}

/// Whether one of the VFs that another program sets up is in our pools.
fn takes_ours(nodes: &[HybridNode], pf: &ForeignPf) -> bool {
    let Some(theirs) = &pf.vfs else {
        // It sets the whole PF up.
        return true;
    };
    nodes
        .iter()
        .filter(|node| node.name_any() == pf.node)
        .flat_map(|node| node.status.iter().flat_map(|status| &status.pfs))
        .filter(|ours| ours.pci_address == pf.pci_address)
        .flat_map(|ours| &ours.vfs)
        .any(|vf| vf.state != VfState::Unselected && theirs.iter().any(|range| range.contains(&vf.index)))
}

/// sriov-network-operator sets up none of our VFs.
pub fn sriov_operator(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "sriov-network-operator";
    let pfs = match &observed.sriov_operator {
        Ok(pfs) if pfs.is_empty() => return vec![Finding::ok(CHECK, "sets up no PF here")],
        Ok(pfs) => pfs,
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    let ours = pools(observed);
    let nodes = observed.hybrid_nodes.as_deref().unwrap_or_default();
    let name = |pf: &ForeignPf| format!("{}/{}", pf.node, pf.pci_address);
    let (mut both, mut divided, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for pf in pfs {
        let of = match (ours.contains(&name(pf)), takes_ours(nodes, pf)) {
            (false, _) => &mut others,
            (true, false) => &mut divided,
            (true, true) => &mut both,
        };
        of.push(name(pf));
    }
    let mut findings = Vec::new();
    if !both.is_empty() {
        findings.push(Finding::fail(
            CHECK,
            format!("sets up PFs that are in hybridnic's pools too: {}", some(&both)),
            "give each PF to one of the two, or each its own VFs of a PF that the SriovNetworkNodePolicy calls externallyManaged: docs/kubevirt.md",
        ));
    }
    if !divided.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            format!("has other VFs of PFs that are divided: {}", some(&divided)),
        ));
    }
    if !others.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            format!("sets up other PFs: {}", some(&others)),
        ));
    }
    findings
}

/// Resource names that SR-IOV device plugins use. There is no sure sign: each administrator chooses the names.
fn is_sriov_resource(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    let Some((domain, last)) = name.split_once('/') else {
        return false;
    };
    if domain == names::GROUP {
        // The agents' own: a network may have any name.
        return false;
    }
    name.starts_with("openshift.io/")
        || ["sriov", "sr-iov", "netdevice", "vfio"]
            .iter()
            .any(|part| last.contains(part))
        || last
            .split(['_', '-', '.'])
            .any(|word| word == "vf" || word == "vfs")
}

/// No SR-IOV device plugin gives out VFs on our nodes.
pub fn device_plugins(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "device-plugins";
    let nodes = match &observed.nodes {
        Ok(nodes) => nodes,
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    let plugins: Vec<_> = observed
        .daemon_sets
        .iter()
        .flatten()
        .filter(|set| {
            observed::images(set.spec.as_ref().map(|spec| &spec.template)).any(|image| {
                let name = observed::image_name(image);
                name.contains("sriov") && name.contains("device-plugin")
            })
        })
        .map(|set| format!("{}/{}", set.namespace().unwrap_or_default(), set.name_any()))
        .collect();
    let mut offers: BTreeSet<String> = BTreeSet::new();
    for node in nodes {
        let allocatable = node
            .status
            .as_ref()
            .and_then(|status| status.allocatable.as_ref());
        for (name, quantity) in allocatable.into_iter().flatten() {
            if is_sriov_resource(name) && quantity.0 != "0" {
                offers.insert(format!("{} × {name} on {}", quantity.0, node.name_any()));
            }
        }
    }
    if plugins.is_empty() && offers.is_empty() {
        return vec![Finding::ok(CHECK, "none offers VFs")];
    }
    let offers: Vec<_> = offers.into_iter().collect();
    let mut parts = Vec::new();
    if !plugins.is_empty() {
        parts.push(format!("DaemonSet {}", some(&plugins)));
    }
    if !offers.is_empty() {
        parts.push(some(&offers));
    }
    vec![Finding::warn(
        CHECK,
        format!("an SR-IOV device plugin is here: {}", parts.join("; ")),
        "see that no VF is in its resource pools and in a HybridNetwork's uplinks both: name PFs there, or VFs by index",
    )]
}

/// No DRA driver offers our VFs.
pub fn dra(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "dra";
    const FIX: &str =
        "leave our VFs out of the driver's selection, or its PFs out of the HybridNetwork's uplinks";
    let slices = match &observed.slices {
        Ok(slices) => slices,
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    let ours = pools(observed);
    let mut both = BTreeSet::new();
    let mut drivers = BTreeSet::new();
    for slice in slices {
        let addresses = slice
            .pci_addresses
            .iter()
            .map(|address| format!("{}/{address}", slice.node));
        let shared: Vec<_> = addresses.filter(|address| ours.contains(address)).collect();
        if shared.is_empty() && slice.driver.to_ascii_lowercase().contains("sriov") {
            drivers.insert(slice.driver.clone());
        }
        both.extend(
            shared
                .into_iter()
                .map(|address| format!("{address} by {}", slice.driver)),
        );
    }
    let mut findings = Vec::new();
    if !both.is_empty() {
        let both: Vec<_> = both.into_iter().collect();
        findings.push(Finding::fail(
            CHECK,
            format!("devices of our pools are offered: {}", some(&both)),
            FIX,
        ));
    }
    if !drivers.is_empty() {
        let drivers: Vec<_> = drivers.into_iter().collect();
        let message = format!(
            "{} offers SR-IOV devices; none of ours is seen among them",
            some(&drivers)
        );
        findings.push(Finding::warn(CHECK, message, FIX));
    }
    if findings.is_empty() {
        findings.push(Finding::ok(CHECK, "no driver offers VFs"));
    }
    findings
}

#[cfg(test)]
mod tests {
    use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
    use serde_json::{from_value, json};

    use super::*;
    use crate::doctor::{
        finding::Level,
        foreign::Slice,
        testing::{healthy, levels, unanswered},
    };

    #[test]
    fn only_shared_pfs_are_wrong() {
        let mut observed = healthy();
        assert_eq!(levels(&sriov_operator(&observed)), [Level::Ok]);
        let pf = |node: &str| ForeignPf {
            node: node.to_owned(),
            pci_address: "0000:01:00.0".to_owned(),
            vfs: None,
        };
        observed.sriov_operator = Ok(vec![pf("n1"), pf("n9")]);
        let findings = sriov_operator(&observed);
        assert_eq!(levels(&findings), [Level::Fail, Level::Ok]);
        assert!(findings[0].message.ends_with(": n1/0000:01:00.0"), "{findings:?}");
        // Divided: whether a VF is both's.
        let ours = observed.hybrid_nodes.as_ref().unwrap()[0]
            .status
            .as_ref()
            .unwrap();
        let index = ours.pfs[0].vfs[0].index;
        for (theirs, level) in [(index + 1..=index + 9, Level::Ok), (index..=index, Level::Fail)] {
            // One VF is ours, so that theirs can be others.
            let mut only = observed.hybrid_nodes.as_ref().unwrap().clone();
            only[0].status.as_mut().unwrap().pfs[0].vfs.truncate(1);
            observed.hybrid_nodes = Ok(only);
            observed.sriov_operator = Ok(vec![ForeignPf {
                vfs: Some(vec![theirs]),
                ..pf("n1")
            }]);
            assert_eq!(levels(&sriov_operator(&observed)), [level]);
        }
        observed.sriov_operator = Err(unanswered());
        assert_eq!(levels(&sriov_operator(&observed)), [Level::Warn]);
    }

    #[test]
    fn resources_that_look_like_vfs() {
        for name in [
            "intel.com/sriov_net",
            "openshift.io/anything",
            "mellanox.com/mlnx_sriov_rdma",
            "a.b/vfs",
            "x/ens1-vf",
        ] {
            assert!(is_sriov_resource(name), "{name}");
        }
        for name in [
            "cpu",
            "memory",
            "nvidia.com/gpu",
            "devices.kubevirt.io/kvm",
            "hugepages-2Mi",
            "x/vfat",
            "hybridnic.io/sriov",
        ] {
            assert!(!is_sriov_resource(name), "{name}");
        }
    }

    #[test]
    fn device_plugins_by_resource_or_daemon_set() {
        let mut observed = healthy();
        assert_eq!(levels(&device_plugins(&observed)), [Level::Ok]);
        let status = observed.nodes.as_mut().unwrap()[0].status.get_or_insert_default();
        let offered = [
            ("intel.com/sriov", "4"),
            ("intel.com/sriov_old", "0"),
            ("cpu", "8"),
        ];
        let offered = offered.map(|(name, number)| (name.to_owned(), Quantity(number.to_owned())));
        status.allocatable = Some(offered.into());
        observed.daemon_sets.as_mut().unwrap().push(
            from_value(json!({
                "metadata": {"name": "dp", "namespace": "kube-system"},
                "spec": {"selector": {}, "template": {"spec": {"containers": [
                    {"name": "c", "image": "r/k8snetworkplumbingwg/sriov-network-device-plugin:v3.9"},
                ]}}},
            }))
            .unwrap(),
        );
        let findings = device_plugins(&observed);
        assert_eq!(levels(&findings), [Level::Warn]);
        assert!(
            findings[0]
                .message
                .ends_with("DaemonSet kube-system/dp; 4 × intel.com/sriov on n1"),
            "{findings:?}"
        );
    }

    #[test]
    fn dra_drivers_by_address_or_name() {
        let mut observed = healthy();
        assert_eq!(levels(&dra(&observed)), [Level::Ok]);
        let slice = |driver: &str, address: &str| Slice {
            driver: driver.to_owned(),
            node: "n1".to_owned(),
            pci_addresses: vec![address.to_owned()],
        };
        observed.slices = Ok(vec![
            slice("net.example", "0000:01:10.0"),
            slice("sriov.example", "0000:09:10.0"),
        ]);
        let findings = dra(&observed);
        assert_eq!(levels(&findings), [Level::Fail, Level::Warn]);
        assert!(
            findings[0].message.ends_with("n1/0000:01:10.0 by net.example"),
            "{findings:?}"
        );
    }
}
