//! Why a runtime has not done what it was asked.

use hybridnic_api::conditions::reasons;

use crate::error::HasReason;

/// It has not done it, or not said so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MachineError {
    /// The session has ended.
    #[error("{0}")]
    Gone(String),
    /// It refused, did not answer in time, or was not understood.
    #[error("{0}")]
    Refused(String),
    /// It was to be ended, and the VM has arrived in it.
    #[error("the VM has arrived in the QEMU that was to be ended")]
    Arrived,
}

impl HasReason for MachineError {
    fn reason(&self) -> &'static str {
        match self {
            Self::Gone(_) => reasons::QMP_UNAVAILABLE,
            Self::Refused(_) => reasons::QEMU_REFUSED,
            Self::Arrived => reasons::MIGRATING,
        }
    }
}
