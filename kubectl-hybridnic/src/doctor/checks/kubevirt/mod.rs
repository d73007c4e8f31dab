//! VMs of KubeVirt: what they need from the cluster, and how those with hybrid NICs are.

mod install;
mod migrations;
mod vms;

use hybridnic_api::{
    foreign::{
        interfaces,
        kubevirt::{KubeVirt, VirtualMachineInstance},
    },
    v1alpha1::VmHybridNic,
};

use crate::doctor::{kubevirt::Settings, observed::Observed};

pub use install::{binding, definitions, kubevirt, resources};
pub use migrations::migrations;
pub use vms::vms;

/// The NICs that are of VMs of KubeVirt.
fn nics(observed: &Observed) -> impl Iterator<Item = &VmHybridNic> {
    let nics = observed.nics.iter().flatten();
    nics.filter(|nic| nic.spec.vm.kubevirt.is_some())
}

/// The VMs that run, or are about to.
fn vmis(observed: &Observed) -> impl Iterator<Item = &VirtualMachineInstance> {
    let vmis = observed.kubevirt.vmis.iter().flatten().flatten();
    let is_over = |vmi: &VirtualMachineInstance| {
        let phase = vmi.status.as_ref().map(|status| status.phase.as_str());
        matches!(phase, Some("Succeeded" | "Failed"))
    };
    vmis.filter(move |vmi| !is_over(vmi))
}

/// Whether anybody asks for a hybrid NIC in a VM of KubeVirt.
fn is_wanted(observed: &Observed) -> bool {
    let has_ours = |vmi: &VirtualMachineInstance| !interfaces::of(&vmi.spec).is_empty();
    nics(observed).next().is_some() || vmis(observed).any(has_ours)
}

/// KubeVirt, where there is one and the operator serves its VMs, as far as is known.
fn served(observed: &Observed) -> Option<&KubeVirt> {
    let kubevirt = observed.kubevirt.installed.as_ref().ok()?.as_ref()?.first()?;
    let is_served = Settings::of(observed).is_none_or(|settings| settings.enabled);
    is_served.then_some(kubevirt)
}

/// `namespace/name`.
fn name(of: &impl kube::ResourceExt) -> String {
    format!("{}/{}", of.namespace().unwrap_or_default(), of.name_any())
}
