//! What the QEMUs do by themselves, as QEMU 10.0 was seen to do it.
//!
//! ```text
//!  source  setup ─► active ─► pre-switchover ─(migrate-continue)─► device ──────────────────► completed
//!  stream             Flowing                                        ─► Sent ─► Loaded ───────► Over
//!  target  setup ─► active                                                      completed
//! ```
//! With `return-path` the target completes first. It starts the VM then, unless it was told to stop before the VM came. A
//! stream that breaks off makes the source resume by itself, no matter how far the stream was; a target that has all of the VM
//! completes nevertheless.

use crate::state::{Qemu, Run, SOURCE, State, Stream, TARGET, Transfer};

/// What happens to the QEMUs and their pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happens {
    /// The source reaches the target, or finds no listener there.
    Connect,
    /// Little memory is left: the source stops the VM.
    Converge,
    /// The source sends the last of it.
    Send,
    /// The target has loaded the VM.
    Load,
    /// The source learns that it has.
    Acknowledge,
    /// The target, which has failed, ends.
    Exit,
    /// The target, whose source has gone or given up, fails.
    Starve,
    /// The source, whose target has gone, fails.
    Miss,
}

/// Everything that may happen by itself.
pub const HAPPENS: [Happens; 8] = [
    Happens::Connect,
    Happens::Converge,
    Happens::Send,
    Happens::Load,
    Happens::Acknowledge,
    Happens::Exit,
    Happens::Starve,
    Happens::Miss,
];

/// Lets it happen; does nothing where it cannot.
pub fn happen(state: &mut State, what: Happens) {
    let [source, target] = &mut state.nodes;
    let (from, to) = (&mut source.qemu, &mut target.qemu);
    match what {
        Happens::Connect if from.alive && from.migration == Transfer::Setup => {
            if to.alive && to.listens && to.run == Run::Incoming && to.migration == Transfer::Setup {
                (from.migration, to.migration, to.listens) = (Transfer::Active, Transfer::Active, false);
                state.truth.plain |= !(from.tls && to.tls);
                state.stream = Stream::Flowing;
            } else {
                from.migration = Transfer::Failed;
            }
        }
        Happens::Converge if from.alive && from.migration == Transfer::Active => {
            (from.migration, from.run) = (Transfer::PreSwitchover, Run::Finishing);
        }
        Happens::Send
            if state.stream == Stream::Flowing && from.alive && from.migration == Transfer::Device =>
        {
            state.stream = Stream::Sent;
        }
        Happens::Load if state.stream == Stream::Sent && to.alive && to.migration == Transfer::Active => {
            let run = if to.stopped { Run::Paused } else { Run::Running };
            (to.migration, to.run) = (Transfer::Completed, run);
            state.stream = Stream::Loaded;
            state.truth.arrived |= to.runs();
        }
        Happens::Acknowledge
            if state.stream == Stream::Loaded && from.alive && from.migration == Transfer::Device =>
        {
            (from.migration, from.run) = (Transfer::Completed, Run::HandedOver);
            state.stream = Stream::Over;
        }
        Happens::Exit if to.alive && to.migration == Transfer::Failed && to.run == Run::Incoming => {
            *to = Qemu::dead();
        }
        // All that was sent is there; what is missing never comes.
        Happens::Starve
            if to.alive
                && to.migration == Transfer::Active
                && state.stream != Stream::Sent
                && !(from.alive && sends(from)) =>
        {
            to.migration = Transfer::Failed;
            state.stream = Stream::Over;
        }
        Happens::Miss
            if from.alive
                && sends(from)
                && !(to.alive && matches!(to.migration, Transfer::Active | Transfer::Completed)) =>
        {
            give_up(from, Transfer::Failed);
            state.stream = Stream::Over;
        }
        _ => {}
    }
}

fn sends(source: &Qemu) -> bool {
    matches!(
        source.migration,
        Transfer::Active | Transfer::PreSwitchover | Transfer::Device
    )
}

/// The source gives the transfer up and runs on: QEMU starts a VM again that ran when the migration began.
fn give_up(source: &mut Qemu, how: Transfer) {
    (source.migration, source.run) = (how, Run::Running);
}

/// The stream breaks off: the source fails. A target that had all of it starts the VM.
pub fn break_off(state: &mut State) {
    let source = &mut state.nodes[SOURCE].qemu;
    if source.alive && sends(source) {
        give_up(source, Transfer::Failed);
        if state.stream == Stream::Flowing {
            state.stream = Stream::Over;
        }
        state.truth.own_double |= state.stream != Stream::Over;
    }
}

/// The target cannot load the VM.
pub fn refuse(state: &mut State) {
    let target = &mut state.nodes[TARGET].qemu;
    if target.alive && target.migration == Transfer::Active {
        target.migration = Transfer::Failed;
        state.stream = Stream::Over;
    }
}

/// `migrate_cancel`. QEMU takes it as long as the migration has not ended, also when the target has all of the VM.
pub fn cancel(state: &mut State, end: usize) {
    let stream = state.stream;
    let source = &mut state.nodes[end].qemu;
    if end != SOURCE || !(sends(source) || source.migration == Transfer::Setup) {
        return;
    }
    give_up(source, Transfer::Cancelled);
    if stream == Stream::Flowing {
        state.stream = Stream::Over;
    }
    state.truth.zombie |= state.truth.arrived;
}

/// Its kubelet starts it again in the same pod. The source's boots the VM unless it has been sent away; everybody else waits
/// for a VM.
pub fn restart(state: &mut State, which: usize) {
    let boots = which == SOURCE && state.stream == Stream::None && !state.truth.arrived;
    let node = &mut state.nodes[which];
    node.qemu = Qemu::fresh(if boots { Run::Running } else { Run::Incoming });
    if let Some(begun) = &mut node.vm.begun {
        begun.here = false;
    }
}
