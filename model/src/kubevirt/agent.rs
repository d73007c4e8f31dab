//! The agent's two tasks around its decisions: the VM's, which watches, and each NIC's.

use std::collections::BTreeMap;

use hybridnic_agent::journal::{self, VmRecord};
use hybridnic_agent::machine::kubevirt::DUTIES;
use hybridnic_agent::machine::kubevirt::watch::{self, LauncherSeen, Missed};
use hybridnic_agent::machine::process::ProcessId;
use hybridnic_agent::machine::qemu::migration::{VmSeen, agreed};
use hybridnic_agent::machine::{NicEntry, Run as RunHere, stands_against};
use hybridnic_agent::nic::plan::Step;
use hybridnic_agent::nic::seen::{Guest, QemuSeen};
use hybridnic_api::v1alpha1::{AttachedVm, AttachmentState, Goal};
use hybridnic_qmp::commands::{MigrationInfo, RunState};

use super::operator::MIGRATION;
use super::state::{PODS, Place, Qemu, Run, Sandbox, State, Transfer, Vm, Watched};
use super::world::World;
use crate::nic_task::{self, Round, View, is_seen};
use crate::objects::{NIC, Objects, uid};
use crate::state::{Agent, Id, Mac, NICS, Nic, Shown, Task, Vf};
use crate::vm_task::state_of;

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

/// All that the VM's task goes by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct VmSight {
    shown: [Option<Shown>; NICS],
    qemu: Option<(Run, Transfer)>,
    alive: bool,
    vm: Vm,
}

/// What the VM's task comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    vm: Vm,
    silence: bool,
}

/// An agent does all that there is to do on its node.
pub fn turn(world: &World, state: &mut State, node: usize) {
    if state.agents[node] != Agent::Prompt {
        return;
    }
    for _ in 0..40 {
        let before = state.places;
        for pod in (0..PODS)
            .filter(|pod| state.node(*pod) == node)
            .collect::<Vec<_>>()
        {
            drive(world, state, pod);
            for n in 0..world.nics {
                round(world, state, pod, n, false);
            }
        }
        if state.places == before {
            return;
        }
    }
}

/// What QEMU tells by itself, and is heard at once or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// `STOP`
    Stopped,
    /// `RESUME`
    Resumed,
}

/// The agent hears an event.
pub fn hear_event(state: &mut State, pod: usize, event: Event) {
    let prompt = state.agent(pod) == Agent::Prompt;
    let place = &mut state.places[pod];
    if !(prompt && place.vm.met && place.qemu.answers()) {
        return;
    }
    match event {
        Event::Stopped => set_all(place, false),
        Event::Resumed => {
            set_all(place, true);
            place.vm.ran = true;
            for nic in &mut place.nics {
                nic.keeps_vf = false;
            }
        }
    }
}

fn set_all(place: &mut Place, up: bool) {
    for (nic, vf) in place.nics.iter_mut().zip(place.qemu.vf) {
        let shown = nic.shown.is_some_and(|shown| shown.macvtap);
        if shown && nic.macvtap.is_some() && !(up && vf.is_some()) {
            nic.macvtap = Some(up);
        }
    }
}

/// The VM's task looks, and says what it sees.
fn drive(world: &World, state: &mut State, pod: usize) {
    let place = &mut state.places[pod];
    let here = place.nics.iter().any(|nic| nic.task == Task::Runs);
    if !here {
        // What is remembered of the VM goes with the last attachment to its pod.
        if place.attachments.iter().all(Option::is_none) {
            place.vm = Vm::NEW;
        }
        return;
    }
    place.vm.tried = true;
    if place.qemu.answers() {
        if !place.vm.process {
            (place.vm.incoming, place.vm.ran) = (false, false);
        }
        (place.vm.met, place.vm.process) = (true, true);
    }
    let sight = VmSight {
        shown: place.nics.map(|nic| nic.shown),
        qemu: place
            .qemu
            .answers()
            .then_some((place.qemu.run, place.qemu.migration)),
        alive: place.qemu.alive,
        vm: place.vm,
    };
    let verdict = world.verdicts.get(sight, || sight.decide(&world.objects));
    place.vm = verdict.vm;
    if verdict.silence {
        set_all(place, false);
    }
}

fn process() -> ProcessId {
    ProcessId {
        boot: String::new(),
        pid: 1,
        start: 1,
    }
}

impl Vm {
    fn record(&self) -> VmRecord {
        VmRecord {
            process: self.process.then(process),
            begun: None,
            incoming: self.incoming,
            ran: self.ran,
            watched: self.watched.map(|watched| journal::Watched {
                migration: uid(MIGRATION[usize::from(watched.migration)]),
                process: watched.process.then(process),
                role: watched.role,
                begun: watched.begun,
                arrived: watched.arrived,
            }),
        }
    }
}

