//! A node with one NIC on which each step has its real effect, or fails, while the world around does what it likes.

use hybridnic_api::{conditions::reasons, v1alpha1::Goal};

use super::{
    Ask, Decision, Guest, Learnt, QemuSeen, Run, Seen, Step, VfMac, VfSeen, ask, next,
    story::{Event, Hardware, Manners},
};

#[derive(Clone, Copy, Debug)]
pub(super) struct Vf {
    pub(super) present: bool,
    pub(super) on_vfio: bool,
    pub(super) mac: VfMac,
    pub(super) settings_ok: bool,
    pub(super) other_pf: bool,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Qemu {
    pub(super) mute: bool,
    pub(super) run: Run,
    pub(super) standby: bool,
    pub(super) vf: bool,
    pub(super) uses_vf: bool,
    /// The macvtap that its standby was plugged on has gone; one made since is another.
    pub(super) dead_standby: bool,
}

/// A node, and the NIC's task on it.
#[derive(Clone, Debug)]
pub struct Node {
    pub(super) hardware: Hardware,
    pub(super) goal: Goal,
    pub(super) learnt: Learnt,
    pub(super) manners: Manners,
    pub(super) recorded: bool,
    pub(super) vf: Option<Vf>,
    pub(super) offered: bool,
    pub(super) standby: bool,
    pub(super) macvtap: Option<bool>,
    pub(super) qemu: Option<Qemu>,
    pub(super) link: bool,
    pub(super) refuses: bool,
    pub(super) no_plug: bool,
    pub(super) expected: bool,
    /// The guest has moved to the VF that is in it now.
    pub(super) moved: bool,
}

/// A step that failed.
#[derive(Debug)]
pub(super) struct Failed;

impl Node {
    /// Nothing of the NIC is on the node; the VM runs, or is awaited.
    pub fn new(hardware: Hardware, incoming: bool) -> Self {
        let mut node = Self {
            hardware,
            goal: Goal::FastPath,
            learnt: Learnt::default(),
            manners: Manners::Good,
            recorded: false,
            vf: None,
            offered: true,
            standby: false,
            macvtap: None,
            qemu: None,
            link: true,
            refuses: false,
            no_plug: false,
            expected: false,
            moved: false,
        };
        node.handle(Event::QemuStarts { incoming });
        node
    }

    fn ask(&self) -> Ask {
        let Hardware {
            no_free_vf, order, ..
        } = self.hardware;
        Ask {
            no_free_vf,
            order,
            expected: self.expected,
            ..ask(self.goal)
        }
    }

    pub(super) fn seen(&self) -> Seen {
        let vf = self.vf.map(|vf| {
            vf.present.then_some(VfSeen {
                on_vfio: vf.on_vfio,
                mac: vf.mac,
                settings_ok: vf.settings_ok,
                link: self.link,
                other_pf: self.standby && vf.other_pf,
            })
        });
        let qemu = match self.qemu {
            None => QemuSeen::Gone,
            Some(qemu) if qemu.mute => QemuSeen::Unreachable,
            Some(qemu) => QemuSeen::Up(Guest {
                run: qemu.run,
                standby: qemu.standby,
                vf: qemu.vf,
                uses_vf: qemu.uses_vf && self.vf.is_some(),
                failover: match self.manners {
                    _ if !qemu.standby || qemu.run != Run::Here => None,
                    Manners::Asleep => None,
                    Manners::NoFailover => Some(false),
                    _ => Some(true),
                },
            }),
        };
        Seen {
            recorded: self.recorded,
            vf,
            vf_offered: self.vf.is_none() && self.offered,
            uplink: true,
            standby_recorded: self.standby,
            macvtap: self.macvtap,
            qemu,
        }
    }

    pub(super) fn next(&self) -> Decision {
        next(&self.ask(), &self.seen(), &self.learnt)
    }

