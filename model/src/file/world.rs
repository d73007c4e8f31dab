//! The world of saves and restores as a system of states and actions.

use hybridnic_api::conditions::{self, types};
use hybridnic_api::v1alpha1::{AfterSave, MigrationPhase, Pairing, StateFileStatus};

use super::state::{Disk, Known, MOVES, Move, Moves, RESTORE, SAVE, State, Truth};
use super::{invariants, operator, show, steps, vm_task};
use crate::model::Model;
use crate::nic_task;
use crate::objects::Memo;
use crate::operator::Write;
use crate::qemu::Happens as Between;
use crate::state::{
    Agent, Api, ENDS, Id, Lag, NICS, Nic, Node, PFS, Pf, Pod, Qemu, Run, SOURCE, Stream, Switch, TARGET,
    Task, Transfer, Vm,
};
use crate::system::{Broken, Rest, System};

/// The world: what is the same in all its states, and what was worked out of it.
pub struct World {
    /// Nodes and NICs.
    pub model: Model,
    /// What is to become of the VM that is saved.
    pub then: AfterSave,
    pub(crate) verdicts: Memo<vm_task::Sight, vm_task::Verdict>,
    pub(crate) steps: Memo<(Api, Moves, usize, bool), Id>,
    pub(crate) writes: Memo<(Api, Moves, usize), Write>,
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The operator reconciles the save or the restore.
    Move(usize),
    /// It reconciles the NICs, one after the other.
    Nics,
    /// An agent hears what the API server has.
    Hear(usize),
    /// What an agent has to say reaches the operator.
    Publish(usize),
    /// An agent that was held up goes on; one that has died is started again.
    GoOn(usize),
    /// A QEMU goes on.
    Happens(Happens),
    /// A kubelet says that a pod's containers have ended.
    PodEnds(usize),
    /// A kubelet ends what a pod that was deleted has left.
    Reap(usize),
    /// A QEMU answers again.
    Speak(usize),
    /// The operator's caches hear of all that there is.
    CatchUp,
    /// A user asks for the restore.
    Restore,
    /// A user says what becomes of the VM that is paused.
    Then(AfterSave),
    /// A fault.
    Fault(Fault),
}

/// What QEMUs do by themselves.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happens {
    /// All of the VM is written, and it is paused.
    Written,
    /// All of the VM is loaded.
    Loaded,
    /// A QEMU that could not load the VM ends.
    Exit,
}

/// Everything that may happen by itself.
const HAPPENS: [Happens; 3] = [Happens::Written, Happens::Loaded, Happens::Exit];

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An agent dies.
    Crash(usize),
    /// It dies in the next step that has parts, after so many of them.
    DieIn(usize, u8),
    /// An agent is held up.
    HoldUp(usize),
    /// An agent is held up while a NIC is halfway between two places.
    Halfway(usize, usize),
    /// A QEMU does not answer any more.
    Mute(usize),
    /// A QEMU ends.
    Die(usize),
    /// A pod's object is deleted by force.
    ForceDelete(usize),
    /// The save or the restore is deleted.
    Cancel(usize),
    /// A deadline passes.
    Late(usize),
    /// The volume is full.
    Full,
    /// What is whole cannot be put on disk.
    Spoils,
    /// The file cannot be loaded.
    Unloadable,
    /// Something else runs the VM on that is paused for its file.
    RunOn,
    /// The operator does not hear of changes: of saves and restores or, with an end, of that end's attachments.
    Lag(Option<usize>),
}

/// The most parts of a step.
const PARTS: u8 = 5;

impl World {
    /// A world whose nodes have this many VFs each, with a VM that has this many NICs.
    pub fn new(vfs: u8, nics: usize, then: AfterSave) -> Self {
        Self {
            model: Model::new(vfs, nics, 0, Pairing::NetFailover),
            then,
            verdicts: Memo::default(),
            steps: Memo::default(),
            writes: Memo::default(),
        }
    }

    /// The status of the save or of the restore, once there is one.
    pub fn status(&self, state: &State, which: usize) -> Option<&StateFileStatus> {
        self.model.objects.files.get(state.moves.each[which]?.status)
    }

    /// How far it is.
    pub fn phase(&self, state: &State, which: usize) -> Option<MigrationPhase> {
        self.status(state, which).map(|status| status.phase)
    }

