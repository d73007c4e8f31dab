//! `VmHybridNic`: its MAC, its attachments, its status.

pub mod admit;
pub mod changes;
mod echo;
mod leaving;
pub mod observed;
mod patience;
mod reconcile;
pub mod release;
pub mod status;
mod theirs;
pub mod whereabouts;

pub use hybridnic_flight::desired;
pub use patience::Patience;
pub use reconcile::NicReconciler;
pub use release::ReleaseReconciler;
