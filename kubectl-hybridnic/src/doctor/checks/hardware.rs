//! What the nodes have: PFs, drivers, IOMMU, VFs.

use std::collections::BTreeMap;

use hybridnic_api::v1alpha1::{HybridNode, PfStatus, VfState, VfStatus};
use kube::ResourceExt as _;

use crate::doctor::{
    finding::{Finding, some},
    observed::Observed,
};

/// Drivers of PFs that the project's own tests run on.
const TESTED: &[&str] = &["igb"];

/// The nodes whose hardware is known; the check of agents handles a cluster without any.
fn nodes(observed: &Observed) -> &[HybridNode] {
    observed.hybrid_nodes.as_deref().unwrap_or_default()
}

fn pfs_of(node: &HybridNode) -> &[PfStatus] {
    node.status
        .as_ref()
        .map(|status| status.pfs.as_slice())
        .unwrap_or_default()
}

fn pf_name(node: &HybridNode, pf: &PfStatus) -> String {
    let name = if pf.name.is_empty() {
        &pf.pci_address
    } else {
        &pf.name
    };
    format!("{}/{name}", node.name_any())
}

fn all_vfs(node: &HybridNode) -> impl Iterator<Item = &VfStatus> {
    pfs_of(node).iter().flat_map(|pf| &pf.vfs)
}

/// Nodes have PFs, and the PFs can be used.
pub fn pfs(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "pfs";
    let nodes = nodes(observed);
    let mut findings = Vec::new();
    let known: Vec<_> = nodes.iter().filter(|node| node.status.is_some()).collect();
    let without: Vec<_> = known
        .iter()
        .filter(|node| pfs_of(node).is_empty())
        .map(|node| node.name_any())
        .collect();
    if !without.is_empty() {
        findings.push(Finding::warn(
            CHECK,
            format!("{}: no PF", some(&without)),
            "if the node has an SR-IOV card: switch SR-IOV on in firmware and card, and look for its driver (lspci -k)",
        ));
    }
    let mut troubles: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for node in &known {
        for pf in pfs_of(node).iter().filter(|pf| !pf.message.is_empty()) {
            troubles.entry(&pf.message).or_default().push(pf_name(node, pf));
        }
    }
    for (message, pfs) in troubles {
        findings.push(Finding::warn(
            CHECK,
            format!("{}: {message}", some(&pfs)),
            "its VFs are not used until that is fixed; nothing, if the PF is for something else",
        ));
    }
    let all: usize = known.iter().map(|node| pfs_of(node).len()).sum();
    if all > 0 && findings.is_empty() {
        findings.push(Finding::ok(CHECK, format!("{all} PFs on {} nodes", known.len())));
    }
    findings
}

/// PFs have a driver, and one that was tried.
pub fn drivers(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "drivers";
    let mut by_driver: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for node in nodes(observed) {
        for pf in pfs_of(node) {
            by_driver.entry(&pf.driver).or_default().push(pf_name(node, pf));
        }
    }
    let mut findings = Vec::new();
    for (driver, pfs) in by_driver {
        let pfs = some(&pfs);
        findings.push(match driver {
            "" => Finding::warn(
                CHECK,
                format!("{pfs}: no driver is bound"),
                "load the card's driver; lspci -k on the node names it",
            ),
            driver if TESTED.contains(&driver) => Finding::ok(CHECK, format!("{driver} on {pfs}")),
            driver => Finding::ok(
                CHECK,
                format!("{driver} on {pfs} (not one that the project tests on)"),
            ),
        });
    }
    findings
}

/// VFs are in IOMMU groups, without which no guest gets one.
pub fn iommu(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "iommu";
    const FIX: &str = "switch the IOMMU on in the firmware and on the kernel's command line (intel_iommu=on; on AMD it is by \
                        default), and reboot the node";
    let mut findings = Vec::new();
    let mut covered = 0;
    for node in nodes(observed) {
        let bare = |vf: &&VfStatus| vf.iommu_group.is_none();
        let count = all_vfs(node).filter(bare).count();
        covered += all_vfs(node).count() - count;
        if count == 0 {
            continue;
        }
        let wanted = all_vfs(node)
            .filter(bare)
            .any(|vf| vf.state != VfState::Unselected);
        let message = format!("{}: {count} VFs have no IOMMU group", node.name_any());
        findings.push(if wanted {
            Finding::fail(CHECK, message, FIX)
        } else {
            Finding::warn(CHECK, format!("{message}; no network selects them"), FIX)
        });
    }
    if findings.is_empty() && covered > 0 {
        findings.push(Finding::ok(
            CHECK,
            format!("all {covered} VFs have an IOMMU group"),
        ));
    }
    findings
}

