//! Why a step could not be taken, in the words of the API.

use std::{error::Error, fmt::Write as _};

/// A step that failed: a reason of the fixed list and a sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    /// One of [`hybridnic_api::conditions::reasons`].
    pub reason: &'static str,
    /// What happened, with the kernel's or QEMU's own words.
    pub message: String,
}

impl StepError {
    /// A failure in our own words.
    pub fn new(reason: &'static str, message: impl Into<String>) -> Self {
        Self {
            reason,
            message: message.into(),
        }
    }

    /// A failure with its whole chain of causes.
    pub fn from_error(reason: &'static str, error: &dyn Error) -> Self {
        Self {
            reason,
            message: chain(error),
        }
    }
}

/// `error: cause: cause's cause`.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    text
}
