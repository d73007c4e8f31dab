//! `VmHybridNic`: its MAC, its attachments, its status.

pub mod admit;
pub mod desired;
mod known;
mod reconcile;
pub mod status;

pub use reconcile::NicReconciler;
