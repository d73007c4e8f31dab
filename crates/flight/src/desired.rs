//! The attachments that a NIC should have. Pure, and the only place where goals and migration orders are made.
//!
//! | stage | source | target |
//! |---|---|---|
//! | none | `FastPath` | |
//! | `Preparing`, encrypted, source not known | `FastPath`, Prepare | |
//! | `Preparing` | `FastPath`, Prepare where encrypted | `FastPath`, Listen |
//! | `Leaving` | `Standby`, Prepare | `FastPath`, Listen |
//! | `Moving` | `Standby`, Transfer | `FastPath`, Listen |
//! | `Arrived` | `Detached`, Transfer | `FastPath`, Listen |
//! | `Returning` | see [`Rollback`] | |
//!
//! These are the goals and orders if we, an operator or `ctl migrate`, drive the migration ([`Driver::Ours`]). If KubeVirt does
//! ([`Driver::Theirs`]), every order is Watch, and what holds the migration is that the target's pod gets its links only with the goal
//! `Standby`:
//!
//! | stage | source | target |
//! |---|---|---|
//! | `Preparing` | `FastPath` | `Reserved` |
//! | `Leaving` | `Standby` | `Reserved` |
//! | `Moving` | `Standby` | `Standby` |
//! | `Arrived` | `Detached` | `FastPath` |
//! | `Returning` | `Standby`; `FastPath` once it is known to run the VM and not to migrate it | `Standby`; `Detached` once nothing can come |
//!
//! A VM that goes to a file or comes from one has only one end: [`crate::moves::file`].
//!
//! A NIC that is told to stay on its standby has the same goals, because these tell an agent where its VM may run. `aside` beside the goal
//! says that the NIC does not leave its standby.

use std::net::IpAddr;
use std::sync::Arc;

use hybridnic_api::names::attachment_name;
use hybridnic_api::v1alpha1::{
    AttachedVm, Goal, GuestPorts, L2Settings, MigrationEnd, MigrationOrder, MigrationReport, MigrationStep,
    MigrationTls, NicAttachment, NicAttachmentSpec, ObjectRef, Placement, StandbyKind, VmHybridNic,
};
use hybridnic_decisions::network::kept;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::moves::ends::{Ends, Rollback};
use crate::moves::file::Wish;
use crate::moves::{Driver, Move, Outcome, Stage};
use crate::pods;

/// Where a NIC's VM is.
pub enum Place<'a> {
    /// It does not run.
    Nowhere,
    /// It runs in a pod on a node.
    At(ObjectRef, String),
    /// It is on its way, and both ends say this.
    Moving(&'a Move, &'a Ends),
}

/// All that decides about a NIC's attachments.
pub struct Inputs<'a> {
    /// The NIC.
    pub nic: &'a VmHybridNic,
    /// Its address.
    pub mac: &'a str,
    /// Its network's settings; none if the network is gone.
    pub l2: Option<L2Settings>,
    /// Which interface of KubeVirt's VM it is.
    pub interface: Option<&'a str>,
    /// Its attachments as they are.
    pub existing: &'a [Arc<NicAttachment>],
    /// The pods of its VM.
    pub pods: &'a [Arc<Pod>],
    /// Where its VM is.
    pub place: Place<'a>,
}

/// The specs of the attachments that should be; all others should go.
pub fn desired_attachments(inputs: &Inputs<'_>) -> Vec<NicAttachmentSpec> {
    // A VM whose runtime this version does not know is nowhere.
    let Some(vm) = inputs.nic.spec.vm.attached() else {
        return Vec::new();
    };
    let (of, ends) = match &inputs.place {
        Place::Nowhere => return Vec::new(),
        Place::At(pod, node) => return vec![one(inputs, vm, pod, node, Goal::FastPath, None, None)],
        Place::Moving(of, ends) => (*of, *ends),
    };
    let (source, target) = (&of.source, &of.target);
    let encrypted = matches!(&of.driver, Driver::Ours(orders) if orders.encrypted);
    let ((source_goal, source_step), (target_goal, target_step)) = goals(of.stage, &of.driver, ends);

    let file = match &of.driver {
        Driver::File(file) => Some(&file.order),
        Driver::Ours(_) | Driver::Theirs { .. } => None,
    };
    let order = |step| MigrationOrder {
        migration: of.id.clone(),
        nics: of.nics.clone(),
        step,
        target_uri: None,
        listen_address: target.pod_ip.clone().filter(|_| step == MigrationStep::Listen),
        tls: None,
        file: file.cloned(),
    };
    let mut source_order = source_step.map(order);
    let mut target_order = target_step.map(order);
    if let Some(order) = source_order
        .as_mut()
        .filter(|order| order.step == MigrationStep::Transfer)
    {
        order.target_uri = target_uri(inputs, of, ends);
    }
    if encrypted {
        for (order, pod, other) in [
            (source_order.as_mut(), &source.pod, ends.target.as_ref()),
            (target_order.as_mut(), &target.pod, ends.source.as_ref()),
        ] {
            if let Some(order) = order {
                order.tls = tls(inputs, pod, order, other);
            }
        }
    }
    // It gets no order before it can learn which peer may send the VM. So each end gets one order.
    let waits = target_order.as_ref().is_some_and(|order| {
        let unknown = order.tls.as_ref().is_some_and(|tls| tls.peer_ca.is_none());
        of.stage == Stage::Preparing && unknown
    });
    let mut specs = Vec::new();
    if !source.pod.uid.is_empty() {
        specs.push(one(
            inputs,
            vm.clone(),
            &source.pod,
            &source.node_name,
            source_goal,
            None,
            source_order,
        ));
    }
    // The target of a migration whose object and pod are gone may not be known any more. And a file is no pod.
    if !waits && !target.pod.uid.is_empty() {
        specs.push(one(
            inputs,
            vm,
            &target.pod,
            &target.node_name,
            target_goal,
            Some(&source.pod),
            target_order,
        ));
    }
    specs
}

