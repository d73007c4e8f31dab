//! The CNI plugin of hybridnic. It asks the node's agent, which does all of the work. The only rights that it needs are to reach the
//! agent's socket and to open the pod's network namespace.
//!
//! | module | is |
//! |---|---|
//! | [`wire`] | what plugin and agent say to each other |
//! | [`spec`] | what a runtime says to a plugin, and a plugin to a runtime |
//! | [`agent`] | the plugin's end of the agent's socket |
//! | [`plugin`] | the commands |
//!
//! The specification is <https://www.cni.dev/docs/spec/>, version 1.1.

pub mod agent;
pub mod plugin;
pub mod spec;
pub mod wire;
