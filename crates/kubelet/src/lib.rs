//! The kubelet's gRPC interfaces for devices, over its sockets on this node.
//!
//! Mechanism only: nothing here knows which devices there are, or decides about them.
//!
//! | module | does |
//! |---|---|
//! | [`resource`] | the name of a resource, and its socket's |
//! | [`device_plugin`] | what a plugin must answer (`deviceplugin/v1beta1`), and the server of one resource |
//! | [`registration`] | keeps a resource registered, over restarts of the kubelet |
//! | [`directory`] | tells when the kubelet's socket is made again |
//! | [`pod_resources`] | which devices the kubelet has given to which pods (`podresources/v1`) |
//! | `wire` | the messages, as far as they are used |
//! | `rpc` | one call to a socket |
#![cfg_attr(
    any(test, feature = "testing"),
    doc = "| [`scripted`] | a kubelet that does as a test says |"
)]

pub mod device_plugin;
pub mod directory;
pub mod pod_resources;
pub mod registration;
pub mod resource;
mod rpc;
#[cfg(any(test, feature = "testing"))]
pub mod scripted;
mod wire;

pub use rpc::Error;

#[cfg(test)]
mod tests;
