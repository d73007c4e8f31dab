//! What must hold.

use hybridnic_api::v1alpha1::{AfterSave, MigrationPhase};

use super::state::{MOVES, RESTORE, SAVE, State};
use super::world::World;
use crate::invariants;
use crate::nic_task::is_clean;
use crate::state::{ENDS, Pod, Run, SOURCE, TARGET};
use crate::system::Broken;

/// What must hold in each state.
pub fn safe(state: &State) -> Result<(), Broken> {
    invariants::devices(&state.base)?;
    if ENDS.into_iter().all(|end| may_speak(state, end)) {
        return Err("(a) two QEMUs run the VM".to_owned());
    }
    if state.disk.named == Some(false) {
        return Err("(j) a file has its name, and is not whole".to_owned());
    }
    if state.disk.named.is_some() && !state.disk.manifest {
        return Err("(j) a file has its name, and nothing beside it says whose it is".to_owned());
    }
    if state.truth.half {
        return Err("(j) a QEMU was told to load a file that is not whole".to_owned());
    }
    if state.truth.killed {
        return Err("(j) a QEMU was ended, and no file has its VM as it was".to_owned());
    }
    Ok(())
}

/// Whether a QEMU runs the VM. One whose pod was deleted by force may run on until its kubelet ends it: nothing is left to tell of it.
/// It must have no NIC then.
fn may_speak(state: &State, end: usize) -> bool {
    let qemu = &state.base.nodes[end].qemu;
    let plugged = qemu.standby.contains(&true) || qemu.vf.iter().any(Option::is_some);
    qemu.runs() && (plugged || state.base.api.pods[end] != Pod::Gone)
}

/// Whether a world in which nothing changes any more is as it should be.
pub fn rested(world: &World, state: &State) -> Result<(), Broken> {
    let base = &state.base;
    for which in MOVES {
        let Some(phase) = world.phase(state, which) else {
            continue;
        };
        let waits = phase == MigrationPhase::Pending && waits_to_begin(world, state, which);
        if !phase.is_final() && !waits {
            let kind = ["save", "restore"][which];
            return Err(format!("(d) the {kind} stays in {phase:?}"));
        }
    }
    let runs: Vec<usize> = ENDS
        .into_iter()
        .filter(|end| base.nodes[*end].qemu.runs())
        .collect();
    if runs.len() > 1 {
        return Err("(a) two QEMUs run the VM for ever".to_owned());
    }
    file_is_as_said(world, state)?;
    if !state.truth.faulty {
        goes_well(world, state)?;
    }
    for n in 0..world.model.nics {
        for end in ENDS {
            let nic = &base.nodes[end].nics[n];
            let home = base.api.nic_pods[n] == u8::try_from(end).ok() && base.api.pods[end] == Pod::Running;
            let clean = is_clean(nic) && base.api.attachments[end][n].is_none();
            if !home && !clean {
                return Err(format!("(d) something of a NIC is held at end {end} for ever"));
            }
        }
    }
    let Some(end) = runs.first().copied() else {
        return stands_still(world, state);
    };
    for n in 0..world.model.nics {
        let (node, nic) = (&base.nodes[end], &base.nodes[end].nics[n]);
        let [vf, standby] = nic.live();
        if vf.is_none() && standby.is_none() {
            return Err("(e) a NIC of a running VM carries nothing".to_owned());
        }
        let free = node.fit(world.model.vfs).count() >= world.model.nics;
        if free && !(vf.is_some() && standby.is_none() && node.qemu.vf[n].is_some()) {
            return Err("(e) a NIC of a running VM is not on a VF, and one is free".to_owned());
        }
        if nic.spec != 0
            && world
                .model
                .objects
                .specs
                .get(nic.spec)
                .is_some_and(|spec| spec.migration.is_some())
        {
            return Err("(e) a NIC of a running VM has an order for ever".to_owned());
        }
    }
    Ok(())
}

/// A VM that runs nowhere has ended, or is in the file. A QEMU that is left must not keep it paused.
fn stands_still(world: &World, state: &State) -> Result<(), Broken> {
    for end in ENDS {
        let qemu = &state.base.nodes[end].qemu;
        if qemu.alive && qemu.run != Run::Incoming {
            return Err(format!("(d) the VM is paused at end {end} for ever"));
        }
    }
    let ended = world.phase(state, SAVE) == Some(MigrationPhase::Succeeded);
    if ended && state.moves.then == AfterSave::End && state.disk.named.is_none() {
        return Err("(j) the VM was saved, and there is no file".to_owned());
    }
    Ok(())
}

/// Where nothing goes wrong the VM is saved, and comes back if it was ended for that.
fn goes_well(world: &World, state: &State) -> Result<(), Broken> {
    let ends = state.moves.then == AfterSave::End;
    if world.phase(state, SAVE) != Some(MigrationPhase::Succeeded) {
        return Err("(g) nothing went wrong, and the VM is not saved".to_owned());
    }
    let restored = world.phase(state, RESTORE);
    if ends && restored.is_some() && restored != Some(MigrationPhase::Succeeded) {
        return Err("(g) nothing went wrong, and the VM is not restored".to_owned());
    }
    let runs = |end: usize| state.base.nodes[end].qemu.runs();
    if [runs(SOURCE), runs(TARGET)] != [!ends, ends && restored.is_some()] {
        return Err("(g) nothing went wrong, and the VM is not where it should be".to_owned());
    }
    Ok(())
}

/// Whether there is a file where the save says so, and none where it says that there is none.
fn file_is_as_said(world: &World, state: &State) -> Result<(), Broken> {
    let source = &state.base.nodes[SOURCE].qemu;
    let ends = state.moves.then == AfterSave::End;
    match world.phase(state, SAVE) {
        Some(MigrationPhase::Succeeded) => {
            if state.disk.named != Some(true) {
                return Err("(j) the save has succeeded, and there is no whole file".to_owned());
            }
            if ends && source.alive {
                return Err("(j) the VM was saved to end, and its QEMU lives".to_owned());
            }
        }
        // Of a QEMU that has ended on its way it is not known how far the file was.
        Some(MigrationPhase::Failed | MigrationPhase::Cancelled)
            if source.alive && (state.disk.named.is_some() || state.disk.part.is_some()) =>
        {
            return Err("(j) the save came to nothing, and has left a file".to_owned());
        }
        _ => {}
    }
    // The journal says that the VM is started before it is: of a QEMU that has ended between, nobody can tell whether it ran.
    let restored = world.phase(state, RESTORE);
    let target = &state.base.nodes[TARGET].qemu;
    if restored == Some(MigrationPhase::Succeeded) && target.alive && !state.truth.loaded {
        return Err("(j) the restore has succeeded, and the VM has not run".to_owned());
    }
    let failed = matches!(restored, Some(MigrationPhase::Failed | MigrationPhase::Cancelled));
    if failed && target.runs() {
        return Err("(j) the restore came to nothing, and the VM runs".to_owned());
    }
    Ok(())
}

/// What has not begun waits for as long as there is nothing to begin with: a save for a VM that runs, a restore for a QEMU that waits, and
/// for a save that waits itself.
fn waits_to_begin(world: &World, state: &State, which: usize) -> bool {
    let qemu = |end: usize| &state.base.nodes[end].qemu;
    if which == SAVE {
        !qemu(SOURCE).runs()
    } else {
        let save = world.phase(state, SAVE);
        save == Some(MigrationPhase::Pending)
            || state.base.api.pods[TARGET] != Pod::Running
            || qemu(TARGET).run != Run::Incoming
    }
}
