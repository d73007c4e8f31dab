//! The world as a system of states and actions.

use hybridnic_api::v1alpha1::Aside;

use super::agent;
use super::invariants;
use super::nic_task::NicSight;
use super::operator::reconcile_nic;
use super::runtime::{self, Happens, happen};
use super::show;
use super::state::{
    Held, Kube, Lag, MOVES, Migration, NODES, PODS, Phase, Place, Pod, PodPhase, Qemu, Run, Sandbox, State,
    Truth, View,
};
use super::vm_task::{Verdict, VmSight};
use crate::model::words;
use crate::nic_task::Round;
use crate::objects::{Memo, Objects};
use crate::operator::Write;
use crate::state::{Agent, NICS};
use crate::system::{Broken, Rest, System};

/// What is the same in all states, and what was worked out of it.
pub struct World {
    /// VFs of each node.
    pub vfs: u8,
    /// NICs of the VM, one or two.
    pub nics: usize,
    /// How often a user tells the NICs where their traffic is to run.
    pub tells: u8,
    /// Whether there may be a second migration after the first.
    pub again: bool,
    /// Whether all news arrive at once, unless a fault holds them up. Otherwise each may take any time.
    pub prompt: bool,
    /// Objects with a number.
    pub objects: Objects,
    pub(crate) rounds: Memo<(NicSight, usize), Round>,
    pub(crate) verdicts: Memo<VmSight, Verdict>,
    pub(crate) writes: Memo<(View, usize), Write>,
}

/// Something that happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The operator reconciles a NIC, or one after the other.
    Nic(Option<usize>),
    /// The task of a NIC in a pod, or of each, hears what the API server has.
    Hear(usize, Option<usize>),
    /// What a NIC's task has to say is written, and reaches the operator.
    Publish(usize, Option<usize>),
    /// An agent that was held up goes on; one that has died is started again.
    GoOn(usize),
    /// A monitor answers again.
    Speak(usize),
    /// All hear what they have not heard yet.
    CatchUp,
    /// KubeVirt and what it drives go on.
    Happens(Happens),
    /// A user tells the NICs where their traffic is to run.
    Tell(Option<Aside>),
    /// A fault.
    Fault(Fault),
}

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A node's agent dies.
    Crash(usize),
    /// A node's agent is held up.
    HoldUp(usize),
    /// The same, while a NIC in a pod is halfway between two places.
    Halfway(usize, usize),
    /// A QEMU's monitor does not answer any more.
    Mute(usize),
    /// A QEMU ends.
    Die(usize),
    /// A pod is deleted.
    DeletePod(usize),
    /// A pod's object is deleted by force.
    ForceDelete(usize),
    /// A sandbox waits no longer, and is made again.
    GiveUpSandbox(usize),
    /// The barrier is missed: a pod's links are there although the gate was not opened.
    Barrier(usize),
    /// The transfer fails.
    Fail,
    /// The target fails when it has all of the VM.
    FailLate,
    /// A migration is deleted.
    Delete(usize),
    /// KubeVirt says that a migration has failed, whatever QEMU does.
    WrongWord(usize),
    /// The guest does not let go of the first NIC's VF.
    Keep(usize),
    /// The operator does not hear of changes: of KubeVirt's objects and pods or of a pod's attachments.
    Lag(Option<usize>),
    /// News are held up.
    Hold(Held),
}

impl World {
    /// A world whose nodes have this many VFs each, with a VM that has this many NICs, which a user tells so often where to be.
    pub fn new(vfs: u8, nics: usize, tells: u8, again: bool, prompt: bool) -> Self {
        Self {
            vfs,
            nics: nics.clamp(1, NICS),
            tells,
            again,
            prompt,
            objects: Objects::default(),
            rounds: Memo::default(),
            verdicts: Memo::default(),
            writes: Memo::default(),
        }
    }

