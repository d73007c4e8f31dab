//! KubeVirt's protocol for hooks: gRPC over a socket in a directory that the launcher searches.
//!
//! The launcher asks each socket once which hooks it serves, and panics if there is no answer; then it asks before each
//! definition of the domain. If that fails, KubeVirt reports the error on the VM, which does not start, and the launcher asks again.

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

/// Where the launcher asks which hooks a sidecar serves.
pub const INFO: &str = "/kubevirt.hooks.info.Info/Info";
/// Versions of the callbacks: what KubeVirt has asked for since 0.20, with shutdown in the last. Its messages are the same in each.
pub const VERSIONS: [&str; 3] = ["v1alpha3", "v1alpha2", "v1alpha1"];
/// Before a domain is defined.
pub const ON_DEFINE_DOMAIN: &str = "OnDefineDomain";
/// The VM has ended. Without it a launcher's pod would stay, and keep its VF.
pub const SHUTDOWN: &str = "Shutdown";
