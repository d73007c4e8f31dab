//! What each step does to the node of the model, and what is left of a step that fails.

use hybridnic_api::{conditions::reasons, v1alpha1::NoFreeVf};

use super::{
    Learnt, Port, Sends, Step, TRIES, VfMac,
    model::{Failed, Node, Vf},
    tap::Tap,
};

impl Node {
    /// What a step that failed leaves behind.
    pub(super) fn fail(&mut self, step: Step) -> Result<(), Failed> {
        let reason = match step {
            Step::Bind => reasons::VF_BIND_FAILED,
            Step::Park | Step::ConfigureVf | Step::Reserve => reasons::VF_SETTING_REFUSED,
            Step::PlugVf => reasons::QEMU_REFUSED,
            Step::Preassociate | Step::Associate | Step::Disassociate => reasons::PORT_PROFILE_REFUSED,
            _ => return Err(Failed),
        };
        self.learnt.not_parked |= step == Step::Park;
        self.learnt.vf_failed = Some(reason);
        self.learnt.vf_failures = self.learnt.vf_failures.saturating_add(1);
        if let Some(vf) = self.vf.filter(|_| self.learnt.vf_failures >= TRIES) {
            self.avoided[vf.pf] = true;
        }
        let may_go_without = !self.wants_vf() || self.hardware.no_free_vf == NoFreeVf::Standby;
        if step == Step::Reserve && may_go_without && !self.is_alone() {
            // No VF can be reserved; a PF can.
            self.reserve_standby(0);
        }
        Err(Failed)
    }

    pub(super) fn act(&mut self, step: Step) -> Result<(), Failed> {
        match step {
            Step::Reserve => self.reserve(),
            Step::Bind | Step::Park | Step::ConfigureVf => return self.set_vf(step),
            Step::Preassociate | Step::Associate | Step::Disassociate => return self.ask_port(step),
            Step::RestoreVf if self.no_bind || self.keeps_port() => return Err(Failed),
            Step::DropVf | Step::RestoreVf => self.let_go(),
            Step::MakeStandby if self.standby.is_none() => return Err(Failed),
            Step::MakeStandby => (self.macvtap, self.mtu_ok, self.tap) = (Some(false), true, Tap::NEW),
            Step::GuardStandby => self.tap.guarded = true,
            Step::SeizeStandby => {
                (self.learnt.announce, self.macvtap) = (false, Some(false));
                self.tap.seized = true;
            }
            Step::RaiseMtu => self.mtu_ok = true,
            Step::StandbyUp => return self.standby_up(),
            Step::StandbyDown => (self.learnt.announce, self.macvtap) = (false, Some(false)),
            Step::AnswerSandbox => self.sandbox_waits = false,
            Step::PlugVf | Step::PlugStandby | Step::UnplugStandby | Step::UnplugVf => {
                return self.hot_plug(step);
            }
            Step::AwaitGuest => self.await_guest(),
            Step::Announce => self.learnt.announce = false,
            Step::RemoveStandby => (self.standby, self.macvtap, self.tap) = (None, None, Tap::NEW),
            Step::MoveStandby => {
                (self.standby, self.macvtap, self.tap) = (self.vf.map(|vf| vf.pf), None, Tap::NEW);
            }
            Step::QuitQemu => self.end_qemu(),
            Step::Forget => self.recorded = false,
        }
        Ok(())
    }

    fn let_go(&mut self) {
        if let Some(vf) = self.vf.take().filter(|vf| vf.present) {
            self.offered[vf.pf] = true;
        }
        self.dark = false;
        self.learnt = Learnt {
            vf_failed: None,
            vf_failures: 0,
            not_parked: false,
            ignores_vf: None,
            ..self.learnt
        };
    }

    fn reserve(&mut self) {
        let vf = self
            .best()
            .filter(|_| self.wants_vf() && self.learnt.vf_failed.is_none());
        if let Some(pf) = vf {
            self.vf = Some(Vf {
                pf,
                present: true,
                on_vfio: false,
                mac: self.hardware.stale_mac,
                found: self.hardware.stale_mac == VfMac::Nic,
                settings_ok: self.hardware.plain,
                port: Port::Free,
            });
            self.offered[pf] = false;
            (self.learnt.vf_failures, self.learnt.not_parked) = (0, false);
        }
        if self.is_alone() {
            self.recorded |= vf.is_some();
        } else {
            self.reserve_standby(vf.unwrap_or_default());
        }
    }

