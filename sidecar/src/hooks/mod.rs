//! KubeVirt's protocol of hooks: gRPC over a socket in a directory that the launcher looks through.
//!
//! The launcher asks each socket once what it takes part in, and panics where that has no answer; then it asks before each
//! definition of the domain. An error there is said of the VM, which does not start, and the launcher asks again.

mod messages;
mod server;
mod socket;

#[cfg(test)]
mod tests;

pub use messages::{
    HookPoint, Info, InfoRequest, OnDefineDomain, OnDefineDomainRequest, Shutdown, ShutdownRequest,
};
pub use server::Hooks;
pub use socket::serve;

/// Where the launcher asks what a sidecar takes part in.
pub const INFO: &str = "/kubevirt.hooks.info.Info/Info";
/// Versions of the callbacks: what KubeVirt has asked for since 0.20, with shutdown in the last. Its messages are the same in each.
pub const VERSIONS: [&str; 3] = ["v1alpha3", "v1alpha2", "v1alpha1"];
/// Before a domain is defined.
pub const ON_DEFINE_DOMAIN: &str = "OnDefineDomain";
/// The VM has ended. Without it a launcher's pod would stay, and keep its VF.
pub const SHUTDOWN: &str = "Shutdown";
