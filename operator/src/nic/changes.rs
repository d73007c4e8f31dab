//! What is to be written so that a NIC's attachments are as they should be. Pure.

use std::sync::Arc;

use hybridnic_api::names::attachment_name;
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationStep, NicAttachment, NicAttachmentSpec, Runtime, VmHybridNic,
};
use kube::ResourceExt;

use super::observed::Observed;
use super::release::has_finalizer;
use crate::attachment::state;
use crate::moves::{Outcome, Stage, kubevirt};

/// Something that is to be written.
#[derive(Clone, Debug, PartialEq)]
pub enum Change<'a> {
    /// A new attachment, where the NIC may be.
    Make(NicAttachmentSpec),
    /// Another spec for one that is there.
    Tell(&'a NicAttachment, NicAttachmentSpec),
    /// The deletion of one.
    Delete(&'a NicAttachment),
}

/// What is observed of an attachment that its NIC is not to have any more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Leftover {
    /// No agent will ever take anything back.
    pub is_abandoned: bool,
    /// The NIC is to leave the VM that runs there, see [`leaves_vm`].
    pub leaves_vm: bool,
}

/// What is to be written, in this order. `specs` are the attachments that should be.
pub fn changes<'a>(
    nic: &str,
    specs: Vec<NicAttachmentSpec>,
    existing: &'a [Arc<NicAttachment>],
    leftover: impl Fn(&NicAttachment) -> Leftover,
) -> Vec<Change<'a>> {
    let names: Vec<_> = specs
        .iter()
        .map(|spec| attachment_name(nic, &spec.pod.uid))
        .collect();
    let wanted = specs.into_iter().zip(&names).filter_map(|(spec, name)| {
        let found = existing.iter().find(|found| found.name_any() == *name);
        match found {
            Some(found) if found.metadata.deletion_timestamp.is_some() || found.spec == spec => None,
            Some(found) => Some(Change::Tell(found, spec)),
            None if spec.goal == Goal::Detached => None,
            None => Some(Change::Make(spec)),
        }
    });
    let others = existing.iter().filter(|found| !names.contains(&found.name_any()));
    let others = others.filter_map(|other| retire(other, leftover(other)));
    wanted.chain(others).collect()
}

/// Brings an attachment to its end: detached, unless no agent will ever do it, then deleted.
fn retire(attachment: &NicAttachment, leftover: Leftover) -> Option<Change<'_>> {
    if attachment.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let asked = attachment.spec.goal == Goal::Detached;
    let detached = asked && state(attachment) == AttachmentState::Detached;
    if !has_finalizer(attachment) || leftover.is_abandoned || detached {
        return Some(Change::Delete(attachment));
    }
    let theirs = attachment.spec.vm.runtime() == Runtime::Kubevirt;
    let spec = NicAttachmentSpec {
        goal: Goal::Detached,
        // If a migration that is forgotten has brought a VM nevertheless, the agent keeps what that VM has.
        migration: attachment.spec.migration.clone().filter(|order| {
            let watches = matches!(order.step, MigrationStep::Watch | MigrationStep::Cancel);
            theirs && watches && !leftover.leaves_vm
        }),
        ..attachment.spec.clone()
    };
    // What the agent was told about a migration of ours stands.
    if asked && (!theirs || spec == attachment.spec) {
        return None;
    }
    Some(Change::Tell(attachment, spec))
}

/// Whether a NIC is deleted whose VM is known to be in the attachment's pod after the migration of its order: it has come there, or has
/// stayed.
pub fn leaves_vm(observed: &Observed, nic: &VmHybridNic, attachment: &NicAttachment) -> bool {
    let spec = &attachment.spec;
    let Some(order) = spec.migration.as_ref() else {
        return false;
    };
    let uid = &order.migration.uid;
    let has_come = || {
        observed.moves.iter().any(|of| {
            let is_there = matches!(of.stage, Stage::Arrived | Stage::Over(Outcome::Succeeded));
            is_there && of.id.uid == *uid && of.target.pod.uid == spec.pod.uid
        })
    };
    let has_stayed = || {
        observed.moves.iter().any(|of| {
            let is_off = matches!(of.stage, Stage::Over(Outcome::Failed | Outcome::Cancelled));
            is_off && of.id.uid == *uid && of.source.pod.uid == spec.pod.uid
        })
    };
    let vmi = observed.kubevirt.vmi.as_deref();
    nic.metadata.deletion_timestamp.is_some()
        && (has_come() || has_stayed() || kubevirt::is_at(vmi, uid, &spec.node_name))
}

