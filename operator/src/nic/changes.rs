//! What is to be written so that a NIC's attachments are as they should be. Pure.

use std::sync::Arc;

use hybridnic_api::names::attachment_name;
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationStep, NicAttachment, NicAttachmentSpec, Runtime,
};
use kube::ResourceExt;

use super::release::has_finalizer;
use crate::attachment::state;

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

/// What is to be written, in this order. `specs` are the attachments that should be; `is_abandoned` says of which no agent will ever
/// take anything back.
pub fn changes<'a>(
    nic: &str,
    specs: Vec<NicAttachmentSpec>,
    existing: &'a [Arc<NicAttachment>],
    is_abandoned: impl Fn(&NicAttachment) -> bool,
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
    let others = others.filter_map(|other| retire(other, is_abandoned(other)));
    wanted.chain(others).collect()
}

/// Brings an attachment to its end: detached, unless no agent will ever do it, then deleted.
fn retire(attachment: &NicAttachment, is_abandoned: bool) -> Option<Change<'_>> {
    if attachment.metadata.deletion_timestamp.is_some() {
        return None;
    }
    let asked = attachment.spec.goal == Goal::Detached;
    let detached = asked && state(attachment) == AttachmentState::Detached;
    if !has_finalizer(attachment) || is_abandoned || detached {
        return Some(Change::Delete(attachment));
    }
    if asked {
        return None;
    }
    let spec = NicAttachmentSpec {
        goal: Goal::Detached,
        // The agent keeps what a VM has that has come all the same, by a migration of which nothing is known any more.
        migration: attachment.spec.migration.clone().filter(|order| {
            let theirs = attachment.spec.vm.runtime() == Runtime::Kubevirt;
            theirs && matches!(order.step, MigrationStep::Watch | MigrationStep::Cancel)
        }),
        ..attachment.spec.clone()
    };
    Some(Change::Tell(attachment, spec))
}

#[cfg(test)]
mod tests {
    use hybridnic_api::names::ATTACHMENT_FINALIZER;

    use super::*;
    use crate::testing::{attachment, observe};

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
            let all = changes("eth0", Vec::new(), &existing, |_| abandoned);
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
        assert_eq!(changes("eth0", vec![here.spec.clone()], &existing, |_| false), []);
        let (mut told, mut new) = (here.spec.clone(), held("b").spec);
        told.goal = Goal::Standby;
        let all = changes("eth0", vec![told.clone(), new.clone()], &existing, |_| false);
        assert_eq!(
            all,
            [Change::Tell(&here, told.clone()), Change::Make(new.clone())]
        );
        new.goal = Goal::Detached;
        let all = changes("eth0", vec![told.clone(), new], &existing, |_| false);
        assert_eq!(all, [Change::Tell(&here, told)]);
    }
}
