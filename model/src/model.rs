//! The world as a system of states and actions.

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{
    Aside, MigrationPhase, MigrationStep, Pairing, QemuMigrationStatus, StandbyKind,
};

use crate::objects::{Memo, Objects};
use crate::qemu::{self, HAPPENS, Happens};
use crate::state::{
    Agent, Api, Choice, ENDS, Id, Lag, NICS, Nic, Node, PFS, Pf, Pod, Qemu, Run, SOURCE, State, Stream,
    Switch, TARGET, Transfer, Truth, Vm,
};
use crate::system::{Broken, Rest, System};
use crate::{invariants, nic_task, operator, port, show, vm_task};

/// The world: what is the same in all its states, and what was worked out of it.
pub struct Model {
    /// VFs of each node, at most two.
    pub vfs: u8,
    /// NICs of the VM, one or two.
    pub nics: usize,
    /// How often a user tells the NICs where their traffic is to run.
    pub tells: u8,
    /// How often a PF is drained or undrained, or loses its link or finds it.
    pub turns: u8,
    /// What the NICs have besides their VFs.
    pub standby: StandbyKind,
    /// How the guest makes one NIC of VF and standby.
    pub pairing: Pairing,
    /// Whether the network has a port profile.
    pub profile: bool,
    /// Objects with a number.
    pub objects: Objects,
    pub(crate) rounds: Memo<(nic_task::Sight, usize), nic_task::Round>,
    pub(crate) verdicts: Memo<vm_task::Sight, vm_task::Verdict>,
    pub(crate) steps: Memo<(Api, bool), Id>,
    pub(crate) writes: Memo<(Api, usize), operator::Write>,
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The operator reconciles the migration.
    Migration,
    /// The same, when a deadline has passed.
    Late,
    /// The operator reconciles a NIC, or one after the other.
    Nic(Option<usize>),
    /// The task of a NIC, or of each, hears what the API server has.
    Hear(usize, Option<usize>),
    /// What a NIC's task has to say is written, and reaches the operator.
    Publish(usize, Option<usize>),
    /// An agent that was held up goes on; one that has died is started again.
    GoOn(usize),
    /// The QEMUs go on.
    Happens(Happens),
    /// A kubelet says that a pod's containers have ended.
    PodEnds(usize),
    /// A kubelet ends what a pod that was deleted has left.
    Reap(usize),
    /// A QEMU answers again.
    Speak(usize),
    /// The switch answers a node again.
    Answer(usize),
    /// Who waits for the switch gives up for a while.
    TimeOut(usize),
    /// The operator's caches hear of all that there is.
    CatchUp,
    /// A person decides.
    Decide(Choice),
    /// A user tells the NICs where their traffic is to run.
    Tell(Option<Aside>),
    /// A PF of a node is drained, or undrained.
    Drain(usize, u8),
    /// A PF of a node loses its link for long, or finds it.
    Link(usize, u8),
    /// A fault.
    Fault(Fault),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// An agent dies.
    Crash(usize),
    /// The target's agent dies while it starts the VM that has come, before or after QEMU has done so.
    DieStarting {
        /// Whether QEMU has started it.
        ran: bool,
    },
    /// The source's agent dies between the note that the VM may leave and the command to QEMU.
    DieLetting,
    /// An agent is held up.
    HoldUp(usize),
    /// A QEMU does not answer any more.
    Mute(usize),
    /// A QEMU ends.
    Die(usize),
    /// A QEMU that has ended is started again in its pod: no fault as such, but there is no end to it.
    Restart(usize),
    /// A pod's object is deleted by force.
    ForceDelete(usize),
    /// The stream between the QEMUs breaks off.
    BreakOff,
    /// The target cannot load the VM.
    Refuse,
    /// The migration is deleted.
    Cancel,
    /// An agent is so slow that a deadline passes.
    Late,
    /// An agent is held up while a NIC is halfway between two places.
    Halfway(usize, usize),
    /// The switch does not answer a node, or refuses it the profile.
    Switch(usize, Switch),
    /// The operator does not hear of changes: of the migration or, with an end, of that end's attachments.
    Lag(Option<usize>),
}