fn watched(of: &journal::Watched) -> Watched {
    let migration = MIGRATION.iter().position(|name| uid(name) == of.migration);
    Watched {
        migration: migration.and_then(|k| u8::try_from(k).ok()).unwrap_or_default(),
        process: of.process.is_some(),
        role: of.role,
        begun: of.begun,
        arrived: of.arrived,
    }
}

/// What QEMU says of itself.
fn seen(run: Run, migration: Transfer) -> VmSeen {
    let status = match migration {
        Transfer::None => "none",
        Transfer::Active => "active",
        Transfer::PreSwitchover => "pre-switchover",
        Transfer::Completed => "completed",
        Transfer::Failed => "failed",
        Transfer::Cancelled => "cancelled",
    };
    let info = serde_json::json!({ "status": status });
    VmSeen {
        run: match run {
            Run::Incoming => RunState::InMigrate,
            Run::Paused => RunState::Paused,
            Run::Running => RunState::Running,
            Run::Finishing => RunState::FinishMigrate,
            Run::HandedOver => RunState::PostMigrate,
        },
        info: serde_json::from_value::<MigrationInfo>(info).unwrap_or_default(),
    }
}

impl VmSight {
    fn nics(&self, objects: &Objects) -> BTreeMap<String, NicEntry> {
        let entry = |(n, shown): (usize, &Option<Shown>)| {
            let shown = shown.as_ref()?;
            let spec = objects.spec(n, shown.spec);
            let entry = NicEntry {
                nic: NIC[n].to_owned(),
                macvtap: shown.macvtap.then(|| "".into()),
                state: state_of(shown.state),
                goal: spec.as_ref().map(|spec| spec.goal).unwrap_or_default(),
                order: spec.and_then(|spec| spec.migration),
                heard: shown.heard,
                ..NicEntry::default()
            };
            Some((NIC[n].to_owned(), entry))
        };
        self.shown.iter().enumerate().filter_map(entry).collect()
    }

    fn decide(&self, objects: &Objects) -> Verdict {
        let (mut vm, mut record) = (self.vm, self.vm.record());
        let seen = self.qemu.map(|(run, migration)| seen(run, migration));
        let missed = seen.as_ref().and_then(|seen| watch::missed(seen, &record));
        match missed {
            Some(Missed::Run) => record.ran = true,
            Some(Missed::Incoming) => record.incoming = true,
            Some(Missed::Silence) | None => {}
        }
        (vm.ran, vm.incoming) = (record.ran, record.incoming);
        let nics = self.nics(objects);
        if let Some(order) = agreed(&nics)
            && let Some(is_off) = watch::is_off(order.step)
        {
            let peer = vm.met.then(process);
            let launcher = LauncherSeen {
                seen: seen.as_ref(),
                peer: peer.as_ref(),
                gone: !self.alive,
            };
            let told = watch::told(order.step, nics.values().map(|nic| nic.goal));
            if let Some(new) = watch::note(&record, &order.migration.uid, launcher, told) {
                vm.watched = Some(watched(&new));
                let end = watch::end_seen(&new, launcher, |_| !self.alive);
                let said = objects.reports.get(vm.report);
                if let Some(report) = watch::report(&new, is_off, end, said.as_deref()) {
                    vm.report = objects.report_id(Some(report));
                }
            }
        }
        Verdict {
            vm,
            silence: missed == Some(Missed::Silence),
        }
    }
}

