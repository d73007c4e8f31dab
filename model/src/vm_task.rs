//! The VM's task: its migration's steps and the hand-over. What is done is the agent's own decision.

use std::collections::BTreeMap;

use hybridnic_agent::journal::{self, Arrival, Custody, SaveStage};
use hybridnic_agent::machine::NicEntry;
use hybridnic_agent::machine::qemu::migration::{self, Action, Certified, Inputs, VmSeen};
use hybridnic_api::v1alpha1::{AttachmentState, MigrationReport, MigrationState};
use hybridnic_qmp::commands::{MigrationInfo, RunState};

use crate::model::Model;
use crate::objects::{MIGRATION, MOVE, NIC, Objects};
use crate::qemu;
use crate::state::{
    Agent, Begun, Choice, Id, NICS, Node, Qemu, Run, SOURCE, Shown, Stage, State, Stream, TARGET, Task,
    Transfer, Vm,
};

/// All that the VM's task goes by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sight {
    shown: [Option<Shown>; NICS],
    qemu: Option<Qemu>,
    vm: Vm,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    action: Option<Act>,
    report: Id,
    /// What is reported where QEMU refuses.
    refused: Id,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Certify,
    Listen { tls: bool },
    Run,
    Forgo,
    Start { tls: bool },
    HandOver,
    Hold,
    Cancel,
    Resume,
}

/// The VM's task looks, decides, reports and acts.
pub fn drive(model: &Model, state: &mut State, end: usize) {
    let node = &mut state.nodes[end];
    if node.nics.iter().all(|nic| nic.task != Task::Runs) {
        return;
    }
    node.vm.tried = true;
    let sight = Sight::of(model, node);
    let verdict = model.verdicts.get(&sight, || sight.decide(model));
    if verdict.report != 0 {
        node.vm.report = verdict.report;
    }
    if let Some(action) = verdict.action
        && !act(state, end, action)
    {
        state.nodes[end].vm.report = verdict.refused;
    }
}

/// What is remembered of the VM goes with the last attachment to its pod.
pub(crate) fn forget(state: &mut State, end: usize) {
    let node = &mut state.nodes[end];
    let here = node.nics.iter().any(|nic| nic.task == Task::Runs);
    if !here && state.api.attachments[end].iter().all(Option::is_none) {
        (node.vm.begun, node.vm.certified) = (None, false);
    }
}

/// What the journal has of a migration that was begun.
pub fn begun(begun: Begun) -> journal::Begun {
    let saving = begun.saving.map(|stage| journal::Saving {
        inode: 1,
        mapped: true,
        stage: match stage {
            Stage::Writing => SaveStage::Writing,
            Stage::Whole => SaveStage::Whole,
            Stage::Named => SaveStage::Named(1),
            Stage::Spoilt => SaveStage::Spoilt,
        },
    });
    journal::Begun {
        migration: MOVE[usize::from(begun.of)].to_owned(),
        process: None,
        arrival: begun.arrival,
        custody: begun.custody,
        saving,
    }
}

/// What QEMU says of itself.
pub fn seen(qemu: &Qemu) -> VmSeen {
    let status = match qemu.migration {
        Transfer::None => "none",
        Transfer::Setup => "setup",
        Transfer::Active => "active",
        Transfer::PreSwitchover => "pre-switchover",
        Transfer::Device => "device",
        Transfer::Completed => "completed",
        Transfer::Failed => "failed",
        Transfer::Cancelled => "cancelled",
    };
    let mut info = serde_json::json!({ "status": status });
    if qemu.listens {
        info["socket-address"] = serde_json::json!([{"type": "inet", "host": "0.0.0.0", "port": "4001"}]);
    }
    VmSeen {
        run: match qemu.run {
            Run::Incoming => RunState::InMigrate,
            Run::Paused => RunState::Paused,
            Run::Running => RunState::Running,
            Run::Finishing => RunState::FinishMigrate,
            Run::HandedOver => RunState::PostMigrate,
        },
        info: serde_json::from_value::<MigrationInfo>(info).unwrap_or_default(),
    }
}

impl Sight {
    fn of(model: &Model, node: &Node) -> Self {
        let report = node.vm.report;
        Self {
            shown: node.nics.map(|nic| nic.shown),
            qemu: node.qemu.alive.then_some(node.qemu),
            vm: Vm {
                report: if model.objects.is_final(report) { report } else { 0 },
                ..node.vm
            },
        }
    }

    fn decide(&self, model: &Model) -> Verdict {
        let nics = entries(&model.objects, &self.shown);
        let here = self.vm.begun.is_none_or(|begun| begun.here);
        let qemu = self.qemu.filter(|_| here);
        let seen = qemu.filter(Qemu::answers).map(|qemu| seen(&qemu));
        let begun = self.vm.begun.map(begun);
        let end = match &seen {
            Some(seen) => migration::EndSeen::Up(seen),
            None if qemu.is_none() && begun.is_some() => migration::EndSeen::Ended,
            None => migration::EndSeen::Silent,
        };
        let said = model.objects.reports.get(self.vm.report);
        let certified = self.vm.certified.then(|| Certified::By("CA".to_owned()));
        let verdict = migration::decide(&Inputs {
            nics: &nics,
            end,
            begun: begun.as_ref(),
            said,
            certified: certified.as_ref(),
            file: None,
        });
        let tls =
            migration::agreed(&nics).is_some_and(|order| order.tls.is_some_and(|tls| tls.peer_ca.is_some()));
        let action = verdict.action.and_then(|action| match action {
            Action::Certify => Some(Act::Certify),
            Action::Listen => Some(Act::Listen { tls }),
            Action::Run => Some(Act::Run),
            Action::Forgo => Some(Act::Forgo),
            Action::Start(_) => Some(Act::Start { tls }),
            Action::HandOver => Some(Act::HandOver),
            Action::Hold => Some(Act::Hold),
            Action::Cancel => Some(Act::Cancel),
            Action::Resume => Some(Act::Resume),
            // No VM of this world goes to a file.
            Action::File(_) => None,
        });
        let refused = MigrationReport {
            kept: true,
            ..MigrationReport::new(MIGRATION, MigrationState::Failed)
        };
        Verdict {
            action,
            report: model.objects.report_id(verdict.report),
            refused: model.objects.report_id(Some(refused)),
        }
    }
}

