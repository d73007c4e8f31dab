//! The operator's two controllers. They remember nothing; what they decide is their own, what they write is done here.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hybridnic_api::v1alpha1::{AttachmentState, Goal, NicAttachment, NicAttachmentSpec, ObjectRef};
use hybridnic_operator::attachment as reported;
use hybridnic_operator::fence::NodeState;
use hybridnic_operator::migration::encryption::Encryption;
use hybridnic_operator::migration::inputs::{Deadlines, Inputs, NicInputs};
use hybridnic_operator::migration::step::step;
use hybridnic_operator::moves::ends::Ends;
use hybridnic_operator::moves::qemu;
use hybridnic_operator::nic::desired::{self, Place, desired_attachments};
use hybridnic_operator::nic::observed::Observed;
use hybridnic_operator::vm::VmRef;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::model::Model;
use crate::objects::{self, NIC};
use crate::state::{self, Api, Attachment, ENDS, Id, State};

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
        state.api.migration = model.steps.get((api, late), || next_status(model, &api, late));
    }
}

/// One reconcile of a NIC, up to its first write: the operator may die after each.
pub fn reconcile_nic(model: &Model, state: &mut State, n: usize) {
    let api = state.cached();
    let write = model.writes.get((api, n), || first_write(model, &api, n));
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
            match slot {
                // What agent and operator know is about an older spec.
                Some(attachment) => {
                    *attachment = Attachment {
                        spec,
                        current: false,
                        ..*attachment
                    }
                }
                None => {
                    *slot = Some(Attachment {
                        spec,
                        status: 0,
                        current: false,
                        finalizer: false,
                        deleting: false,
                    });
                }
            }
            nic.current = false;
        }
        Write::Delete(end) => {
            let slot = &mut state.api.attachments[end][n];
            match slot {
                Some(attachment) if attachment.finalizer => attachment.deleting = true,
                // Another than that which was to be deleted, or none any more.
                Some(_) if api.attachments[end][n].is_none() => {}
                _ => *slot = None,
            }
        }
        Write::Pod(pod) => state.api.nic_pods[n] = pod,
    }
}

struct World {
    nics: Vec<NicInputs>,
    attachments: Vec<Arc<NicAttachment>>,
    pods: Vec<Arc<Pod>>,
}

fn world(model: &Model, api: &Api) -> World {
    let mut all = Vec::new();
    let mut nics = Vec::new();
    for n in 0..model.nics {
        let mut own = Vec::new();
        for end in ENDS {
            if let Some(attachment) = &api.attachments[end][n] {
                own.extend(model.objects.attachment(end, n, attachment).map(Arc::new));
            }
        }
        all.extend(own.iter().cloned());
        nics.push(NicInputs {
            nic: Arc::new(objects::nic(n, api.nic_pods[n])),
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
        vm: VmRef::of_nic(nic),
        kubevirt: hybridnic_operator::nic::whereabouts::kubevirt::Seen::default(),
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
    let location = observed.location(nic);
    let end = |pod: &ObjectRef| objects::end_of(&pod.uid).unwrap_or_default();
    if let (None, Ok(location)) = (&observed.moving, &location)
        && observed.left(nic, &location.pod).is_some()
    {
        return Write::Pod(u8::try_from(end(&location.pod)).ok());
    }
    let place = match (&observed.moving, &location) {
        (Some((of, ends)), _) => Place::Moving(of, ends),
        (None, Ok(location)) if location.wait.is_none() => {
            Place::At(location.pod.clone(), location.node.clone())
        }
        (None, _) => Place::Nowhere,
    };
    let mac = objects::mac(n);
    let inputs = desired::Inputs {
        nic,
        mac: &mac,
        l2: None,
        interface: None,
        existing,
        place,
    };
    let specs = desired_attachments(&inputs);
    for spec in &specs {
        let end = end(&spec.pod);
        let found = api.attachments[end][n];
        let id = model.objects.spec_id(spec.clone());
        match found {
            Some(found) if found.deleting || found.spec == id => {}
            None if spec.goal == Goal::Detached => {}
            _ => return Write::Spec(end, id),
        }
    }
    for end in ENDS {
        let Some(attachment) = api.attachments[end][n] else {
            continue;
        };
        if !specs
            .iter()
            .any(|spec| objects::end_of(&spec.pod.uid) == Some(end))
        {
            let write = retire(model, end, n, &attachment);
            if write != Write::Nothing {
                return write;
            }
        }
    }
    let pod = location.ok().map(|location| end(&location.pod));
    let pod = pod.and_then(|end| u8::try_from(end).ok());
    if pod == api.nic_pods[n] {
        Write::Nothing
    } else {
        Write::Pod(pod)
    }
}

/// Brings an attachment to its end: detached, then deleted.
fn retire(model: &Model, end: usize, n: usize, attachment: &state::Attachment) -> Write {
    let Some(object) = model.objects.attachment(end, n, attachment) else {
        return Write::Nothing;
    };
    if attachment.deleting {
        return Write::Nothing;
    }
    let asked = object.spec.goal == Goal::Detached;
    if !attachment.finalizer || asked && reported::state(&object) == AttachmentState::Detached {
        return Write::Delete(end);
    }
    if asked {
        return Write::Nothing;
    }
    Write::Spec(
        end,
        model.objects.spec_id(NicAttachmentSpec {
            goal: Goal::Detached,
            migration: None,
            ..object.spec
        }),
    )
}
