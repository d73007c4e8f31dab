//! A model checker whose steps are the programs' own decisions: `migration::step`, `desired` and `moves` of `hybridnic_flight`, `nic::plan`,
//! `nic::report`, `machine::qemu::migration` and `machine::kubevirt::watch` of the agent.
//!
//! There are three worlds. In [`model`] the operator drives the VM's migration, in [`kubevirt`] KubeVirt does, and in [`mod@file`] a VM is saved and
//! restored.
//!
//! | module | is |
//! |---|---|
//! | [`state`] | a state of the world, small enough to have millions of |
//! | [`objects`] | the API's real objects, which states name by numbers |
//! | [`nic_task`], [`vm_task`] | the agent's two tasks around its decisions |
//! | [`cards`], [`port`] | the PFs of a node, and a VF's port at the switch |
//! | [`operator`] | the operator's two controllers around its decisions |
//! | [`qemu`] | what QEMU does |
//! | [`model`] | which part may do what when, and what may go wrong |
//! | [`invariants`] | what must hold |
//! | [`system`] | what a search needs of a world |
//! | [`search`] | the search through all states |
//! | [`settling`] | whether everything ends well |
//! | [`kubevirt`] | the other world |
//! | [`mod@file`] | the world of saves and restores |
//! | [`show`] | states in words |

pub mod cards;
pub mod file;
pub mod invariants;
pub mod kubevirt;
pub mod model;
pub mod nic_task;
pub mod objects;
pub mod operator;
pub mod port;
pub mod qemu;
pub mod search;
pub mod settling;
pub mod show;
pub mod state;
pub mod system;
pub mod vm_task;
