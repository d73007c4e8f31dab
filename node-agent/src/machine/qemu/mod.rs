//! A QEMU and its QMP session. Types of QMP are named only in here.
//!
//! | module | does | touches |
//! |---|---|---|
//! | `observe` | sees a NIC's devices, and what is done with the VM | reads only |
//! | `plug` | plugs and unplugs devices | QEMU |
//! | `end` | ends a QEMU that will never run the VM | QEMU |
//! | `events` | turns QEMU's events into the agent's own words | nothing |
//! | [`session`] | keeps the session, and does what its events ask for | the others |
//! | [`migration`] | decides what a migration needs next | nothing |
//! | `steps` | takes a migration's steps | QEMU, the journal, macvtaps |
//! | `file_steps` | takes those of a VM that goes to a file or comes from one | QEMU, the journal |
//! | [`state_file`] | the file, as the pod has it | the pod's volumes |
//! | [`certificates`] | makes the certificates of one end of a migration | nothing |
//! | [`tls`] | keeps them until QEMU has them | a directory in memory, QEMU |
//! | [`dial`] | connects the source to the target | QEMU, the pod's network |
//! | `encrypt` | decides which of these an end needs, and when | the three |
//! | [`rx_filter`] | decides what a macvtap receives | nothing |
//! | [`rx_follow`] | keeps macvtaps receiving what the guest asks for | macvtaps, QEMU |

pub mod certificates;
pub mod dial;
mod encrypt;
#[cfg(test)]
mod encrypt_tests;
mod end;
mod events;
mod file_steps;
pub mod migration;
mod observe;
#[cfg(test)]
pub(crate) mod peer;
mod plug;
pub mod rx_filter;
pub mod rx_follow;
pub mod session;
pub mod state_file;
mod steps;
pub mod tls;

use hybridnic_qmp::{Client, QmpError};

pub(super) use plug::announce;
pub(super) use steps::see_vm;

use super::MachineError;
use crate::error::chain;

/// A session with a QEMU. Clones share it.
#[derive(Clone, Debug)]
pub struct Qemu {
    pub(super) client: Client,
}

impl Qemu {
    /// By its QMP session.
    pub fn new(client: Client) -> Self {
        Self { client }
    }
}

impl From<QmpError> for MachineError {
    fn from(error: QmpError) -> Self {
        let words = chain(&error);
        match error {
            QmpError::Closed(_) => Self::Gone(words),
            _ => Self::Refused(words),
        }
    }
}

/// A word for metrics.
fn word(error: &QmpError) -> &'static str {
    match error {
        QmpError::Command { .. } => "refused",
        QmpError::Timeout { .. } | QmpError::GreetingTimeout { .. } => "timeout",
        QmpError::Closed(_) => "closed",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn errors_are_counted_under_few_words() {
        let late = QmpError::Timeout {
            command: "device_del",
            after: Duration::from_secs(1),
        };
        assert_eq!(word(&late), "timeout");
        assert_eq!(word(&QmpError::Busy), "other");
    }
}
