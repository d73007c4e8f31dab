//! A node with one NIC on which each step has its real effect, or fails, while anything may happen around it.

use hybridnic_api::v1alpha1::{Aside, AttachmentState, Goal, Pairing, StandbyKind};

use super::{
    Ask, Decision, Guest, Learnt, Port, QemuSeen, Run, Seen, Sends, TRIES, VfMac, VfSeen, VfThere, ask, next,
    story::{Event, Hardware, Manners},
    tap::Tap,
};
use crate::machine::{Duties, Owner};

/// The duties of a runtime that does everything a runtime may do.
pub const RUNTIME: Duties = Duties {
    standby: Owner::Runtime,
    migration: Owner::Runtime,
    vm_end: Owner::Runtime,
};

/// The node's PFs: all that a NIC can be spread over.
pub const PFS: usize = 2;

#[derive(Clone, Copy, Debug)]
pub(super) struct Vf {
    pub(super) pf: usize,
    pub(super) present: bool,
    pub(super) on_vfio: bool,
    pub(super) mac: VfMac,
    /// It was found with the NIC's MAC.
    pub(super) found: bool,
    pub(super) settings_ok: bool,
    /// What the switch has done, where the network has a port profile.
    pub(super) port: Port,
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
    pub(super) aside: Option<Aside>,
    pub(super) ordered: bool,
    pub(super) learnt: Learnt,
    pub(super) manners: Manners,
    pub(super) recorded: bool,
    pub(super) vf: Option<Vf>,
    /// Whether the VF cannot be read.
    pub(super) unread: bool,
    /// Whether a VF of each PF can be had.
    pub(super) offered: [bool; PFS],
    /// PFs whose VF has failed again and again.
    pub(super) avoided: [bool; PFS],
    /// The PF of the standby.
    pub(super) standby: Option<usize>,
    pub(super) macvtap: Option<bool>,
    /// The sandbox of the VM's pod waits for its link.
    pub(super) sandbox_waits: bool,
    pub(super) tap: Tap,
    pub(super) mtu_ok: bool,
    pub(super) qemu: Option<Qemu>,
    pub(super) link: [bool; PFS],
    /// Whether the VF's PF has had no link for long.
    pub(super) dark: bool,
    /// Whether each PF is drained.
    pub(super) drained: [bool; PFS],
    /// Whether a NIC that is split may go back to its standby's PF.
    pub(super) steady: bool,
    pub(super) refuses: bool,
    pub(super) no_bind: bool,
    pub(super) no_park: bool,
    pub(super) no_plug: bool,
    pub(super) no_port: bool,
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
            aside: None,
            ordered: false,
            learnt: Learnt::default(),
            manners: Manners::Good,
            recorded: false,
            vf: None,
            unread: false,
            offered: [true; PFS],
            avoided: [false; PFS],
            standby: None,
            macvtap: None,
            sandbox_waits: false,
            tap: Tap::NEW,
            mtu_ok: true,
            qemu: None,
            link: [true; PFS],
            dark: false,
            drained: [false; PFS],
            steady: false,
            refuses: false,
            no_bind: false,
            no_park: false,
            no_plug: false,
            no_port: false,
            expected: false,
            moved: false,
        };
        node.handle(Event::QemuStarts { incoming });
        node
    }

    fn ask(&self) -> Ask {
        let Hardware {
            no_free_vf,
            standby,
            pairing,
            order,
            duties,
            ..
        } = self.hardware;
        Ask {
            no_free_vf,
            standby,
            pairing,
            driver_order: order,
            duties,
            expected: self.expected,
            aside: self.aside,
            ordered: self.ordered,
            drained: self.is_drained(),
            ..ask(self.way())
        }
    }

    /// Where the NIC goes, by its goal and by what it is told.
    pub(super) fn way(&self) -> Goal {
        match self.goal {
            Goal::FastPath if self.aside.is_some() => Goal::Standby,
            goal => goal,
        }
    }

    /// Whether the VF is all that it has.
    pub(super) fn is_alone(&self) -> bool {
        self.hardware.standby == StandbyKind::None
    }

    /// Where it is when its VF is out.
    pub fn off_vf(&self) -> AttachmentState {
        self.ask().off_vf()
    }

    /// Whether it is to have a VF.
    pub(super) fn wants_vf(&self) -> bool {
        self.aside != Some(Aside::GiveVfBack)
    }

    pub(super) fn seen(&self) -> Seen {
        let vf = self.vf.map(|vf| {
            let other_pf = self.is_split();
            if self.unread {
                VfSeen::Unknown { other_pf }
            } else if vf.present {
                VfSeen::There(VfThere {
                    on_vfio: vf.on_vfio,
                    mac: vf.mac,
                    settings_ok: vf.settings_ok,
                    link: self.link[vf.pf],
                    dark: self.dark,
                    other_pf,
                    held: false,
                    port: if self.hardware.profile {
                        vf.port
                    } else {
                        Port::NoProfile
                    },
                })
            } else {
                VfSeen::Gone
            }
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
                    // It is not offered any.
                    _ => Some(self.hardware.pairing == Pairing::NetFailover),
                },
                migrating: false,
                acpi: true,
            }),
        };
        Seen {
            recorded: self.recorded,
            vf,
            vf_offered: self.vf.is_none() && self.best().is_some(),
            other_vf: self.vf.is_some_and(|vf| self.is_better(vf)),
            home_vf: self.has_home(),
            uplink: true,
            standby_recorded: self.standby.is_some(),
            sandbox_waits: self.sandbox_waits,
            macvtap: self.macvtap,
            guarded: self.tap.guarded,
            foreign_mac: self.tap.foreign_mac,
            seized: self.tap.seized,
            seizer_ended: self.tap.seizer_ended,
            mtu_ok: self.mtu_ok || self.macvtap.is_none(),
            standby_link: self.standby.map(|pf| self.link[pf]),
            standby_pf_gone: false,
            qemu,
        }
    }

    pub(super) fn is_split(&self) -> bool {
        self.vf
            .zip(self.standby)
            .is_some_and(|(vf, standby)| vf.pf != standby)
    }

    /// Whether the VF that it holds is drained.
    pub(super) fn is_drained(&self) -> bool {
        self.vf.is_some_and(|vf| self.drained[vf.pf])
    }

    /// Whether it is split, and a VF of its standby's PF can be had.
    pub(super) fn has_home(&self) -> bool {
        let fit = |pf: usize| self.offered[pf] && self.link[pf] && !self.drained[pf] && !self.avoided[pf];
        let goes = self.steady && self.is_split() && self.way() == Goal::FastPath && !self.ordered;
        goes && self.standby.is_some_and(fit)
    }

    /// The PF whose VF is taken next.
    pub(super) fn best(&self) -> Option<usize> {
        let free = (0..PFS).filter(|pf| self.offered[*pf] && !self.drained[*pf]);
        free.min_by_key(|pf| (self.avoided[*pf], !self.link[*pf], Some(*pf) != self.standby))
    }

    fn is_better(&self, vf: Vf) -> bool {
        let dark = self.dark && !self.link[vf.pf];
        self.best().is_some_and(|pf| {
            !self.avoided[pf]
                && if dark {
                    pf != vf.pf && self.link[pf]
                } else {
                    self.is_drained() && !self.ordered || self.learnt.vf_failures >= TRIES
                }
        })
    }

    pub(super) fn next(&self) -> Decision {
        next(&self.ask(), &self.seen(), &self.learnt)
    }

    /// Lets something happen, if it can happen now.
    pub fn handle(&mut self, event: Event) {
        match event {
            Event::Step { fails } => {
                if let Decision::Do(step) = self.next() {
                    // The task goes on after a failure as it does after a success, only later.
                    let _ = self.step(step, fails);
                }
            }
            Event::Crash => {
                self.dark = false;
                self.learnt = Learnt {
                    announce: self.recorded,
                    ..Learnt::default()
                };
            }
            Event::Relearn => self.relearn(),
            Event::Goal(_) | Event::Told(_) | Event::Ordered(_) => self.hear(event),
            Event::Guest(manners) => self.manners = manners,
            Event::Link { pf, link } => self.link[pf] = link,
            Event::LinkSettles => self.dark = self.vf.is_some_and(|vf| !self.link[vf.pf]),
            Event::Drain { pf, drained } => self.drained[pf] = drained,
            Event::Steady(steady) => self.steady = steady,
            Event::Offer { pf, offered } => self.offered[pf] = offered,
            Event::Unread(unread) => self.unread = unread,
            Event::MtuLost => self.mtu_ok = false,
            Event::GuardLost => self.tap.guarded = false,
            Event::MacStolen => self.steal_mac(),
            Event::MacvtapLost => {
                self.macvtap = None;
                if let Some(qemu) = &mut self.qemu {
                    qemu.dead_standby = qemu.standby;
                }
            }
            Event::Refuses(refuses) => self.refuses = refuses,
            Event::NoBind(no_bind) => self.no_bind = no_bind,
            Event::NoPark(no_park) => self.no_park = no_park,
            Event::NoPlug(no_plug) => self.no_plug = no_plug,
            Event::NoPort(no_port) => self.no_port = no_port,
            Event::PortLost => {
                if let Some(vf) = &mut self.vf {
                    vf.port = Port::Unsettled;
                }
            }
            Event::Expected(expected) => self.expected = expected,
            Event::QemuEnds => self.end_qemu(),
            Event::VfLost => self.lose_vf(),
            Event::Settings if !self.hardware.plain => {
                if let Some(vf) = &mut self.vf {
                    vf.settings_ok = false;
                }
            }
            Event::QemuStarts { incoming } if self.qemu.is_none() && self.may_start() => {
                let run = if incoming { Run::Incoming } else { Run::Here };
                self.qemu = Some(Qemu {
                    mute: false,
                    run,
                    standby: self.is_runtimes(),
                    vf: false,
                    uses_vf: false,
                    dead_standby: false,
                });
                self.relearn();
            }
            // The pod's containers end with its sandbox.
            Event::Sandbox if self.is_runtimes() && self.goal != Goal::Detached => {
                self.end_qemu();
                (self.macvtap, self.sandbox_waits) = (None, true);
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
            Event::GoesWithout => self.go_without(),
            Event::Migrate => self.migrate(),
            Event::TakenBack => {
                if let Some(qemu) = &mut self.qemu
                    && matches!(qemu.run, Run::HandingOver | Run::HandedOver)
                {
                    qemu.run = Run::Here;
                    self.relearn();
                }
            }
            Event::Settings | Event::QemuStarts { .. } | Event::Sandbox => {}
        }
    }

    fn go_without(&mut self) {
        let (is_alone, is_down) = (self.is_alone(), self.macvtap == Some(false));
        let Some(qemu) = self.qemu.as_mut().filter(|q| q.uses_vf && !q.mute) else {
            return;
        };
        if is_alone {
            (qemu.uses_vf, self.moved) = (false, false);
            self.relearn();
        } else if is_down {
            (qemu.uses_vf, self.moved) = (false, false);
            self.learnt.ignores_vf = Some(Sends::ByStandby);
        }
    }

    fn lose_vf(&mut self) {
        if let Some(vf) = &mut self.vf {
            vf.present = false;
        }
        if self.manners.lets_go() {
            self.guest_drops_vf();
        }
    }

    /// The operator says something else.
    fn hear(&mut self, event: Event) {
        let before = (self.goal, self.aside);
        match event {
            Event::Goal(goal) => self.goal = goal,
            Event::Told(aside) => self.aside = aside,
            Event::Ordered(ordered) => self.ordered = ordered,
            _ => {}
        }
        if (self.goal, self.aside) != before {
            self.relearn();
        }
    }

    /// Whether what runs the VM takes care of its standby and its end.
    pub(super) fn is_runtimes(&self) -> bool {
        self.hardware.duties == RUNTIME
    }

    /// Whether a QEMU can start: a runtime starts one once the pod has its link.
    fn may_start(&self) -> bool {
        !self.is_runtimes() || self.macvtap.is_some() && !self.sandbox_waits
    }

    /// What runs the VM does its part, where there is one to do; whether there was.
    pub(super) fn runtime_acts(&mut self) -> bool {
        if !self.is_runtimes() {
            return false;
        }
        let event = match (self.goal, self.qemu) {
            (Goal::Detached, Some(qemu)) if !qemu.vf => Event::QemuEnds,
            (Goal::Detached, _) | (_, Some(_)) => return false,
            (_, None) if self.macvtap.is_none() && !self.sandbox_waits => Event::Sandbox,
            (_, None) if self.may_start() => Event::QemuStarts { incoming: false },
            _ => return false,
        };
        self.handle(event);
        true
    }

    fn relearn(&mut self) {
        self.learnt = self.learnt.again();
    }

    pub(super) fn guest_drops_vf(&mut self) {
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
        // A target whose VF may have the MAC is not ready, and does not listen.
        let ready = !(self.unread && self.has_nic_mac());
        let is_alone = self.is_alone();
        let Some(qemu) = &mut self.qemu else {
            return;
        };
        let is_set = qemu.standby || is_alone;
        match qemu.run {
            Run::Incoming if is_set && ready => {
                qemu.run = Run::Here;
                self.macvtap = self.macvtap.map(|_| !self.tap.seized);
                self.relearn();
            }
            // QEMU migrates no VM that has a VF.
            Run::Here if is_set && !qemu.vf && self.goal == Goal::Standby => {
                qemu.run = Run::HandingOver;
                self.macvtap = self.macvtap.map(|_| false);
            }
            Run::HandingOver => qemu.run = Run::HandedOver,
            _ => {}
        }
    }

    /// Everything works again, and the VM runs here.
    pub fn heal(&mut self) {
        if self.qemu.is_some_and(|q| q.dead_standby) || self.tap.seized {
            self.handle(Event::QemuEnds);
        }
        let healed = [
            Event::Guest(Manners::Good),
            Event::Link { pf: 0, link: true },
            Event::Link { pf: 1, link: true },
            Event::LinkSettles,
            Event::Drain {
                pf: 0,
                drained: false,
            },
            Event::Drain {
                pf: 1,
                drained: false,
            },
            Event::Steady(false),
            Event::Offer { pf: 0, offered: true },
            Event::Offer { pf: 1, offered: true },
            Event::Unread(false),
            Event::Refuses(false),
            Event::NoBind(false),
            Event::NoPark(false),
            Event::NoPlug(false),
            Event::NoPort(false),
            Event::Expected(false),
            Event::Ordered(false),
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
