//! `VmHybridNic`: its MAC, its attachments, its status.

pub mod admit;
pub mod desired;
mod echo;
pub mod known;
mod leaving;
mod patience;
mod reconcile;
pub mod release;
pub mod status;
pub mod whereabouts;

pub use patience::Patience;
pub use reconcile::NicReconciler;
pub use release::ReleaseReconciler;
