//! The test bed: a real control plane, and a lab of emulated SR-IOV nodes.

pub mod cluster;
pub mod controlplane;
pub mod lab;
pub mod until;
pub mod world;