    /// The NICs that are meant.
    fn these(&self, which: Option<usize>) -> std::ops::Range<usize> {
        which.map_or(0..self.nics, |n| n..n + 1)
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

    fn faults(&self, state: &State) -> Vec<Fault> {
        let mut faults = Vec::new();
        for node in 0..NODES {
            if state.agents[node] != Agent::Down {
                faults.push(Fault::Crash(node));
            }
            if state.agents[node] == Agent::Prompt {
                faults.push(Fault::HoldUp(node));
            }
        }
        for pod in 0..PODS {
            let (of, place) = (state.kube.pods[pod], &state.places[pod]);
            if state.agent(pod) == Agent::Prompt && place.attachments.iter().any(Option::is_some) {
                faults.extend((0..self.nics).map(|n| Fault::Halfway(pod, n)));
            }
            if place.qemu.alive {
                faults.push(Fault::Die(pod));
                if !place.qemu.mute {
                    faults.push(Fault::Mute(pod));
                }
                if place.qemu.runs() && !place.qemu.keeps.contains(&true) {
                    faults.push(Fault::Keep(pod));
                }
            }
            if of.phase != PodPhase::Gone {
                faults.push(Fault::ForceDelete(pod));
                if !of.leaves {
                    faults.push(Fault::DeletePod(pod));
                }
            }
            if let Sandbox::Waits(_) = place.sandbox {
                faults.extend([Fault::GiveUpSandbox(pod), Fault::Barrier(pod)]);
            }
        }
        for (k, of) in state.kube.moves.iter().enumerate() {
            if of.there && !of.deleting && of.is_over() {
                // One that is long over.
                faults.push(Fault::Delete(k));
            }
            if !of.is_over() && of.there {
                faults.push(Fault::WrongWord(k));
                if !of.deleting {
                    faults.push(Fault::Delete(k));
                }
            }
        }
        if let Some(k) = state.stream.map(usize::from) {
            if state.places[state.source(k)].qemu.is_migrating() {
                faults.push(Fault::Fail);
            } else if usize::from(state.truth.home) != State::target(k) {
                faults.push(Fault::FailLate);
            }
        }
        if state.lag == Lag::None {
            faults.push(Fault::Lag(None));
            let pods = (0..PODS).filter(|pod| state.places[*pod].attachments.iter().any(Option::is_some));
            faults.extend(pods.map(|pod| Fault::Lag(Some(pod))));
        }
        if self.prompt && state.held == Held::Nobody {
            faults.push(Fault::Hold(Held::Operator));
            for pod in (0..PODS).filter(|pod| state.places[*pod].attachments.iter().any(Option::is_some)) {
                let pod = u8::try_from(pod).unwrap_or_default();
                faults.extend([Held::Wants(pod), Held::Words(pod)].map(Fault::Hold));
            }
        }
        faults
    }

    /// Everybody hears what concerns them, and does what there is to do.
    fn spread(&self, next: &mut State) {
        for _ in 0..60 {
            let before = *next;
            for node in 0..NODES {
                agent::turn(self, next, node);
            }
            for pod in 0..PODS {
                if next.agent(pod) != Agent::Prompt {
                    continue;
                }
                let name = u8::try_from(pod).unwrap_or_default();
                for n in 0..self.nics {
                    if next.held != Held::Wants(name) {
                        agent::hear(self, next, pod, n);
                    }
                    if next.held != Held::Words(name) {
                        agent::publish(self, next, pod, n);
                    }
                }
            }
            if next.held != Held::Operator {
                for n in 0..self.nics {
                    reconcile_nic(self, next, n);
                }
            }
            if *next == before {
                return;
            }
        }
    }

    fn act(&self, next: &mut State, action: Action) {
        if let Action::Nic(Some(_)) | Action::Hear(_, Some(_)) | Action::Publish(_, Some(_)) = action {
            next.splits = next.splits.saturating_sub(1);
        }
        let before = *next;
        self.do_it(next, action);
        if *next == before {
            return;
        }
        if self.prompt {
            return self.spread(next);
        }
        for node in 0..NODES {
            agent::turn(self, next, node);
        }
    }

    fn do_it(&self, next: &mut State, action: Action) {
        match action {
            Action::Nic(which) => {
                for n in self.these(which) {
                    reconcile_nic(self, next, n);
                }
            }
            Action::Hear(pod, which) => {
                for n in self.these(which) {
                    agent::hear(self, next, pod, n);
                }
            }
            Action::Publish(pod, which) => {
                for n in self.these(which) {
                    agent::publish(self, next, pod, n);
                }
            }
            Action::GoOn(node) => next.agents[node] = Agent::Prompt,
            Action::Speak(pod) => next.places[pod].qemu.mute = false,
            Action::CatchUp => (next.lag, next.held) = (Lag::None, Held::Nobody),
            Action::Happens(what) => {
                happen(next, self.nics, what);
            }
            Action::Tell(aside) => {
                next.tells = next.tells.saturating_sub(1);
                next.aside = aside;
            }
            Action::Fault(fault) => {
                next.faults = next.faults.saturating_sub(1);
                next.truth.well = false;
                self.fail(next, fault);
            }
        }
    }

    fn fail(&self, next: &mut State, fault: Fault) {
        match fault {
            Fault::Crash(node) => agent::crash(next, node),
            Fault::HoldUp(node) => next.agents[node] = Agent::HeldUp,
            Fault::Halfway(pod, n) => agent::halfway(self, next, pod, n),
            Fault::Mute(pod) => next.places[pod].qemu.mute = true,
            Fault::Die(pod) => agent::end(&mut next.places[pod].qemu),
            Fault::DeletePod(pod) => next.kube.pods[pod].leaves = true,
            Fault::ForceDelete(pod) => next.kube.pods[pod] = Pod::GONE,
            Fault::GiveUpSandbox(pod) => next.places[pod].tear_down(),
            Fault::Barrier(pod) => self.barrier(next, pod),
            Fault::Fail => {
                if let Some(k) = next.stream.map(usize::from) {
                    agent::end(&mut next.places[State::target(k)].qemu);
                    happen(next, self.nics, Happens::Miss);
                }
            }
            Fault::FailLate => {
                if let Some(k) = next.stream.map(usize::from) {
                    agent::end(&mut next.places[State::target(k)].qemu);
                }
            }
            Fault::Delete(k) => next.kube.moves[k].deleting = true,
            Fault::WrongWord(k) => next.kube.moves[k].phase = Phase::Failed,
            Fault::Keep(pod) => next.places[pod].qemu.keeps[0] = true,
            Fault::Hold(held) => next.held = held,
            Fault::Lag(None) => next.lag = Lag::Kube(next.kube),
            Fault::Lag(Some(pod)) => {
                let known = next.places[pod].attachments;
                next.lag = Lag::Attachments(u8::try_from(pod).unwrap_or_default(), known);
            }
        }
    }

    /// Somebody gives the pod its links, as our plugin would.
    fn barrier(&self, next: &mut State, pod: usize) {
        let place = &mut next.places[pod];
        let all = place.nics[..self.nics].iter().all(|nic| nic.standby.is_some());
        if all {
            for nic in &mut place.nics[..self.nics] {
                nic.macvtap = Some(false);
            }
            place.sandbox = Sandbox::Ready;
        }
    }
}

impl System for World {
    type State = State;
    type Action = Action;

