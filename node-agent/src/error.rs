//! Why a step could not be taken, in the words of the API.

use std::{error::Error, fmt::Write as _};

use hybridnic_api::limits;

/// An error that the API has a reason for. Its message is that of the error, with its causes.
pub trait HasReason: Error {
    /// One of [`hybridnic_api::conditions::reasons`].
    fn reason(&self) -> &'static str;
}

/// What is reported of a step that failed: a reason of the fixed list and a sentence for a person.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct StepError {
    /// One of [`hybridnic_api::conditions::reasons`].
    pub reason: &'static str,
    /// What happened, with the kernel's or QEMU's own words.
    pub message: String,
}

impl<E: HasReason> From<E> for StepError {
    fn from(error: E) -> Self {
        Self {
            reason: error.reason(),
            message: chain(&error),
        }
    }
}

/// Whether the API server has answered, and does not want this: the agent lacks a right, or is bound to another node. That
/// hardly passes by itself, so a person should see it.
pub fn is_refusal(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_forbidden() || status.is_invalid())
}

/// As much of a text with words of the kernel or of QEMU, which a guest may have taken over, as a status takes; without anything
/// that controls a terminal.
pub fn bounded(text: &str) -> String {
    limits::text(text)
}

/// `error: cause: cause's cause`, as far as a status takes it.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {cause}");
        source = cause.source();
    }
    bounded(&text)
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    #[test]
    fn no_message_is_longer_than_a_status_takes() {
        let long = "ä".repeat(1 << 20);
        let message = chain(&std::io::Error::other(long));
        assert_eq!(message.chars().count(), limits::TEXT);
        assert!(message.ends_with('…'));
        assert_eq!(bounded("short"), "short");
        assert_eq!(bounded("\u{1b}[2Jshort\n"), "�[2Jshort ");
    }

    #[test]
    fn what_the_api_server_refuses_is_told_from_its_absence() {
        let answer = |code, reason| kube::Error::Api(Box::new(Status::failure("no", reason).with_code(code)));
        assert!(is_refusal(&answer(403, "Forbidden")));
        assert!(is_refusal(&answer(422, "Invalid")));
        assert!(!is_refusal(&answer(503, "ServiceUnavailable")));
        assert!(!is_refusal(&kube::Error::LinesCodecMaxLineLengthExceeded));
    }
}