impl Model {
    /// A world whose nodes have this many VFs each, with a VM that has this many NICs, which a user tells so often where to be.
    pub fn new(vfs: u8, nics: usize, tells: u8, pairing: Pairing) -> Self {
        Self {
            vfs,
            nics: nics.clamp(1, NICS),
            tells,
            turns: 0,
            standby: StandbyKind::Macvtap,
            pairing,
            profile: false,
            objects: Objects::default(),
            rounds: Memo::default(),
            verdicts: Memo::default(),
            steps: Memo::default(),
            writes: Memo::default(),
        }
    }

    /// The same in which PFs are so often drained or undrained, or lose their link or find it.
    #[must_use]
    pub fn with_turns(self, turns: u8) -> Self {
        Self { turns, ..self }
    }

    /// The same in which the NICs have no standby.
    #[must_use]
    pub fn without_standby(self) -> Self {
        Self {
            standby: StandbyKind::None,
            ..self
        }
    }

    /// The same on a network that has a port profile.
    #[must_use]
    pub fn with_profile(self) -> Self {
        Self {
            profile: true,
            ..self
        }
    }

    /// All NICs, or each alone while one may be ahead of the other.
    fn which(&self, state: &State) -> impl Iterator<Item = Option<usize>> + use<> {
        let alone = if self.nics > 1 && state.splits > 0 {
            self.nics
        } else {
            0
        };
        std::iter::once(None).chain((0..alone).map(Some))
    }

    /// The NICs that are meant.
    fn these(&self, which: Option<usize>) -> std::ops::Range<usize> {
        which.map_or(0..self.nics, |n| n..n + 1)
    }

    /// What a person may decide now: at any moment once it was asked for. Who lets the source go on has seen to it that the target
    /// does not run, and that nothing there will start it.
    pub fn choices(&self, state: &State) -> Vec<Choice> {
        if !self.was_asked(state) || state.api.decision.is_some() {
            return Vec::new();
        }
        let mut choices = vec![Choice::AbandonSource];
        let (qemu, agent) = (&state.nodes[TARGET].qemu, state.nodes[TARGET].agent);
        let safe = !qemu.alive || !qemu.runs() && agent == Agent::Down && !self.may_listen(state);
        choices.extend(safe.then_some(Choice::ResumeSource));
        choices
    }

    fn faults(&self, state: &State) -> Vec<Fault> {
        let mut faults = Vec::new();
        for end in ENDS {
            let node = &state.nodes[end];
            if node.agent != Agent::Down {
                faults.push(Fault::Crash(end));
            }
            if self.profile && node.switch == Switch::Answers {
                faults.extend([Switch::Silent, Switch::Refuses].map(|how| Fault::Switch(end, how)));
            }
            if node.agent == Agent::Prompt {
                faults.push(Fault::HoldUp(end));
                faults.extend((0..self.nics).map(|n| Fault::Halfway(end, n)));
            }
            if node.qemu.alive {
                faults.push(Fault::Die(end));
                if !node.qemu.mute {
                    faults.push(Fault::Mute(end));
                }
                if state.api.pods[end] == Pod::Running {
                    faults.push(Fault::ForceDelete(end));
                }
            } else if state.api.pods[end] == Pod::Running {
                faults.push(Fault::Restart(end));
            }
        }
        let sends = matches!(
            state.nodes[SOURCE].qemu.migration,
            Transfer::Active | Transfer::PreSwitchover | Transfer::Device
        );
        if sends {
            faults.push(Fault::BreakOff);
        }
        if state.nodes[SOURCE].qemu.migration == Transfer::Active
            && state.nodes[SOURCE].agent == Agent::Prompt
        {
            faults.push(Fault::DieLetting);
        }
        if state.nodes[TARGET].qemu.migration == Transfer::Active {
            faults.push(Fault::Refuse);
        }
        if state.stream == Stream::Sent && state.nodes[TARGET].agent == Agent::Prompt {
            faults.extend([false, true].map(|ran| Fault::DieStarting { ran }));
        }
        if state.lag == Lag::None {
            faults.extend([None, Some(SOURCE), Some(TARGET)].map(Fault::Lag));
        }
        if !self.phase(state).is_final() {
            faults.push(Fault::Late);
            if !state.api.deleting {
                faults.push(Fault::Cancel);
            }
        }
        faults
    }

