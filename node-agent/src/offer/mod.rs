//! The node's devices as the kubelet offers them to pods: `hybridnic.io/NETWORK`. So the scheduler knows where VFs are free.
//!
//! | module | is |
//! |---|---|
//! | [`slots`] | which slots of which PFs a network has |
//! | [`devices`] | which of them are offered and healthy: pure |
//! | [`tickets`] | which NIC uses which of its pod's devices: pure |
//! | [`prefer`] | which are best together: pure |
//! | [`known`] | which devices the kubelet has given to which pods, as far as is known |
//! | `plugin` | the answers to the kubelet |
//! | `lend` | gives a pod its VF's vfio group where the kernel has groups only, and takes it back |
//! | `placeholder` | a device node where there is none yet |
//! | [`run`] | keeps all of it running |
//!
//! Two sides know which pod has a device: the kubelet as long as its pod runs, and the ledger as long as a NIC uses it. A device is free
//! if both say so.

pub mod devices;
pub mod known;
mod lend;
mod placeholder;
mod plugin;
pub mod prefer;
mod run;
pub mod slots;
#[cfg(test)]
pub(crate) mod tests;
pub mod tickets;

pub use known::Offers;
pub use run::run;

/// What the names of the resources begin with.
pub const DOMAIN: &str = "hybridnic.io";
