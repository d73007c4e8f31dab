//! In which of its pods a VM of KubeVirt is.
//!
//! A VM has one launcher, and a second one for each migration until that is over. The VM is in the first of these that exists:
//!
//! 1. the launcher in which a NIC of the VM carries traffic, or whose agent says that the migration for which it was made has brought the VM
//!    there;
//! 2. the one on the node that KubeVirt names, if it was made for the migration that has brought the VM there, as KubeVirt says;
//! 3. the one that is recorded;
//! 4. the one that was made for no migration;
//! 5. the one on the node that KubeVirt names.
//!
//! A launcher gets its NIC as soon as it has a node: its CNI plugin waits for that.

use std::sync::Arc;

use hybridnic_api::conditions::reasons;
use hybridnic_api::foreign::kubevirt::{
    BINDING, CREATED_BY_LABEL, Interface, KubeVirt, MIGRATION_LABEL, VirtualMachineInstance,
};
use hybridnic_api::foreign::multus::NetworkAttachmentDefinition;
use hybridnic_api::v1alpha1::{
    AttachmentState, KubevirtVm, MigrationState, NicAttachment, ObjectRef, Path, VmHybridNic,
};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::Refusal;
use crate::kubevirt::interfaces::{self, Wanted};
use crate::kubevirt::{Settings, binding};
use crate::moves::kubevirt::is_at;
use crate::nic::observed::Observed;
use crate::world::World;
use crate::{attachment, fence, pods};

/// The pod in which the VM is, or is about to be.
pub(super) fn pod_of_vm<'a>(observed: &'a Observed, recorded: Option<&ObjectRef>) -> Option<&'a Arc<Pod>> {
    let vmi = observed.kubevirt.vmi.as_deref();
    let uid = vmi.and_then(|vmi| vmi.metadata.uid.as_ref());
    let is_its = |pod: &&Arc<Pod>| {
        uid.is_some() && pod.labels().get(CREATED_BY_LABEL) == uid && !pods::is_finished(pod)
    };
    let launchers = || observed.pods.iter().filter(is_its);
    let all = || observed.attachments.iter().chain(&observed.others);
    let is = |pod: &&Arc<Pod>, uid: Option<&str>| uid.is_some() && pod.metadata.uid.as_deref() == uid;
    let recorded = recorded.map(|pod| pod.uid.as_str());
    let node = vmi
        .and_then(|vmi| vmi.status.as_ref())
        .map(|status| status.node_name.as_str());
    let agent_says_so = |pod: &&Arc<Pod>| {
        let migration = pod.labels().get(MIGRATION_LABEL);
        let here = |a: &&Arc<NicAttachment>| is(pod, Some(&a.spec.pod.uid));
        all().filter(here).any(|a| carries(a) || has_come(a, migration))
    };
    let kubevirt_says_so = |pod: &&Arc<Pod>| {
        let migration = pod.labels().get(MIGRATION_LABEL);
        migration.is_some_and(|uid| is_at(vmi, uid, pods::node(pod).unwrap_or_default()))
    };
    launchers()
        .find(agent_says_so)
        .or_else(|| launchers().find(kubevirt_says_so))
        .or_else(|| launchers().find(|pod| is(pod, recorded)))
        .or_else(|| launchers().find(|pod| !pod.labels().contains_key(MIGRATION_LABEL)))
        .or_else(|| launchers().find(|pod| pods::node(pod).is_some() && pods::node(pod) == node))
}

fn carries(attachment: &NicAttachment) -> bool {
    let state = attachment::state(attachment);
    !fence::leaves(attachment)
        && attachment::is_current(attachment)
        && matches!(state, AttachmentState::FastPath | AttachmentState::Standby)
        && attachment
            .status
            .as_ref()
            .is_some_and(|status| status.path != Path::None)
}

