//! What the NIC's task reports: to the VM's task, and to the API server.

use hybridnic_api::v1alpha1::{AttachmentState, GuestDevices, NicAttachmentStatus};
use jiff::Timestamp;

use crate::machine::NicEntry;

use super::{
    super::{
        ids,
        observe::Observation,
        plan::{Decision, Step},
        report::{self, Inputs},
        seen::QemuSeen,
    },
    NicTask,
};

impl NicTask {
    /// Both devices' addresses in the guest.
    pub(super) async fn look_at_guest(&mut self, now: &Observation) {
        let ports = self.cx.record.known_ports();
        let mut guest = GuestDevices {
            vf_port: ports.map(|p| p.vf.clone()),
            standby_port: ports.and_then(|p| p.standby.clone()),
            ..GuestDevices::default()
        };
        if let (Some(machine), QemuSeen::Up(seen)) = (&now.machine, now.seen.qemu)
            && (seen.standby || seen.vf)
        {
            if seen.standby {
                guest.standby_pci_address = machine.address(&ids::standby(&self.cx.record.spec)).await;
            }
            if let Some(device) = &now.vf_device {
                guest.vf_pci_address = machine.address(device).await;
            }
        }
        self.guest = guest;
    }

    /// Shows the VM's task where the NIC is.
    pub(super) fn show(&self, now: &Observation, decision: &Decision) {
        let record = &self.cx.record;
        let plugged = matches!(now.seen.qemu, QemuSeen::Up(guest) if guest.vf);
        let vf = plugged || *decision == Decision::Do(Step::PlugVf);
        let state = match decision {
            Decision::Done(state) => *state,
            Decision::Wait(wait) => wait.state,
            Decision::Do(_) => AttachmentState::Pending,
        };
        let spec = &record.spec;
        let mut next = NicEntry::default();
        next.show(record);
        let heard = self.generation.is_some();
        let nics = self.cx.vm.nics();
        let same = nics.get(&record.uid).is_some_and(|shown| {
            shown.state == state
                && shown.goal == spec.goal
                && shown.order == spec.migration
                && shown.heard == heard
                && shown.macvtap == next.macvtap
                && shown.ports == next.ports
                && shown.vf == vf
        });
        if !same {
            self.cx.vm.update_nic(&record.uid, |shown| {
                shown.show(record);
                (shown.state, shown.heard, shown.vf) = (state, heard, vf);
            });
        }
    }

    /// Whether the traffic has moved to another device since the last report, or there was none.
    pub(super) fn moves(&self, now: &Observation) -> bool {
        let path = report::path(&self.inputs(Some(now), None));
        self.status.borrow().as_ref().is_none_or(|s| s.path != path)
    }

    fn inputs<'a>(&'a self, now: Option<&'a Observation>, decision: Option<&'a Decision>) -> Inputs<'a> {
        let shown = self.cx.vm.nics().remove(&self.cx.record.uid).unwrap_or_default();
        Inputs {
            record: &self.cx.record,
            generation: self.generation,
            seen: now.map(|n| &n.seen),
            running: now.is_some_and(|n| n.running),
            decision,
            error: self.last_error.as_ref(),
            guest: self.guest.clone(),
            unplug_order: self.cx.unplug_order,
            migration: self.migration.clone(),
            filtered: shown.filtered,
            timeline: shown.timeline,
        }
    }

    /// Says where the NIC is.
    pub(super) fn report(&mut self, now: Option<&Observation>, decision: Option<&Decision>) {
        if let Some(report) = self.cx.vm.migration_report().borrow().clone() {
            self.migration = Some(report);
        }
        if self.generation.is_none() && self.cx.record.spec.migration.is_some() {
            // What the last agent has reported stands until it is known.
            return;
        }
        let inputs = self.inputs(now, decision);
        let old = self.last_status();
        let mut status = report::build(inputs, old.as_ref(), Timestamp::now());
        if let (None, Some(old)) = (now, old) {
            report::as_before(&mut status, old);
        }
        self.tell(status);
    }

    /// What the NIC's status is now: what was said last, also by an agent before this one.
    pub(super) fn last_status(&self) -> Option<NicAttachmentStatus> {
        let said = self.status.borrow().clone();
        said.or_else(|| self.known.get().cloned())
    }

    /// Tells the API server of this status.
    pub(super) fn tell(&self, status: NicAttachmentStatus) {
        self.status.send_if_modified(|s| {
            let changed = s.as_ref() != Some(&status);
            *s = Some(status);
            changed
        });
    }
}
