//! The checks: each a pure function of the facts.

mod hardware;
mod install;
mod objects;
mod others;
mod programs;
mod remedy;

use super::{facts::Facts, finding::Finding};

/// Looks at one thing.
pub type Check = fn(&Facts) -> Vec<Finding>;

/// All, in the order in which they are told: what others depend on comes first.
pub const ALL: &[Check] = &[
    install::crds,
    install::policy,
    programs::operator,
    programs::lease,
    programs::agents,
    programs::versions,
    install::rights,
    hardware::pfs,
    hardware::drivers,
    hardware::iommu,
    hardware::vfs,
    objects::networks,
    objects::nics,
    objects::migrations,
    others::sriov_operator,
    others::device_plugins,
    others::dra,
];
