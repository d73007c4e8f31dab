//! A model checker whose steps are the programs' own decisions: `migration::step`, `nic::desired` and `moves::ends` of the operator,
//! `nic::plan`, `nic::report` and `machine::qemu::migration` of the agent.
//!
//! | module | is |
//! |---|---|
//! | [`state`] | a state of the world, small enough to have millions of |
//! | [`objects`] | the API's real objects, which states name by numbers |
//! | [`nic_task`], [`vm_task`] | the agent's two tasks around its decisions |
//! | [`operator`] | the operator's two controllers around its decisions |
//! | [`qemu`] | what QEMU does |
//! | [`model`] | who may do what when, and what may go wrong |
//! | [`invariants`] | what must hold |
//! | [`search`] | the search through all states |
//! | [`show`] | states in words |

pub mod invariants;
pub mod model;
pub mod nic_task;
pub mod objects;
pub mod operator;
pub mod qemu;
pub mod search;
pub mod show;
pub mod state;
pub mod vm_task;
