//! What VMs of KubeVirt need from the cluster: KubeVirt, our binding in it, Multus with a definition of each network, and nodes that
//! offer VFs.

use std::collections::BTreeSet;

use hybridnic_api::{
    conditions::{self, reasons, types},
    foreign::{binding, interfaces, kubevirt::BINDING, multus},
    v1alpha1::HybridNode,
};
use k8s_openapi::api::{apps::v1::DaemonSet, core::v1::Node};
use kube::ResourceExt as _;

use super::{is_wanted, name, nics, served, vmis};
use crate::doctor::{
    finding::{Finding, some},
    kubevirt::Settings,
    observed::Observed,
};

/// KubeVirt is there if it is needed, is served, and has a supported version.
pub fn kubevirt(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "kubevirt";
    let installed = match &observed.kubevirt.installed {
        Ok(installed) => installed.iter().flatten().next(),
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    let ours: Vec<_> = nics(observed).map(name).collect();
    let Some(kubevirt) = installed else {
        return vec![if ours.is_empty() {
            Finding::ok(CHECK, "there is none, and no NIC belongs to a VM of it")
        } else {
            Finding::fail(
                CHECK,
                format!("there is none, but NICs belong to its VMs: {}", some(&ours)),
                "install KubeVirt 1.8 or newer; where you start QEMU yourself, a NIC names its VM as spec.vm.qemu",
            )
        }];
    };
    let said = binding::version(kubevirt);
    let shown = if said.is_empty() { "it" } else { said };
    if Settings::of(observed).is_some_and(|settings| !settings.enabled) {
        let message = format!("{shown} is here, and this operator does not serve its VMs");
        return vec![if is_wanted(observed) {
            let fix = "helm upgrade with kubevirt.enabled=true: VMs with our interfaces do not start, and do not migrate, without it";
            Finding::fail(CHECK, message, fix)
        } else {
            Finding::ok(CHECK, format!("{message} (kubevirt.enabled)"))
        }];
    }
    if let Some(why) = binding::too_old(kubevirt) {
        let fix = "upgrade KubeVirt; until then no NIC of its VMs is attached";
        return vec![Finding::fail(CHECK, why, fix)];
    }
    if said.is_empty() {
        let fix = "is it deployed? kubectl get kubevirt -A";
        return vec![Finding::warn(
            CHECK,
            "it does not say which version of it runs",
            fix,
        )];
    }
    vec![if binding::is_tested(kubevirt) {
        Finding::ok(CHECK, said)
    } else {
        Finding::ok(CHECK, format!("{said} (not one that the project tests with)"))
    }]
}

/// Our binding is registered, with the sidecar of this release.
pub fn binding(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "binding";
    let Some(kubevirt) = served(observed) else {
        return Vec::new();
    };
    let settings = Settings::of(observed);
    let registers = settings.as_ref().is_some_and(|settings| settings.registers);
    let wanted = settings.map(|settings| settings.sidecar).unwrap_or_default();
    let fix = if registers {
        "the operator registers it: its log says why it does not; may it patch kubevirts? (helm upgrade)"
            .to_owned()
    } else if wanted.is_empty() {
        "helm upgrade with kubevirt.registerBinding=true, or register it as docs/kubevirt.md says".to_owned()
    } else {
        binding::command(kubevirt, &wanted)
    };
    if !binding::is_registered(kubevirt) {
        let message =
            format!("KubeVirt does not know the network binding {BINDING}, so it starts no VM with it");
        return vec![if is_wanted(observed) {
            Finding::fail(CHECK, message, fix)
        } else {
            Finding::warn(CHECK, message, fix)
        }];
    }
    let found = binding::sidecar(kubevirt).unwrap_or_default();
    if wanted.is_empty() {
        return vec![Finding::ok(
            CHECK,
            format!("registered, with the sidecar {found}"),
        )];
    }
    vec![if found != wanted {
        let message =
            format!("its sidecar is {found}, and this release's is {wanted}: VMs that start get the former");
        Finding::warn(CHECK, message, fix)
    } else if binding::is_current(kubevirt, &wanted) {
        Finding::ok(CHECK, format!("registered, with the sidecar {found}"))
    } else {
        Finding::warn(CHECK, "it is registered without `migration: {}`", fix)
    }]
}

/// Multus is there, with a definition of each network wherever that is named.
pub fn definitions(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "multus";
    if served(observed).is_none() {
        return Vec::new();
    }
    let found = match &observed.kubevirt.definitions {
        Ok(Some(found)) => found,
        Ok(None) => {
            let message = "there is none: the cluster serves no NetworkAttachmentDefinition, by which KubeVirt's VMs name a network";
            let fix = "install Multus, thin or thick";
            return vec![if is_wanted(observed) {
                Finding::fail(CHECK, message, fix)
            } else {
                Finding::warn(CHECK, message, fix)
            }];
        }
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    let settings = Settings::of(observed);
    let mut wanted = BTreeSet::new();
    for network in observed.networks.iter().flatten() {
        if let Some(settings) = &settings
            && network.metadata.deletion_timestamp.is_none()
        {
            wanted.insert((settings.namespace.clone(), network.name_any()));
        }
    }
    for vmi in vmis(observed) {
        let own = vmi.namespace().unwrap_or_default();
        for named in interfaces::of(&vmi.spec) {
            wanted.insert((named.namespace.unwrap_or_else(|| own.clone()), named.network));
        }
    }
    let mut findings = Vec::new();
    for (namespace, network) in &wanted {
        let has_name = |nad: &&multus::NetworkAttachmentDefinition| {
            nad.name_any() == *network && nad.namespace().as_deref() == Some(namespace)
        };
        match found.iter().find(has_name) {
            Some(nad) if nad.is_ours(network) => {}
            Some(_) => findings.push(Finding::fail(
                CHECK,
                format!("the NetworkAttachmentDefinition {namespace}/{network} is not hybridnic's"),
                "rename it, or the HybridNetwork: VMs that name it get no NIC",
            )),
            None => findings.push(Finding::fail(
                CHECK,
                format!("there is no NetworkAttachmentDefinition {namespace}/{network}"),
                "the operator makes it: does it run and lead, is there a HybridNetwork of this name, and may the namespace use it \
                 (namespaceSelector)?",
            )),
        }
    }
    if findings.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            format!("definitions as they should be: {}", wanted.len()),
        ));
    }
    findings
}

