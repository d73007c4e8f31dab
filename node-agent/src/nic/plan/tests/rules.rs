//! What must be true of a node at every step, and where the plan rests.

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{AttachmentState, Goal, SwitchOrder},
};

use super::{
    Decision, Port, QemuSeen, Run, Step, VfMac,
    model::{Failed, Node, PFS},
};

/// More steps than the longest way needs, from anywhere to anywhere.
const ENOUGH: usize = 30;

impl Node {
    /// Takes a step and checks that it may be taken now.
    pub(super) fn step(&mut self, step: Step, fails: bool) -> Result<(), Failed> {
        let before = self.clone();
        self.may(step);
        let result = if fails { self.fail(step) } else { self.act(step) };
        // A VF may be found with the MAC; nothing may give it a second owner.
        let found = before.two_owners() || step == Step::Reserve;
        assert!(
            found || !self.two_owners(),
            "{step:?} gave the MAC a second PF: {before:#?}"
        );
        result
    }

    fn two_owners(&self) -> bool {
        self.has_nic_mac() && self.macvtap == Some(true) && self.is_split()
    }

    pub(super) fn has_nic_mac(&self) -> bool {
        self.vf.is_some_and(|vf| vf.present && vf.mac == VfMac::Nic)
    }

    fn may(&self, step: Step) {
        let here = self.qemu.is_some_and(|q| !q.mute && q.run == Run::Here);
        let in_guest = self.qemu.is_some_and(|q| q.vf || q.standby);
        let alone_here = self.is_alone() && self.qemu.is_some();
        let is_standbys = matches!(
            step,
            Step::MakeStandby
                | Step::GuardStandby
                | Step::SeizeStandby
                | Step::AnswerSandbox
                | Step::PlugStandby
                | Step::StandbyUp
                | Step::StandbyDown
                | Step::RaiseMtu
                | Step::Announce
                | Step::UnplugStandby
                | Step::RemoveStandby
                | Step::MoveStandby
        );
        let ok = match step {
            _ if is_standbys && self.is_alone() => false,
            Step::PlugStandby | Step::UnplugStandby | Step::QuitQemu | Step::MoveStandby
                if self.is_runtimes() =>
            {
                false
            }
            Step::StandbyUp if !self.tap.may_be_up() => false,
            Step::StandbyUp
            | Step::Announce
            | Step::ConfigureVf
            | Step::PlugVf
            | Step::AwaitGuest
            | Step::UnplugVf
            | Step::UnplugStandby => here,
            Step::MakeStandby => !self.is_runtimes() || self.sandbox_waits,
            Step::AnswerSandbox => self.sandbox_waits && self.macvtap == Some(false) && self.tap.may_be_up(),
            Step::PlugStandby => {
                self.qemu.is_some_and(|q| !q.mute) && self.macvtap.is_some() && self.tap.may_be_up()
            }
            Step::GuardStandby => self.macvtap.is_some() && !self.tap.guarded,
            Step::SeizeStandby => {
                let up = self.macvtap == Some(true);
                self.tap.foreign_mac && !self.tap.seized || self.tap.seized && up
            }
            // Known, and out of the guest; of a NIC that goes on it has given up the MAC before, if its driver takes it.
            Step::RestoreVf => {
                !self.unread
                    && self.vf.is_some_and(|vf| vf.present)
                    && !self.qemu.is_some_and(|q| q.vf)
                    && (!in_guest && !alone_here || !self.has_nic_mac() || self.learnt.not_parked)
            }
            Step::RemoveStandby | Step::MoveStandby => !in_guest,
            Step::Forget => self.vf.is_none() && self.standby.is_none() && self.macvtap.is_none(),
            Step::QuitQemu => self
                .qemu
                .is_some_and(|q| matches!(q.run, Run::Incoming | Run::HandedOver)),
            // On proof only, and never while the guest has it.
            Step::DropVf => {
                !self.unread && self.vf.is_some_and(|vf| !vf.present) && !self.qemu.is_some_and(|q| q.vf)
            }
            Step::Bind => {
                let free = !self.qemu.is_some_and(|q| q.vf);
                // A NIC that waits for its QEMU takes no VF, unless the QEMU waits for the VF.
                let asked = self.qemu.is_some() || self.way() == Goal::Reserved || self.is_runtimes();
                self.vf.is_some_and(|vf| vf.present && !vf.on_vfio) && free && asked
            }
            Step::RaiseMtu => self.macvtap.is_some() && !self.mtu_ok,
            // Where the VF is to take over, it has.
            Step::StandbyDown if here && self.way() == Goal::FastPath && self.qemu.is_some_and(|q| q.vf) => {
                self.moved
            }
            Step::Associate => here && self.has_nic_mac(),
            Step::Preassociate => (!here || self.way() == Goal::Reserved) && !self.has_nic_mac(),
            Step::Disassociate => {
                let carried = self.is_alone() || self.macvtap == Some(true);
                here && !self.qemu.is_some_and(|q| q.vf) && carried
            }
            Step::Reserve | Step::Park | Step::StandbyDown => true,
        };
        assert!(ok, "{step:?} must not be taken: {self:#?}");
        if step == Step::UnplugVf && self.way() == Goal::FastPath {
            self.may_leave();
        }
        if step == Step::PlugVf {
            let ready = self
                .vf
                .is_some_and(|vf| vf.on_vfio && vf.mac == VfMac::Nic && vf.settings_ok);
            assert!(
                ready && self.is_associated(),
                "a VF that is not set up is plugged: {self:#?}"
            );
            // Without a standby it may be all that the VM can have.
            let only = self.is_alone() && (self.ordered || !self.seen().other_vf);
            assert!(
                !self.is_drained() || only,
                "a VF that is drained is plugged: {self:#?}"
            );
        }
    }