/// How an end knows the other one, where the stream is encrypted. Once said it stays: the other end's report may go away.
fn tls(
    inputs: &Inputs<'_>,
    pod: &ObjectRef,
    order: &MigrationOrder,
    other: Option<&MigrationReport>,
) -> Option<MigrationTls> {
    match order.step {
        MigrationStep::Prepare => return Some(MigrationTls::default()),
        MigrationStep::Listen | MigrationStep::Transfer => {}
        MigrationStep::GiveUp
        | MigrationStep::Cancel
        | MigrationStep::Resume
        | MigrationStep::Watch
        | MigrationStep::Save
        | MigrationStep::Load => return None,
    }
    let said = find(inputs, pod)
        .and_then(|end| end.spec.migration.as_ref())
        .filter(|said| said.migration == order.migration && said.step == order.step)
        .and_then(|said| said.tls.as_ref()?.peer_ca.clone());
    let peer_ca = said.or_else(|| other?.ca.clone());
    Some(MigrationTls { peer_ca })
}

/// What source and target should do in a stage. The source never gets its VF back while the VM may run at the target.
fn goals(stage: Stage, driver: &Driver, ends: &Ends) -> (Wish, Wish) {
    use MigrationStep::{Cancel, GiveUp, Listen, Prepare, Resume, Transfer};
    let orders = match driver {
        Driver::Ours(orders) => orders,
        Driver::File(file) => return file.wishes(stage, ends),
        Driver::Theirs { open, .. } => return theirs(stage, *open, ends),
    };
    let receive = (Goal::FastPath, Some(Listen));
    let revoke = (Goal::Detached, Some(GiveUp));
    match stage {
        Stage::Preparing => ((Goal::FastPath, orders.encrypted.then_some(Prepare)), receive),
        Stage::Leaving => ((Goal::Standby, Some(Prepare)), receive),
        Stage::Moving => ((Goal::Standby, Some(Transfer)), receive),
        Stage::Arrived => ((Goal::Detached, Some(Transfer)), receive),
        Stage::Returning => match ends.rollback() {
            Rollback::NotBegun => ((Goal::FastPath, None), revoke),
            // A target that was told to give up is not told to listen again, unless the VM is there nevertheless.
            Rollback::Cancelling if ends.given_up => ((Goal::Standby, Some(Cancel)), revoke),
            Rollback::Arrived | Rollback::Contested | Rollback::Cancelling => {
                ((Goal::Standby, Some(Cancel)), receive)
            }
            // The source was told to run the VM on, and may run it although its pod is gone.
            Rollback::Revoking if ends.resuming => ((Goal::Standby, Some(Cancel)), revoke),
            // A VM that has arrived completely is the only one left, and is started.
            Rollback::Revoking => ((Goal::Standby, Some(Cancel)), (Goal::Detached, Some(Listen))),
            Rollback::Undecided | Rollback::NeverRan => ((Goal::Standby, Some(Cancel)), revoke),
            Rollback::Resuming => ((Goal::Standby, Some(Resume)), revoke),
            Rollback::Stopped => ((Goal::FastPath, Some(Cancel)), revoke),
        },
        // It no longer decides about any NIC; the caller has made a mistake, which must not cost a VM its VF.
        Stage::Over(Outcome::Failed | Outcome::Cancelled) => ((Goal::FastPath, None), (Goal::Detached, None)),
        Stage::Over(Outcome::Succeeded) => ((Goal::Detached, None), (Goal::FastPath, None)),
    }
}