/// Whether the migration for which the attachment's pod was made has brought the VM there. That migration may be gone itself, and may have
/// ended before the attachment was told so. The attachment may even have been told to detach by then, because nothing was to come there.
fn has_come(attachment: &NicAttachment, made_for: Option<&String>) -> bool {
    let Some(uid) = made_for else {
        return false;
    };
    let order = attachment.spec.migration.as_ref();
    let is_target = order.is_some_and(|order| order.migration.uid == *uid)
        && attachment.metadata.deletion_timestamp.is_none();
    let report = attachment::report(attachment, uid);
    (!fence::leaves(attachment) || is_target)
        && report.is_some_and(|report| report.state == MigrationState::Completed)
}

/// Why it is not known whether the VM runs, if it is not: nothing says that a VM has ended while its launcher may live.
pub(super) fn unknown(observed: &Observed) -> Option<Refusal> {
    if observed.kubevirt.vmi.is_some() {
        return None;
    }
    let why = if observed.kubevirt.is_known {
        let alive = observed.alive().next()?;
        format!(
            "its pod {} lives, and has no VirtualMachineInstance",
            alive.spec.pod.name
        )
    } else {
        "this operator sees no VirtualMachineInstances: KubeVirt's API is away, or kubevirt.enabled of the chart is not set".to_owned()
    };
    let message = format!("whether the VM runs is not known, so its NIC stays as it is: {why}");
    Some(Refusal::new(reasons::KUBEVIRT_NOT_READY, message))
}

/// Why the VM is in no pod.
pub(super) fn missing(observed: &Observed, name: &str) -> String {
    match &observed.kubevirt.vmi {
        None => format!("the VM {name} does not run: there is no VirtualMachineInstance of this name"),
        Some(vmi) => interfaces::trouble(vmi).map_or_else(
            || format!("the VM {name} has no pod yet"),
            |said| format!("the VM {name} has no pod: KubeVirt says: {said}"),
        ),
    }
}

/// What the caches hold of a NIC's VM of KubeVirt.
#[derive(Clone, Debug, Default)]
pub struct ObservedVm {
    /// The VM as it runs, or is about to.
    pub vmi: Option<Arc<VirtualMachineInstance>>,
    /// The NIC's interface in it.
    pub interface: Option<String>,
    /// Why the NIC cannot be served.
    pub trouble: Option<Refusal>,
    /// Whether the cluster's VMs are watched: only then a VM that is not in the cache does not exist.
    pub is_known: bool,
}

impl ObservedVm {
    /// Reads the caches.
    pub fn read(world: &World, nic: &VmHybridNic) -> Self {
        let namespace = nic.namespace().unwrap_or_default();
        let Some(vm) = &nic.spec.vm.kubevirt else {
            return Self::default();
        };
        let vmi = world.vmis.get(&namespace, &vm.name);
        let found = vmi.as_deref().map(|vmi| interface(vmi, nic, vm));
        let nad = |wanted: &Wanted| {
            let namespace = wanted.namespace.as_deref().unwrap_or(&namespace);
            let nad = world.nads.get(namespace, &wanted.network);
            definition_trouble(namespace, &wanted.network, nad.as_deref(), world.nads.is_served())
        };
        let trouble = installation_trouble(
            world.kubevirt.as_deref(),
            world.kubevirts.all().first().map(AsRef::as_ref),
        );
        let (interface, trouble) = match found {
            None => (None, trouble),
            Some(Err(refusal)) => (None, trouble.or(Some(refusal))),
            Some(Ok(wanted)) => (Some(wanted.name.clone()), trouble.or_else(|| nad(&wanted))),
        };
        Self {
            vmi,
            interface,
            trouble,
            is_known: world.kubevirt.is_some() && world.vmis.is_served(),
        }
    }
}

/// Why no VM of KubeVirt can be served; `kubevirt` is the cluster's KubeVirt, as far as is known.
fn installation_trouble(settings: Option<&Settings>, kubevirt: Option<&KubeVirt>) -> Option<Refusal> {
    let not_ready = |why: String| Some(Refusal::new(reasons::KUBEVIRT_NOT_READY, why));
    let Some(settings) = settings else {
        return not_ready(
            "this operator was installed without KubeVirt: set kubevirt.enabled of the chart".to_owned(),
        );
    };
    let Some(kubevirt) = kubevirt else {
        return not_ready("the cluster has no KubeVirt, as far as is known: install it first".to_owned());
    };
    if let Some(why) = binding::too_old(kubevirt) {
        return not_ready(why);
    }
    if binding::is_registered(kubevirt) {
        return None;
    }
    let command = binding::command(kubevirt, &settings.sidecar);
    not_ready(format!(
        "KubeVirt does not know the network binding {BINDING}, so it starts no VM with it; register it: {command}"
    ))
}

