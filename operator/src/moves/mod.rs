//! VMs on their way from one of their pods to another, no matter who drives them: see [`hybridnic_flight::moves`].
//!
//! | module | does |
//! |---|---|
//! | [`claims`] | which of several that want to move a VM has it |
//! | [`told`] | what a change of a status is worth telling |
//! | [`kubevirt`] | KubeVirt's `VirtualMachineInstanceMigration` as a move |

pub mod claims;
pub mod kubevirt;
pub mod told;

pub use hybridnic_flight::moves::{Driver, End, Going, Move, Outcome, Stage, Times, ends, file, qemu};