    /// Whether the save says that a user has to say what becomes of the VM.
    fn awaits_user(&self, state: &State) -> bool {
        self.status(state, SAVE).is_some_and(|status| {
            let condition = conditions::find(&status.conditions, types::SUCCEEDED);
            condition.is_some_and(|condition| conditions::awaits_user(&condition.reason))
        })
    }

    /// Whether it is there and has not ended.
    fn goes_on(&self, state: &State, which: usize) -> bool {
        self.phase(state, which).is_some_and(|phase| !phase.is_final())
    }

    fn made(&self) -> Move {
        Move {
            status: self.model.objects.file_id(StateFileStatus::default()),
            deleting: false,
        }
    }

    fn faults(&self, state: &State) -> Vec<Fault> {
        let mut faults = Vec::new();
        for end in ENDS {
            let node = &state.base.nodes[end];
            if node.agent != Agent::Down {
                faults.push(Fault::Crash(end));
            }
            if node.agent == Agent::Prompt {
                faults.push(Fault::HoldUp(end));
                faults.extend((0..self.model.nics).map(|n| Fault::Halfway(end, n)));
                let lives = state.dies[end].is_none() && node.nics.iter().any(|nic| nic.task == Task::Runs);
                faults.extend(
                    (1..=PARTS)
                        .filter(|_| lives)
                        .map(|parts| Fault::DieIn(end, parts)),
                );
            }
            if node.qemu.alive {
                faults.push(Fault::Die(end));
                if !node.qemu.mute {
                    faults.push(Fault::Mute(end));
                }
                if state.base.api.pods[end] == Pod::Running {
                    faults.push(Fault::ForceDelete(end));
                }
            }
        }
        let [source, target] = &state.base.nodes;
        if source.qemu.alive && source.qemu.migration == Transfer::Active {
            faults.push(Fault::Full);
        }
        if source.qemu.alive
            && source.qemu.run == Run::HandedOver
            && state.base.api.pods[SOURCE] == Pod::Running
        {
            faults.push(Fault::RunOn);
        }
        if target.qemu.alive && target.qemu.migration == Transfer::Active {
            faults.push(Fault::Unloadable);
        }
        if self.goes_on(state, SAVE) && !state.spoils {
            faults.push(Fault::Spoils);
        }
        if state.base.lag == Lag::None && state.late.is_none() {
            faults.extend([None, Some(SOURCE), Some(TARGET)].map(Fault::Lag));
        }
        for which in MOVES {
            if self.goes_on(state, which) {
                faults.push(Fault::Late(which));
                let deleting = state.moves.each[which].is_some_and(|of| of.deleting);
                faults.extend((!deleting).then_some(Fault::Cancel(which)));
            }
        }
        faults
    }

    fn act(&self, next: &mut State, action: Action) {
        self.do_it(next, action);
        for end in ENDS {
            self.agent(next, end);
        }
    }

    /// An agent does all that there is to do on its node.
    fn agent(&self, next: &mut State, end: usize) {
        if next.base.nodes[end].agent != Agent::Prompt {
            return;
        }
        crate::vm_task::forget(&mut next.base, end);
        for _ in 0..20 {
            let before = *next;
            if !vm_task::drive(self, next, end) {
                return;
            }
            for n in 0..self.model.nics {
                let was = next.base.nodes[end].qemu;
                // The kubelet ends what is left of a pod that was deleted by force.
                let stays = next.base.api.pods[end] != Pod::Gone;
                nic_task::round(&self.model, &mut next.base, end, n, false, false);
                if stays && was.alive && !next.base.nodes[end].qemu.alive {
                    let saved = next.disk.named == Some(true) && !next.truth.ahead;
                    next.truth.killed |= was.runs() || end == SOURCE && !saved;
                }
            }
            if *next == before {
                return;
            }
        }
    }

