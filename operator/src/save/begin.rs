//! What a save or a restore needs before it begins: the VM's NICs, and the pod that it is in or comes to.

use std::sync::Arc;

use hybridnic_api::conditions::reasons;
use hybridnic_api::limits;
use hybridnic_api::v1alpha1::{AfterSave, MigrationEnd, MigrationPhase, StateFileStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use super::inputs::Inputs;
use super::record::fail;
use crate::attachment::says_that_it_waits;
use crate::migration::inputs::{NicInputs, after, attachment, is_attached, is_refused, why};
use crate::migration::record::{Next, micro, stay};
use crate::pods::{self, Target};

/// What is said of one that was deleted before it began.
const NEVER_BEGUN: &str = "it was deleted before it began";

/// Waits until all is there, and writes into the status where the VM is or comes to, and with which NICs.
pub(super) fn pending(inputs: &Inputs<'_>, status: &mut StateFileStatus) -> Next {
    let request = &inputs.request;
    if request.deleting {
        return fail(status, reasons::CANCELLED, NEVER_BEGUN);
    }
    let leaves = |nic: &&NicInputs| nic.nic.metadata.deletion_timestamp.is_some();
    if let Some(nic) = inputs.nics.iter().find(leaves) {
        let nic = nic.nic.name_any();
        let message = format!("waits for the NIC {nic}, which was deleted, to leave the guest");
        return stay(reasons::PROGRESSING, message);
    }
    let nics: Vec<_> = inputs.nics.iter().filter(|nic| !is_refused(nic)).collect();
    if nics.is_empty() {
        let vm = &request.vm;
        let message = format!("no VmHybridNic of this namespace is of the VM {vm}: nobody talks to its QEMU");
        return fail(status, reasons::NO_NICS, message);
    }
    if nics.len() > limits::NICS {
        let message = format!(
            "the VM has {} hybrid NICs, and can go to a file with at most {}",
            nics.len(),
            limits::NICS
        );
        return fail(status, reasons::TOO_MANY_NICS, message);
    }
    if let Some(other) = &inputs.blocked_by {
        return stay(
            reasons::MIGRATION_BUSY,
            format!("waits for {other} of the same VM to end, or to be deleted"),
        );
    }
    let found = if request.saves() {
        where_it_runs(inputs, &nics)
    } else {
        where_it_comes(inputs, &nics, status)
    };
    let pod = match found {
        Ok(pod) => pod,
        Err(next) => return next,
    };
    status.end = Some(MigrationEnd {
        node_name: pods::node(pod).unwrap_or_default().to_owned(),
        pod: pods::reference(pod),
        pod_ip: None,
    });
    status.nics = nics.iter().map(|nic| nic.nic.name_any()).collect();
    status.nics.sort();
    status.started_at = Some(micro(inputs.now));
    Next::Go(MigrationPhase::PreparingTarget)
}

fn where_it_runs<'a>(inputs: &'a Inputs<'_>, nics: &[&NicInputs]) -> Result<&'a Arc<Pod>, Next> {
    let vm = &inputs.request.vm;
    let oldest = nics
        .iter()
        .min_by_key(|nic| (nic.nic.creation_timestamp().map(|t| t.0), nic.nic.name_any()));
    let known = oldest.and_then(|nic| nic.nic.status.as_ref()?.pod.as_ref());
    let Some(pod) = pods::active(known, inputs.pods) else {
        let message = format!("no pod with the label hybridnic.io/vm={vm} runs the VM");
        return Err(stay(reasons::POD_NOT_FOUND, message));
    };
    let (Some(node), true) = (pods::node(pod), pods::is_running(pod)) else {
        let message = format!("the VM's pod {} does not run yet", pod.name_any());
        return Err(stay(reasons::POD_NOT_RUNNING, message));
    };
    let restarts = pod.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref()) != Some("Never");
    if inputs.request.order.then == Some(AfterSave::End) && restarts {
        let message = format!(
            "the pod {} has not restartPolicy: Never: its kubelet would start QEMU again once it is ended, and the VM would boot \
             from its disk while its memory lies in the file",
            pod.name_any()
        );
        return Err(stay(reasons::POD_RESTARTS, message));
    }
    let here = pods::reference(pod);
    for nic in nics {
        if !attachment(nic, &here).is_some_and(is_attached) {
            let why = attachment(nic, &here).and_then(why).unwrap_or_default();
            let name = nic.nic.name_any();
            let message = format!("waits for the NIC {name} to be attached on {node}{}", after(&why));
            return Err(stay(reasons::AGENT_PENDING, message));
        }
    }
    Ok(pod)
}

/// The VM must be nowhere: it has one address, and runs once. Only a pod that has ended, or whose QEMU waits, is known not to run it.
fn where_it_comes<'a>(
    inputs: &'a Inputs<'_>,
    nics: &[&NicInputs],
    status: &mut StateFileStatus,
) -> Result<&'a Arc<Pod>, Next> {
    let vm = &inputs.request.vm;
    let attachments = || nics.iter().flat_map(|nic| &nic.attachments);
    let runs = |a: &&Arc<_>| is_attached(a) && pods::alive(inputs.pods, &a.spec.pod.uid).is_some();
    if let Some(there) = attachments().find(runs) {
        let message = format!(
            "the VM {vm} runs in the pod {} on {}: the VM in the file has the same addresses. End that pod, or save it with \
             then: End, and create another QemuRestore",
            there.spec.pod.name, there.spec.node_name
        );
        return Err(fail(status, reasons::VM_RUNS, message));
    }
    let waits = |pod: &Pod| {
        let uid = pods::reference(pod).uid;
        attachments().any(|a| a.spec.pod.uid == uid && says_that_it_waits(a))
    };
    let asked = inputs.request.pod.as_deref();
    let pod = match pods::target(asked, "", inputs.pods, &inputs.away, waits) {
        Target::Pod(pod) => pod,
        Target::None => {
            let named = asked.map_or_else(|| "a pod".to_owned(), |name| format!("the pod {name}"));
            let message = format!(
                "waits for {named} to run, with the label hybridnic.io/vm={vm}; its QEMU must run with -incoming defer"
            );
            return Err(stay(reasons::NO_TARGET_POD, message));
        }
        Target::Several(pods) => {
            let mut names: Vec<_> = pods.iter().map(|pod| pod.name_any()).collect();
            names.sort();
            let message = format!(
                "{} could take the VM: name one in spec.pod of another QemuRestore, or end the others",
                names.join(" and ")
            );
            return Err(stay(reasons::SEVERAL_TARGET_PODS, message));
        }
    };
    let here = pods::reference(pod).uid;
    // What has a NIC proves that the VM runs; what has none proves nothing, and may run it nevertheless.
    let may_run =
        |other: &&Arc<Pod>| pods::reference(other).uid != here && !pods::is_finished(other) && !waits(other);
    if let Some(other) = inputs.pods.iter().find(may_run) {
        let message = format!(
            "the pod {} has the label hybridnic.io/vm={vm} too, and may run the VM: waits for it to end, or for its node's agent to \
             say that its QEMU waits for the VM",
            other.name_any()
        );
        return Err(stay(reasons::VM_RUNS, message));
    }
    if let Some(elsewhere) = attachments().find(|a| a.spec.pod.uid != here) {
        let message = format!(
            "waits for the NIC {} to leave the pod {} on {}",
            elsewhere.spec.nic.name, elsewhere.spec.pod.name, elsewhere.spec.node_name
        );
        return Err(stay(reasons::WAITING_FOR_DETACH, message));
    }
    Ok(pod)
}
