//! The agent's end of the CNI plugin: a runtime asks for the interface of a pod, and waits until the pod's NIC has it.
//!
//! | module | is |
//! |---|---|
//! | [`registry`] | which callers wait, and which sandbox of a pod counts: pure |
//! | [`sandbox`] | a pod's network namespace, for as long as it counts |
//! | [`sandboxes`] | the node's sandboxes, as NICs' tasks and the server see them |
//! | [`server`] | the socket |
//! | [`run()`] | keeps both running |
//! | [`install`] | the plugin's program on the node |

pub mod install;
pub mod registry;
mod run;
pub mod sandbox;
pub mod sandboxes;
pub mod server;

pub use run::{Place, run};
pub use sandbox::{Inside, Sandbox};
pub use sandboxes::{Made, Sandboxes};
pub use server::Kubelet;
