//! What must hold.

use hybridnic_api::v1alpha1::Goal;

use super::state::{NODES, PODS, Phase, State};
use super::world::World;
use crate::invariants::stands_aside;
use crate::nic_task::is_clean;
use crate::state::{Agent, NICS};
use crate::system::Broken;

/// What must hold in each state.
pub fn safe(state: &State) -> Result<(), Broken> {
    if state.truth.trespass {
        return Err("(h) an agent has done what is KubeVirt's to do".to_owned());
    }
    let runs = state.places.iter().filter(|place| place.qemu.runs()).count();
    if runs > 1 {
        return Err("(a) two QEMUs run the VM: the model is wrong".to_owned());
    }
    for pod in 0..PODS {
        speaks(state, pod)?;
    }
    for node in 0..NODES {
        one_owner(state, node)?;
    }
    Ok(())
}

/// A NIC speaks only where the VM runs. An agent that is away, or whose QEMU does not answer, cannot see to that.
fn speaks(state: &State, pod: usize) -> Result<(), Broken> {
    let place = &state.places[pod];
    let sees = state.agent(pod) == Agent::Prompt && !place.qemu.mute;
    for n in 0..NICS {
        let [vf, standby] = place.nics[n].live();
        let live = vf.is_some() || standby.is_some();
        if live && sees && !place.qemu.runs() {
            return Err(format!(
                "(b) a NIC speaks in pod {pod}, and the VM does not run there"
            ));
        }
        // QEMU sends no VM that has a VF, and takes none while it is sent.
        if place.qemu.vf[n].is_some() && !place.qemu.runs() {
            return Err(format!("(b) a VF is in pod {pod}, and the VM does not run there"));
        }
    }
    Ok(())
}

/// A VF has one owner: the NIC that holds it is the only one whose VM has it.
fn one_owner(state: &State, node: usize) -> Result<(), Broken> {
    let mut held = Vec::new();
    for pod in (0..PODS).filter(|pod| state.node(*pod) == node) {
        let place = &state.places[pod];
        for n in 0..NICS {
            let vf = place.nics[n].vf.map(|vf| vf.index);
            if vf.is_some_and(|vf| held.contains(&vf)) {
                return Err(format!("(c) two NICs hold one VF of node {node}"));
            }
            held.extend(vf);
            if place.qemu.vf[n].is_some() && place.qemu.vf[n] != vf {
                return Err(format!(
                    "(c) a QEMU of node {node} has a VF that its NIC does not hold"
                ));
            }
        }
    }
    Ok(())
}

/// Whether a world in which nothing changes any more is as it should be.
pub fn rested(world: &World, state: &State) -> Result<(), Broken> {
    if state.kube.moves.iter().any(|of| !of.is_over()) {
        return Err("(d) a migration does not end".to_owned());
    }
    let home = (0..PODS).find(|pod| state.places[*pod].qemu.runs());
    for pod in 0..PODS {
        let place = &state.places[pod];
        for n in 0..world.nics {
            let gone = is_clean(&place.nics[n]) && place.attachments[n].is_none();
            if Some(pod) != home && !gone {
                return Err(format!("(d) something of a NIC is held in pod {pod} for ever"));
            }
        }
    }
    if state.truth.well {
        let of = state.kube.moves.iter().filter(|of| of.phase != Phase::None);
        if let Some(failed) = of.clone().position(|of| of.phase != Phase::Succeeded) {
            return Err(format!(
                "(g) nothing went wrong, and migration {failed} has failed"
            ));
        }
    }
    home.map_or(Ok(()), |home| at_home(world, state, home))
}

/// The NICs of a VM that runs are on their VFs, and nothing is to change that.
fn at_home(world: &World, state: &State, home: usize) -> Result<(), Broken> {
    let place = &state.places[home];
    let deleted = state.kube.pods[home].leaves || !state.kube.pods[home].lives();
    for n in 0..world.nics {
        let [vf, standby] = place.nics[n].live();
        if vf.is_none() && standby.is_none() {
            return Err("(e) a NIC of a running VM carries nothing".to_owned());
        }
        let free = usize::from(world.vfs) >= world.nics;
        match state.aside {
            // A guest that does not let go keeps its VF, and that carries the traffic.
            Some(_) if place.qemu.keeps[n] && place.qemu.vf[n].is_some() => {}
            Some(aside) => stands_aside(&place.nics[n], place.qemu.vf[n].is_some(), aside, free)?,
            None => {}
        }
        if state.aside.is_none() && free && (vf.is_none() || standby.is_some()) {
            return Err("(e) a NIC of a running VM is not on its VF, and one is free".to_owned());
        }
        let spec = place.attachments[n].and_then(|a| world.objects.specs.get(a.spec));
        let stays = spec.is_some_and(|spec| spec.goal == Goal::FastPath && spec.migration.is_none());
        if !stays && !deleted {
            return Err("(e) a NIC of a running VM has an order of a migration that is over".to_owned());
        }
        if state.nic_pods[n].map(usize::from) != Some(home) && !deleted {
            return Err("(e) a NIC's status names another pod than the VM's".to_owned());
        }
    }
    Ok(())
}