/// What the VM's NICs show to its task.
pub(crate) fn entries(objects: &Objects, shown: &[Option<Shown>; NICS]) -> BTreeMap<String, NicEntry> {
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
    shown.iter().enumerate().filter_map(entry).collect()
}

/// A state by its number.
pub(crate) fn state_of(number: u8) -> AttachmentState {
    use AttachmentState::{Aside, Detached, FastPath, Pending, Reserved, Standby};
    [Pending, Reserved, Standby, Aside, FastPath, Detached]
        .into_iter()
        .find(|state| *state as u8 == number)
        .unwrap_or_default()
}

/// Does it; whether QEMU took it.
fn act(state: &mut State, end: usize, action: Act) -> bool {
    let node = &mut state.nodes[end];
    match action {
        Act::Certify => node.vm.certified = true,
        Act::Listen { tls } => {
            node.vm.certified = true;
            node.vm.begun = Some(Begun {
                of: 0,
                here: true,
                arrival: None,
                custody: Custody::Unknown,
                saving: None,
            });
            (node.qemu.stopped, node.qemu.listens, node.qemu.migration) = (true, true, Transfer::Setup);
            node.qemu.tls = tls;
        }
        Act::Run => {
            start(node);
            state.truth.arrived |= end == TARGET;
        }
        Act::Forgo => arrives(node, None),
        // QEMU migrates no VM that has a VF.
        Act::Start { .. } if node.qemu.vf.iter().any(Option::is_some) => return false,
        Act::Start { tls } => {
            node.vm.begun = Some(Begun {
                of: 0,
                here: true,
                arrival: None,
                custody: Custody::Here,
                saving: None,
            });
            (node.qemu.migration, node.qemu.tls, state.stream) = (Transfer::Setup, tls, Stream::None);
        }
        Act::HandOver => hand_over(node),
        Act::Hold => node.qemu.run = Run::Paused,
        Act::Cancel => qemu::cancel(state, end),
        Act::Resume if node.qemu.run == Run::Finishing => {}
        Act::Resume => {
            set_custody(node, Custody::Here);
            node.qemu.run = Run::Running;
            let decided = state.api.decision == Some(Choice::ResumeSource);
            state.truth.zombie |= end == SOURCE && state.truth.arrived && !decided;
        }
    }
    true
}

/// Source, at the hand-over: silences all NICs, then lets QEMU go on.
fn hand_over(node: &mut Node) {
    set_all(node, false);
    set_custody(node, Custody::Left);
    node.qemu.migration = Transfer::Device;
}

pub(crate) fn set_custody(node: &mut Node, custody: Custody) {
    if let Some(begun) = &mut node.vm.begun {
        begun.custody = custody;
    }
}

/// Target: the VM is started, and the journal says so before and after.
fn start(node: &mut Node) {
    let loaded = node.qemu.run == Run::Paused;
    if loaded {
        set_all(node, true);
        node.qemu.run = Run::Running;
    }
    arrives(node, Some(Arrival::Started));
}

pub(crate) fn arrives(node: &mut Node, arrival: Option<Arrival>) {
    if let Some(begun) = &mut node.vm.begun {
        begun.arrival = arrival;
    }
}

pub(crate) fn set_all(node: &mut Node, up: bool) {
    for nic in &mut node.nics {
        if nic.shown.is_some_and(|shown| shown.macvtap) && nic.macvtap.is_some() {
            nic.macvtap = Some(up);
        }
    }
}

/// The VM comes, and the target's agent dies while it starts it.
pub fn die_starting(model: &Model, state: &mut State, ran: bool) {
    state.nodes[TARGET].agent = Agent::HeldUp;
    qemu::happen(state, qemu::Happens::Load);
    let node = &mut state.nodes[TARGET];
    if Sight::of(model, node).decide(model).action == Some(Act::Run) && node.qemu.run == Run::Paused {
        set_all(node, true);
        if ran {
            node.qemu.run = Run::Running;
            state.truth.arrived = true;
        }
        arrives(node, Some(Arrival::Starting));
    }
    crate::nic_task::crash(state, TARGET);
}

/// The VM is to leave, and the source's agent dies when it has noted that, and QEMU has not been told.
pub fn die_letting(model: &Model, state: &mut State) {
    state.nodes[SOURCE].agent = Agent::HeldUp;
    qemu::happen(state, qemu::Happens::Converge);
    let node = &mut state.nodes[SOURCE];
    if Sight::of(model, node).decide(model).action == Some(Act::HandOver) {
        set_all(node, false);
        set_custody(node, Custody::Left);
    }
    crate::nic_task::crash(state, SOURCE);
}
