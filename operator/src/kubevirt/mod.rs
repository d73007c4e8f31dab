//! What makes KubeVirt's VMs ours: a `NetworkAttachmentDefinition` for each network, our binding in KubeVirt's configuration, and a NIC
//! for each interface with it. Such a NIC is served like that of any other VM: see [`nic`](crate::nic) and
//! [`moves`](crate::moves).
//!
//! | module | decides |
//! |---|---|
//! | [`nics`] | which NICs a VM should have |
//! | [`nads`] | which definitions a network should have |
//! | `reconcile` | writes what these say |
//!
//! `kubectl hybridnic doctor` also asks which interfaces of a VM are ours, and what our binding is: see `hybridnic_api::foreign`.

pub mod nads;
pub mod nics;
mod reconcile;

pub use hybridnic_api::foreign::{binding, interfaces};
pub use reconcile::{BindingReconciler, Definitions, ElsewhereReconciler, MachineReconciler};

/// How KubeVirt's VMs are served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The sidecar's image; without one the operator does not touch the binding.
    pub sidecar: String,
    /// Whether the operator may register the binding.
    pub register: bool,
    /// The operator's namespace, in which each network has its definition.
    pub namespace: String,
}
