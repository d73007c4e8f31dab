//! A VM on its way from one host to another: what is decided, from what both ends report. All pure. The operator drives a `QemuMigration`
//! by it in a cluster, and `hybridnic-agent ctl migrate` drives two hosts without one.
//!
//! | module | decides |
//! |---|---|
//! | [`migration`] | the phase of a migration |
//! | [`moves`] | how far a VM is, and where it may run |
//! | [`desired`] | what each end of a NIC is told |
//! | [`pods`] | which pod runs a VM, and which may take it |
//! | [`attachment`] | nothing: reads what an agent says |
#![cfg_attr(
    any(test, feature = "testing"),
    doc = "| [`testing`] | nothing: makes objects to test with |"
)]

pub mod attachment;
pub mod desired;
pub mod migration;
pub mod moves;
pub mod pods;
#[cfg(any(test, feature = "testing"))]
#[expect(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "a test fails by it"
)]
pub mod testing;