    fn do_it(&self, next: &mut State, action: Action) {
        let base = &mut next.base;
        match action {
            Action::Move(which) => operator::reconcile_move(self, next, which, false),
            Action::Nics => {
                for n in 0..self.model.nics {
                    operator::reconcile_nic(self, next, n);
                }
            }
            Action::Hear(end) => {
                for n in 0..self.model.nics {
                    nic_task::round(&self.model, base, end, n, true, false);
                }
            }
            Action::Publish(end) => {
                for n in 0..self.model.nics {
                    nic_task::publish(&self.model, base, end, n);
                }
            }
            Action::GoOn(end) => base.nodes[end].agent = Agent::Prompt,
            Action::Happens(what) => happen(next, what),
            Action::PodEnds(end) => base.api.pods[end] = Pod::Ended,
            Action::Reap(end) => base.nodes[end].qemu = Qemu::dead(),
            Action::Speak(end) => base.nodes[end].qemu.mute = false,
            Action::CatchUp => (base.lag, next.late) = (Lag::None, None),
            Action::Restore => next.moves.each[RESTORE] = Some(self.made()),
            Action::Then(then) => next.moves.then = then,
            Action::Fault(fault) => {
                base.faults = base.faults.saturating_sub(1);
                next.truth.faulty = true;
                self.fail(next, fault);
            }
        }
    }

    fn fail(&self, next: &mut State, fault: Fault) {
        let base = &mut next.base;
        match fault {
            Fault::Crash(end) => steps::crash(next, end),
            Fault::DieIn(end, parts) => next.dies[end] = Some(parts),
            Fault::HoldUp(end) => base.nodes[end].agent = Agent::HeldUp,
            Fault::Halfway(end, n) => nic_task::halfway(&self.model, base, end, n),
            Fault::Mute(end) => base.nodes[end].qemu.mute = true,
            Fault::Die(end) => base.nodes[end].qemu = Qemu::dead(),
            Fault::ForceDelete(end) => base.api.pods[end] = Pod::Gone,
            Fault::Cancel(which) => {
                if let Some(of) = &mut next.moves.each[which] {
                    of.deleting = true;
                }
            }
            Fault::Late(which) => operator::reconcile_move(self, next, which, true),
            Fault::Full => {
                let qemu = &mut base.nodes[SOURCE].qemu;
                (qemu.migration, qemu.run) = (Transfer::Failed, Run::Running);
            }
            Fault::Spoils => next.spoils = true,
            Fault::Unloadable => base.nodes[TARGET].qemu.migration = Transfer::Failed,
            Fault::RunOn => {
                base.nodes[SOURCE].qemu.run = Run::Running;
                next.truth.ahead = true;
            }
            Fault::Lag(None) => next.late = Some(next.moves),
            Fault::Lag(Some(end)) => {
                let known = base.api.attachments[end];
                base.lag = Lag::Attachments(u8::try_from(end).unwrap_or_default(), known);
            }
        }
    }
}

/// Lets it happen; does nothing where it cannot.
fn happen(state: &mut State, what: Happens) {
    let [source, target] = &mut state.base.nodes;
    match what {
        Happens::Written if source.qemu.alive && source.qemu.migration == Transfer::Active => {
            (source.qemu.migration, source.qemu.run) = (Transfer::Completed, Run::HandedOver);
            // What was removed meanwhile has no name any more.
            if let Some(whole) = &mut state.disk.part {
                *whole = true;
            }
            state.truth.ahead = false;
        }
        Happens::Loaded if target.qemu.alive && target.qemu.migration == Transfer::Active => {
            let run = if target.qemu.stopped {
                Run::Paused
            } else {
                Run::Running
            };
            (target.qemu.migration, target.qemu.run) = (Transfer::Completed, run);
            state.truth.loaded |= target.qemu.runs();
        }
        Happens::Exit => crate::qemu::happen(&mut state.base, Between::Exit),
        Happens::Written | Happens::Loaded => {}
    }
}

impl System for World {
    type State = State;
    type Action = Action;

    /// A VM at rest with its NICs on their VFs, a pod whose QEMU waits for a VM, and a save that was just made.
    fn start(&self, faults: u8, _: u8) -> State {
        let node = |run| Node {
            agent: Agent::Prompt,
            qemu: Qemu::fresh(run),
            vm: Vm::NEW,
            nics: [Nic::NONE; NICS],
            pfs: [Pf::default(); PFS],
            switch: Switch::Answers,
        };
        let base = crate::state::State {
            api: Api {
                migration: 0,
                deleting: false,
                decision: None,
                aside: None,
                pods: [Pod::Running; 2],
                nic_pods: [None; NICS],
                attachments: [[None; NICS]; 2],
            },
            nodes: [node(Run::Running), node(Run::Incoming)],
            lag: Lag::None,
            stream: Stream::None,
            truth: crate::state::Truth::default(),
            faults: 0,
            splits: 0,
            tells: 0,
            turns: 0,
        };
        let mut state = State {
            base,
            moves: Moves {
                then: self.then,
                each: [None; 2],
            },
            late: None,
            disk: Disk::default(),
            known: [Known::Nothing; 2],
            dies: [None; 2],
            spoils: false,
            truth: Truth::default(),
        };
        for _ in 0..30 {
            state = self.pass(&state);
        }
        state.moves.each[SAVE] = Some(self.made());
        state.base.faults = faults;
        state
    }

