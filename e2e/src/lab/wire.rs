//! What the harness and `lab-exec` say to each other: one stream runs one command.
//!
//! The client opens with a [`Request`] as a line of JSON; the server answers with a [`Reply`] line.
//! After [`Request::Run`] both sides then send [`Frame`]s; after the others the stream is a plain relay.

use std::io::{self, Read, Write};

use serde::{Deserialize, Serialize};

/// TCP port of `lab-exec serve` in a node.
pub const NODE_PORT: u16 = 7000;
/// Vsock port of `lab-exec serve` in a guest.
pub const GUEST_PORT: u32 = 7000;
/// UDP port of `lab-exec echo` in a guest.
pub const ECHO_PORT: u16 = 7777;
/// What `lab-exec serve` writes to the console once it listens.
pub const UP: &str = "LAB-EXEC-UP";
/// Largest payload of a frame, in bytes.
pub const MAX_FRAME: usize = 64 * 1024;

/// What a stream is to be used for.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// Run a program; frames follow.
    Run(Command),
    /// Relay to a Unix stream socket, such as QEMU's monitor.
    Unix(String),
    /// Relay to [`GUEST_PORT`] of the guest with this vsock context id.
    Vsock(u32),
}

/// A program to run.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Command {
    /// The program and its arguments.
    pub argv: Vec<String>,
    /// Variables added to the server's own environment.
    pub env: Vec<(String, String)>,
}

/// The server's first line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Reply {
    /// Done; for [`Request::Run`], the process id (0 for a relay).
    Ok(u32),
    /// Not done, and why.
    Error(String),
}

/// What a frame carries. The wire has a byte of kind, a big-endian `u32` of length, the payload.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// Client to server: input of the program; empty closes it.
    Stdin(Vec<u8>),
    /// Client to server: a signal for the program's process group.
    Signal(i32),
    /// Server to client.
    Stdout(Vec<u8>),
    /// Server to client.
    Stderr(Vec<u8>),
    /// Server to client, last: exit status, or 128 + the number of the signal that ended it.
    Exited(i32),
}

/// Bytes before a frame's payload.
pub const HEADER: usize = 5;

impl Frame {
    /// The frame as it goes over the wire.
    pub fn encode(&self) -> Vec<u8> {
        let number;
        let (kind, payload): (u8, &[u8]) = match self {
            Frame::Stdin(data) => (b'i', data),
            Frame::Stdout(data) => (b'o', data),
            Frame::Stderr(data) => (b'e', data),
            Frame::Signal(n) => {
                number = n.to_be_bytes();
                (b's', &number)
            }
            Frame::Exited(n) => {
                number = n.to_be_bytes();
                (b'x', &number)
            }
        };
        let mut bytes = Vec::with_capacity(HEADER + payload.len());
        bytes.push(kind);
        // A payload is at most MAX_FRAME: the senders split.
        bytes.extend_from_slice(&u32::try_from(payload.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(payload);
        bytes
    }

    /// Length of the payload that follows this header.
    pub fn payload_len(header: [u8; HEADER]) -> io::Result<usize> {
        let len = u32::from_be_bytes([header[1], header[2], header[3], header[4]]) as usize;
        if len > MAX_FRAME {
            Err(invalid(format!("frame of {len} bytes")))
        } else {
            Ok(len)
        }
    }

    /// The frame of this header and payload.
    pub fn decode(header: [u8; HEADER], payload: Vec<u8>) -> io::Result<Self> {
        let number = |bytes: &[u8]| {
            bytes
                .try_into()
                .map(i32::from_be_bytes)
                .map_err(|_| invalid("frame's number is not 4 bytes".into()))
        };
        match header[0] {
            b'i' => Ok(Frame::Stdin(payload)),
            b'o' => Ok(Frame::Stdout(payload)),
            b'e' => Ok(Frame::Stderr(payload)),
            b's' => number(&payload).map(Frame::Signal),
            b'x' => number(&payload).map(Frame::Exited),
            kind => Err(invalid(format!("frame of unknown kind {kind}"))),
        }
    }

    /// Reads one frame; `None` when the peer has closed the stream between frames.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut header = [0; HEADER];
        match from.read_exact(&mut header) {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        let mut payload = vec![0; Self::payload_len(header)?];
        from.read_exact(&mut payload)?;
        Self::decode(header, payload).map(Some)
    }

    /// Writes the frame.
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        to.write_all(&self.encode())
    }
}

fn invalid(why: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

/// A datagram of the traffic meter: 20 bytes, all numbers big-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Probe {
    /// Peer to guest: send this back, and keep your own stream going at `rate` packets a second.
    Ask {
        /// Number in the peer's stream.
        seq: u64,
        /// Packets a second wanted from the guest; 0 for none.
        rate: u32,
    },
    /// Guest to peer: the answer to an `Ask`.
    Answer {
        /// Number of the question.
        seq: u64,
        /// Questions the guest has seen so far: tells loss on the way there from loss on the way back.
        seen: u64,
    },
    /// Guest to peer: one of the guest's own stream.
    Stream {
        /// Number in the guest's stream.
        seq: u64,
    },
}

const PROBE_MAGIC: [u8; 3] = *b"hnp";

impl Probe {
    /// Bytes of a probe.
    pub const LEN: usize = 20;

    /// The datagram.
    pub fn encode(self) -> [u8; Self::LEN] {
        let (kind, a, b) = match self {
            Probe::Ask { seq, rate } => (b'a', seq, u64::from(rate)),
            Probe::Answer { seq, seen } => (b'r', seq, seen),
            Probe::Stream { seq } => (b's', seq, 0),
        };
        let mut bytes = [0; Self::LEN];
        bytes[..3].copy_from_slice(&PROBE_MAGIC);
        bytes[3] = kind;
        bytes[4..12].copy_from_slice(&a.to_be_bytes());
        bytes[12..20].copy_from_slice(&b.to_be_bytes());
        bytes
    }

    /// The probe in a datagram; `None` for anything else.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let number = |at: usize| bytes.get(at..at + 8)?.try_into().ok().map(u64::from_be_bytes);
        if bytes.len() != Self::LEN || bytes[..3] != PROBE_MAGIC {
            return None;
        }
        let (seq, second) = (number(4)?, number(12)?);
        match bytes[3] {
            b'a' => Some(Probe::Ask {
                seq,
                rate: u32::try_from(second).ok()?,
            }),
            b'r' => Some(Probe::Answer { seq, seen: second }),
            b's' => Some(Probe::Stream { seq }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_the_wire() {
        let frames = [
            Frame::Stdin(vec![]),
            Frame::Signal(9),
            Frame::Stdout(b"out".to_vec()),
            Frame::Stderr(vec![0; MAX_FRAME]),
            Frame::Exited(137),
        ];
        let mut wire: Vec<u8> = Vec::new();
        for frame in &frames {
            frame.write(&mut wire).unwrap();
        }
        let mut from = wire.as_slice();
        for frame in frames {
            assert_eq!(Frame::read(&mut from).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut from).unwrap(), None);
    }

    #[test]
    fn a_frame_too_long_is_refused() {
        let mut wire: &[u8] = &[b'o', 0xff, 0, 0, 0];
        assert!(Frame::read(&mut wire).is_err());
    }

    #[test]
    fn probes_survive_the_wire() {
        for probe in [
            Probe::Ask { seq: 7, rate: 100 },
            Probe::Answer { seq: 7, seen: 6 },
            Probe::Stream { seq: u64::MAX },
        ] {
            assert_eq!(Probe::decode(&probe.encode()), Some(probe));
        }
        assert_eq!(Probe::decode(b"hnp"), None);
    }
}
