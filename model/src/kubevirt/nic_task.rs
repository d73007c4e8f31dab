//! A NIC's task in a pod of KubeVirt: what it sees, and what each step does in the world.

use hybridnic_agent::machine::Run as RunHere;
use hybridnic_agent::machine::kubevirt::DUTIES;
use hybridnic_agent::machine::kubevirt::watch;
use hybridnic_agent::nic::plan::Step;
use hybridnic_agent::nic::seen::{Guest, QemuSeen};
use hybridnic_api::v1alpha1::{Aside, AttachedVm, AttachmentState};

use super::state::{Place, Run, Sandbox, State, Transfer};
use super::vm_task::{forget, seen};
use super::world::World;
use crate::cards::Cards;
use crate::nic_task::{self, Round, View, is_seen};
use crate::objects::Objects;
use crate::state::{Id, Mac, Nic, Port, Shown, Task, Vf};

/// All that a round of a NIC's task goes by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct NicSight {
    nic: Nic,
    qemu: Option<(Run, Transfer)>,
    mute: bool,
    plugged: bool,
    ran: bool,
    offered: bool,
    waits: bool,
    report: Id,
}

/// A NIC's task takes steps until there is nothing to do or, where it is stopped `halfway`, until one was taken that others may
/// see. Gives what it has to report then; 0 where that is nothing new.
pub(super) fn round(world: &World, state: &mut State, pod: usize, n: usize, halfway: bool) -> Id {
    let mut status = 0;
    for _ in 0..40 {
        let place = &state.places[pod];
        if place.nics[n].task != Task::Runs || !place.vm.tried {
            return status;
        }
        let sight = NicSight::of(world, state, pod, n);
        let round = world.rounds.get(&(sight, n), || sight.decide(&world.objects, n));
        let place = &mut state.places[pod];
        let nic = &mut place.nics[n];
        nic.shown = Some(Shown {
            state: round.state as u8,
            spec: nic.spec,
            macvtap: nic.standby.is_some(),
            heard: nic.heard,
        });
        status = round.status;
        let Some(step) = round.step else {
            if round.state == AttachmentState::Detached {
                let said = nic_task::says(&world.objects, &place.nics[n], status);
                leave(place, n, said);
            }
            return status;
        };
        if !take(world, state, pod, n, step) || halfway && is_seen(step) {
            return status;
        }
    }
    status
}

impl NicSight {
    pub(super) fn of(world: &World, state: &State, pod: usize, n: usize) -> Self {
        let place = &state.places[pod];
        let (nic, qemu) = (place.nics[n], place.qemu);
        Self {
            nic: Nic { shown: None, ..nic },
            qemu: qemu.alive.then_some((qemu.run, qemu.migration)),
            mute: qemu.mute,
            plugged: qemu.vf[n].is_some(),
            ran: place.vm.ran,
            offered: nic.vf.is_none() && free(world, state, state.node(pod)).is_some(),
            waits: place.sandbox == Sandbox::Waits(u8::try_from(n).unwrap_or_default()),
            report: place.vm.report,
        }
    }

    fn guest(&self) -> QemuSeen {
        let Some((run, migration)) = self.qemu else {
            return QemuSeen::Gone;
        };
        if self.mute {
            return QemuSeen::Unreachable;
        }
        let seen = seen(run, migration);
        let here = watch::run_of(&seen, self.ran);
        QemuSeen::Up(Guest {
            run: here,
            standby: true,
            vf: self.plugged,
            uses_vf: self.plugged,
            failover: (here == RunHere::Here).then_some(true),
            migrating: watch::is_under_way(&seen),
            acpi: true,
        })
    }

    pub(super) fn decide(&self, objects: &Objects, n: usize) -> Round {
        let vm = AttachedVm::Kubevirt { name: String::new() };
        let spec = objects
            .spec(n, self.nic.spec)
            .unwrap_or_else(|| nic_task::empty(n, vm));
        let view = View {
            nic: self.nic,
            duties: DUTIES,
            qemu: self.guest(),
            running: self.qemu.is_some_and(|(run, _)| run == Run::Running) && !self.mute,
            offered: self.offered,
            // Its VF is that of its pod's device, and stays so.
            cards: Cards::default(),
            waits: self.waits,
            report: self.report,
        };
        nic_task::decide(objects, n, spec, &view)
    }
}