    fn actions(&self, state: &State) -> Vec<Action> {
        // What follows once both are over is looked at by letting it come to rest.
        let is_over = |which| self.phase(state, which).is_some_and(MigrationPhase::is_final);
        if MOVES.into_iter().all(is_over) {
            return Vec::new();
        }
        let mut actions = vec![Action::Move(SAVE), Action::Nics];
        if state.moves.each[RESTORE].is_some() {
            actions.push(Action::Move(RESTORE));
        } else {
            actions.push(Action::Restore);
        }
        for end in ENDS {
            let node = &state.base.nodes[end];
            if node.agent == Agent::Prompt {
                actions.extend([Action::Hear(end), Action::Publish(end)]);
            } else {
                actions.push(Action::GoOn(end));
            }
            if node.qemu.alive && node.qemu.mute {
                actions.push(Action::Speak(end));
            }
            if !node.qemu.alive && state.base.api.pods[end] == Pod::Running {
                actions.push(Action::PodEnds(end));
            }
            if node.qemu.alive && state.base.api.pods[end] == Pod::Gone {
                actions.push(Action::Reap(end));
            }
        }
        let late = state.base.lag != Lag::None || state.late.is_some();
        actions.extend(late.then_some(Action::CatchUp));
        actions.extend(HAPPENS.map(Action::Happens));
        if state.moves.then == AfterSave::Pause && self.goes_on(state, SAVE) {
            actions.extend([AfterSave::End, AfterSave::Continue].map(Action::Then));
        }
        if state.base.faults > 0 {
            actions.extend(self.faults(state).into_iter().map(Action::Fault));
        }
        actions
    }

    fn next(&self, state: &State, action: Action) -> State {
        let mut next = *state;
        self.act(&mut next, action);
        next.base = next.base.sorted(self.model.nics);
        next
    }

    fn safe(&self, state: &State) -> Result<(), Broken> {
        invariants::safe(state)
    }

    fn calm(&self, state: &State) -> State {
        let mut next = *state;
        (next.base.faults, next.base.lag) = (0, Lag::None);
        (next.late, next.spoils, next.dies) = (None, false, [None; 2]);
        next
    }

    fn pass(&self, state: &State) -> State {
        let mut next = self.calm(state);
        for end in ENDS {
            next.base.nodes[end].qemu.mute = false;
            match (next.base.nodes[end].qemu.alive, next.base.api.pods[end]) {
                (false, Pod::Running) => self.act(&mut next, Action::PodEnds(end)),
                (true, Pod::Gone) => self.act(&mut next, Action::Reap(end)),
                _ => {}
            }
            for action in [Action::GoOn(end), Action::Hear(end), Action::Publish(end)] {
                self.act(&mut next, action);
            }
        }
        for action in HAPPENS.map(Action::Happens) {
            self.act(&mut next, action);
        }
        for action in [Action::Move(SAVE), Action::Move(RESTORE), Action::Nics] {
            self.act(&mut next, action);
        }
        next.base = next.base.sorted(self.model.nics);
        next
    }

    fn rest(&self, state: &State) -> Rest<State> {
        // Time passes, and a deadline with it.
        for which in MOVES {
            let mut late = *state;
            operator::reconcile_move(self, &mut late, which, true);
            if self.phase(&late, which) != self.phase(state, which) {
                return Rest::Goes(late);
            }
        }
        // Whatever a user says, it ends.
        if self.awaits_user(state) && state.moves.then == AfterSave::Pause {
            let said = [
                Action::Then(AfterSave::End),
                Action::Then(AfterSave::Continue),
                Action::Fault(Fault::Cancel(SAVE)),
            ];
            return Rest::Asks(said.map(|action| self.next(state, action)).into());
        }
        Rest::Stays(invariants::rested(self, state))
    }

    fn show(&self, state: &State) -> String {
        show::state(self, state)
    }
}
