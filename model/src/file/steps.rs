//! What the agent does to QEMU and to the file, part by part, as `file_steps` and `state_file` of the agent do. It may die after each
//! part: what is in the journal and on the volume stays.

use hybridnic_agent::journal::{Arrival, Custody};
use hybridnic_agent::machine::qemu::migration::FileAction;

use super::state::{Disk, Known, SAVE, State};
use super::vm_task::Act;
use crate::nic_task;
use crate::state::{Begun, Run, Stage, Transfer};
use crate::vm_task::{self, set_custody};

/// What became of a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Done {
    /// It was taken, or is tried again.
    All,
    /// QEMU has refused to begin.
    Refused,
    /// The agent has died in it.
    Died,
}

/// A part of a step.
type Part = fn(&mut State, usize);

/// Takes a step.
pub fn act(state: &mut State, end: usize, action: Act) -> Done {
    let node = &mut state.base.nodes[end];
    match action {
        Act::File(FileAction::Look) => {
            state.known[end] = look(state.disk, end);
            Done::All
        }
        // QEMU saves no VM that has a VF.
        Act::File(FileAction::Write) if node.qemu.vf.iter().any(Option::is_some) => Done::Refused,
        Act::File(FileAction::Write) => parts(state, end, &[make, begin_saving, write]),
        Act::File(FileAction::Seal { resume }) => {
            let run_on: Part = if resume { cont } else { nothing };
            // The kernel says only once that something is not on disk.
            if state.spoils {
                state.spoils = false;
                return parts(state, end, &[whole, run_on, spoilt]);
            }
            parts(state, end, &[whole, run_on, manifest, name, named])
        }
        Act::File(FileAction::Discard { resume }) => {
            let run_on: Part = if resume { cont } else { nothing };
            parts(state, end, &[spoilt, remove, run_on, gone])
        }
        Act::File(FileAction::Load) if look(state.disk, end) != Known::Loadable => {
            state.known[end] = Known::Refused;
            Done::All
        }
        Act::File(FileAction::Load) => parts(state, end, &[stop, begin_loading, load]),
        Act::Cancel => {
            if node.qemu.migration == Transfer::Active {
                (node.qemu.migration, node.qemu.run) = (Transfer::Cancelled, Run::Running);
            }
            Done::All
        }
        Act::Run => parts(state, end, &[starting, run, started]),
        Act::Forgo => {
            vm_task::arrives(node, None);
            Done::All
        }
        Act::Resume => {
            set_custody(node, Custody::Here);
            cont(state, end);
            Done::All
        }
    }
}

/// Takes all parts, or as many as the agent lives to.
fn parts(state: &mut State, end: usize, all: &[Part]) -> Done {
    let last = state.dies[end].take().map(usize::from);
    for part in &all[..last.unwrap_or(all.len()).min(all.len())] {
        part(state, end);
    }
    if last.is_none_or(|last| last > all.len()) {
        return Done::All;
    }
    crash(state, end);
    Done::Died
}

/// The agent dies.
pub fn crash(state: &mut State, end: usize) {
    nic_task::crash(&mut state.base, end);
    (state.known[end], state.dies[end]) = (Known::Nothing, None);
}

/// Whether the file can be written, or loaded.
fn look(disk: Disk, end: usize) -> Known {
    match (end == SAVE, disk.named, disk.manifest) {
        (true, None, false) => Known::Writable,
        // Its length is in the manifest.
        (false, Some(true), true) => Known::Loadable,
        _ => Known::Refused,
    }
}

fn nothing(_: &mut State, _: usize) {}

fn make(state: &mut State, _: usize) {
    state.disk.part = Some(false);
}

fn begin_saving(state: &mut State, end: usize) {
    begin(state, end, Some(Stage::Writing));
}

fn begin_loading(state: &mut State, end: usize) {
    begin(state, end, None);
}

fn begin(state: &mut State, end: usize, saving: Option<Stage>) {
    state.base.nodes[end].vm.begun = Some(Begun {
        of: u8::try_from(end).unwrap_or_default(),
        here: true,
        arrival: None,
        custody: Custody::Here,
        saving,
    });
}

fn write(state: &mut State, end: usize) {
    state.base.nodes[end].qemu.migration = Transfer::Active;
}

fn note(state: &mut State, end: usize, far: Stage) {
    if let Some(begun) = &mut state.base.nodes[end].vm.begun
        && begun.saving.is_some()
    {
        begun.saving = Some(far);
    }
}

fn whole(state: &mut State, end: usize) {
    note(state, end, Stage::Whole);
}

fn named(state: &mut State, end: usize) {
    note(state, end, Stage::Named);
}

fn spoilt(state: &mut State, end: usize) {
    note(state, end, Stage::Spoilt);
}

fn manifest(state: &mut State, _: usize) {
    state.disk.manifest = true;
}

fn name(state: &mut State, _: usize) {
    if let Some(whole) = state.disk.part.take() {
        state.disk.named = Some(whole);
    }
}

fn remove(state: &mut State, _: usize) {
    state.disk = Disk::default();
}

fn gone(state: &mut State, end: usize) {
    state.known[end] = Known::Gone;
}

fn cont(state: &mut State, end: usize) {
    let qemu = &mut state.base.nodes[end].qemu;
    if matches!(qemu.run, Run::HandedOver | Run::Paused) {
        qemu.run = Run::Running;
        state.truth.ahead |= end == SAVE;
    }
}

fn stop(state: &mut State, end: usize) {
    state.base.nodes[end].qemu.stopped = true;
}

fn load(state: &mut State, end: usize) {
    state.base.nodes[end].qemu.migration = Transfer::Active;
    state.known[end] = Known::Told;
    state.truth.half |= state.disk.named != Some(true);
}

fn starting(state: &mut State, end: usize) {
    vm_task::arrives(&mut state.base.nodes[end], Some(Arrival::Starting));
}

fn run(state: &mut State, end: usize) {
    let node = &mut state.base.nodes[end];
    if node.qemu.run == Run::Paused {
        vm_task::set_all(node, true);
        node.qemu.run = Run::Running;
    }
    state.truth.loaded = true;
}

fn started(state: &mut State, end: usize) {
    vm_task::arrives(&mut state.base.nodes[end], Some(Arrival::Started));
}
