//! The agent of a node: when its tasks run, what it hears and says, and how it dies.

use hybridnic_agent::machine::stands_against;
use hybridnic_api::v1alpha1::{AttachmentState, Goal};

use super::nic_task::{NicSight, round};
use super::state::{PODS, Place, Qemu, Sandbox, State};
use super::vm_task::{drive, forget, set_all};
use super::world::World;
use crate::state::{Agent, Nic, Shown, Task};

/// An agent does all that there is to do on its node.
pub fn turn(world: &World, state: &mut State, node: usize) {
    if state.agents[node] != Agent::Prompt {
        return;
    }
    for _ in 0..40 {
        let before = state.places;
        for pod in (0..PODS)
            .filter(|pod| state.node(*pod) == node)
            .collect::<Vec<_>>()
        {
            drive(world, state, pod);
            for n in 0..world.nics {
                round(world, state, pod, n, false);
            }
        }
        if state.places == before {
            return;
        }
    }
}

/// What QEMU tells by itself, and is heard at once or never.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// `STOP`
    Stopped,
    /// `RESUME`
    Resumed,
}

/// The agent hears an event.
pub fn hear_event(state: &mut State, pod: usize, event: Event) {
    let prompt = state.agent(pod) == Agent::Prompt;
    let place = &mut state.places[pod];
    if !(prompt && place.vm.met && place.qemu.answers()) {
        return;
    }
    match event {
        Event::Stopped => set_all(place, false),
        Event::Resumed => {
            set_all(place, true);
            place.vm.ran = true;
            for nic in &mut place.nics {
                nic.keeps_vf = false;
            }
        }
    }
}

/// What the API server has reaches the agent.
pub fn hear(world: &World, state: &mut State, pod: usize, n: usize) {
    let objects = &world.objects;
    let place = &mut state.places[pod];
    let nic = &mut place.nics[n];
    let Some(attachment) = &mut place.attachments[n] else {
        match nic.task {
            // The object is gone, whatever its finalizer said.
            Task::Runs => (nic.spec, nic.keeps_vf) = (objects.detached(nic.spec), false),
            Task::Left | Task::None => *nic = Nic::NONE,
        }
        return;
    };
    let spec = if attachment.deleting {
        objects.detached(attachment.spec)
    } else {
        attachment.spec
    };
    match nic.task {
        // It has left already; its last report stands until the object is gone, if it was about the object as it is.
        Task::Left
            if objects.goal(spec) == Goal::Detached
                && nic.left != 0
                && (nic.current || attachment.deleting) =>
        {
            return;
        }
        Task::Runs => {}
        Task::Left | Task::None => {
            *nic = Nic {
                task: Task::Runs,
                spec,
                shown: Some(Shown {
                    state: AttachmentState::Pending as u8,
                    spec,
                    macvtap: false,
                    heard: false,
                }),
                ..Nic::NONE
            };
        }
    }
    attachment.finalizer |= !attachment.deleting;
    let asks = |spec| (objects.goal(spec), objects.aside(spec));
    if asks(nic.spec) != asks(spec) {
        nic.keeps_vf = false;
    }
    (nic.heard, nic.spec, nic.current) = (true, spec, true);
    // What an earlier agent has said stands.
    let said = objects.said(attachment.status);
    if let Some(report) = objects.reports.get(said) {
        let now = objects.reports.get(place.vm.report);
        if !stands_against(now, report) {
            place.vm.report = said;
        }
    }
}

/// What the agent has to say, by what it sees now, reaches the operator. It says the same until something changes.
pub fn publish(world: &World, state: &mut State, pod: usize, n: usize) {
    let now = round(world, state, pod, n, false);
    let place = &mut state.places[pod];
    let nic = &mut place.nics[n];
    if nic.task == Task::Runs && !nic.heard {
        return;
    }
    let Some(attachment) = &mut place.attachments[n] else {
        return;
    };
    let says = match nic.task {
        Task::None => 0,
        Task::Runs => now,
        Task::Left => nic.left,
    };
    if says != 0 {
        (attachment.status, attachment.current) = (says, nic.current);
    }
    let left = nic.task == Task::Left && nic.left != 0;
    if attachment.deleting && left && world.objects.is_detached(attachment.status) {
        // Its finalizer goes, and with it the object.
        place.attachments[n] = None;
        *nic = Nic::NONE;
    }
}

/// A NIC's task has heard what there is and taken a step, and before it takes the next it reports, and is held up.
pub fn halfway(world: &World, state: &mut State, pod: usize, n: usize) {
    hear(world, state, pod, n);
    round(world, state, pod, n, true);
    let node = state.node(pod);
    state.agents[node] = Agent::HeldUp;
    let place = &state.places[pod];
    if place.nics[n].task != Task::Runs || !place.vm.tried {
        return;
    }
    let sight = NicSight::of(world, state, pod, n);
    let round = world.rounds.get(&(sight, n), || sight.decide(&world.objects, n));
    let place = &mut state.places[pod];
    if let Some(attachment) = &mut place.attachments[n] {
        (attachment.status, attachment.current) = (round.status, place.nics[n].current);
    }
}

/// The agent dies: only its journal is left. Sandboxes that wait for it fail.
pub fn crash(state: &mut State, node: usize) {
    state.agents[node] = Agent::Down;
    for pod in (0..PODS)
        .filter(|pod| state.node(*pod) == node)
        .collect::<Vec<_>>()
    {
        let place = &mut state.places[pod];
        forget(&mut place.vm);
        for nic in &mut place.nics {
            *nic = if nic.recorded {
                Nic {
                    task: Task::Runs,
                    current: false,
                    heard: false,
                    announce: true,
                    moved: false,
                    keeps_vf: false,
                    shown: Some(Shown {
                        state: AttachmentState::Pending as u8,
                        spec: nic.spec,
                        macvtap: nic.standby.is_some(),
                        heard: false,
                    }),
                    ..*nic
                }
            } else {
                Nic::NONE
            };
        }
        if matches!(place.sandbox, Sandbox::Waits(_)) {
            place.tear_down();
        }
    }
}

impl Place {
    /// Its sandbox ends, and its network namespace with it.
    pub fn tear_down(&mut self) {
        self.sandbox = Sandbox::None;
        for nic in &mut self.nics {
            nic.macvtap = None;
        }
    }
}

/// The devices of a QEMU go with it.
pub fn end(qemu: &mut Qemu) {
    *qemu = Qemu::DEAD;
}
