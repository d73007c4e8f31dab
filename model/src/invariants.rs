//! What must hold.

use hybridnic_api::v1alpha1::{Aside, MigrationPhase, StandbyKind};

use crate::model::Model;
use crate::nic_task::is_clean;
use crate::state::{Asked, Choice, ENDS, NICS, Nic, Pod, Port, SOURCE, State, TARGET};
use crate::system::Broken;

/// What must hold in each state.
pub fn safe(state: &State) -> Result<(), Broken> {
    one_vm(state)?;
    if state.truth.plain {
        return Err("(f) the VM was sent in plain".to_owned());
    }
    devices(state)
}

/// What must hold of NICs and VFs.
pub(crate) fn devices(state: &State) -> Result<(), Broken> {
    for n in 0..NICS {
        one_mac(state, n)?;
    }
    for end in ENDS {
        one_owner(state, end)?;
        has_port(state, end)?;
    }
    Ok(())
}

/// At most one QEMU runs the VM, and none goes on with what another has gone on with. What QEMU does by itself when the way back
/// breaks is QEMU's.
fn one_vm(state: &State) -> Result<(), Broken> {
    if state.truth.zombie {
        return Err("(a) the source was told to run the VM on, and the target had it".to_owned());
    }
    if ENDS.iter().all(|end| state.nodes[*end].qemu.runs()) && !state.truth.own_double {
        return Err("(a) two QEMUs run the VM".to_owned());
    }
    Ok(())
}

/// A NIC's MAC is live on one node, and there on one PF, except for the moment of a switch. A person may let the VM go on before the
/// node of a QEMU that does not run it has been tidied up: its devices are silent, because nothing sends through them.
fn one_mac(state: &State, n: usize) -> Result<(), Broken> {
    let live = ENDS.map(|end| state.nodes[end].nics[n].live());
    let left_behind = state.api.decision == Some(Choice::ResumeSource) && !state.nodes[TARGET].qemu.runs();
    if !left_behind && live.iter().all(|live| live.iter().any(Option::is_some)) {
        return Err("(b) a NIC's MAC is live on two nodes".to_owned());
    }
    for [vf, standby] in live {
        if let (Some(vf), Some(standby)) = (vf, standby)
            && vf != standby
        {
            return Err("(b) a NIC's MAC is live on two PFs".to_owned());
        }
    }
    Ok(())
}

/// A VF has one owner: the NIC that holds it is the only one whose VM has it.
fn one_owner(state: &State, end: usize) -> Result<(), Broken> {
    let node = &state.nodes[end];
    let held = |n: usize| node.nics[n].vf.map(|vf| vf.index);
    if held(0).is_some() && held(0) == held(1) {
        return Err(format!("(c) two NICs hold one VF of node {end}"));
    }
    for n in 0..NICS {
        if node.qemu.alive && node.qemu.vf[n].is_some() && node.qemu.vf[n] != held(n) {
            return Err(format!(
                "(c) QEMU of node {end} has a VF that the NIC {n} does not hold"
            ));
        }
    }
    Ok(())
}

/// Where the network has a port profile, no VF is in a guest before the switch has given its port the profile.
fn has_port(state: &State, end: usize) -> Result<(), Broken> {
    let node = &state.nodes[end];
    for n in 0..NICS {
        let port = node.nics[n].vf.map(|vf| vf.port);
        let without = port.is_some_and(|port| !matches!(port, Port::NoProfile | Port::Has(Asked::Associate)));
        if node.qemu.alive && node.qemu.vf[n].is_some() && without {
            return Err(format!(
                "(i) QEMU of node {end} has a VF whose port has no profile"
            ));
        }
    }
    Ok(())
}

/// Whether the switch has been told that a VF that is in no guest carries nothing.
fn has_left_port(state: &State, end: usize) -> Result<(), Broken> {
    let node = &state.nodes[end];
    for n in 0..NICS {
        let port = node.nics[n].vf.map(|vf| vf.port);
        let left = matches!(port, Some(Port::Has(Asked::Associate) | Port::Asked(_)));
        if left && node.qemu.vf[n].is_none() {
            return Err(format!(
                "(i) a VF of node {end} is in no guest, and its port has something for ever"
            ));
        }
    }
    Ok(())
}

