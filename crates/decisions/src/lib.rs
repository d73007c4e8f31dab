//! Decisions about NICs and networks that the operator makes in a cluster, and an agent without a cluster makes itself. All pure.
//!
//! | module | decides |
//! |---|---|
//! | [`mac`] | which MAC address a NIC has |
//! | [`network`] | what a network is to a node and to a NIC |

pub mod mac;
pub mod network;
