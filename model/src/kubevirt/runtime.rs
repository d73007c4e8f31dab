//! What KubeVirt, libvirt, QEMU and kubelets do by themselves, without asking us.
//!
//! ```text
//!  VMIM    Scheduling ─────────────► Running ─────────────────────────────────────► Succeeded
//!  pod     sandbox ─► links ─► launcher                                              the source's ends
//!  source  running ────────────────► active ─► pre-switchover (STOP) ─► postmigrate ─► killed
//!  target                 inmigrate ─► active ────────────────────────► paused ─► running (RESUME)
//! ```
//! libvirt starts the VM at its target when that has all of it, and then kills it at its source. If the target fails before that,
//! libvirt resumes the source, whose QEMU may say by then that its migration has completed.

use super::agent::{Event, end, hear_event};
use super::state::{MOVES, Migration, PODS, Phase, Pod, PodPhase, Qemu, Run, Sandbox, State, Transfer};

/// What happens by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happens {
    /// A kubelet makes a pod's sandbox, which asks for its first link.
    Sandbox(usize),
    /// A pod's launcher starts its QEMU, which waits for the VM.
    Launch(usize),
    /// libvirt is told to send the VM, or refuses because a VF is in it.
    Begin(usize),
    /// Little memory is left: the source stops the VM.
    Converge,
    /// The target has all of the VM.
    Load,
    /// The VM is started at the target.
    Finish,
    /// The source's QEMU is killed.
    Confirm,
    /// The target has gone: the source runs on.
    Miss,
    /// A migration that was deleted is called off.
    Abort,
    /// KubeVirt says that the VM is where it has come to, whatever it says of the migration.
    Name,
    /// KubeVirt says how a migration has ended.
    Word(usize),
    /// A migration's object goes that was deleted.
    Vanish(usize),
    /// KubeVirt removes the pod of a migration that has failed.
    Clean(usize),
    /// A kubelet ends a pod that was deleted.
    Kill(usize),
    /// A kubelet says that a pod's containers have ended, and takes its sandbox down.
    PodEnds(usize),
    /// It ends what a pod that was deleted by force has left.
    Reap(usize),
    /// The pod's object goes.
    PodGoes(usize),
    /// The guest lets go of a VF.
    LetsGo(usize),
    /// A second migration is asked for.
    Again,
}

/// All that may happen.
pub fn all() -> impl Iterator<Item = Happens> {
    use Happens::{
        Abort, Again, Begin, Clean, Confirm, Converge, Finish, Kill, Launch, LetsGo, Load, Miss, Name,
        PodEnds, PodGoes, Reap, Sandbox, Vanish, Word,
    };
    let of_pods = [Kill, PodEnds, Reap, PodGoes, Sandbox, Launch, LetsGo];
    let of_moves = [Begin, Word, Vanish, Clean];
    let pods = (0..PODS).flat_map(move |pod| of_pods.map(|of| of(pod)));
    let moves = (0..MOVES).flat_map(move |k| of_moves.map(|of| of(k)));
    let others = [Abort, Converge, Load, Finish, Confirm, Miss, Name, Again];
    others.into_iter().chain(moves).chain(pods)
}

