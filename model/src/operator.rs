//! The operator's two controllers. They remember nothing; what they decide is their own, what they write is done here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hybridnic_api::v1alpha1::{NicAttachment, VmHybridNic};
use hybridnic_operator::fence::NodeState;
use hybridnic_operator::migration::encryption::Encryption;
use hybridnic_operator::migration::inputs::{Deadlines, Inputs, NicInputs};
use hybridnic_operator::migration::step::step;
use hybridnic_operator::moves::ends::Ends;
use hybridnic_operator::moves::qemu;
use hybridnic_operator::nic::changes::{Change, Leftover, changes, leaves_vm};
use hybridnic_operator::nic::desired::{self, desired_attachments};
use hybridnic_operator::nic::observed::Observed;
use hybridnic_operator::vm::VmRef;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::model::Model;
use crate::objects::{self, NIC, Objects, POD};
use crate::state::{Api, Attachment, ENDS, Id, Nic, State};

/// What a reconcile of a NIC writes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Write {
    /// Nothing: all is as it should be.
    Nothing,
    /// The spec of its attachment at this end.
    Spec(usize, Id),
    /// The deletion of its attachment at this end.
    Delete(usize),
    /// In which pod the VM is.
    Pod(Option<u8>),
}

/// One reconcile of the migration. `late`: a deadline that it waits for has passed.
pub fn reconcile_migration(model: &Model, state: &mut State, late: bool) {
    let api = state.cached();
    if api.migration != 0 && api.migration == state.api.migration {
        state.api.migration = model.steps.get(&(api, late), || next_status(model, &api, late));
    }
}

/// One reconcile of a NIC, up to its first write: the operator may die after each.
pub fn reconcile_nic(model: &Model, state: &mut State, n: usize) {
    let api = state.cached();
    let write = model.writes.get(&(api, n), || first_write(model, &api, n));
    apply(state, n, write, &api);
}

/// A write reaches the API server, if it was decided on what is there.
pub(crate) fn apply(state: &mut State, n: usize, write: Write, api: &Api) {
    let refused = match write {
        Write::Spec(end, _) => !state.knows(end, n),
        // A deletion goes by the object's uid.
        Write::Delete(_) | Write::Pod(_) | Write::Nothing => false,
    };
    if refused {
        return;
    }
    match write {
        Write::Nothing => {}
        Write::Spec(end, spec) => {
            let (nic, slot) = (&mut state.nodes[end].nics[n], &mut state.api.attachments[end][n]);
            put(slot, nic, spec);
        }
        Write::Delete(end) => delete(&mut state.api.attachments[end][n], api.attachments[end][n]),
        Write::Pod(pod) => state.api.nic_pods[n] = pod,
    }
}

/// An attachment's spec is written.
pub(crate) fn put(slot: &mut Option<Attachment>, nic: &mut Nic, spec: Id) {
    let attachment = slot.get_or_insert(Attachment {
        spec,
        status: 0,
        current: false,
        finalizer: false,
        deleting: false,
    });
    // What agent and operator know is about an older spec.
    (attachment.spec, attachment.current) = (spec, false);
    nic.current = false;
}

/// An attachment is deleted, which the operator knew so.
pub(crate) fn delete(slot: &mut Option<Attachment>, known: Option<Attachment>) {
    match slot {
        Some(attachment) if attachment.finalizer => attachment.deleting = true,
        // Another than that which was to be deleted, or none any more.
        Some(_) if known.is_none() => {}
        _ => *slot = None,
    }
}

/// What the operator's caches have.
pub(crate) struct World {
    /// The VM's NICs.
    pub nics: Vec<NicInputs>,
    /// Their attachments.
    pub attachments: Vec<Arc<NicAttachment>>,
    /// The VM's pods.
    pub pods: Vec<Arc<Pod>>,
}

/// What the operator's caches have.
pub(crate) fn world(model: &Model, api: &Api) -> World {
    let mut all = Vec::new();
    let mut nics = Vec::new();
    for n in 0..model.nics {
        let mut own = Vec::new();
        for end in ENDS {
            if let Some(attachment) = &api.attachments[end][n] {
                own.extend(model.objects.attachment(POD[end], n, attachment).map(Arc::new));
            }
        }
        all.extend(own.iter().cloned());
        let mut nic = objects::nic(n, api.nic_pods[n], api.aside);
        (nic.spec.standby, nic.spec.pairing) = (model.standby, model.pairing);
        nics.push(NicInputs {
            nic: Arc::new(nic),
            attachments: own,
            target_refusal: None,
        });
    }
    let pods = ENDS
        .iter()
        .filter_map(|end| objects::pod(*end, api.pods[*end]))
        .map(Arc::new);
    World {
        nics,
        attachments: all,
        pods: pods.collect(),
    }
}