    /// A VM at rest with its NICs on their VFs, and a migration whose pod has just got a node.
    fn start(&self, faults: u8, splits: u8) -> State {
        let pods = [PodPhase::Running, PodPhase::Gone, PodPhase::Gone];
        let mut state = State {
            kube: Kube {
                moves: [Migration::NONE; MOVES],
                pods: pods.map(|phase| Pod { phase, leaves: false }),
                vmi: 0,
                sent: None,
            },
            aside: None,
            nic_pods: [None; NICS],
            places: [Place::NONE; PODS],
            agents: [Agent::Prompt; NODES],
            lag: Lag::None,
            held: Held::Nobody,
            stream: None,
            again: false,
            truth: Truth {
                home: 0,
                trespass: false,
                well: true,
            },
            faults: 0,
            splits: 0,
            tells: 0,
        };
        state.kube.pods[0].phase = PodPhase::Pending;
        for _ in 0..40 {
            state = self.pass(&state);
            // It is the first pod of the VM: its QEMU runs it.
            let qemu = &mut state.places[0].qemu;
            if qemu.alive && qemu.run == Run::Incoming {
                *qemu = Qemu::fresh(Run::Running);
                state.kube.pods[0].phase = PodPhase::Running;
            }
        }
        state.kube.moves[0] = Migration {
            phase: Phase::Scheduling,
            deleting: false,
            there: true,
            source: 0,
        };
        state.kube.pods[1].phase = PodPhase::Pending;
        (state.faults, state.splits, state.again) = (faults, splits, self.again);
        state.tells = self.tells;
        state
    }

