//! A NIC's task: what the agent does for one attachment. The plan and the report are the agent's own.

use hybridnic_agent::journal::Record;
use hybridnic_agent::machine::qemu::migration::{self, RunInputs};
use hybridnic_agent::machine::{Duties, Filtered};
use hybridnic_agent::nic::plan::{self, Ask, Decision, Step};
use hybridnic_agent::nic::report::{self, Inputs};
use hybridnic_agent::nic::seen::{Guest, QemuSeen, Run as Place, Seen, VfMac, VfSeen, VfThere};
use hybridnic_api::v1alpha1::{
    Aside, AttachedVm, AttachmentState, Goal, GuestDevices, GuestPorts, NicAttachmentSpec, Pairing,
    StandbyKind, SwitchOrder,
};

use crate::cards::{Cards, Offered};
use crate::model::Model;
use crate::objects::{self, NIC, Objects};
use crate::port;
use crate::state::{
    Agent, Asked, Asking, Id, Mac, NICS, Nic, Node, Port, Qemu, Run, Shown, State, Task, Transfer, Vf, Vm,
};
use crate::vm_task;

/// All that a round of a NIC's task goes by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sight {
    nic: Nic,
    standby: bool,
    plugged: bool,
    qemu: Option<Qemu>,
    offered: bool,
    cards: Cards,
    vm: Vm,
}

/// What a round comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Round {
    /// The step to take.
    pub(crate) step: Option<Step>,
    /// Where the NIC is, by the decision.
    pub(crate) state: AttachmentState,
    /// The status that follows.
    pub(crate) status: Id,
    /// Whether QEMU has loaded a VM that is not started yet: it is not ended then.
    arrives: bool,
}

/// A NIC's task takes steps until there is nothing to do or, where it is stopped `halfway`, until one was taken that others may
/// see. With `news` it has just heard what the API server has.
///
/// Gives what it has to report then; 0 where that is nothing new.
pub fn round(model: &Model, state: &mut State, end: usize, n: usize, news: bool, halfway: bool) -> Id {
    let mut status = 0;
    if news {
        hear(model, state, end, n);
    }
    let node = &mut state.nodes[end];
    // Nothing is done before QEMU was tried.
    if node.nics[n].task != Task::Runs || !node.vm.tried {
        return status;
    }
    for _ in 0..40 {
        if node.nics[n].asking == Asking::Waits {
            return status;
        }
        let sight = Sight::of(model, node, n);
        let round = model.rounds.get(&(sight, n), || sight.decide(model, n));
        let nic = &mut node.nics[n];
        nic.shown = Some(Shown {
            state: round.state as u8,
            spec: nic.spec,
            macvtap: nic.standby.is_some(),
            heard: nic.heard,
        });
        status = round.status;
        let Some(step) = round.step else {
            if round.state == AttachmentState::Detached {
                let said = says(&model.objects, &node.nics[n], status);
                leave(node, n, said);
            }
            return status;
        };
        // The VM's task hears of the end of its QEMU before this NIC's has taken the next step.
        let ends = step == Step::QuitQemu;
        if ends && round.arrives {
            return status;
        }
        if !take(model, node, n, step) || ends || halfway && is_seen(step) {
            return status;
        }
    }
    status
}

