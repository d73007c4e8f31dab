//! The API of hybridnic, group `hybridnic.io`: types only, no client and no I/O.
//!
//! These types are the source of `crds/*.yaml` (`make crds`).
//! Users write [`v1alpha1::HybridNetwork`], [`v1alpha1::VmHybridNic`] and [`v1alpha1::QemuMigration`];
//! operator and node agent meet in [`v1alpha1::NicAttachment`] and [`v1alpha1::HybridNode`].

// kube's derive takes one `printcolumn` a column; clippy sees repetition where their parameters agree.
#![allow(clippy::duplicated_attributes)]

pub mod checks;
pub mod conditions;
pub mod features;
pub mod foreign;
pub mod limits;
pub mod names;
pub mod v1alpha1;
