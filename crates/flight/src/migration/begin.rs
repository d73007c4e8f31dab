//! What a migration needs before it begins: its NICs, the pod that the VM runs in, and the pod that it goes to.

use std::sync::Arc;

use hybridnic_api::conditions::reasons;
use hybridnic_api::limits;
use hybridnic_api::v1alpha1::{MigrationEnd, MigrationPhase, QemuMigrationStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::encryption::Encryption;
use super::inputs::{Inputs, after, attachment, deleting, is_attached, is_refused, why};
use super::record::{CANCELLED, Next, fail, micro, stay};
use crate::attachment::says_that_it_waits;
use crate::pods::{self, Target};

/// Waits until everything is there, and writes into the status where the VM is, where it goes, and with which NICs.
pub fn pending(inputs: &Inputs<'_>, status: &mut QemuMigrationStatus) -> Next {
    let vm = &inputs.migration.spec.vm;
    if deleting(inputs) {
        return fail(status, reasons::CANCELLED, CANCELLED);
    }
    if let Some(leaving) = inputs
        .nics
        .iter()
        .find(|nic| nic.nic.metadata.deletion_timestamp.is_some())
    {
        let message = format!(
            "waits for the NIC {}, which was deleted, to leave the guest",
            leaving.nic.name_any()
        );
        return stay(reasons::PROGRESSING, message);
    }
    // A NIC that was refused is not in the guest, and cannot keep the VM where it is.
    let nics: Vec<_> = inputs.nics.iter().filter(|nic| !is_refused(nic)).collect();
    let Some(oldest) = nics
        .iter()
        .min_by_key(|nic| (nic.nic.creation_timestamp().map(|t| t.0), nic.nic.name_any()))
    else {
        let message =
            format!("no VmHybridNic of this namespace belongs to the VM {vm}: there is nothing to migrate");
        return fail(status, reasons::NO_NICS, message);
    };
    if nics.len() > limits::NICS {
        let message = format!(
            "the VM {vm} has {} hybrid NICs, and at most {} can migrate together",
            nics.len(),
            limits::NICS
        );
        return fail(status, reasons::TOO_MANY_NICS, message);
    }
    if let Some(other) = &inputs.blocked_by {
        let message = format!("waits for {other} of the same VM to end, or to be deleted");
        return stay(reasons::MIGRATION_BUSY, message);
    }
    let known = oldest.nic.status.as_ref().and_then(|status| status.pod.as_ref());
    let Some(source) = pods::active(known, inputs.pods) else {
        return stay(
            reasons::POD_NOT_FOUND,
            format!("no pod with the label hybridnic.io/vm={vm} runs the VM"),
        );
    };
    let (Some(node), true) = (pods::node(source), pods::is_running(source)) else {
        return stay(
            reasons::POD_NOT_RUNNING,
            format!("the VM's pod {} does not run yet", source.name_any()),
        );
    };
    let from = pods::reference(source);
    let asked = inputs.migration.spec.target_pod.as_deref();
    let to = match pods::target(asked, &from.uid, inputs.pods, &inputs.away, |pod| {
        is_said_to_wait(inputs, pod)
    }) {
        Target::Pod(to) => to,
        Target::None => return stay(reasons::NO_TARGET_POD, no_target(vm, asked, &from.name)),
        Target::Several(pods) => return stay(reasons::SEVERAL_TARGET_PODS, several(&pods)),
    };
    let address = match pods::address_from(source, to, &inputs.of_nodes) {
        Ok(address) => address.to_owned(),
        Err(why) => return stay(reasons::TARGET_ADDRESS_REFUSED, why),
    };
    for nic in &nics {
        if !attachment(nic, &from).is_some_and(is_attached) {
            let why = attachment(nic, &from).and_then(why).unwrap_or_default();
            let message = format!(
                "waits for the NIC {} to be attached on {node}{}",
                nic.nic.name_any(),
                after(&why)
            );
            return stay(reasons::AGENT_PENDING, message);
        }
    }
    status.source = Some(MigrationEnd {
        node_name: node.to_owned(),
        pod: from,
        pod_ip: pods::address(source).map(ToOwned::to_owned),
    });
    status.target = Some(MigrationEnd {
        node_name: pods::node(to).unwrap_or_default().to_owned(),
        pod: pods::reference(to),
        pod_ip: Some(address),
    });
    status.nics = nics.iter().map(|nic| nic.nic.name_any()).collect();
    status.nics.sort();
    status.started_at = Some(micro(inputs.now));
    status.encrypted = Some(inputs.encryption != Encryption::Off);
    Next::Go(MigrationPhase::PreparingTarget)
}

/// Whether an agent says that QEMU in a pod waits for a VM: some NIC of the VM is attached there.
fn is_said_to_wait(inputs: &Inputs<'_>, pod: &Pod) -> bool {
    let attached = inputs
        .nics
        .iter()
        .filter_map(|nic| attachment(nic, &pods::reference(pod)));
    attached.into_iter().any(says_that_it_waits)
}

fn several(pods: &[&Arc<Pod>]) -> String {
    let mut names: Vec<_> = pods.iter().map(|pod| pod.name_any()).collect();
    names.sort();
    format!(
        "{} could take the VM, and agents do not say that QEMU waits for it in just one of them: name one in spec.targetPod, or end the \
         others",
        names.join(" and ")
    )
}

fn no_target(vm: &str, asked: Option<&str>, source: &str) -> String {
    match asked {
        Some(name) if name == source => {
            format!("the VM runs in {name} already; name another pod in spec.targetPod")
        }
        Some(name) => {
            format!("waits for the pod {name} to run, with the label hybridnic.io/vm={vm} and an address")
        }
        None => format!(
            "waits for another running pod with the label hybridnic.io/vm={vm}; its QEMU must run with -incoming defer"
        ),
    }
}