    /// Whether the VF's port has what it needs to carry traffic.
    fn is_associated(&self) -> bool {
        !self.hardware.profile || self.vf.is_some_and(|vf| vf.port == Port::Associated)
    }

    /// Whether the port of the parked VF has a profile, and no request to take it away has failed.
    fn is_left_over(&self) -> bool {
        let seen = self.seen().there().map(|vf| vf.port);
        matches!(seen, Some(Port::Associated | Port::Unsettled)) && self.learnt.vf_failed.is_none()
    }

    /// A VF that carries the traffic is left only for something that can.
    fn may_leave(&self) {
        assert!(
            !self.unread || self.learnt.ignores_vf.is_some(),
            "nothing is known of the VF: {self:#?}"
        );
        let Some(vf) = self.vf.filter(|vf| vf.present) else {
            return;
        };
        let used = self.moved && self.macvtap == Some(false) && vf.mac == VfMac::Nic;
        let to_standby = self.standby.is_some_and(|pf| pf != vf.pf && self.link[pf]);
        let to_vf = (0..PFS).any(|pf| pf != vf.pf && self.link[pf] && self.offered[pf]);
        let lost = self.dark && !self.link[vf.pf];
        let told = self.is_drained() && !self.ordered;
        if self.is_alone() {
            let used = self.moved && vf.mac == VfMac::Nic;
            let elsewhere = self.best().is_some();
            assert!(
                !used || told && (lost || elsewhere) || lost && to_vf,
                "a NIC is left without its VF: {self:#?}"
            );
            return;
        }
        // Where one PF has both, the standby is up before the VF is drained.
        assert!(
            !(used && told) || self.is_split() || self.breaks_first(),
            "a VF is drained before its standby is up: {self:#?}"
        );
        assert!(
            !used || told || self.has_home() || lost && (to_standby || to_vf),
            "a VF that carries the traffic is left: {self:#?}"
        );
    }

    /// Whether one PF does not take the MAC twice.
    fn breaks_first(&self) -> bool {
        self.learnt.refuses_twice || self.hardware.order == SwitchOrder::BreakBeforeMake
    }