/// VFs that a network selects can be used.
pub fn vfs(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "vfs";
    let mut findings = Vec::new();
    let mut well = 0;
    for node in nodes(observed) {
        let mut troubles: BTreeMap<(&str, &str), usize> = BTreeMap::new();
        for vf in all_vfs(node) {
            match vf.state {
                VfState::Unhealthy => *troubles.entry(("are unhealthy", &vf.message)).or_default() += 1,
                VfState::Held if !vf.message.is_empty() => {
                    *troubles.entry(("of NICs", &vf.message)).or_default() += 1;
                }
                VfState::Free | VfState::Held => well += 1,
                VfState::Drained | VfState::Unselected => {}
            }
        }
        for ((are, message), count) in troubles {
            findings.push(Finding::warn(
                CHECK,
                format!("{}: {count} VFs {are}: {message}", node.name_any()),
                format!(
                    "fix that on the node, as the message says; kubectl hybridnic node {} shows which",
                    node.name_any()
                ),
            ));
        }
        for pool in node
            .status
            .iter()
            .flat_map(|status| &status.pools)
            .filter(|pool| !pool.message.is_empty())
        {
            findings.push(Finding::warn(
                CHECK,
                format!("{}, network {}: {}", node.name_any(), pool.network, pool.message),
                "compare the network's uplinks with what kubectl hybridnic node shows, or select other nodes",
            ));
        }
    }
    if well > 0 {
        findings.insert(0, Finding::ok(CHECK, format!("{well} VFs are free or held")));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::{
        finding::Level,
        testing::{healthy, levels},
    };

    fn first_pf(observed: &mut Observed) -> &mut PfStatus {
        &mut observed.hybrid_nodes.as_mut().unwrap()[0]
            .status
            .as_mut()
            .unwrap()
            .pfs[0]
    }

    #[test]
    fn pfs_there_or_not() {
        let mut observed = healthy();
        assert_eq!(pfs(&observed), [Finding::ok("pfs", "2 PFs on 2 nodes")]);
        first_pf(&mut observed).message = "the PF is in a bond".to_owned();
        observed.hybrid_nodes.as_mut().unwrap()[1]
            .status
            .as_mut()
            .unwrap()
            .pfs
            .clear();
        let findings = pfs(&observed);
        assert_eq!(levels(&findings), [Level::Warn, Level::Warn]);
        assert_eq!(findings[0].message, "n2: no PF");
        assert_eq!(findings[1].message, "n1/ens1: the PF is in a bond");
        observed.hybrid_nodes = Ok(Vec::new());
        assert_eq!(pfs(&observed), []);
    }

    #[test]
    fn drivers_bound_and_tried() {
        let mut observed = healthy();
        assert_eq!(
            drivers(&observed),
            [Finding::ok("drivers", "igb on n1/ens1, n2/ens1")]
        );
        first_pf(&mut observed).driver = "ice".to_owned();
        assert!(
            drivers(&observed)[0].message.contains("ice on n1/ens1 (not one"),
            "{:?}",
            drivers(&observed)
        );
        first_pf(&mut observed).driver.clear();
        assert_eq!(levels(&drivers(&observed)), [Level::Warn, Level::Ok]);
    }

    #[test]
    fn an_iommu_is_needed_where_a_network_wants_vfs() {
        let mut observed = healthy();
        assert_eq!(levels(&iommu(&observed)), [Level::Ok]);
        first_pf(&mut observed).vfs[0].iommu_group = None;
        let findings = iommu(&observed);
        assert_eq!(levels(&findings), [Level::Fail]);
        assert_eq!(findings[0].message, "n1: 1 VFs have no IOMMU group");
        first_pf(&mut observed).vfs[0].state = VfState::Unselected;
        assert_eq!(levels(&iommu(&observed)), [Level::Warn]);
    }

    /// The agent's message says what to do: a guess from its words may mislead.
    #[test]
    fn unhealthy_vfs_are_told_by_their_reason() {
        let mut observed = healthy();
        assert_eq!(levels(&vfs(&observed)), [Level::Ok]);
        let messages = [
            "it shares its IOMMU group with 0000:01:10.1: another slot may",
            "its PF cannot be used: legacy mode is needed (devlink dev eswitch set pci/0000:01:00.0 mode legacy)",
        ];
        for (vf, message) in first_pf(&mut observed).vfs.iter_mut().zip(messages) {
            (vf.state, vf.message) = (VfState::Unhealthy, message.to_owned());
        }
        observed.hybrid_nodes.as_mut().unwrap()[1]
            .status
            .as_mut()
            .unwrap()
            .pools[0]
            .message = "no PF".to_owned();
        let findings = vfs(&observed);
        assert_eq!(
            levels(&findings),
            [Level::Ok, Level::Warn, Level::Warn, Level::Warn]
        );
        let well = observed.hybrid_nodes.as_mut().unwrap()[1]
            .status
            .as_mut()
            .unwrap();
        (well.pfs[0].vfs[0].state, well.pfs[0].vfs[0].message) =
            (VfState::Held, "the kubelet has given it to a pod".to_owned());
        assert!(
            vfs(&observed)
                .iter()
                .any(|f| f.message == "n2: 1 VFs of NICs: the kubelet has given it to a pod")
        );
        for (finding, message) in findings[1..].iter().zip(messages) {
            assert_eq!(finding.message, format!("n1: 1 VFs are unhealthy: {message}"));
            let fix = finding.fix.as_ref().unwrap();
            assert!(fix.contains("as the message says"), "{fix}");
        }
        assert_eq!(findings[3].message, "n2, network fast: no PF");
    }
}