    /// Lets something happen; what cannot happen now does not.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Step { fails } => {
                if let Decision::Do(step) = self.next() {
                    // The task goes on after a failure as it does after a success, only later.
                    let _ = self.step(step, fails);
                }
            }
            Event::Crash => {
                self.learnt = Learnt {
                    announce: self.recorded,
                    ..Learnt::default()
                };
            }
            Event::Relearn => self.relearn(),
            Event::Goal(goal) if goal != self.goal => {
                self.goal = goal;
                self.relearn();
            }
            Event::Guest(manners) => self.manners = manners,
            Event::Link(link) => self.link = link,
            Event::Offer(offered) => self.offered = offered,
            Event::MacvtapLost => {
                self.macvtap = None;
                if let Some(qemu) = &mut self.qemu {
                    qemu.dead_standby = qemu.standby;
                }
            }
            Event::Refuses(refuses) => self.refuses = refuses,
            Event::NoPlug(no_plug) => self.no_plug = no_plug,
            Event::Expected(expected) => self.expected = expected,
            Event::QemuEnds => self.qemu = None,
            Event::VfLost => {
                if let Some(vf) = &mut self.vf {
                    vf.present = false;
                }
                if self.manners.lets_go() {
                    self.guest_drops_vf();
                }
            }
            Event::Settings if !self.hardware.plain => {
                if let Some(vf) = &mut self.vf {
                    vf.settings_ok = false;
                }
            }
            Event::QemuStarts { incoming } if self.qemu.is_none() => {
                let run = if incoming { Run::Incoming } else { Run::Here };
                self.qemu = Some(Qemu {
                    mute: false,
                    run,
                    standby: false,
                    vf: false,
                    uses_vf: false,
                    dead_standby: false,
                });
                self.relearn();
            }
            Event::Mute(mute) => {
                if let Some(qemu) = &mut self.qemu {
                    qemu.mute = mute;
                }
            }
            Event::Reset => self.reset(),
            Event::Interrupts => {
                let sees = self.manners.sees_vf();
                if let Some(qemu) = &mut self.qemu {
                    qemu.uses_vf |= qemu.vf && sees;
                }
            }
            Event::GoesWithout => {
                if let Some(qemu) = self.qemu.as_mut().filter(|q| q.uses_vf)
                    && self.macvtap == Some(false)
                    && !qemu.mute
                {
                    (qemu.uses_vf, self.moved) = (false, false);
                    self.learnt.ignores_vf = true;
                }
            }
            Event::Migrate => self.migrate(),
            Event::TakenBack => {
                if let Some(qemu) = &mut self.qemu
                    && matches!(qemu.run, Run::HandingOver | Run::HandedOver)
                {
                    qemu.run = Run::Here;
                    self.relearn();
                }
            }
            Event::Goal(_) | Event::Settings | Event::QemuStarts { .. } => {}
        }
    }

    fn relearn(&mut self) {
        self.learnt = Learnt {
            announce: self.learnt.announce,
            refuses_twice: self.learnt.refuses_twice,
            ..Learnt::default()
        };
    }

    fn guest_drops_vf(&mut self) {
        if let Some(qemu) = &mut self.qemu {
            (qemu.vf, qemu.uses_vf) = (false, false);
        }
        self.moved = false;
    }

    fn reset(&mut self) {
        if self.learnt.keeps_vf {
            // It completes an unplug that is asked for.
            self.guest_drops_vf();
        }
        if let Some(qemu) = &mut self.qemu {
            qemu.uses_vf = false;
            self.moved = false;
            self.relearn();
        }
    }

    /// The VM's own task silences and wakes the standby at the moment itself.
    fn migrate(&mut self) {
        let Some(qemu) = &mut self.qemu else {
            return;
        };
        match qemu.run {
            Run::Incoming if qemu.standby => {
                qemu.run = Run::Here;
                self.macvtap = self.macvtap.map(|_| true);
                self.relearn();
            }
            // QEMU migrates no VM that has a VF.
            Run::Here if qemu.standby && !qemu.vf && self.goal == Goal::Standby => {
                qemu.run = Run::HandingOver;
                self.macvtap = self.macvtap.map(|_| false);
            }
            Run::HandingOver => qemu.run = Run::HandedOver,
            _ => {}
        }
    }

    /// What a step that failed leaves behind.
    pub(super) fn fail(&mut self, step: Step) -> Result<(), Failed> {
        if step == Step::ConfigureVf {
            self.learnt.vf_failed = Some(reasons::VF_SETTING_REFUSED);
        } else if step == Step::PlugVf {
            self.learnt.vf_failed = Some(reasons::QEMU_REFUSED);
        }
        Err(Failed)
    }

    pub(super) fn act(&mut self, step: Step) -> Result<(), Failed> {
        match step {
            Step::Reserve => self.reserve(),
            Step::Bind | Step::Park | Step::ConfigureVf => return self.set_vf(step),
            Step::DropVf | Step::RestoreVf => self.vf = None,
            Step::MakeStandby if !self.standby => return Err(Failed),
            Step::MakeStandby => (self.recorded, self.macvtap) = (true, Some(false)),
            Step::StandbyUp => return self.standby_up(),
            Step::StandbyDown => (self.learnt.announce, self.macvtap) = (false, Some(false)),
            Step::PlugVf | Step::PlugStandby | Step::UnplugStandby | Step::UnplugVf => {
                return self.hot_plug(step);
            }
            Step::AwaitGuest => self.await_guest(),
            Step::Announce => self.learnt.announce = false,
            Step::RemoveStandby => (self.standby, self.macvtap) = (false, None),
            Step::QuitQemu => self.qemu = None,
            Step::Forget => self.recorded = false,
        }
        Ok(())
    }

    fn reserve(&mut self) {
        if self.offered {
            let Hardware {
                stale_mac: mac,
                vf_elsewhere: other_pf,
                ..
            } = self.hardware;
            // Without a standby yet, it will be on the PF of this VF.
            let other_pf = other_pf && self.standby;
            self.vf = Some(Vf {
                present: true,
                on_vfio: false,
                mac,
                settings_ok: self.hardware.plain,
                other_pf,
            });
            self.offered = false;
        }
        (self.recorded, self.standby) = (true, true);
    }

    fn set_vf(&mut self, step: Step) -> Result<(), Failed> {
        let both = self.macvtap == Some(true);
        let Some(vf) = self.vf.as_mut().filter(|vf| vf.present) else {
            return Err(Failed);
        };
        match step {
            Step::Bind => vf.on_vfio = true,
            Step::Park => (vf.mac, vf.settings_ok) = (VfMac::Parking, self.hardware.plain),
            _ if self.refuses => return self.fail(step),
            _ if self.hardware.refuses_twice && both && !vf.other_pf && vf.mac != VfMac::Nic => {
                if self.learnt.refuses_twice {
                    return self.fail(step);
                }
                self.learnt.refuses_twice = true;
            }
            _ => (vf.mac, vf.settings_ok) = (VfMac::Nic, true),
        }
        Ok(())
    }

    fn standby_up(&mut self) -> Result<(), Failed> {
        let plugged = self.qemu.is_some_and(|q| q.vf);
        let same_pf = self.vf.is_some_and(|vf| !vf.other_pf);
        if self.hardware.refuses_twice && self.has_nic_mac() && same_pf {
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
            Step::PlugVf => (qemu.vf, self.learnt.moved) = (true, false),
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
        // Without a VF there is nothing to wait for.
        let (Some(_), Some(qemu)) = (self.vf, &mut self.qemu) else {
            return;
        };
        // A guest pairs what has one MAC.
        if self.manners.sees_vf() && self.vf.is_some_and(|vf| vf.mac == VfMac::Nic) {
            qemu.uses_vf = true;
            (self.moved, self.learnt.moved) = (true, true);
        } else {
            self.learnt.ignores_vf = true;
        }
    }

    /// Everything works again, and the VM runs here.
    pub fn heal(&mut self) {
        if self.qemu.is_some_and(|q| q.dead_standby) {
            self.handle(Event::QemuEnds);
        }
        let healed = [
            Event::Guest(Manners::Good),
            Event::Link(true),
            Event::Offer(true),
            Event::Refuses(false),
            Event::NoPlug(false),
            Event::Expected(false),
            Event::QemuStarts { incoming: false },
            Event::Mute(false),
            Event::TakenBack,
            Event::Relearn,
        ];
        for event in healed {
            self.handle(event);
        }
        if let Some(qemu) = &mut self.qemu
            && qemu.run == Run::Incoming
        {
            qemu.run = Run::Here;
        }
    }
}