    /// Goes on until nothing is left to do, and checks what it is left with.
    pub fn settle(&mut self) -> Decision {
        let mut taken = Vec::new();
        while taken.len() <= ENOUGH {
            let decision = self.next();
            let Decision::Do(step) = decision else {
                self.rests(&decision);
                if self.runtime_acts() {
                    continue;
                }
                return decision;
            };
            // The task goes on after a failure as it does after a success, except for one that is only tried again, later.
            if self.step(step, false).is_err() && self.next() == decision {
                return decision;
            }
            taken.push(step);
        }
        panic!("no end: {taken:?} of {self:#?}");
    }

    /// What must be true when the plan has nothing to do.
    fn rests(&self, decision: &Decision) {
        let QemuSeen::Up(guest) = self.seen().qemu else {
            let nothing = self.vf.is_none() && self.standby.is_none() && !self.recorded;
            assert!(
                *decision != Decision::Done(AttachmentState::Detached) || nothing,
                "{self:#?}"
            );
            return;
        };
        let live = self.qemu.is_some_and(|q| !q.dead_standby);
        let (up, ours, here) = (
            self.macvtap == Some(true) && live,
            self.has_nic_mac(),
            guest.run == Run::Here,
        );
        let set_up = ours && self.vf.is_some_and(|vf| vf.settings_ok);
        // A VF that was set up when it was last read, and cannot be read since.
        let found = self.unread && self.vf.is_some_and(|vf| vf.found);
        assert!(found || !self.two_owners(), "the MAC is on two PFs: {self:#?}");
        // One on its way out is not held up by filters that somebody has taken away.
        let guarded = self.tap.guarded || self.way() == Goal::Detached;
        assert!(
            self.macvtap != Some(true) || guarded && !self.tap.foreign_mac && !self.tap.seized,
            "a macvtap is up that must not be: {self:#?}"
        );
        let ok = match decision {
            // It is shut, whatever it costs.
            Decision::Wait(wait) if wait.reason == reasons::STANDBY_SEIZED => self.tap.seized,
            Decision::Done(AttachmentState::FastPath) => {
                let stays = !self.is_drained() || self.ordered;
                here && !up
                    && set_up
                    && self.is_associated()
                    && guest.uses_vf
                    && stays
                    && self.vf.is_some_and(|vf| self.link[vf.pf])
            }
            Decision::Done(AttachmentState::Standby | AttachmentState::Aside) => {
                // What is to go back has gone, unless a migration goes first.
                let rests = self.is_alone() && self.aside.is_none();
                let keeps = self.wants_vf() && (!self.is_drained() || rests);
                let left = keeps || self.ordered || !here || self.vf.is_none();
                let carried = up == (here && !self.is_alone());
                let is_it = *decision == Decision::Done(self.off_vf());
                is_it
                    && carried
                    && !ours
                    && !guest.vf
                    && left
                    && (self.ordered || !(here && self.is_left_over()))
            }
            Decision::Done(AttachmentState::Reserved) => !up && !ours && !guest.vf,
            Decision::Done(AttachmentState::Detached) => {
                !guest.vf && !guest.standby && self.vf.is_none() && self.standby.is_none() && !self.recorded
            }
            // A guest that runs has its network, no matter what is missing; but not one that keeps a dead standby.
            Decision::Wait(_)
                if here && live && guest.standby && matches!(self.way(), Goal::Standby | Goal::FastPath) =>
            {
                // If nothing is known about the VF, it may have the MAC, or soon have it in the guest.
                let risky = self.unread && (self.is_split() || guest.vf);
                up || ours && guest.uses_vf || risky
            }
            // Outside of the guest its VF does not have the NIC's MAC, if its driver takes another.
            Decision::Wait(_) if self.is_alone() && here && !guest.vf => {
                !ours || self.learnt.not_parked || self.unread
            }
            _ => true,
        };
        assert!(ok, "{decision:?} is not so: {self:#?}");
    }
}