    fn actions(&self, state: &State) -> Vec<Action> {
        let mut actions = Vec::new();
        if !self.prompt {
            actions.extend(self.which(state).map(Action::Nic));
        }
        for node in 0..NODES {
            if state.agents[node] != Agent::Prompt {
                actions.push(Action::GoOn(node));
            }
        }
        for pod in 0..PODS {
            let place = &state.places[pod];
            let known = place.attachments.iter().any(Option::is_some);
            let runs = place.nics.iter().any(|nic| nic.task != crate::state::Task::None);
            if !self.prompt && state.agent(pod) == Agent::Prompt && (known || runs) {
                let both = |n| [Action::Hear(pod, n), Action::Publish(pod, n)];
                actions.extend(self.which(state).flat_map(both));
            }
            if place.qemu.alive && place.qemu.mute {
                actions.push(Action::Speak(pod));
            }
        }
        let late = state.lag != Lag::None || state.held != Held::Nobody;
        actions.extend(late.then_some(Action::CatchUp));
        actions.extend(runtime::all().map(Action::Happens));
        if state.tells > 0 {
            actions.extend(words(state.aside).map(Action::Tell));
        }
        if state.faults > 0 {
            actions.extend(self.faults(state).into_iter().map(Action::Fault));
        }
        actions
    }

    fn next(&self, state: &State, action: Action) -> State {
        let mut next = *state;
        self.act(&mut next, action);
        next
    }

    fn safe(&self, state: &State) -> Result<(), Broken> {
        invariants::safe(state)
    }

    fn calm(&self, state: &State) -> State {
        State {
            faults: 0,
            splits: 0,
            tells: 0,
            lag: Lag::None,
            held: Held::Nobody,
            again: false,
            ..*state
        }
    }

    fn pass(&self, state: &State) -> State {
        let mut next = *state;
        for pod in 0..PODS {
            next.places[pod].qemu.mute = false;
        }
        for node in 0..NODES {
            self.act(&mut next, Action::GoOn(node));
        }
        for pod in 0..PODS {
            self.act(&mut next, Action::Hear(pod, None));
            self.act(&mut next, Action::Publish(pod, None));
        }
        self.act(&mut next, Action::Nic(None));
        let stays = |what: &Happens| !matches!(what, Happens::LetsGo(_) | Happens::Name);
        for what in runtime::all().filter(stays) {
            self.act(&mut next, Action::Happens(what));
        }
        next
    }

    fn rest(&self, state: &State) -> Rest<State> {
        // KubeVirt waits a quarter of an hour for a pod.
        let mut late = *state;
        let waits = late
            .kube
            .moves
            .iter_mut()
            .find(|of| of.phase == Phase::Scheduling);
        if let Some(waits) = waits {
            waits.phase = Phase::Failed;
            return Rest::Goes(late);
        }
        Rest::Stays(invariants::rested(self, state))
    }

    fn show(&self, state: &State) -> String {
        show::state(self, state)
    }
}
