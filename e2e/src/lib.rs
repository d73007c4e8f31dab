//! The test bed: a real control plane, KubeVirt beside it, a lab of emulated SR-IOV nodes, and the documentation as data.

pub mod chart;
pub mod cluster;
pub mod collector;
pub mod controlplane;
pub mod docs;
pub mod kubevirt;
pub mod lab;
pub mod precedence;
pub mod until;
pub mod usage;
pub mod world;