/// Lets it happen; whether it could.
pub fn happen(state: &mut State, nics: usize, what: Happens) -> bool {
    match what {
        Happens::Sandbox(pod) => {
            let of = state.kube.pods[pod];
            let may = of.phase == PodPhase::Pending && !of.leaves;
            let sandbox = &mut state.places[pod].sandbox;
            let may = may && *sandbox == Sandbox::None;
            if may {
                *sandbox = Sandbox::Waits(0);
            }
            may
        }
        Happens::Launch(pod) => launch(state, nics, pod),
        Happens::Begin(k) => begin(state, k),
        Happens::Converge | Happens::Load | Happens::Finish | Happens::Confirm | Happens::Miss => {
            state.stream.is_some_and(|k| stream(state, usize::from(k), what))
        }
        Happens::Abort => abort(state),
        Happens::Name => {
            let may = state.kube.vmi != state.truth.home;
            state.kube.vmi = state.truth.home;
            may
        }
        Happens::Word(k) => word(state, k),
        Happens::Vanish(k) => vanish(state, k),
        Happens::Clean(k) => {
            let target = State::target(k);
            let failed = state.kube.moves[k].phase == Phase::Failed;
            let away = usize::from(state.truth.home) != target && state.stream != u8::try_from(k).ok();
            let pod = &mut state.kube.pods[target];
            let may = failed && away && pod.phase != PodPhase::Gone && !pod.leaves;
            pod.leaves |= may;
            may
        }
        Happens::Kill(pod) => {
            let of = &mut state.kube.pods[pod];
            let may = of.leaves && of.lives();
            if may {
                of.phase = PodPhase::Ended;
                end(&mut state.places[pod].qemu);
                state.places[pod].tear_down();
            }
            may
        }
        Happens::PodEnds(pod) => {
            let of = &mut state.kube.pods[pod];
            let may = of.phase == PodPhase::Running && !state.places[pod].qemu.alive;
            if may {
                of.phase = PodPhase::Ended;
                state.places[pod].tear_down();
            }
            may
        }
        Happens::Reap(pod) => {
            let gone = state.kube.pods[pod].phase == PodPhase::Gone;
            let place = &mut state.places[pod];
            let may = gone && (place.sandbox != Sandbox::None || place.qemu.alive);
            if may {
                end(&mut place.qemu);
                place.tear_down();
            }
            may
        }
        Happens::PodGoes(pod) => {
            let of = &mut state.kube.pods[pod];
            let may = of.phase == PodPhase::Ended && of.leaves;
            if may {
                *of = Pod::GONE;
            }
            may
        }
        Happens::LetsGo(pod) => lets_go(state, pod),
        Happens::Again => again(state),
    }
}

fn launch(state: &mut State, nics: usize, pod: usize) -> bool {
    let of = &mut state.kube.pods[pod];
    let place = &mut state.places[pod];
    if of.phase != PodPhase::Pending || of.leaves || place.sandbox != Sandbox::Ready {
        return false;
    }
    if place.nics[..nics].iter().any(|nic| nic.macvtap.is_none()) {
        // libvirt finds no link, and the launcher ends.
        of.phase = PodPhase::Ended;
        place.tear_down();
        return true;
    }
    of.phase = PodPhase::Running;
    place.qemu = Qemu::fresh(Run::Incoming);
    true
}

fn begin(state: &mut State, k: usize) -> bool {
    let (source, target) = (state.source(k), State::target(k));
    let there = state.places[target].qemu;
    let may = state.kube.moves[k].phase == Phase::Scheduling
        && state.kube.moves[k].there
        && state.stream.is_none()
        && there.alive
        && (there.run, there.migration) == (Run::Incoming, Transfer::None)
        && state.places[source].qemu.runs();
    if !may {
        return false;
    }
    let from = &mut state.places[source].qemu;
    if from.vf.iter().any(Option::is_some) {
        state.kube.moves[k].phase = Phase::Failed;
        return true;
    }
    from.migration = Transfer::Active;
    state.places[target].qemu.migration = Transfer::Active;
    state.kube.moves[k].phase = Phase::Running;
    state.stream = u8::try_from(k).ok();
    state.kube.sent = state.stream;
    true
}

/// The source gives the transfer up and runs on.
fn give_up(state: &mut State, source: usize, how: Transfer) {
    let from = &mut state.places[source].qemu;
    let stood = from.run != Run::Running;
    (from.run, from.migration) = (Run::Running, how);
    state.stream = None;
    if stood {
        hear_event(state, source, Event::Resumed);
    }
}

