use std::ffi::CStr;
use std::fmt;
use std::io;
use std::time::Duration;

use nix::errno::Errno;
use rtnetlink::packet_core::{ErrorMessage, NlasIterator};

/// `NLMSGERR_ATTR_MSG` of include/uapi/linux/netlink.h: the text of an extended ack.
const ATTR_MESSAGE: u16 = 1;
/// `struct nlmsghdr`: all that a capped ack has of the request.
const NLMSG_HEADER: usize = 16;

/// A request to rtnetlink failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket, or no thread for it.
    #[error("cannot open a netlink connection")]
    Open(#[source] io::Error),
    /// The kernel did not answer in time; it may still do what was asked.
    #[error("no answer from the kernel within {after:?}: {operation}")]
    Timeout {
        /// What was asked, as in "set link 3 up".
        operation: String,
        /// The deadline.
        after: Duration,
    },
    /// The kernel said no.
    #[error("the kernel refused to {operation}: {}", Reason { errno: *errno, text: text.as_deref() })]
    Refused {
        /// What was asked, as in "set trust of VF 3 of link 5 to on".
        operation: String,
        /// The error number.
        errno: Errno,
        /// What the kernel or driver says about it (extended ack).
        text: Option<String>,
    },
    /// The connection is gone.
    #[error("the netlink connection was lost: {operation}")]
    Closed {
        /// What was asked.
        operation: String,
    },
    /// An answer that does not fit the request.
    #[error("unexpected answer from the kernel: {operation}: {detail}")]
    Unexpected {
        /// What was asked.
        operation: String,
        /// What is wrong with it.
        detail: String,
    },
}

impl NetlinkError {
    pub(super) fn of(operation: String, error: rtnetlink::Error) -> Self {
        match error {
            rtnetlink::Error::NetlinkError(message) => Self::Refused {
                operation,
                errno: Errno::from_raw(message.raw_code().saturating_neg()),
                text: extended_ack(&message),
            },
            rtnetlink::Error::RequestFailed => Self::Closed { operation },
            other => Self::Unexpected {
                operation,
                detail: other.to_string(),
            },
        }
    }

    /// The kernel's error number, where it gave one.
    pub fn errno(&self) -> Option<Errno> {
        match self {
            Self::Refused { errno, .. } => Some(*errno),
            _ => None,
        }
    }

    /// Whether the link does not exist.
    pub fn is_no_device(&self) -> bool {
        self.errno() == Some(Errno::ENODEV)
    }

    /// Whether the driver does not have the setting at all.
    pub fn is_not_supported(&self) -> bool {
        matches!(self.errno(), Some(Errno::EOPNOTSUPP | Errno::EPROTONOSUPPORT))
    }
}

struct Reason<'a> {
    errno: Errno,
    text: Option<&'a str>,
}

impl fmt::Display for Reason<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({:?})", self.errno.desc(), self.errno)?;
        self.text.map_or(Ok(()), |text| write!(f, ": {text}"))
    }
}

/// The kernel's text in an error message, which no crate of the stack reads.
pub(super) fn extended_ack(message: &ErrorMessage) -> Option<String> {
    let attributes = message.header.get(NLMSG_HEADER..)?;
    let text = NlasIterator::new(attributes)
        .flatten()
        .find(|nla| nla.kind() == ATTR_MESSAGE)?;
    let text = CStr::from_bytes_until_nul(text.value())
        .ok()?
        .to_string_lossy()
        .into_owned();
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rtnetlink::packet_core::{ErrorBuffer, Parseable};

    use super::*;

    /// An error message: the number, the header of the request, and what follows it.
    fn message(errno: Errno, tail: &[u8]) -> ErrorMessage {
        let mut bytes = (-(errno as i32)).to_ne_bytes().to_vec();
        bytes.extend([0; NLMSG_HEADER]);
        bytes.extend(tail);
        ErrorMessage::parse(&ErrorBuffer::new(&bytes)).unwrap()
    }

    #[test]
    fn the_kernels_text_is_in_the_message() {
        let text = b"\x0a\x00\x01\x00no VF\0\x00\x00";
        let error = NetlinkError::of(
            "set trust of VF 3 of link 5 to on".into(),
            rtnetlink::Error::NetlinkError(message(Errno::EINVAL, text)),
        );
        assert_eq!(error.errno(), Some(Errno::EINVAL));
        assert_eq!(
            error.to_string(),
            "the kernel refused to set trust of VF 3 of link 5 to on: Invalid argument (EINVAL): no VF"
        );
    }

    #[test]
    fn no_text_is_no_text() {
        assert_eq!(extended_ack(&message(Errno::EPERM, b"")), None);
        assert_eq!(extended_ack(&ErrorMessage::default()), None);
    }

    proptest! {
        #[test]
        fn no_tail_makes_the_parser_panic(tail: Vec<u8>) {
            let _ = extended_ack(&message(Errno::EINVAL, &tail));
        }
    }
}
