//! The node agent of hybridnic: hands out its node's VFs and moves each NIC between VF and standby.
//!
//! | module | is |
//! |---|---|
//! | [`attachments`] | the attachments of this node, a task for each, and what they report |
//! | [`wants`] | where the agent reads what should be here, and reports its status |
//! | [`nic`] | one NIC: observe → plan → execute → report |
//! | [`machine`] | one VM: the session with its runtime, and its migration |
//! | [`node`] | PFs, VFs and pools: which NIC holds what, what is published |
//! | [`offer`] | the node's devices as the kubelet offers them to pods |
//! | [`journal`] | what is held, on disk |
//! | [`durable`] | files that are replaced as a whole |
//! | [`privileges`] | drops the capabilities that the agent does not need |
//! | [`audit`] | looks for what is not as it should be, and reports it |
//! | [`links`] | where standbys are: in the host's network or a pod's |
//! | [`devices`] | what involves drivers: [`calls`] in a process each, and [`lanes`], one call at a time for each device, with a deadline |
//! | [`cni`] | pods' interfaces, as container runtimes ask for them |
//! | [`handouts`] | descriptors of VFs that QEMUs were given, as long as a process has them |
//! | [`troubles`] | what does not work while the rest goes on |
//! | [`metrics`] | what is measured |
//! | [`inventory`] | the same view without a cluster |
//! | [`local`] | an agent without a cluster: what is wanted comes from files |
//! | [`cli`], [`run`] | the command line, and what it starts |

pub mod attachments;
pub mod audit;
pub mod broker;
pub mod calls;
pub mod cli;
pub mod cni;
pub mod devices;
pub mod durable;
pub mod error;
pub mod handouts;
pub mod host;
pub mod inventory;
pub mod journal;
pub mod lanes;
pub mod links;
pub mod local;
pub mod machine;
pub mod metrics;
mod news;
pub mod nic;
pub mod node;
pub mod offer;
mod packets;
pub mod privileges;
pub mod run;
pub mod sockets;
mod trace;
pub mod troubles;
pub mod wants;
