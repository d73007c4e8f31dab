//! The driver that does not ask us: KubeVirt's migrations, up to two of one VM.
//!
//! | module | is |
//! |---|---|
//! | [`state`] | a state of the world |
//! | [`runtime`] | what KubeVirt, libvirt, QEMU and kubelets do |
//! | [`agent`] | when the agent's tasks run, what it hears and says, and how it dies |
//! | [`vm_task`], [`nic_task`] | these tasks, around the agent's decisions |
//! | [`operator`] | the operator's reconcile around its decisions |
//! | [`world`] | which part may do what when, and what may go wrong |
//! | [`invariants`] | what must hold |
//! | [`show`] | states in words |

pub mod agent;
pub mod invariants;
pub mod nic_task;
pub mod operator;
pub mod runtime;
pub mod show;
pub mod state;
pub mod vm_task;
pub mod world;
