//! The driver that asks nobody: KubeVirt's migrations, up to two of one VM.
//!
//! | module | is |
//! |---|---|
//! | [`state`] | a state of the world |
//! | [`runtime`] | what KubeVirt, libvirt, QEMU and kubelets do |
//! | [`agent`] | the agent's two tasks around its decisions |
//! | [`operator`] | the operator's reconcile around its decisions |
//! | [`world`] | who may do what when, and what may go wrong |
//! | [`invariants`] | what must hold |
//! | [`show`] | states in words |

pub mod agent;
pub mod invariants;
pub mod operator;
pub mod runtime;
pub mod show;
pub mod state;
pub mod world;
