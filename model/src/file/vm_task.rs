//! The VM's task where the VM goes to a file or comes from one. What is done is the agent's own decision.

use hybridnic_agent::machine::qemu::migration::{self, Action, FileAction, FileSeen, Inputs};
use hybridnic_agent::machine::qemu::state_file::{Manifest, SavedMachine};
use hybridnic_api::v1alpha1::{MigrationReport, MigrationState};

use super::state::{Known, State};
use super::steps;
use super::world::World;
use crate::objects::MOVE;
use crate::state::{Id, NICS, Node, Qemu, Shown, Task, Vm};
use crate::vm_task;

/// All that the VM's task goes by.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Sight {
    end: usize,
    shown: [Option<Shown>; NICS],
    qemu: Option<Qemu>,
    vm: Vm,
    known: Known,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Verdict {
    action: Option<Act>,
    report: Id,
    /// What is reported where QEMU refuses to begin.
    refused: Id,
}

/// What the VM's task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Something with the file.
    File(FileAction),
    /// QEMU stops writing.
    Cancel,
    /// The VM that was loaded is started.
    Run,
    /// The VM that was loaded is not started.
    Forgo,
    /// The VM that is paused for its file runs on.
    Resume,
}

/// The VM's task looks, decides, reports and acts. Gives whether the agent has survived that.
pub fn drive(world: &World, state: &mut State, end: usize) -> bool {
    let node = &mut state.base.nodes[end];
    if node.nics.iter().all(|nic| nic.task != Task::Runs) {
        return true;
    }
    node.vm.tried = true;
    let sight = Sight::of(world, node, state.known[end], end);
    let verdict = world.verdicts.get(&sight, || sight.decide(world));
    if verdict.report != 0 {
        node.vm.report = verdict.report;
    }
    let Some(action) = verdict.action else {
        return true;
    };
    match steps::act(state, end, action) {
        steps::Done::All => true,
        steps::Done::Refused => {
            state.base.nodes[end].vm.report = verdict.refused;
            true
        }
        steps::Done::Died => false,
    }
}

impl Sight {
    fn of(world: &World, node: &Node, known: Known, end: usize) -> Self {
        let report = node.vm.report;
        let is_final = world.model.objects.is_final(report);
        Self {
            end,
            shown: node.nics.map(|nic| nic.shown),
            qemu: node.qemu.alive.then_some(node.qemu),
            vm: Vm {
                report: if is_final { report } else { 0 },
                ..node.vm
            },
            known,
        }
    }

    fn decide(&self, world: &World) -> Verdict {
        let objects = &world.model.objects;
        let nics = vm_task::entries(objects, &self.shown);
        let here = self.vm.begun.is_none_or(|begun| begun.here);
        let qemu = self.qemu.filter(|_| here);
        let seen = qemu.filter(Qemu::answers).map(|qemu| vm_task::seen(&qemu));
        let begun = self.vm.begun.map(vm_task::begun);
        let end = match &seen {
            Some(seen) => migration::EndSeen::Up(seen),
            None if qemu.is_none() && begun.is_some() => migration::EndSeen::Ended,
            None => migration::EndSeen::Silent,
        };
        let file = file_seen(self.known);
        let verdict = migration::decide(&Inputs {
            nics: &nics,
            end,
            begun: begun.as_ref(),
            said: objects.reports.get(self.vm.report),
            certified: None,
            file: file.as_ref(),
        });
        let action = verdict.action.and_then(|action| match action {
            Action::File(action) => Some(Act::File(action)),
            Action::Cancel => Some(Act::Cancel),
            Action::Run => Some(Act::Run),
            Action::Forgo => Some(Act::Forgo),
            Action::Resume => Some(Act::Resume),
            // No VM of this world goes to another node.
            Action::Certify | Action::Listen | Action::Start(_) | Action::HandOver | Action::Hold => None,
        });
        let refused = MigrationReport {
            kept: true,
            ..MigrationReport::new(MOVE[self.end], MigrationState::Failed)
        };
        Verdict {
            action,
            report: objects.report_id(verdict.report),
            refused: objects.report_id(Some(refused)),
        }
    }
}

fn file_seen(known: Known) -> Option<FileSeen> {
    let manifest = || {
        let machine = SavedMachine {
            namespace: "ns".to_owned(),
            vm: "vm".to_owned(),
            machine_type: "q".to_owned(),
            memory: 1,
            qemu: "10".to_owned(),
            nics: Vec::new(),
        };
        Manifest::new(MOVE[0], machine, true, 1, String::new())
    };
    Some(match known {
        Known::Nothing => return None,
        Known::Writable => FileSeen::Writable,
        Known::Loadable => FileSeen::Loadable(manifest()),
        Known::Told => FileSeen::Told(manifest()),
        Known::Refused => FileSeen::Refused(String::new()),
        Known::Gone => FileSeen::Gone,
    })
}
