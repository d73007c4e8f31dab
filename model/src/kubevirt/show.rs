//! States in words, for a person who reads a trace.

use std::fmt::Write;

use super::operator::POD;
use super::state::{Held, Lag, Phase, PodPhase, Sandbox, State};
use super::world::World;
use crate::show;
use crate::state::Agent;

/// What matters of a state, in one line.
pub fn state(world: &World, state: &State) -> String {
    let mut text = String::new();
    for of in state.kube.moves.iter().filter(|of| of.phase != Phase::None) {
        let there = if of.there { "" } else { " (gone)" };
        let deleting = if of.deleting { " deleting" } else { "" };
        let _ = write!(text, "{:?}{there}{deleting}, ", of.phase);
    }
    let _ = write!(text, "VM in {}", POD[usize::from(state.truth.home)]);
    if let Some(stream) = state.stream {
        let _ = write!(text, ", sent by {stream}");
    }
    match state.lag {
        Lag::None => {}
        Lag::Kube(_) => text.push_str(", operator is late with KubeVirt"),
        Lag::Attachments(pod, _) => {
            let _ = write!(text, ", operator is late with {}", POD[usize::from(pod)]);
        }
    }
    if state.held != Held::Nobody {
        let _ = write!(text, ", held up: {:?}", state.held);
    }
    if let Some(aside) = state.aside {
        let _ = write!(text, ", told {aside}");
    }
    for (pod, name) in POD.iter().enumerate() {
        let (of, place) = (state.kube.pods[pod], &state.places[pod]);
        let nobody = place.attachments.iter().all(Option::is_none);
        if of.phase == PodPhase::Gone && nobody && place.sandbox == Sandbox::None && !place.qemu.alive {
            continue;
        }
        let leaves = if of.leaves { " leaves" } else { "" };
        let _ = write!(text, " | {name} {:?}{leaves} {:?}", of.phase, place.sandbox);
        if state.agent(pod) != Agent::Prompt {
            let _ = write!(text, " agent {:?}", state.agent(pod));
        }
        if place.qemu.alive {
            let _ = write!(text, " {:?}/{:?}", place.qemu.run, place.qemu.migration);
            if place.qemu.mute {
                text.push_str(" mute");
            }
            if place.qemu.keeps.contains(&true) {
                text.push_str(" keeps");
            }
        }
        if let Some(report) = world.objects.reports.get(place.vm.report) {
            let kept = if report.kept { "+kept" } else { "" };
            let _ = write!(text, " says {}:{:?}{kept}", report.uid, report.state);
        }
        for n in 0..world.nics {
            let (nic, guest) = (&place.nics[n], place.qemu.vf[n].is_some());
            let attachment = place.attachments[n].as_ref();
            let _ = write!(text, "; {}", show::nic(&world.objects, nic, attachment, guest));
        }
    }
    text
}
