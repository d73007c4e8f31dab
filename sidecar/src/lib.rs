//! Runs beside a KubeVirt launcher: KubeVirt asks it, over a socket, before it defines a VM's libvirt domain, and it adds what
//! the VM's hybrid NICs need and KubeVirt's own API cannot say.
//!
//! - [`domain`]: what is added to a domain, and when it is refused. Pure.
//! - [`vmi`]: which interfaces are ours.
//! - [`hooks`]: KubeVirt's protocol.

pub mod domain;
pub mod hooks;
pub mod vmi;
