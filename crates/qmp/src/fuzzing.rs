//! Opens private parts to fuzzing (`make fuzz`); in no other build.

use serde_json::Value;
use tokio_util::bytes::BytesMut;
use tokio_util::codec::Decoder as _;

use crate::codec::{Frame, Lines};
use crate::commands::QemuVersion;
use crate::error::{CloseReason, DESC};
use crate::event::Event;
use crate::message::{self, Message, Reply};

/// What is kept of QEMU's own error text, in characters.
pub const DESC_MAX: usize = DESC;
/// A line, or, if it is too long, the command that it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// A line.
    Whole(String),
    /// The command that a long line answers, if it names one.
    Long(Option<u64>),
}

/// The lines of what comes over a socket in pieces, and how it ends; and the most that was kept of an unfinished line.
pub fn lines<'a>(
    max_line: usize,
    pieces: impl Iterator<Item = &'a [u8]>,
) -> (Vec<Line>, Option<CloseReason>, usize) {
    let (mut codec, mut buffer) = (Lines::new(max_line), BytesMut::new());
    let (mut lines, mut kept) = (Vec::new(), 0);
    let line = |frame| match frame {
        Frame::Line(line) => Line::Whole(line),
        Frame::Long(long) => Line::Long(long.id()),
    };
    for piece in pieces {
        buffer.extend_from_slice(piece);
        loop {
            match codec.decode(&mut buffer) {
                Ok(Some(frame)) => lines.push(line(frame)),
                Ok(None) => break,
                Err(reason) => return (lines, Some(reason), kept),
            }
        }
        kept = kept.max(buffer.len());
    }
    loop {
        match codec.decode_eof(&mut buffer) {
            Ok(Some(frame)) => lines.push(line(frame)),
            Ok(None) => return (lines, None, kept),
            Err(reason) => return (lines, Some(reason), kept),
        }
    }
}

/// What a line says.
#[derive(Debug)]
pub enum Said {
    /// An event.
    Event(Event),
    /// What a command returns.
    Return(String),
    /// Class and text of a refusal.
    Refusal(String, String),
}

/// Reads a line of a session.
pub fn line(line: &str, max_event: usize) -> Result<Said, CloseReason> {
    Ok(match message::parse(line, max_event)? {
        Message::Event(event) => Said::Event(event),
        Message::Reply { reply, .. } => match reply {
            Reply::Return(value) => Said::Return(value.get().to_owned()),
            Reply::Error { class, desc } => Said::Refusal(class, desc),
            Reply::TooLong { .. } => unreachable!("a line that is too long is no line"),
        },
    })
}

/// Reads a greeting.
pub fn greeting(line: &str) -> Result<QemuVersion, String> {
    message::parse_greeting(line)
}

/// Writes a command, as a line.
pub fn command(name: &str, arguments: &Value, id: u64) -> Option<Vec<u8>> {
    message::encode(name, arguments, id).ok()
}