/// A NIC's task takes steps until there is nothing to do or, where it is stopped `halfway`, until one was taken that others may
/// see. Gives what it has to report then; 0 where that is nothing new.
fn round(world: &World, state: &mut State, pod: usize, n: usize, halfway: bool) -> Id {
    let mut status = 0;
    for _ in 0..40 {
        let place = &state.places[pod];
        if place.nics[n].task != Task::Runs || !place.vm.tried {
            return status;
        }
        let sight = NicSight::of(world, state, pod, n);
        let round = world.rounds.get((sight, n), || sight.decide(&world.objects, n));
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
    fn of(world: &World, state: &State, pod: usize, n: usize) -> Self {
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

    fn decide(&self, objects: &Objects, n: usize) -> Round {
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
            nic.vf = free.map(|index| Vf {
                index,
                bound: false,
                mac: Mac::Other,
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
        Step::RaiseMtu | Step::GuardStandby => {}
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

/// The NIC has left the node. The VM goes with the last one, but for what the journal has of it.
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

/// What is in memory goes; what is in the journal stays.
fn forget(vm: &mut Vm) {
    (vm.tried, vm.met, vm.report) = (false, false, 0);
}

/// What the API server has reaches the agent.
pub fn hear(world: &World, state: &mut State, pod: usize, n: usize) {
    let objects = &world.objects;
    let place = &mut state.places[pod];
    let nic = &mut place.nics[n];
    let Some(attachment) = &mut place.attachments[n] else {
        match nic.task {
            // The object is gone, whatever its finalizer said.
            Task::Runs => (nic.spec, nic.keeps_vf) = (objects.detached(nic.spec), false),
            Task::Left | Task::None => *nic = Nic::NONE,
        }
        return;
    };
    let spec = if attachment.deleting {
        objects.detached(attachment.spec)
    } else {
        attachment.spec
    };
    match nic.task {
        // It has left already; its last report stands until the object is gone, if it was about the object as it is.
        Task::Left
            if objects.goal(spec) == Goal::Detached
                && nic.left != 0
                && (nic.current || attachment.deleting) =>
        {
            return;
        }
        Task::Runs => {}
        Task::Left | Task::None => {
            *nic = Nic {
                task: Task::Runs,
                spec,
                shown: Some(Shown {
                    state: AttachmentState::Pending as u8,
                    spec,
                    macvtap: false,
                    heard: false,
                }),
                ..Nic::NONE
            };
        }
    }
    attachment.finalizer |= !attachment.deleting;
    if objects.goal(nic.spec) != objects.goal(spec) {
        nic.keeps_vf = false;
    }
    (nic.heard, nic.spec, nic.current) = (true, spec, true);
    // What an earlier agent has said stands.
    let said = objects.said(attachment.status);
    if let Some(report) = objects.reports.get(said) {
        let now = objects.reports.get(place.vm.report);
        if !stands_against(now.as_deref(), &report) {
            place.vm.report = said;
        }
    }
}

/// What the agent has to say, by what it sees now, reaches the operator. It says the same until something changes.
pub fn publish(world: &World, state: &mut State, pod: usize, n: usize) {
    let now = round(world, state, pod, n, false);
    let place = &mut state.places[pod];
    let nic = &mut place.nics[n];
    if nic.task == Task::Runs && !nic.heard {
        return;
    }
    let Some(attachment) = &mut place.attachments[n] else {
        return;
    };
    let says = match nic.task {
        Task::None => 0,
        Task::Runs => now,
        Task::Left => nic.left,
    };
    if says != 0 {
        (attachment.status, attachment.current) = (says, nic.current);
    }
    let left = nic.task == Task::Left && nic.left != 0;
    if attachment.deleting && left && world.objects.is_detached(attachment.status) {
        // Its finalizer goes, and with it the object.
        place.attachments[n] = None;
        *nic = Nic::NONE;
    }
}

/// A NIC's task has heard what there is and taken a step, and before it takes the next it reports, and is held up.
pub fn halfway(world: &World, state: &mut State, pod: usize, n: usize) {
    hear(world, state, pod, n);
    round(world, state, pod, n, true);
    let node = state.node(pod);
    state.agents[node] = Agent::HeldUp;
    let place = &state.places[pod];
    if place.nics[n].task != Task::Runs || !place.vm.tried {
        return;
    }
    let sight = NicSight::of(world, state, pod, n);
    let round = world.rounds.get((sight, n), || sight.decide(&world.objects, n));
    let place = &mut state.places[pod];
    if let Some(attachment) = &mut place.attachments[n] {
        (attachment.status, attachment.current) = (round.status, place.nics[n].current);
    }
}

/// The agent dies: only its journal is left. Sandboxes that wait for it fail.
pub fn crash(state: &mut State, node: usize) {
    state.agents[node] = Agent::Down;
    for pod in (0..PODS)
        .filter(|pod| state.node(*pod) == node)
        .collect::<Vec<_>>()
    {
        let place = &mut state.places[pod];
        forget(&mut place.vm);
        for nic in &mut place.nics {
            *nic = if nic.recorded {
                Nic {
                    task: Task::Runs,
                    current: false,
                    heard: false,
                    announce: true,
                    moved: false,
                    keeps_vf: false,
                    shown: Some(Shown {
                        state: AttachmentState::Pending as u8,
                        spec: nic.spec,
                        macvtap: nic.standby.is_some(),
                        heard: false,
                    }),
                    ..*nic
                }
            } else {
                Nic::NONE
            };
        }
        if matches!(place.sandbox, Sandbox::Waits(_)) {
            place.tear_down();
        }
    }
}

impl Place {
    /// Its sandbox ends, and its network namespace with it.
    pub fn tear_down(&mut self) {
        self.sandbox = Sandbox::None;
        for nic in &mut self.nics {
            nic.macvtap = None;
        }
    }
}

/// The devices of a QEMU go with it.
pub fn end(qemu: &mut Qemu) {
    *qemu = Qemu::DEAD;
}
