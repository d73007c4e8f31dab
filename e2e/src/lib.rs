//! The test bed: a real control plane, and a lab of emulated SR-IOV nodes.

pub mod chart;
pub mod controlplane;
pub mod lab;
pub mod world;