fn stream(state: &mut State, k: usize, what: Happens) -> bool {
    let (source, target) = (state.source(k), State::target(k));
    let (from, to) = (state.places[source].qemu, state.places[target].qemu);
    let loaded = to.alive && (to.run, to.migration) == (Run::Paused, Transfer::Completed);
    match what {
        Happens::Converge if from.alive && from.migration == Transfer::Active => {
            let from = &mut state.places[source].qemu;
            (from.run, from.migration) = (Run::Finishing, Transfer::PreSwitchover);
            hear_event(state, source, Event::Stopped);
        }
        Happens::Load
            if from.alive
                && from.migration == Transfer::PreSwitchover
                && to.alive
                && to.migration == Transfer::Active =>
        {
            let from = &mut state.places[source].qemu;
            (from.run, from.migration) = (Run::HandedOver, Transfer::Completed);
            let to = &mut state.places[target].qemu;
            (to.run, to.migration) = (Run::Paused, Transfer::Completed);
        }
        Happens::Finish if loaded => {
            state.places[target].qemu.run = Run::Running;
            state.truth.home = u8::try_from(target).unwrap_or_default();
            hear_event(state, target, Event::Resumed);
        }
        Happens::Confirm if usize::from(state.truth.home) == target => {
            end(&mut state.places[source].qemu);
            state.stream = None;
        }
        Happens::Miss if !from.alive && !loaded && usize::from(state.truth.home) != target => {
            end(&mut state.places[target].qemu);
            state.stream = None;
        }
        Happens::Miss if from.alive && !to.alive && usize::from(state.truth.home) != target => {
            let how = match from.migration {
                Transfer::Completed => Transfer::Completed,
                _ => Transfer::Failed,
            };
            give_up(state, source, how);
        }
        _ => return false,
    }
    true
}

fn abort(state: &mut State) -> bool {
    let Some(k) = state.stream.map(usize::from) else {
        return false;
    };
    let source = state.source(k);
    let may = state.kube.moves[k].deleting && state.places[source].qemu.is_migrating();
    if may {
        give_up(state, source, Transfer::Cancelled);
        end(&mut state.places[State::target(k)].qemu);
    }
    may
}

fn word(state: &mut State, k: usize) -> bool {
    let arrived = usize::from(state.truth.home) == State::target(k);
    let running = state.stream == u8::try_from(k).ok();
    let of = &mut state.kube.moves[k];
    match of.phase {
        Phase::Running if arrived => {
            of.phase = Phase::Succeeded;
            state.kube.vmi = state.truth.home;
        }
        Phase::Running if !running => of.phase = Phase::Failed,
        // Its pod has gone, or has ended.
        Phase::Scheduling if !state.kube.pods[State::target(k)].lives() => of.phase = Phase::Failed,
        _ => return false,
    }
    true
}

fn vanish(state: &mut State, k: usize) -> bool {
    let of = &mut state.kube.moves[k];
    let early = of.deleting && of.phase == Phase::Scheduling;
    let may = of.there && of.deleting && (early || of.is_over());
    if may {
        of.there = false;
    }
    if early {
        of.phase = Phase::Failed;
    }
    may
}

/// A guest lets go late of what it was asked for.
fn lets_go(state: &mut State, pod: usize) -> bool {
    let place = &mut state.places[pod];
    let all = place.qemu.keeps;
    let Some(n) = all.iter().position(|keeps| *keeps) else {
        return false;
    };
    place.qemu.keeps[n] = false;
    if place.nics[n].keeps_vf {
        place.qemu.vf[n] = None;
    }
    true
}

fn again(state: &mut State) -> bool {
    let home = usize::from(state.truth.home);
    let first = state.kube.moves[0];
    let may = state.again
        && first.is_over()
        // It sends a VM from where it says that it is.
        && state.kube.vmi == state.truth.home
        && state.stream.is_none()
        && state.places[home].qemu.runs()
        && state.kube.pods[home].lives()
        && !state.kube.pods[home].leaves;
    if may {
        state.again = false;
        state.kube.moves[1] = Migration {
            phase: Phase::Scheduling,
            deleting: false,
            there: true,
            source: state.truth.home,
        };
        state.kube.pods[State::target(1)] = Pod {
            phase: PodPhase::Pending,
            leaves: false,
        };
    }
    may
}
