//! What a state of this world is.

use hybridnic_api::v1alpha1::AfterSave;

use crate::state::{self, Id};

/// The save among the moves. It is about the VM at the first node.
pub const SAVE: usize = 0;
/// The restore among the moves. It is about a pod at the second node.
pub const RESTORE: usize = 1;
/// Both.
pub const MOVES: [usize; 2] = [SAVE, RESTORE];

/// Everything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    /// Nodes, pods and attachments, as in the other world. There is no migration.
    pub base: state::State,
    /// The save and the restore.
    pub moves: Moves,
    /// What the operator's caches still have of them, where they are late.
    pub late: Option<Moves>,
    /// The volume, which both nodes reach.
    pub disk: Disk,
    /// What each agent remembers of the file.
    pub known: [Known; 2],
    /// An agent that dies in its next step: after so many of its parts.
    pub dies: [Option<u8>; 2],
    /// Whether the next file that is whole cannot be put on disk.
    pub spoils: bool,
    /// What no part of the system can see.
    pub truth: Truth,
}

/// The objects.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Moves {
    /// What is to become of the VM once the file is whole.
    pub then: AfterSave,
    /// Each; none before it is made.
    pub each: [Option<Move>; 2],
}

/// A save or a restore.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Move {
    /// Its status.
    pub status: Id,
    /// Whether it was deleted, which cancels it.
    pub deleting: bool,
}

/// What the volume has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Disk {
    /// The file under its hidden name, and whether it has all of the VM.
    pub part: Option<bool>,
    /// The file under its own name, and whether it has all of the VM.
    pub named: Option<bool>,
    /// Whether the manifest is beside it.
    pub manifest: bool,
}

/// What an agent remembers of the file. An agent that dies forgets it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[allow(missing_docs)]
pub enum Known {
    Nothing,
    Writable,
    Loadable,
    Told,
    Refused,
    Gone,
}

/// What no part of the system can see.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Truth {
    /// The VM has run on at the first node since all of it was written.
    pub ahead: bool,
    /// An agent has ended a QEMU whose VM is in no whole file, or is ahead of it.
    pub killed: bool,
    /// A QEMU was given a file that is not whole.
    pub half: bool,
    /// The VM from the file has run.
    pub loaded: bool,
    /// Something went wrong.
    pub faulty: bool,
}