    fn act(&self, next: &mut State, action: Action) {
        if let Action::Nic(Some(_)) | Action::Hear(_, Some(_)) | Action::Publish(_, Some(_)) = action {
            next.splits = next.splits.saturating_sub(1);
        }
        self.do_it(next, action);
        for end in ENDS {
            self.agent(next, end);
        }
        // What QEMU does by itself is over when the source does not run, or its agent has had its turn.
        let source = &next.nodes[SOURCE];
        let late = source.agent != Agent::Prompt || !source.qemu.answers();
        next.truth.own_double &= source.qemu.runs() && late;
    }

    /// An agent does all that there is to do on its node.
    fn agent(&self, next: &mut State, end: usize) {
        if next.nodes[end].agent != Agent::Prompt {
            return;
        }
        vm_task::forget(next, end);
        // Two NICs, a few steps of the migration each.
        for _ in 0..20 {
            let before = next.nodes[end];
            vm_task::drive(self, next, end);
            for n in 0..self.nics {
                nic_task::round(self, next, end, n, false, false);
            }
            if next.nodes[end] == before {
                return;
            }
        }
    }

    fn do_it(&self, next: &mut State, action: Action) {
        match action {
            Action::Migration => operator::reconcile_migration(self, next, false),
            Action::Late => operator::reconcile_migration(self, next, true),
            Action::Nic(which) => {
                for n in self.these(which) {
                    operator::reconcile_nic(self, next, n);
                }
            }
            Action::Hear(end, which) => {
                for n in self.these(which) {
                    nic_task::round(self, next, end, n, true, false);
                }
            }
            Action::Publish(end, which) => {
                for n in self.these(which) {
                    nic_task::publish(self, next, end, n);
                }
            }
            Action::GoOn(end) => next.nodes[end].agent = Agent::Prompt,
            Action::Happens(what) => qemu::happen(next, what),
            Action::PodEnds(end) => next.api.pods[end] = Pod::Ended,
            Action::Reap(end) => {
                next.nodes[end].qemu = Qemu::dead();
            }
            Action::Speak(end) => next.nodes[end].qemu.mute = false,
            Action::Answer(end) => port::answers(&mut next.nodes[end]),
            Action::TimeOut(end) => port::time_out(&mut next.nodes[end]),
            Action::CatchUp => next.lag = Lag::None,
            Action::Decide(choice) => next.api.decision = Some(choice),
            Action::Tell(aside) => {
                next.tells = next.tells.saturating_sub(1);
                next.api.aside = aside;
            }
            Action::Drain(end, pf) => {
                next.turns = next.turns.saturating_sub(1);
                let pf = &mut next.nodes[end].pfs[usize::from(pf)];
                pf.drained = !pf.drained;
            }
            Action::Link(end, pf) => {
                next.turns = next.turns.saturating_sub(1);
                let pf = &mut next.nodes[end].pfs[usize::from(pf)];
                pf.dark = !pf.dark;
            }
            Action::Fault(fault) => {
                next.faults = next.faults.saturating_sub(1);
                self.fail(next, fault);
            }
        }
    }