/// As [`goals`], where KubeVirt drives the move.
fn theirs(stage: Stage, open: bool, ends: &Ends) -> (Wish, Wish) {
    let watch = |goal| (goal, Some(MigrationStep::Watch));
    // The source's earlier report may be from before its VM left: it is asked once more, now that KubeVirt has given up.
    let asked = (Goal::Standby, Some(MigrationStep::Cancel));
    match stage {
        Stage::Preparing => (watch(Goal::FastPath), watch(Goal::Reserved)),
        Stage::Leaving => (watch(Goal::Standby), watch(Goal::Reserved)),
        Stage::Moving => (watch(Goal::Standby), watch(Goal::Standby)),
        Stage::Arrived => (watch(Goal::Detached), watch(Goal::FastPath)),
        Stage::Returning => match ends.rollback() {
            Rollback::Stopped => ((Goal::FastPath, None), watch(Goal::Detached)),
            // A pod that has no link has no VM, and will not get one.
            _ if !open || ends.target_gone || ends.never_ran() => (asked, watch(Goal::Detached)),
            _ => (asked, watch(Goal::Standby)),
        },
        Stage::Over(Outcome::Failed | Outcome::Cancelled) => ((Goal::FastPath, None), watch(Goal::Detached)),
        Stage::Over(Outcome::Succeeded) => (watch(Goal::Detached), (Goal::FastPath, None)),
    }
}

fn one(
    inputs: &Inputs<'_>,
    vm: AttachedVm,
    pod: &ObjectRef,
    node: &str,
    goal: Goal,
    ports_as_in: Option<&ObjectRef>,
    migration: Option<MigrationOrder>,
) -> NicAttachmentSpec {
    let nic = inputs.nic;
    let existing = find(inputs, pod);
    // Where a NIC is in the guest cannot change while it is there.
    let source = ports_as_in.and_then(|source| find(inputs, source));
    let placement = match (existing, inputs.interface) {
        (Some(existing), _) => existing.spec.placement.clone(),
        (None, Some(interface)) => Some(Placement::Interface(interface.to_owned())),
        (None, None) => source.and_then(|source| match &source.spec.placement {
            Some(Placement::Interface(interface)) => Some(Placement::Interface(interface.clone())),
            _ => ports_of(source).map(Placement::RootPorts),
        }),
    };
    let attached = existing.or(source).map(|attached| &attached.spec);
    let l2 = kept(inputs.l2.as_ref(), attached.map(|spec| &spec.l2));
    NicAttachmentSpec {
        node_name: node.to_owned(),
        nic: ObjectRef {
            name: nic.name_any(),
            uid: nic.uid().unwrap_or_default(),
        },
        vm,
        pod: pod.clone(),
        network: nic.spec.network.clone(),
        mac: existing
            .map_or(inputs.mac, |existing| &existing.spec.mac)
            .to_owned(),
        goal,
        aside: nic.spec.aside(),
        no_free_vf: nic.spec.no_free_vf,
        // An existing device has it, and a migration's target must have what its source has.
        standby: attached.map_or(nic.spec.standby, |spec| spec.standby),
        pairing: attached.map_or(nic.spec.pairing, |spec| spec.pairing),
        // The switch knows the port by it. One that came without it, as from an earlier operator, stays without it.
        port_instance_id: attached.map_or_else(
            || nic.spec.port_instance_id.clone(),
            |spec| spec.port_instance_id.clone(),
        ),
        l2,
        placement,
        // What a pod asks for cannot change; the pod itself may be gone.
        pod_devices: existing
            .and_then(|existing| existing.spec.pod_devices)
            .or_else(|| {
                let mut pods = inputs.pods.iter();
                let found = pods.find(|found| found.metadata.uid.as_ref() == Some(&pod.uid))?;
                pods::requested(found, &nic.spec.network)
            }),
        migration,
    }
}

fn find<'a>(inputs: &Inputs<'a>, pod: &ObjectRef) -> Option<&'a NicAttachment> {
    let name = attachment_name(&inputs.nic.name_any(), &pod.uid);
    inputs
        .existing
        .iter()
        .find(|existing| existing.name_any() == name)
        .map(AsRef::as_ref)
}

fn ports_of(source: &NicAttachment) -> Option<GuestPorts> {
    let guest = &source.status.as_ref()?.guest;
    let standby = match source.spec.standby {
        StandbyKind::Macvtap => Some(guest.standby_port.clone()?),
        StandbyKind::None => None,
    };
    Some(GuestPorts {
        standby,
        vf: guest.vf_port.clone()?,
    })
}

/// Where to send the VM. Once said it stays: the target's report may go away with the target.
fn target_uri(inputs: &Inputs<'_>, of: &Move, ends: &Ends) -> Option<String> {
    let said = find(inputs, &of.source.pod)
        .and_then(|source| source.spec.migration.as_ref())
        .filter(|order| order.migration == of.id && order.step == MigrationStep::Transfer)
        .and_then(|order| order.target_uri.clone());
    said.or_else(|| uri(&of.target, ends.target.as_ref()?.port?))
}

/// QEMU's URI of a listening end.
fn uri(end: &MigrationEnd, port: i32) -> Option<String> {
    match end.pod_ip.as_deref()?.parse().ok()? {
        IpAddr::V4(ip) => Some(format!("tcp:{ip}:{port}")),
        IpAddr::V6(ip) => Some(format!("tcp:[{ip}]:{port}")),
    }
}

#[cfg(test)]
#[path = "desired_tests.rs"]
mod tests;