#[cfg(test)]
mod tests {
    use hybridnic_api::foreign::kubevirt::VirtualMachineInstance;
    use hybridnic_api::names::ATTACHMENT_FINALIZER;
    use hybridnic_api::v1alpha1::{AttachedVm, MigrationOrder, ObjectRef};
    use serde_json::json;

    use super::*;
    use crate::testing::{a_move, attachment, nic, observe};

    fn held(pod: &str) -> NicAttachment {
        let mut held = attachment("eth0", pod, "n1");
        held.metadata.finalizers = Some(vec![ATTACHMENT_FINALIZER.to_owned()]);
        held
    }

    #[test]
    fn what_should_not_be_is_detached_before_it_is_deleted() {
        let mut old = held("a");
        let retired = |old: &NicAttachment, abandoned| {
            let existing = [Arc::new(old.clone())];
            let all = changes("eth0", Vec::new(), &existing, |_| Leftover {
                is_abandoned: abandoned,
                ..Leftover::default()
            });
            let kinds = all.iter().map(|change| match change {
                Change::Make(_) => "make",
                Change::Tell(_, spec) if spec.goal == Goal::Detached => "detach",
                Change::Tell(..) => "tell",
                Change::Delete(_) => "delete",
            });
            kinds.collect::<Vec<_>>()
        };
        assert_eq!(retired(&old, false), ["detach"]);
        assert_eq!(retired(&old, true), ["delete"], "its node is off");
        old.spec.goal = Goal::Detached;
        assert!(retired(&old, false).is_empty(), "its agent is asked already");
        observe(&mut old, AttachmentState::Detached);
        assert_eq!(retired(&old, false), ["delete"]);
        old.metadata.finalizers = None;
        old.spec.goal = Goal::FastPath;
        assert_eq!(retired(&old, false), ["delete"], "no agent has met it");
    }

    #[test]
    fn only_what_is_another_is_written_and_nothing_is_made_to_be_detached() {
        let here = Arc::new(held("a"));
        let existing = [Arc::clone(&here)];
        assert_eq!(
            changes("eth0", vec![here.spec.clone()], &existing, |_| Leftover::default(
            )),
            []
        );
        let (mut told, mut new) = (here.spec.clone(), held("b").spec);
        told.goal = Goal::Standby;
        let all = changes("eth0", vec![told.clone(), new.clone()], &existing, |_| {
            Leftover::default()
        });
        assert_eq!(
            all,
            [Change::Tell(&here, told.clone()), Change::Make(new.clone())]
        );
        new.goal = Goal::Detached;
        let all = changes("eth0", vec![told.clone(), new], &existing, |_| {
            Leftover::default()
        });
        assert_eq!(all, [Change::Tell(&here, told)]);
    }

    /// The NIC's attachment at the target of the migration `m`.
    fn at_target(step: MigrationStep) -> NicAttachment {
        let mut there = attachment("eth0", "b", "n2");
        there.metadata.finalizers = Some(vec![ATTACHMENT_FINALIZER.to_owned()]);
        there.spec.vm = AttachedVm::Kubevirt {
            name: "vm".to_owned(),
        };
        there.spec.migration = Some(MigrationOrder {
            migration: ObjectRef {
                name: "m".to_owned(),
                uid: "m".to_owned(),
            },
            nics: vec!["eth0".to_owned()],
            step,
            target_uri: None,
            listen_address: None,
            tls: None,
            file: None,
        });
        observe(&mut there, AttachmentState::FastPath);
        there
    }