    fn fail(&self, next: &mut State, fault: Fault) {
        match fault {
            Fault::Crash(end) => nic_task::crash(next, end),
            Fault::HoldUp(end) => next.nodes[end].agent = Agent::HeldUp,
            Fault::Switch(end, how) => next.nodes[end].switch = how,
            Fault::Mute(end) => next.nodes[end].qemu.mute = true,
            Fault::Die(end) => next.nodes[end].qemu = Qemu::dead(),
            Fault::DieStarting { ran } => vm_task::die_starting(self, next, ran),
            Fault::DieLetting => vm_task::die_letting(self, next),
            Fault::Restart(end) => qemu::restart(next, end),
            Fault::ForceDelete(end) => next.api.pods[end] = Pod::Gone,
            Fault::BreakOff => qemu::break_off(next),
            Fault::Refuse => qemu::refuse(next),
            Fault::Cancel => next.api.deleting = true,
            Fault::Late => operator::reconcile_migration(self, next, true),
            Fault::Lag(None) => next.lag = Lag::Migration(next.api.migration),
            Fault::Lag(Some(end)) => {
                let known = next.api.attachments[end];
                next.lag = Lag::Attachments(u8::try_from(end).unwrap_or_default(), known);
            }
            Fault::Halfway(end, n) => nic_task::halfway(self, next, end, n),
        }
    }

    /// The migration's status.
    pub fn status(&self, state: &State) -> QemuMigrationStatus {
        let status = self.objects.migrations.get(state.api.migration);
        status.cloned().unwrap_or_default()
    }

    /// Where the migration is.
    pub fn phase(&self, state: &State) -> MigrationPhase {
        let status = self.objects.migrations.get(state.api.migration);
        status.map(|status| status.phase).unwrap_or_default()
    }

    /// Whether an agent that starts at the target would be told to take the VM.
    fn may_listen(&self, state: &State) -> bool {
        let mut specs = state.api.attachments[TARGET].iter().flatten();
        specs.any(|attachment| {
            let spec = self.objects.specs.get(attachment.spec);
            let order = spec.and_then(|spec| spec.migration.as_ref());
            order.is_some_and(|order| order.step == MigrationStep::Listen)
        })
    }

    /// Whether a person was asked to decide.
    fn was_asked(&self, state: &State) -> bool {
        let status = self.objects.migrations.get(state.api.migration);
        status.is_some_and(|status| status.undecided_since.is_some())
    }

    /// Whether it says that a person has to decide.
    pub fn needs_decision(&self, state: &State) -> bool {
        let status = self.objects.migrations.get(state.api.migration);
        status.is_some_and(|status| {
            let condition = conditions::find(&status.conditions, types::SUCCEEDED);
            !status.phase.is_final()
                && condition.is_some_and(|condition| condition.reason == reasons::NEEDS_DECISION)
        })
    }
}

/// What NICs that are told this may be told next.
pub(crate) fn words(now: Option<Aside>) -> impl Iterator<Item = Option<Aside>> {
    let all = [None, Some(Aside::GiveVfBack), Some(Aside::KeepVf)];
    all.into_iter().filter(move |next| *next != now)
}

impl System for Model {
    type State = State;
    type Action = Action;

    /// A VM at rest with its NICs on their VFs, a pod that waits for it, and a migration that was just made.
    fn start(&self, faults: u8, splits: u8) -> State {
        let node = |run| Node {
            agent: Agent::Prompt,
            qemu: Qemu::fresh(run),
            vm: Vm::NEW,
            nics: [Nic::NONE; NICS],
            pfs: [Pf::default(); PFS],
            switch: Switch::Answers,
        };
        let mut state = State {
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
            truth: Truth::default(),
            faults: 0,
            splits: 0,
            tells: 0,
            turns: 0,
        };
        for _ in 0..30 {
            state = self.pass(&state);
        }
        state.api.migration = self.objects.migration_id(QemuMigrationStatus::default());
        (state.faults, state.splits, state.tells) = (faults, splits, self.tells);
        state.turns = self.turns;
        state.sorted(self.nics)
    }