/// Whether a world in which nothing changes any more is as it should be.
pub fn rested(model: &Model, state: &State) -> Result<(), Broken> {
    let phase = model.phase(state);
    if !phase.is_final() && !waits_to_begin(state, phase) {
        return Err(format!("(d) the migration stays in {phase:?}"));
    }
    let runs: Vec<usize> = ENDS
        .into_iter()
        .filter(|end| state.nodes[*end].qemu.runs())
        .collect();
    if runs.len() > 1 {
        return Err("(a) two QEMUs run the VM for ever".to_owned());
    }
    for end in ENDS {
        has_left_port(state, end)?;
    }
    for n in 0..model.nics {
        for end in ENDS {
            let nic = &state.nodes[end].nics[n];
            let home = state.api.nic_pods[n] == u8::try_from(end).ok() && state.api.pods[end] == Pod::Running;
            let clean = is_clean(nic) && state.api.attachments[end][n].is_none();
            if !home && !clean {
                return Err(format!("(d) something of a NIC is held at end {end} for ever"));
            }
        }
    }
    let Some(end) = runs.first().copied() else {
        return Ok(());
    };
    // A source that a person has given up may be started again by its kubelet, and is all that there is. Where its NICs are then
    // looked for is not part of this.
    if end == SOURCE && state.api.decision == Some(Choice::AbandonSource) {
        return Ok(());
    }
    if phase == MigrationPhase::Succeeded && end == SOURCE {
        return Err("(d) the migration has succeeded, and the VM runs at its source".to_owned());
    }
    for n in 0..model.nics {
        let nic = &state.nodes[end].nics[n];
        if model.standby == StandbyKind::None {
            has_vf_alone(model, state, end, n)?;
            continue;
        }
        let [vf, standby] = nic.live();
        if vf.is_none() && standby.is_none() {
            return Err("(e) a NIC of a running VM carries nothing".to_owned());
        }
        let node = &state.nodes[end];
        let held = nic.vf.map(|vf| node.pf(vf.index)).unwrap_or_default();
        // Where its standby's PF has no link either, it is all that the VM has.
        let alone = held.is_linked() && nic.standby.is_some_and(|pf| !node.pf(pf).is_linked());
        if held.drained && !alone {
            return Err("(e) a NIC of a running VM holds a VF that is drained for ever".to_owned());
        }
        let free = node.fit(model.vfs).count() >= model.nics;
        if let Some(aside) = state.api.aside {
            let plugged = state.nodes[end].qemu.vf[n].is_some();
            let stays = alone && plugged && vf.is_some() && standby.is_none();
            if !stays {
                stands_aside(nic, plugged, aside, free)?;
            }
            continue;
        }
        if free && !(vf.is_some() && standby.is_none() && state.nodes[end].qemu.vf[n].is_some()) {
            return Err("(e) a NIC of a running VM is not on a VF, and one is free".to_owned());
        }
        if free && held.dark {
            return Err("(e) a NIC of a running VM is on a PF without link, and another has one".to_owned());
        }
        // Two NICs may each have the VF that is the other's way back.
        let home = nic
            .standby
            .is_some_and(|pf| node.fit(model.vfs).any(|fit| fit == pf));
        if free && home && model.nics == 1 && vf != nic.standby {
            return Err(
                "(e) a NIC of a running VM is split for ever, and its standby's PF is fit".to_owned(),
            );
        }
    }
    Ok(())
}

/// Whether a NIC of a VM that runs, and has no standby, has the VF that it could have, and none that it is not to have.
fn has_vf_alone(model: &Model, state: &State, end: usize, n: usize) -> Result<(), Broken> {
    let (node, nic) = (&state.nodes[end], &state.nodes[end].nics[n]);
    let plugged = node.qemu.vf[n].is_some();
    let [live, standby] = nic.live();
    if standby.is_some() || nic.standby.is_some() || node.qemu.standby[n] {
        return Err("(e) a NIC without a standby has one".to_owned());
    }
    if live.is_some() != plugged {
        return Err("(e) a NIC without a standby has its MAC elsewhere than in the guest".to_owned());
    }
    let held = |vf: &u8| {
        node.nics
            .iter()
            .any(|nic| nic.vf.is_some_and(|held| held.index == *vf))
    };
    let free = node.fit(model.vfs).any(|vf| !held(&vf));
    match (state.api.aside, nic.vf) {
        (Some(_), _) if plugged => {
            return Err("(e) a NIC that is told to do without its VF has it".to_owned());
        }
        (Some(Aside::GiveVfBack), Some(_)) => {
            return Err("(e) a NIC that is told to give its VF back holds one for ever".to_owned());
        }
        (Some(Aside::GiveVfBack), None) => return Ok(()),
        (_, None) if free => {
            return Err("(e) a NIC without a standby has no VF, and one is free".to_owned());
        }
        (_, None) => return Ok(()),
        (Some(Aside::KeepVf) | None, Some(_)) => {}
    }
    let pf = nic.vf.map(|vf| node.pf(vf.index)).unwrap_or_default();
    // What works is not taken from a VM that would have no network.
    let stays = plugged && pf.is_linked() && !free;
    if pf.drained && !stays {
        return Err("(e) a NIC without a standby holds a VF that is drained for ever".to_owned());
    }
    // One that it only keeps carries nothing.
    if pf.dark && free && state.api.aside.is_none() {
        return Err("(e) a NIC without a standby is on a PF without link, and another has one".to_owned());
    }
    if state.api.aside.is_none() && pf.is_fit() && !plugged {
        return Err("(e) a NIC without a standby holds a VF that its guest does not have".to_owned());
    }
    Ok(())
}

/// Whether a NIC of a VM that runs is on its standby alone, as it is told, and has the VF that it may keep. `plugged`: whether the
/// guest has its VF.
pub(crate) fn stands_aside(nic: &Nic, plugged: bool, aside: Aside, free: bool) -> Result<(), Broken> {
    let [vf, standby] = nic.live();
    if vf.is_some() || standby.is_none() || plugged {
        return Err("(e) a NIC that is told to stay on its standby is not there alone".to_owned());
    }
    match (aside, nic.vf) {
        (Aside::GiveVfBack, Some(_)) => {
            Err("(e) a NIC that is told to give its VF back holds one for ever".to_owned())
        }
        (Aside::KeepVf, None) if free => {
            Err("(e) a NIC that is told to keep a VF has none, and one is free".to_owned())
        }
        _ => Ok(()),
    }
}

/// A migration that has not begun waits for a target, or a source, for as long as there is none.
fn waits_to_begin(state: &State, phase: MigrationPhase) -> bool {
    phase == MigrationPhase::Pending && state.api.pods.iter().any(|pod| *pod != Pod::Running)
}
