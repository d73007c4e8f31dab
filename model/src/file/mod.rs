//! A VM that goes to a file, by a `QemuSave`, and comes back from it at another node, by a `QemuRestore`.
//!
//! Nodes, NICs and their tasks are those of [`crate::state`].
//!
//! | module | is |
//! |---|---|
//! | [`state`] | a state of the world |
//! | [`vm_task`] | the agent's task of the VM around its decisions |
//! | [`steps`] | what it does to QEMU and to the file, of which it may die after each part |
//! | [`operator`] | the operator's controllers around their decisions |
//! | [`world`] | which part may do what when, and what may go wrong |
//! | [`invariants`] | what must hold |
//! | [`show`] | states in words |

pub mod invariants;
pub mod operator;
pub mod show;
pub mod state;
pub mod steps;
pub mod vm_task;
pub mod world;
