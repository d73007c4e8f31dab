//! What can go wrong, and the helpers that tell apart the refusals a caller acts upon.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use thiserror::Error;

/// Why a connection could not be made or a command gave no result.
#[derive(Debug, Error)]
pub enum QmpError {
    /// The socket at `path` could not be connected to.
    #[error("cannot connect to the QMP socket {}", path.display())]
    Connect {
        /// The socket's path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket's listen queue is full: QEMU serves one client at a time, and others wait already.
    #[error("the QMP socket is busy: another client holds it, and more are waiting")]
    Busy,
    /// A connected socket could not be handed to the runtime.
    #[error("cannot use the connected QMP socket")]
    Socket(#[source] io::Error),
    /// QEMU accepted the connection but did not greet in time. QEMU serves one client at a time, so most likely
    /// another client holds the socket.
    #[error("no QMP greeting within {after:?}: another client holds the socket, or QEMU hangs")]
    GreetingTimeout {
        /// The deadline that passed.
        after: Duration,
    },
    /// The first line is no QMP greeting.
    #[error("the peer does not speak QMP: its first line is {text:?}")]
    NotQmp {
        /// The beginning of that line.
        text: String,
    },
    /// No reply in time. The command may still be executed; its late reply will be ignored.
    #[error("no reply to {command} within {after:?}")]
    Timeout {
        /// The command's name.
        command: &'static str,
        /// The deadline that passed.
        after: Duration,
    },
    /// The session ended before the reply came.
    #[error("the QMP session is closed")]
    Closed(#[source] CloseReason),
    /// QEMU refused the command.
    #[error("QEMU refused {command}: {desc}")]
    Command {
        /// The command's name.
        command: &'static str,
        /// QEMU's `ErrorClass`, for example `GenericError` or `DeviceNotFound`.
        class: String,
        /// QEMU's own text, cut to 1024 characters.
        desc: String,
    },
    /// QEMU's answer is longer than [`Options::max_line`](crate::Options::max_line).
    #[error("QEMU's answer to {command} is longer than the limit of {limit} bytes")]
    TooLong {
        /// The command's name.
        command: &'static str,
        /// The limit in bytes.
        limit: usize,
    },
    /// The command's arguments could not be written as JSON.
    #[error("cannot encode the arguments of {command}")]
    Encode {
        /// The command's name.
        command: &'static str,
        /// What the encoder said.
        source: serde_json::Error,
    },
    /// QEMU's reply has another shape than the command's documented one.
    #[error("cannot decode the reply to {command}")]
    Decode {
        /// The command's name.
        command: &'static str,
        /// What the decoder said.
        source: serde_json::Error,
    },
    /// The descriptor to pass could not be duplicated.
    #[error("cannot duplicate the descriptor {name:?}")]
    DuplicateFd {
        /// The name QEMU was to know it by.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
}

impl QmpError {
    /// The text of QEMU's refusal, if this is one.
    fn refusal(&self) -> Option<(&str, &str)> {
        match self {
            Self::Command { class, desc, .. } => Some((class, desc)),
            _ => None,
        }
    }

    fn says(&self, text: &str) -> bool {
        self.refusal().is_some_and(|(_, desc)| desc.contains(text))
    }

    /// No such device, netdev or net client (`DeviceNotFound`): for a removal that means it is done already.
    pub fn is_device_not_found(&self) -> bool {
        self.refusal().is_some_and(|(class, _)| class == "DeviceNotFound")
    }

    /// No such object: what `object-del` says (QEMU `qom/object_interfaces.c`).
    pub fn is_object_not_found(&self) -> bool {
        self.says("object '") && self.says("not found")
    }

    /// No such NIC: what `query-rx-filter` says (QEMU `net/net.c`).
    pub fn is_no_such_net_client(&self) -> bool {
        self.says("invalid net client name")
    }

    /// This QEMU does not have the command (`CommandNotFound`).
    pub fn is_command_not_found(&self) -> bool {
        self.refusal()
            .is_some_and(|(class, _)| class == "CommandNotFound")
    }

    /// An earlier `device_del` of this device still waits for the guest (QEMU `system/qdev-monitor.c`).
    pub fn is_unplug_pending(&self) -> bool {
        self.says("already in the process of unplug")
    }

    /// The guest is just handling the slot, so `device_del` is worth a retry (QEMU `hw/pci/pcie.c`).
    pub fn is_busy_guest(&self) -> bool {
        self.says("guest is busy")
    }

    /// The device tree is frozen by a running migration (QEMU `system/qdev-monitor.c`).
    pub fn is_migrating(&self) -> bool {
        self.says("not allowed while migrating")
    }

    /// The bus takes no hot-plugged devices: it is not the bus of a `pcie-root-port`.
    pub fn is_not_hotpluggable(&self) -> bool {
        self.says("does not support hotplugging")
    }

    /// The id is taken: after a second `device_add`, `netdev_add` or `object-add` it means that the first has succeeded.
    pub fn is_duplicate_id(&self) -> bool {
        self.says("Duplicate device ID") || self.says("Duplicate ID") || self.says("duplicate property")
    }

    /// Another client probably holds the socket.
    pub fn is_busy_socket(&self) -> bool {
        matches!(self, Self::Busy | Self::GreetingTimeout { .. })
    }

    /// The session is over: connect again and read the state again.
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed(_))
    }
}

/// Why a session ended.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum CloseReason {
    /// QEMU closed the connection, or died.
    #[error("QEMU closed the connection")]
    Eof,
    /// QEMU closed the connection within a line.
    #[error("QEMU closed the connection after {bytes} bytes of an unfinished line")]
    HalfLine {
        /// Length of the unfinished line.
        bytes: usize,
    },
    /// This side closed it: [`Client::close`](crate::Client::close), or the last clone of the client was dropped.
    #[error("closed by this side")]
    Local,
    /// The socket failed.
    #[error("the QMP socket failed: {text}")]
    Io {
        /// The kind of failure.
        kind: io::ErrorKind,
        /// What the kernel said.
        text: String,
    },
    /// A line that answers no command is longer than [`Options::max_line`](crate::Options::max_line).
    #[error("a line is longer than {limit} bytes")]
    LineTooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// An event is longer than [`Options::max_event`](crate::Options::max_event).
    #[error("an event is longer than {limit} bytes")]
    EventTooLong {
        /// The limit in bytes.
        limit: usize,
    },
    /// More came within a second than [`Options::max_events`](crate::Options::max_events).
    #[error("more than {limit} events came within a second")]
    TooManyEvents {
        /// The limit.
        limit: u32,
    },
    /// A line is not a QMP message, or answers no command of ours.
    #[error("not a QMP message ({why}): {text:?}")]
    Invalid {
        /// What is wrong with it.
        why: String,
        /// The beginning of the line.
        text: String,
    },
}

impl From<io::Error> for CloseReason {
    fn from(e: io::Error) -> Self {
        // A QEMU that quits with unread bytes in its socket resets the connection: that is its end of file.
        match e.kind() {
            io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Self::Eof,
            kind => Self::Io {
                kind,
                text: e.to_string(),
            },
        }
    }
}

/// How much of QEMU's own error text we keep, in characters.
pub(crate) const DESC: usize = 1024;
/// How much of a word of QEMU that we do not know we keep, in characters.
pub(crate) const WORD: usize = 64;

/// The first `max` characters of a text the peer chose, on one line, without anything that controls a terminal.
pub(crate) fn excerpt(text: &str, max: usize) -> String {
    text.chars().take(max).map(hybridnic_text::shown).collect()
}