/// A VF of the node that no NIC holds.
fn free(world: &World, state: &State, node: usize) -> Option<u8> {
    let held = |vf: u8| {
        let places = state.places.iter().enumerate();
        let mut here = places.filter(|(pod, _)| state.node(*pod) == node);
        here.any(|(_, place)| {
            place
                .nics
                .iter()
                .any(|nic| nic.vf.is_some_and(|held| held.index == vf))
        })
    };
    (0..world.vfs).find(|vf| !held(*vf))
}

/// Takes a step; whether it could be.
fn take(world: &World, state: &mut State, pod: usize, n: usize, step: Step) -> bool {
    let free = free(world, state, state.node(pod));
    let place = &mut state.places[pod];
    let waits = place.sandbox == Sandbox::Waits(u8::try_from(n).unwrap_or_default());
    let (qemu, nic) = (&mut place.qemu, &mut place.nics[n]);
    match step {
        Step::Reserve => {
            nic.recorded = true;
            let wants_vf = world.objects.aside(nic.spec) != Some(Aside::GiveVfBack);
            nic.vf = free.filter(|_| wants_vf).map(|index| Vf {
                index,
                bound: false,
                mac: Mac::Other,
                port: Port::NoProfile,
            });
            // All is on the PF of the pod's device. The model has one, and VFs by number.
            nic.standby = Some(0);
        }
        Step::Bind => set(nic, |vf| vf.bound = true),
        Step::Park => set(nic, |vf| vf.mac = Mac::Parking),
        Step::ConfigureVf => set(nic, |vf| vf.mac = Mac::Nic),
        Step::MakeStandby if !waits => return false,
        Step::MakeStandby | Step::SeizeStandby => nic.macvtap = Some(false),
        Step::AnswerSandbox => place.sandbox.answer(n, world.nics),
        Step::RaiseMtu | Step::GuardStandby | Step::Preassociate | Step::Associate | Step::Disassociate => {}
        Step::StandbyUp => {
            nic.macvtap = Some(true);
            nic.announce |= qemu.vf[n].is_none();
        }
        Step::StandbyDown => (nic.macvtap, nic.announce) = (Some(false), false),
        Step::AwaitGuest => nic.moved = true,
        Step::Announce => nic.announce = false,
        Step::RemoveStandby => (nic.macvtap, nic.standby) = (None, None),
        // Not while a process has it.
        Step::RestoreVf if qemu.alive && qemu.vf[n].is_some() => return false,
        Step::RestoreVf | Step::DropVf => nic.vf = None,
        Step::Forget => nic.recorded = false,
        Step::MoveStandby | Step::QuitQemu | Step::PlugStandby | Step::UnplugStandby => {
            state.truth.trespass = true;
            return false;
        }
        Step::PlugVf | Step::UnplugVf if !qemu.answers() => return false,
        Step::PlugVf if qemu.is_migrating() => return false,
        Step::PlugVf => (qemu.vf[n], nic.moved) = (nic.vf.map(|vf| vf.index), false),
        // A guest that stands still lets go of nothing.
        Step::UnplugVf if qemu.keeps[n] || qemu.run != Run::Running => {
            (nic.moved, nic.keeps_vf) = (false, true);
        }
        Step::UnplugVf => (qemu.vf[n], nic.moved, nic.announce) = (None, false, true),
    }
    true
}

fn set(nic: &mut Nic, change: impl FnOnce(&mut Vf)) {
    if let Some(vf) = &mut nic.vf {
        change(vf);
    }
}

impl Sandbox {
    /// The link of this NIC is there: the next one is asked for.
    pub fn answer(&mut self, n: usize, nics: usize) {
        *self = match u8::try_from(n + 1) {
            Ok(next) if n + 1 < nics => Self::Waits(next),
            _ => Self::Ready,
        };
    }
}

/// The NIC has left the node. With the last one the VM is forgotten, except for what the journal has of it.
fn leave(place: &mut Place, n: usize, status: Id) {
    let nic = &mut place.nics[n];
    *nic = Nic {
        task: Task::Left,
        left: status,
        current: nic.current,
        ..Nic::NONE
    };
    if place.nics.iter().all(|nic| nic.task != Task::Runs) {
        forget(&mut place.vm);
    }
}