fn next_status(model: &Model, api: &Api, late: bool) -> Id {
    let Some(migration) = model.objects.migration(api) else {
        return api.migration;
    };
    let world = world(model, api);
    let status = migration.status.clone().unwrap_or_default();
    let nics = world.nics.into_iter();
    let nics = nics.filter(|nic| status.target.is_none() || status.nics.contains(&nic.nic.name_any()));
    let inputs = Inputs {
        now: objects::now(),
        in_phase_for: Duration::from_secs(if late { 1000 } else { 0 }),
        silent_for: Duration::from_secs(if late { 1000 } else { 0 }),
        migration: &migration,
        blocked_by: None,
        nics: nics.collect(),
        pods: &world.pods,
        away: BTreeSet::new(),
        of_nodes: BTreeSet::new(),
        ends: qemu::begun(&migration).map(|of| Ends::observe(&of, &world.attachments, &world.pods)),
        deadlines: Deadlines {
            prepare: Duration::from_mins(1),
            switch: Duration::from_mins(2),
        },
        encryption: Encryption::Required,
        decide: String::new(),
    };
    model.objects.migration_id(step(&inputs).status)
}

fn first_write(model: &Model, api: &Api, n: usize) -> Write {
    let World {
        nics,
        attachments,
        pods,
    } = world(model, api);
    let of = model
        .objects
        .migration(api)
        .and_then(|migration| qemu::begun(&migration));
    let NicInputs {
        nic,
        attachments: existing,
        ..
    } = &nics[n];
    let moving = of
        .iter()
        .find(|of| of.has(NIC[n]))
        .map(|of| (of.clone(), Ends::observe(of, &attachments, &pods)));
    let others = attachments.iter().filter(|other| other.spec.nic.name != NIC[n]);
    let observed = Observed {
        restore: None,
        vm: VmRef::of_nic(nic),
        kubevirt: hybridnic_operator::nic::whereabouts::kubevirt::ObservedVm::default(),
        network: None,
        pods,
        attachments: existing.clone(),
        others: others.cloned().collect(),
        orphans: Vec::new(),
        unreadable: false,
        nodes: objects::NODE
            .map(|name| (name.to_owned(), NodeState::Ready))
            .into(),
        overdue: BTreeSet::new(),
        without_agent: BTreeSet::new(),
        moves: of.into_iter().collect(),
        moving,
    };
    let end_of = |uid: &str| objects::end_of(uid).unwrap_or_default();
    let mac = objects::mac(n);
    first_change(&model.objects, nic, &mac, &observed, end_of).unwrap_or_else(|pod| {
        if pod == api.nic_pods[n] {
            Write::Nothing
        } else {
            Write::Pod(pod)
        }
    })
}

/// The first change of a NIC's attachments, or the pod in which its VM is then.
pub(crate) fn first_change(
    objects: &Objects,
    nic: &VmHybridNic,
    mac: &str,
    observed: &Observed,
    end_of: impl Fn(&str) -> usize,
) -> Result<Write, Option<u8>> {
    let location = observed.location(nic);
    let pod = location
        .as_ref()
        .ok()
        .and_then(|location| u8::try_from(end_of(&location.pod.uid)).ok());
    let leaves = observed.moving.is_none()
        && location
            .as_ref()
            .is_ok_and(|location| observed.left(nic, &location.pod).is_some());
    if leaves || observed.unknown().is_some() {
        return Err(pod);
    }
    let inputs = desired::Inputs {
        nic,
        mac,
        l2: None,
        interface: observed.kubevirt.interface.as_deref(),
        existing: &observed.attachments,
        pods: &[],
        place: observed.place(&location, false),
    };
    let specs = desired_attachments(&inputs);
    let leftover = |attachment: &NicAttachment| Leftover {
        is_abandoned: observed.is_abandoned(attachment),
        leaves_vm: leaves_vm(observed, nic, attachment),
    };
    let all = changes(&nic.name_any(), specs, &observed.attachments, leftover);
    let write = match all.into_iter().next() {
        None => return Err(pod),
        Some(Change::Make(spec) | Change::Tell(_, spec)) => {
            Write::Spec(end_of(&spec.pod.uid), objects.spec_id(spec))
        }
        Some(Change::Delete(attachment)) => Write::Delete(end_of(&attachment.spec.pod.uid)),
    };
    Ok(write)
}