    fn actions(&self, state: &State) -> Vec<Action> {
        // What follows once it is over, and the VM on no way, is looked at by letting it come to rest.
        if self.phase(state).is_final() && matches!(state.stream, Stream::None | Stream::Over) {
            return Vec::new();
        }
        let mut actions = Vec::with_capacity(48);
        actions.push(Action::Migration);
        actions.extend(self.which(state).map(Action::Nic));
        for end in ENDS {
            let node = &state.nodes[end];
            if node.agent == Agent::Prompt {
                let both = |n| [Action::Hear(end, n), Action::Publish(end, n)];
                actions.extend(self.which(state).flat_map(both));
            } else {
                actions.push(Action::GoOn(end));
            }
            if node.qemu.alive && node.qemu.mute {
                actions.push(Action::Speak(end));
            }
            if node.switch != Switch::Answers {
                actions.push(Action::Answer(end));
                actions.extend((node.agent == Agent::Prompt).then_some(Action::TimeOut(end)));
            }
            if !node.qemu.alive && state.api.pods[end] == Pod::Running {
                actions.push(Action::PodEnds(end));
            }
        }
        actions.extend((state.lag != Lag::None).then_some(Action::CatchUp));
        actions.extend(HAPPENS.map(Action::Happens));
        actions.extend(self.choices(state).into_iter().map(Action::Decide));
        if state.tells > 0 {
            actions.extend(words(state.api.aside).map(Action::Tell));
        }
        if state.turns > 0 {
            let pfs = ENDS
                .into_iter()
                .flat_map(|end| (0..self.vfs).map(move |pf| (end, pf)));
            actions.extend(pfs.flat_map(|(end, pf)| [Action::Drain(end, pf), Action::Link(end, pf)]));
        }
        if state.faults > 0 {
            actions.extend(self.faults(state).into_iter().map(Action::Fault));
        }
        actions
    }

    fn next(&self, state: &State, action: Action) -> State {
        let mut next = *state;
        self.act(&mut next, action);
        next.sorted(self.nics)
    }

    fn pass(&self, state: &State) -> State {
        let mut next = *state;
        (next.faults, next.splits, next.tells, next.lag) = (0, 0, 0, Lag::None);
        next.turns = 0;
        for end in ENDS {
            next.nodes[end].qemu.mute = false;
            match (next.nodes[end].qemu.alive, next.api.pods[end]) {
                (false, Pod::Running) => self.act(&mut next, Action::PodEnds(end)),
                (true, Pod::Gone) => self.act(&mut next, Action::Reap(end)),
                _ => {}
            }
            self.act(&mut next, Action::GoOn(end));
            if next.nodes[end].switch != Switch::Answers {
                self.act(&mut next, Action::Answer(end));
            }
            self.act(&mut next, Action::Hear(end, None));
            self.act(&mut next, Action::Publish(end, None));
        }
        for what in HAPPENS {
            self.act(&mut next, Action::Happens(what));
        }
        self.act(&mut next, Action::Migration);
        self.act(&mut next, Action::Nic(None));
        next.sorted(self.nics)
    }

    fn safe(&self, state: &State) -> Result<(), Broken> {
        invariants::safe(state)
    }

    fn calm(&self, state: &State) -> State {
        State {
            faults: 0,
            splits: 0,
            tells: 0,
            turns: 0,
            lag: Lag::None,
            ..*state
        }
    }

    fn rest(&self, state: &State) -> Rest<State> {
        // Time passes, and a deadline with it.
        let late = self.next(state, Action::Late);
        if self.phase(&late) != self.phase(state) {
            return Rest::Goes(late);
        }
        if !self.needs_decision(&late) || late.api.decision.is_some() {
            return Rest::Stays(invariants::rested(self, &late));
        }
        // Whatever a person says, it ends.
        let choices = self.choices(&late).into_iter();
        Rest::Asks(
            choices
                .map(|choice| self.next(&late, Action::Decide(choice)))
                .collect(),
        )
    }

    fn show(&self, state: &State) -> String {
        show::state(self, state)
    }
}