    fn deleted() -> VmHybridNic {
        let mut nic = nic("eth0", "vm", "net", 1);
        nic.metadata.deletion_timestamp = nic.metadata.creation_timestamp.clone();
        nic
    }

    /// What is next for an attachment that its NIC is not to have any more.
    fn next(observed: &Observed, nic: &VmHybridNic, there: &NicAttachment) -> Option<NicAttachmentSpec> {
        let leftover = Leftover {
            is_abandoned: false,
            leaves_vm: leaves_vm(observed, nic, there),
        };
        match retire(there, leftover)? {
            Change::Tell(_, spec) => Some(spec),
            other => panic!("{other:?}"),
        }
    }

    fn told(next: Option<NicAttachmentSpec>) -> Option<MigrationStep> {
        let spec = next.unwrap();
        assert_eq!(spec.goal, Goal::Detached);
        spec.migration.map(|order| order.step)
    }

    #[test]
    fn a_nic_that_is_deleted_leaves_the_vm_that_has_come_with_it() {
        let there = at_target(MigrationStep::Watch);
        let mut observed = Observed::default();
        assert_eq!(
            told(next(&observed, &deleted(), &there)),
            Some(MigrationStep::Watch),
            "nothing is known about the migration"
        );
        let mut of = a_move("m", "a", "b");
        of.target.pod.uid.clone_from(&there.spec.pod.uid);
        of.id.uid = "m".to_owned();
        for stage in [Stage::Moving, Stage::Returning, Stage::Over(Outcome::Failed)] {
            of.stage = stage;
            observed.moves = vec![of.clone()];
            assert_eq!(
                told(next(&observed, &deleted(), &there)),
                Some(MigrationStep::Watch),
                "{stage:?}"
            );
        }
        of.stage = Stage::Over(Outcome::Succeeded);
        observed.moves = vec![of.clone()];
        assert_eq!(told(next(&observed, &deleted(), &there)), None);
        assert_eq!(
            told(next(&observed, &nic("eth0", "vm", "net", 1), &there)),
            Some(MigrationStep::Watch),
            "it is not to go from a VM that runs"
        );

        // Where it comes from, it stays until the migration is off.
        std::mem::swap(&mut of.source, &mut of.target);
        for (stage, leaves) in [
            (Stage::Returning, Some(MigrationStep::Watch)),
            (Stage::Over(Outcome::Succeeded), Some(MigrationStep::Watch)),
            (Stage::Over(Outcome::Failed), None),
        ] {
            of.stage = stage;
            observed.moves = vec![of.clone()];
            assert_eq!(told(next(&observed, &deleted(), &there)), leaves, "{stage:?}");
        }
    }

    #[test]
    fn what_is_proven_late_is_told_late() {
        let mut there = at_target(MigrationStep::Watch);
        let mut observed = Observed::default();
        there.spec = next(&observed, &deleted(), &there).unwrap();
        assert_eq!(next(&observed, &deleted(), &there), None);
        for (uid, node, come) in [("other", "n2", false), ("m", "n1", false), ("m", "n2", true)] {
            let vmi = json!({
                "metadata": {"name": "vm", "namespace": "ns"},
                "spec": {},
                "status": {"nodeName": node, "migrationState": {"migrationUid": uid}},
            });
            let vmi: VirtualMachineInstance = serde_json::from_value(vmi).unwrap();
            observed.kubevirt.vmi = Some(Arc::new(vmi));
            let next = next(&observed, &deleted(), &there);
            assert_eq!(next.is_some(), come, "{uid} {node}");
        }
    }

    #[test]
    fn what_was_told_of_a_migration_of_ours_is_not_told_anew() {
        let mut there = at_target(MigrationStep::Listen);
        there.spec.vm = attachment("eth0", "b", "n2").spec.vm;
        assert_eq!(told(next(&Observed::default(), &deleted(), &there)), None);
        there.spec.goal = Goal::Detached;
        assert_eq!(next(&Observed::default(), &deleted(), &there), None);
    }
}