    fn reserve_standby(&mut self, pf: usize) {
        self.recorded = true;
        self.standby.get_or_insert(pf);
    }

    fn set_vf(&mut self, step: Step) -> Result<(), Failed> {
        let both = self.macvtap == Some(true) && !self.is_split();
        if self.unread || self.vf.is_none_or(|vf| !vf.present) {
            return Err(Failed);
        }
        match step {
            Step::Bind if self.no_bind => return self.fail(step),
            Step::Park if self.no_park => return self.fail(step),
            Step::ConfigureVf if self.refuses => return self.fail(step),
            _ => {}
        }
        let Some(vf) = &mut self.vf else {
            return Err(Failed);
        };
        vf.found &= step == Step::Bind;
        match step {
            Step::Bind => vf.on_vfio = true,
            Step::Park => (vf.mac, vf.settings_ok) = (VfMac::Parking, self.hardware.plain),
            _ if self.hardware.refuses_twice && both && vf.mac != VfMac::Nic => {
                if self.learnt.refuses_twice {
                    return self.fail(step);
                }
                self.learnt.refuses_twice = true;
            }
            _ => (vf.mac, vf.settings_ok) = (VfMac::Nic, true),
        }
        Ok(())
    }

    /// Whether the switch would not take the profile away.
    fn keeps_port(&self) -> bool {
        let has = self.vf.is_some_and(|vf| vf.port != Port::Free);
        self.hardware.profile && self.no_port && has
    }

    fn ask_port(&mut self, step: Step) -> Result<(), Failed> {
        if self.unread || self.vf.is_none_or(|vf| !vf.present) {
            return Err(Failed);
        }
        if self.no_port {
            return self.fail(step);
        }
        let vf = self.vf.as_mut().ok_or(Failed)?;
        vf.port = match step {
            Step::Preassociate => Port::Preassociated,
            Step::Associate => Port::Associated,
            _ => Port::Free,
        };
        Ok(())
    }

    fn standby_up(&mut self) -> Result<(), Failed> {
        let plugged = self.qemu.is_some_and(|q| q.vf);
        if self.hardware.refuses_twice && self.has_nic_mac() && !self.is_split() {
            if !plugged || self.learnt.refuses_twice {
                return Err(Failed);
            }
            self.learnt.refuses_twice = true;
        } else {
            self.macvtap = Some(true);
            self.learnt.announce |= !plugged;
        }
        Ok(())
    }

    fn hot_plug(&mut self, step: Step) -> Result<(), Failed> {
        if step == Step::PlugVf && self.no_plug {
            return self.fail(step);
        }
        let lets_go = self.manners.lets_go();
        let qemu = self.qemu.as_mut().ok_or(Failed)?;
        match step {
            Step::PlugStandby => (qemu.standby, qemu.dead_standby) = (true, false),
            Step::PlugVf => {
                qemu.vf = true;
                (self.learnt.moved, self.learnt.vf_failures) = (false, 0);
            }
            Step::UnplugStandby if lets_go => qemu.standby = false,
            Step::UnplugStandby => self.learnt.keeps_standby = true,
            _ if lets_go => {
                (self.learnt.announce, self.learnt.moved) = (true, false);
                self.guest_drops_vf();
            }
            _ => (self.learnt.keeps_vf, self.learnt.moved) = (true, false),
        }
        Ok(())
    }

    fn await_guest(&mut self) {
        let is_alone = self.is_alone();
        // Without a VF there is nothing to wait for.
        let (Some(_), Some(qemu)) = (self.vf, &mut self.qemu) else {
            return;
        };
        // A guest pairs what has one MAC.
        let has_mac = self.vf.is_some_and(|vf| vf.mac == VfMac::Nic);
        qemu.uses_vf |= self.manners.sees_vf() && has_mac;
        if is_alone {
            let uses = qemu.uses_vf;
            (self.moved, self.learnt.moved) = (uses, uses);
            self.learnt.ignores_vf = (!uses).then_some(Sends::ByNeither);
        } else if self.manners.moves(self.hardware.pairing) && has_mac {
            (self.moved, self.learnt.moved) = (true, true);
        } else {
            let runs = qemu.uses_vf;
            self.learnt.ignores_vf = Some(if runs { Sends::BesideVf } else { Sends::ByStandby });
        }
    }
}
