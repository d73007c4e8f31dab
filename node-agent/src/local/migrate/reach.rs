//! What must be known of the target before something is done that could run the VM twice, or end the only one. Pure.
//!
//! A driver that has just started has heard nothing of the target, and that is no silence of the target's: it is asked first. Only a
//! target that cannot be reached is passed over, and only by a person's decision, or where the source was to resume already.

use std::{sync::Arc, time::Duration};

use hybridnic_api::v1alpha1::{MigrationPhase, MigrationStep, NicAttachment};
use hybridnic_flight::moves::{
    Driver, Move,
    ends::{Ends, Rollback},
};

use super::{
    super::order::{Order, Says},
    hand::SeenNic,
    plan::{Both, Flight, Rules, Side},
};

/// For how long each try to reach the target must have failed before a decision is carried out without it.
pub const AWAY: Duration = Duration::from_secs(30);

/// The step that an order of a migration asks for.
fn step_of<'a>(order: &'a Order, migration: &str) -> Option<&'a MigrationStep> {
    match &order.says {
        Says::Be(be) if order.migration == migration => {
            be.spec.migration.as_ref().map(|ordered| &ordered.step)
        }
        Says::Be(_) | Says::Over => None,
    }
}

impl Flight {
    /// Whether the target was asked, or cannot be: what a person has decided, or the source was told, is not carried out before.
    pub fn may_go_on(&self, both: Both<'_>) -> bool {
        let is_risky = self.decision.is_some() || self.status.resuming_since.is_some();
        !is_risky || self.status.phase.is_final() || both.target.is_some() || both.is_away()
    }

    /// Whether the target cannot get the VM any more, by what is on its disk; or it cannot be told, and a person has decided.
    pub(super) fn is_revoked(&self, both: Both<'_>) -> bool {
        let gives_up = |name| {
            let nic = both.nic(Side::Target, name);
            let order = nic.and_then(|nic| nic.order.as_ref());
            order.and_then(|(order, _)| step_of(order, &self.uid)) == Some(&MigrationStep::GiveUp)
        };
        let is_passed_over = self.decision.is_some() && both.is_away();
        is_passed_over || self.nics.keys().all(|name| gives_up(name))
    }

    /// Whether an end may be told this now.
    pub(super) fn may_be_told(
        &self,
        both: Both<'_>,
        of: &Move,
        side: Side,
        name: &str,
        step: Option<MigrationStep>,
    ) -> bool {
        match (side, step) {
            // One that has lost its orders since may be another host by that name, or may have ended the migration.
            (Side::Target, Some(MigrationStep::Listen)) => {
                let may_have_left = matches!(of.driver, Driver::Ours(orders) if orders.transfer);
                !may_have_left || both.nic(side, name).is_some_and(|nic| self.is_ordered(nic))
            }
            // The target may be back that was passed over when this was decided.
            (Side::Source, Some(MigrationStep::Resume)) => self.is_revoked(both) || both.is_away(),
            _ => true,
        }
    }

    /// Whether an end has an order of this migration, in its file or as its agent holds it.
    fn is_ordered(&self, nic: &SeenNic) -> bool {
        let on_disk = nic
            .order
            .as_ref()
            .is_some_and(|(order, _)| order.migration == self.uid && order.says != Says::Over);
        let held = nic
            .attached
            .as_ref()
            .and_then(|attached| attached.spec.migration.as_ref());
        on_disk || held.is_some_and(|held| held.migration.uid == self.uid)
    }

    /// A NIC's attachments, as the next step is to look at them.
    pub(super) fn looked_at(
        &self,
        both: Both<'_>,
        name: &str,
        ends: Option<&Ends>,
        in_phase_for: Duration,
        rules: Rules,
    ) -> Vec<Arc<NicAttachment>> {
        let mut all = self.attachments(both, name);
        if self.status.phase != MigrationPhase::RollingBack {
            return all;
        }
        let source = self.pod(Side::Source);
        // A QEMU that has ended never gets its NICs back, and nobody sees that it has: its agent goes on by the NIC's file.
        let not_begun = ends.is_some_and(|ends| ends.rollback() == Rollback::NotBegun);
        if not_begun && in_phase_for >= rules.deadlines.switch {
            all.retain(|attachment| attachment.spec.pod.uid != source.uid);
        }
        // It may have been seen to listen before it went away.
        if self.is_revoked(both) {
            for attachment in all.iter_mut().filter(|a| a.spec.pod.uid != source.uid) {
                Arc::make_mut(attachment).spec.migration = None;
            }
        }
        all
    }
}