/// What the API server has reaches the agent.
fn hear(model: &Model, state: &mut State, end: usize, n: usize) {
    let nic = &mut state.nodes[end].nics[n];
    let Some(attachment) = &mut state.api.attachments[end][n] else {
        match nic.task {
            // The object is gone, whatever its finalizer said.
            Task::Runs => nic.spec = model.objects.detached(nic.spec),
            Task::Left | Task::None => *nic = Nic::NONE,
        }
        return;
    };
    let spec = if attachment.deleting {
        model.objects.detached(attachment.spec)
    } else {
        attachment.spec
    };
    let leaves = model.objects.goal(spec) == Goal::Detached;
    match nic.task {
        // It has left already; its last report stands until the object is gone, if it was about the object as it is.
        Task::Left if leaves && nic.left != 0 && (nic.current || attachment.deleting) => return,
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
    let said = model.objects.said(attachment.status);
    nic.heard = true;
    if nic.spec != spec {
        let asks = |spec| (model.objects.goal(spec), model.objects.aside(spec));
        // A wait is broken off, and what has failed is tried again.
        if nic.asking == Asking::Waits || asks(nic.spec) != asks(spec) {
            nic.asking = Asking::No;
        }
        nic.spec = spec;
    }
    nic.current = true;
    // What an earlier agent has said stands.
    let report = &mut state.nodes[end].vm.report;
    if said != 0 && (*report == 0 || model.objects.is_final(said) && !model.objects.is_final(*report)) {
        *report = said;
    }
}

/// What a task says that comes to its end: one that has not heard of its object keeps to what the last agent has said of a migration.
pub(crate) fn says(objects: &Objects, nic: &Nic, status: Id) -> Id {
    let spec = objects.specs.get(nic.spec);
    let silent = !nic.heard && spec.is_some_and(|spec| spec.migration.is_some());
    if silent { 0 } else { status }
}

/// The NIC has left the node. With the last one the VM is forgotten, except for what the journal has of it.
fn leave(node: &mut Node, n: usize, status: Id) {
    let nic = &mut node.nics[n];
    *nic = Nic {
        task: Task::Left,
        left: status,
        current: nic.current,
        ..Nic::NONE
    };
    if node.nics.iter().all(|nic| nic.task != Task::Runs) {
        node.vm = Vm {
            begun: node.vm.begun,
            certified: node.vm.certified,
            ..Vm::NEW
        };
    }
}

impl Sight {
    fn of(model: &Model, node: &Node, n: usize) -> Self {
        let nic = node.nics[n];
        let offered = nic.vf.is_none() && Offered::of(model, node).first().is_some();
        let qemu = node.qemu;
        Self {
            nic: Nic { shown: None, ..nic },
            standby: qemu.standby[n],
            plugged: qemu.vf[n].is_some(),
            // What it has of others is nothing to this one.
            qemu: qemu.alive.then_some(Qemu {
                standby: [false; NICS],
                vf: [None; NICS],
                ..qemu
            }),
            offered,
            cards: Cards::of(model, node, &nic),
            vm: node.vm,
        }
    }

    fn place(&self, qemu: &Qemu, spec: &NicAttachmentSpec) -> Place {
        let begun = self.vm.begun.map(vm_task::begun);
        migration::run_of(RunInputs {
            seen: &vm_task::seen(qemu),
            goal: spec.goal,
            order: spec.migration.as_ref(),
            begun: begun.as_ref(),
            same: self.vm.begun.is_none_or(|begun| begun.here),
        })
    }

    fn guest(&self, spec: &NicAttachmentSpec) -> QemuSeen {
        let Some(qemu) = &self.qemu else {
            return QemuSeen::Gone;
        };
        if qemu.mute {
            return QemuSeen::Unreachable;
        }
        let place = self.place(qemu, spec);
        QemuSeen::Up(Guest {
            run: place,
            standby: self.standby,
            vf: self.plugged,
            uses_vf: self.plugged,
            // A standby that offers nothing has nothing taken of it.
            failover: (self.standby && place == Place::Here).then_some(spec.pairing == Pairing::NetFailover),
            migrating: false,
            acpi: true,
        })
    }

    fn decide(&self, model: &Model, n: usize) -> Round {
        let spec = model
            .objects
            .spec(n, self.nic.spec)
            .unwrap_or_else(|| empty(n, AttachedVm::Qemu { name: String::new() }));
        // The VM has been loaded, and is started next.
        let loaded = |qemu: Qemu| qemu.run == Run::Paused && qemu.migration == Transfer::Completed;
        let listens = spec.migration.as_ref().is_some_and(|order| order.step.receives());
        let arrives = listens && self.qemu.is_some_and(loaded);
        let view = View {
            nic: self.nic,
            duties: Duties::QEMU,
            qemu: self.guest(&spec),
            running: self.qemu.is_some_and(|qemu| qemu.answers() && qemu.runs()),
            offered: self.offered,
            cards: self.cards,
            waits: false,
            report: self.vm.report,
        };
        Round {
            arrives,
            ..decide(&model.objects, n, spec, &view)
        }
    }
}

/// What a NIC's task goes by, whatever runs the VM.
pub(crate) struct View {
    /// What there is of it.
    pub nic: Nic,
    /// Whether agent or runtime does each part.
    pub duties: Duties,
    /// The VM's QEMU.
    pub qemu: QemuSeen,
    /// Whether that runs the VM.
    pub running: bool,
    /// Whether a VF is free.
    pub offered: bool,
    /// How the PFs are to it.
    pub cards: Cards,
    /// Whether the pod's sandbox waits for the link.
    pub waits: bool,
    /// How the VM's migration goes.
    pub report: Id,
}

/// The agent's decision and report.
pub(crate) fn decide(objects: &Objects, n: usize, spec: NicAttachmentSpec, view: &View) -> Round {
    let (nic, cards) = (&view.nic, view.cards);
    let vf = nic.vf.map(|vf| {
        VfSeen::There(VfThere {
            on_vfio: vf.bound,
            mac: match vf.mac {
                Mac::Nic => VfMac::Nic,
                Mac::Parking => VfMac::Parking,
                Mac::Other => VfMac::Other,
            },
            settings_ok: vf.mac == Mac::Nic,
            link: !cards.vf.dark,
            dark: cards.vf.dark,
            other_pf: nic.standby.is_some_and(|pf| pf != vf.index),
            held: false,
            port: port::seen(vf.port),
        })
    });
    let order = SwitchOrder::MakeBeforeBreak;
    let ask = Ask::of(&spec, order, view.duties, cards.vf.drained);
    let asks = spec.goal != Goal::Detached;
    let seen = Seen {
        recorded: nic.recorded,
        vf,
        vf_offered: asks && view.offered,
        other_vf: cards.other && (cards.vf.dark || ask.leaves_vf()),
        // It has been split for long enough, whenever that was.
        home_vf: cards.home
            && ask.goal == Goal::FastPath
            && !ask.ordered
            && nic.standby != nic.vf.map(|vf| vf.index),
        uplink: asks,
        standby_recorded: nic.standby.is_some(),
        sandbox_waits: view.waits,
        macvtap: nic.macvtap,
        guarded: true,
        foreign_mac: false,
        seized: false,
        seizer_ended: false,
        mtu_ok: true,
        standby_link: Some(!cards.standby.dark),
        standby_pf_gone: false,
        qemu: view.qemu,
    };
    let decision = plan::next(&ask, &seen, &nic.learnt());
    let migration = objects.reports.get(view.report);
    let theirs = matches!(spec.vm, AttachedVm::Kubevirt { .. });
    let ports = (nic.recorded && !theirs).then(|| GuestPorts {
        standby: (spec.standby == StandbyKind::Macvtap).then(|| "p".to_owned()),
        vf: "q".to_owned(),
    });
    let record = record(n, spec);
    let inputs = Inputs {
        record: &record,
        generation: None,
        seen: Some(&seen),
        running: view.running,
        decision: Some(&decision),
        error: None,
        guest: GuestDevices {
            vf_port: ports.as_ref().map(|ports| ports.vf.clone()),
            standby_port: ports.and_then(|ports| ports.standby),
            ..GuestDevices::default()
        },
        unplug_order: None,
        migration: migration.cloned(),
        filtered: Filtered::default(),
        timeline: Vec::new(),
    };
    let status = report::build(inputs, None, objects::now());
    let (step, state) = match decision {
        Decision::Do(step) => (Some(step), AttachmentState::Pending),
        Decision::Done(state) => (None, state),
        Decision::Wait(wait) => (None, wait.state),
    };
    Round {
        step,
        state,
        status: objects.status_id(status, theirs),
        arrives: false,
    }
}

/// Whether others may see that a step was taken. All others touch what is this NIC's alone.
pub(crate) fn is_seen(step: Step) -> bool {
    matches!(
        step,
        Step::StandbyUp
            | Step::StandbyDown
            | Step::ConfigureVf
            | Step::PlugVf
            | Step::UnplugVf
            | Step::QuitQemu
            | Step::RemoveStandby
            | Step::MoveStandby
            | Step::RestoreVf
    )
}

/// Takes a step; whether it could be.
fn take(model: &Model, node: &mut Node, n: usize, step: Step) -> bool {
    let offered = Offered::of(model, node);
    let switch = node.switch;
    let qemu = &mut node.qemu;
    let nic = &mut node.nics[n];
    let answers = qemu.answers();
    match step {
        Step::Reserve => {
            nic.recorded = true;
            let own = nic.standby.filter(|pf| offered.has(*pf));
            let free = own.or_else(|| offered.first());
            let wants_vf = model.objects.aside(nic.spec) != Some(Aside::GiveVfBack);
            nic.vf = free.filter(|_| wants_vf).map(|index| Vf {
                index,
                bound: false,
                mac: Mac::Other,
                port: if model.profile {
                    Port::Has(Asked::Disassociate)
                } else {
                    Port::NoProfile
                },
            });
            // Without a VF the PF with the fewest standbys; with one its own.
            if model.standby == StandbyKind::Macvtap {
                nic.standby = nic.standby.or(free).or_else(|| u8::try_from(n).ok());
            }
        }
        Step::Bind => set(nic, |vf| vf.bound = true),
        Step::Park => set(nic, |vf| vf.mac = Mac::Parking),
        Step::ConfigureVf => set(nic, |vf| vf.mac = Mac::Nic),
        Step::MakeStandby | Step::SeizeStandby => nic.macvtap = Some(false),
        // What it must be that is shut is proven with the plan (`plan/tests`).
        Step::RaiseMtu | Step::GuardStandby | Step::AnswerSandbox => {}
        Step::Preassociate => return port::ask(nic, switch, Asked::Preassociate),
        Step::Associate => return port::ask(nic, switch, Asked::Associate),
        Step::Disassociate => return port::ask(nic, switch, Asked::Disassociate),
        Step::StandbyUp => {
            nic.macvtap = Some(true);
            nic.announce |= qemu.vf[n].is_none();
        }
        Step::StandbyDown => (nic.macvtap, nic.announce) = (Some(false), false),
        Step::AwaitGuest => nic.moved = true,
        Step::Announce => nic.announce = false,
        Step::RemoveStandby => (nic.macvtap, nic.standby) = (None, None),
        Step::MoveStandby => (nic.macvtap, nic.standby) = (None, nic.vf.map(|vf| vf.index)),
        // Not while a process has it.
        Step::RestoreVf if qemu.alive && qemu.vf[n].is_some() => return false,
        // Not before the switch has taken away what the port has.
        Step::RestoreVf if !port::free(nic, switch) => return false,
        Step::RestoreVf | Step::DropVf => (nic.vf, nic.asking) = (None, Asking::No),
        Step::Forget => nic.recorded = false,
        _ if !answers => return false,
        Step::PlugStandby => qemu.standby[n] = true,
        Step::UnplugStandby => qemu.standby[n] = false,
        Step::PlugVf => (qemu.vf[n], nic.moved) = (nic.vf.map(|vf| vf.index), false),
        Step::UnplugVf => (qemu.vf[n], nic.moved, nic.announce) = (None, false, true),
        Step::QuitQemu if qemu.run == Run::Finishing => return false,
        Step::QuitQemu => *qemu = Qemu::dead(),
    }
    true
}

pub(crate) fn set(nic: &mut Nic, change: impl FnOnce(&mut Vf)) {
    if let Some(vf) = &mut nic.vf {
        change(vf);
    }
}

fn record(n: usize, spec: NicAttachmentSpec) -> Record {
    Record {
        version: hybridnic_agent::journal::VERSION,
        namespace: "ns".to_owned(),
        name: NIC[n].to_owned(),
        uid: NIC[n].to_owned(),
        created: 0,
        spec,
        socket: None,
        vf: None,
        standby: None,
        ports: None,
        plugs: 0,
    }
}

/// The spec of a NIC of which nothing is known.
pub(crate) fn empty(n: usize, vm: AttachedVm) -> NicAttachmentSpec {
    NicAttachmentSpec {
        node_name: String::new(),
        nic: hybridnic_api::v1alpha1::ObjectRef {
            name: NIC[n].to_owned(),
            uid: String::new(),
        },
        vm,
        pod: hybridnic_api::v1alpha1::ObjectRef::default(),
        network: String::new(),
        mac: String::new(),
        goal: Goal::Detached,
        aside: None,
        standby: StandbyKind::Macvtap,
        no_free_vf: hybridnic_api::v1alpha1::NoFreeVf::Standby,
        pairing: Pairing::NetFailover,
        port_instance_id: None,
        l2: hybridnic_api::v1alpha1::L2Settings::default(),
        placement: None,
        pod_devices: None,
        migration: None,
    }
}

/// What the agent has to say, by what it sees now, reaches the operator. It says the same until something changes.
pub fn publish(model: &Model, state: &mut State, end: usize, n: usize) {
    let now = round(model, state, end, n, false, false);
    let nic = &mut state.nodes[end].nics[n];
    if nic.task == Task::Runs && !nic.heard {
        return;
    }
    let Some(attachment) = &mut state.api.attachments[end][n] else {
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
    if attachment.deleting
        && nic.task == Task::Left
        && nic.left != 0
        && model.objects.is_detached(attachment.status)
    {
        // Its finalizer goes, and with it the object.
        state.api.attachments[end][n] = None;
        *nic = Nic::NONE;
    }
}

/// A NIC's task has heard what there is and taken a step, and before it takes the next it reports, and is held up.
pub fn halfway(model: &Model, state: &mut State, end: usize, n: usize) {
    round(model, state, end, n, true, true);
    let node = &mut state.nodes[end];
    node.agent = Agent::HeldUp;
    if node.nics[n].task != Task::Runs || !node.vm.tried {
        return;
    }
    let sight = Sight::of(model, node, n);
    let round = model.rounds.get(&(sight, n), || sight.decide(model, n));
    if let Some(attachment) = &mut state.api.attachments[end][n] {
        (attachment.status, attachment.current) = (round.status, node.nics[n].current);
    }
}

/// The agent dies: only its journal is left.
pub fn crash(state: &mut State, end: usize) {
    let node = &mut state.nodes[end];
    node.agent = Agent::Down;
    node.vm = Vm {
        begun: node.vm.begun,
        certified: node.vm.certified,
        ..Vm::NEW
    };
    for nic in &mut node.nics {
        *nic = if nic.recorded {
            Nic {
                task: Task::Runs,
                current: false,
                heard: false,
                announce: true,
                moved: false,
                asking: Asking::No,
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
}

/// Whether nothing is left of a NIC on a node.
pub(crate) fn is_clean(nic: &Nic) -> bool {
    nic.vf.is_none()
        && nic.standby.is_none()
        && nic.macvtap.is_none()
        && !nic.recorded
        && nic.task != Task::Runs
}