/// Why no pod can be attached to a network.
fn definition_trouble(
    namespace: &str,
    network: &str,
    nad: Option<&NetworkAttachmentDefinition>,
    served: bool,
) -> Option<Refusal> {
    match nad {
        Some(nad) if nad.is_ours(network) => None,
        Some(_) => Some(Refusal::new(
            reasons::INTERFACE_UNFIT,
            format!("the NetworkAttachmentDefinition {namespace}/{network} is not hybridnic's: rename it"),
        )),
        None if !served => Some(Refusal::new(
            reasons::KUBEVIRT_NOT_READY,
            "the cluster has no Multus, as far as is known: it serves no NetworkAttachmentDefinition; install it first"
                .to_owned(),
        )),
        None => Some(Refusal::new(
            reasons::KUBEVIRT_NOT_READY,
            format!("there is no NetworkAttachmentDefinition {namespace}/{network} yet"),
        )),
    }
}

/// The NIC's interface of the VM as it runs; or why it has none that can be served.
fn interface(vmi: &VirtualMachineInstance, nic: &VmHybridNic, vm: &KubevirtVm) -> Result<Wanted, Refusal> {
    let unfit = |why: String| Refusal::new(reasons::INTERFACE_UNFIT, why);
    let network = &nic.spec.network;
    let ours = interfaces::of(&vmi.spec);
    let mut fit = ours.iter().filter(|wanted| {
        wanted.network == *network && vm.interface.as_ref().is_none_or(|name| *name == wanted.name)
    });
    let found = match (fit.next(), fit.next()) {
        (Some(found), None) => found,
        (Some(_), Some(_)) => {
            return Err(unfit(format!(
                "the VM {} has several interfaces on the network {network}: name one in spec.vm.kubevirt.interface",
                vm.name
            )));
        }
        (None, _) => return Err(unfit(absent(vmi, network, vm))),
    };
    unfit_for(vmi, found).map_or_else(|| Ok(found.clone()), |why| Err(unfit(why)))
}

fn absent(vmi: &VirtualMachineInstance, network: &str, vm: &KubevirtVm) -> String {
    let name = &vm.name;
    let interface = vm.interface.as_deref();
    let all: &[Interface] = &vmi.spec.domain.devices.interfaces;
    let named = all.iter().find(|found| Some(found.name.as_str()) == interface);
    match (interface, named) {
        (Some(interface), Some(found)) if found.binding.as_ref().is_none_or(|b| b.name != BINDING) => {
            format!("the interface {interface} of the VM {name} has no `binding: {{name: {BINDING}}}`")
        }
        (Some(interface), Some(_)) => {
            format!("the interface {interface} of the VM {name} is not on the network {network}")
        }
        (Some(interface), None) => format!(
            "the VM {name} runs without the interface {interface}: an interface that is added to a VM comes when the VM is \
             restarted"
        ),
        (None, _) => format!(
            "the VM {name} runs without an interface with `binding: {{name: {BINDING}}}` on the network {network}"
        ),
    }
}

/// Why an interface of a VM cannot be served.
fn unfit_for(vmi: &VirtualMachineInstance, wanted: &Wanted) -> Option<String> {
    let (vm, name) = (vmi.name_any(), &wanted.name);
    if !interfaces::has_acpi(&vmi.spec) {
        return Some(format!(
            "the VM {vm} has no ACPI, without which a guest cannot take a VF while it runs: remove spec.domain.features.acpi \
             from the VM"
        ));
    }
    let model = wanted.model.as_deref().unwrap_or("virtio");
    (model != "virtio").then(|| {
        format!(
            "the interface {name} of the VM {vm} is of the model {model}: the standby must be virtio, so remove its `model`"
        )
    })
}

#[cfg(test)]
#[path = "kubevirt_tests.rs"]
mod tests;