/// Agents offer VFs to kubelets, and kubelets offer them to pods.
pub fn resources(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "resources";
    // Without both nothing says what should be.
    let (Ok(nodes), Some(agent)) = (&observed.nodes, observed.agent()) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    let is_needed = served(observed).is_some() && is_wanted(observed);
    if is_needed && !has_argument(agent, "--cni-bin-dir=") {
        let message =
            "the agents put no CNI plugin on the nodes, so no VM of KubeVirt with a hybrid NIC starts";
        let fix = "helm upgrade with agent.cni.enabled=true";
        findings.push(Finding::fail(CHECK, message, fix));
    }
    if !has_argument(agent, "--kubelet-dir=") {
        if is_needed {
            let message = "the agents offer no VFs to kubelets, so no VM of KubeVirt gets one";
            let fix = "helm upgrade with agent.devicePlugin.enabled=true";
            findings.push(Finding::fail(CHECK, message, fix));
        }
        return findings;
    }
    let mut offered = 0;
    for node in observed.hybrid_nodes.iter().flatten() {
        let pools = node.status.iter().flat_map(|status| &status.pools);
        for pool in pools.filter(|pool| pool.vfs.free > 0) {
            let resource = multus::resource(&pool.network);
            if nodes
                .iter()
                .any(|n| n.name_any() == node.name_any() && offers(n, &resource))
            {
                offered += 1;
            } else if !is_told(node) {
                findings.push(Finding::warn(
                    CHECK,
                    format!(
                        "{}: its kubelet offers no {resource}, though {} VFs are free",
                        node.name_any(),
                        pool.vfs.free
                    ),
                    "a kubelet says what it offers after some seconds; if that does not help, read the log of the agent there, and compare \
                     agent.kubeletDir of the chart with the kubelet's --root-dir",
                ));
            }
        }
    }
    if findings.is_empty() && offered > 0 {
        findings.push(Finding::ok(CHECK, "kubelets offer the VFs that are free"));
    }
    findings
}

fn has_argument(agent: &DaemonSet, begin: &str) -> bool {
    let spec = agent.spec.as_ref().and_then(|spec| spec.template.spec.as_ref());
    let containers = spec.map(|spec| spec.containers.as_slice()).unwrap_or_default();
    let mut arguments = containers
        .iter()
        .flat_map(|container| container.args.iter().flatten());
    arguments.any(|argument| argument.starts_with(begin))
}

fn offers(node: &Node, resource: &str) -> bool {
    let allocatable = node
        .status
        .as_ref()
        .and_then(|status| status.allocatable.as_ref());
    allocatable
        .and_then(|allocatable| allocatable.get(resource))
        .is_some_and(|quantity| quantity.0 != "0")
}

/// Whether the node itself says why it offers nothing.
fn is_told(node: &HybridNode) -> bool {
    let status = node.status.as_ref();
    let degraded = status.and_then(|status| conditions::find(&status.conditions, types::DEGRADED));
    degraded.is_some_and(|degraded| {
        [reasons::KUBELET_UNREACHABLE, reasons::NOT_OFFERED].contains(&degraded.reason.as_str())
            && degraded.status != "False"
    })
}

#[cfg(test)]
#[path = "install_tests.rs"]
mod tests;
