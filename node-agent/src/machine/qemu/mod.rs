//! A QEMU and its QMP session. All that names a type of QMP is in here.
//!
//! | module | does | touches |
//! |---|---|---|
//! | [`session`] | keeps the session, and does what its events ask for | the others |
//! | [`migration`] | decides what a migration needs next | nothing |
//! | `steps` | takes a migration's steps | QEMU, the journal, macvtaps |
//! | [`certificates`] | makes the certificates of one end of a migration | nothing |
//! | [`tls`] | keeps them until QEMU has them | a directory in memory, QEMU |
//! | [`dial`] | connects the source to the target | QEMU, the pod's network |
//! | `encrypt` | what of these an end needs when | the three |
//! | [`rx_filter`] | decides what a macvtap receives | nothing |
//! | [`rx_follow`] | keeps macvtaps receiving what the guest asks for | macvtaps, QEMU |

pub mod certificates;
pub mod dial;
mod encrypt;
#[cfg(test)]
mod encrypt_tests;
pub mod migration;
#[cfg(test)]
pub(crate) mod peer;
pub mod rx_filter;
pub mod rx_follow;
pub mod session;
mod steps;
pub mod tls;
