//! One line to one message, and back.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_json::value::RawValue;

use crate::commands::QemuVersion;
use crate::error::{CloseReason, DESC, excerpt};
use crate::event::{Event, Timestamp};

/// How much of a line we quote, in characters.
const QUOTE: usize = 200;

/// What QEMU answered to a command.
#[derive(Debug)]
pub(crate) enum Reply {
    Return(Box<RawValue>),
    Error { class: String, desc: String },
    TooLong { limit: usize },
}

/// One line from QEMU.
#[derive(Debug)]
pub(crate) enum Message {
    Event(Event),
    Reply { id: u64, reply: Reply },
}

#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    event: Option<Cow<'a, str>>,
    data: Option<Value>,
    timestamp: Option<Timestamp>,
    id: Option<u64>,
    #[serde(borrow, rename = "return")]
    value: Option<&'a RawValue>,
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
struct ErrorBody {
    class: String,
    desc: String,
}

pub(crate) fn invalid(why: &dyn std::fmt::Display, line: &str) -> CloseReason {
    CloseReason::Invalid {
        // It may quote the line.
        why: excerpt(&why.to_string(), QUOTE),
        text: excerpt(line, QUOTE),
    }
}

/// Reads one line after the greeting.
pub(crate) fn parse(line: &str, max_event: usize) -> Result<Message, CloseReason> {
    let parsed: Line<'_> = serde_json::from_str(line).map_err(|e| invalid(&e, line))?;
    match parsed {
        Line {
            event: Some(name),
            data,
            timestamp,
            ..
        } => {
            // Events wait in a queue until they are read, so each of them must be small.
            if line.len() > max_event {
                return Err(CloseReason::EventTooLong { limit: max_event });
            }
            let data = data.unwrap_or(Value::Null);
            Ok(Message::Event(Event {
                name: name.into_owned(),
                data,
                timestamp,
            }))
        }
        Line {
            id: Some(id),
            value: Some(value),
            error: None,
            ..
        } => Ok(Message::Reply {
            id,
            reply: Reply::Return(value.to_owned()),
        }),
        Line {
            id: Some(id),
            value: None,
            error: Some(error),
            ..
        } => {
            let reply = Reply::Error {
                class: excerpt(&error.class, QUOTE),
                desc: excerpt(&error.desc, DESC),
            };
            Ok(Message::Reply { id, reply })
        }
        // An error without an id answers a line that QEMU could not read: replies no longer match commands.
        _ => Err(invalid(&"neither an event nor a reply", line)),
    }
}

#[derive(Deserialize)]
struct GreetingLine {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Deserialize)]
struct GreetingBody {
    version: QemuVersion,
}

/// Reads the first line of a session.
pub(crate) fn parse_greeting(line: &str) -> Result<QemuVersion, String> {
    match serde_json::from_str::<GreetingLine>(line) {
        Ok(greeting) => Ok(greeting.qmp.version),
        Err(_) => Err(excerpt(line, QUOTE)),
    }
}

#[derive(Serialize)]
struct CommandLine<'a, A: Serialize + ?Sized> {
    execute: &'a str,
    arguments: &'a A,
    id: u64,
}

/// Writes one command as a line.
pub(crate) fn encode<A>(command: &str, arguments: &A, id: u64) -> Result<Vec<u8>, serde_json::Error>
where
    A: Serialize + ?Sized,
{
    let mut line = serde_json::to_vec(&CommandLine {
        execute: command,
        arguments,
        id,
    })?;
    line.push(b'\n');
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAX: usize = 512;

    #[test]
    fn reads_events_known_or_not() {
        let line =
            r#"{"event":"FUTURE_EVENT","data":{"a":1},"more":[],"timestamp":{"seconds":3,"microseconds":4}}"#;
        let Ok(Message::Event(event)) = parse(line, MAX) else {
            panic!("not an event")
        };
        assert_eq!(
            (event.name.as_str(), event.data["a"].as_u64()),
            ("FUTURE_EVENT", Some(1))
        );
        assert_eq!(
            event.timestamp,
            Some(Timestamp {
                seconds: 3,
                microseconds: 4
            })
        );
        let Ok(Message::Event(bare)) = parse(r#"{"event":"STOP"}"#, MAX) else {
            panic!("not an event")
        };
        assert_eq!((bare.data, bare.timestamp), (Value::Null, None));
    }

    #[test]
    fn reads_returns_even_null_ones_and_errors() {
        let Ok(Message::Reply {
            id: 7,
            reply: Reply::Return(value),
        }) = parse(r#"{"return":[1],"id":7}"#, MAX)
        else {
            panic!("not a return")
        };
        assert_eq!(value.get(), "[1]");
        let long = "x".repeat(5000);
        let line = format!(r#"{{"id":8,"error":{{"class":"GenericError","desc":"{long}"}}}}"#);
        let Ok(Message::Reply {
            id: 8,
            reply: Reply::Error { desc, .. },
        }) = parse(&line, MAX)
        else {
            panic!("not an error")
        };
        assert_eq!(desc.len(), DESC);
    }

    #[test]
    fn refuses_what_is_no_message() {
        for line in [
            "garbage",
            "{}",
            "[]",
            r#"{"return":{}}"#,
            r#"{"return":{},"id":"x"}"#,
            r#"{"return":{},"id":-1}"#,
            r#"{"error":{"class":"GenericError","desc":"JSON parse error"}}"#,
            r#"{"return":{},"error":{"class":"a","desc":"b"},"id":1}"#,
        ] {
            assert!(
                matches!(parse(line, MAX), Err(CloseReason::Invalid { .. })),
                "{line}"
            );
        }
        let deep = "[".repeat(200_000);
        assert!(matches!(parse(&deep, MAX), Err(CloseReason::Invalid { .. })));
        // What is wrong with it is said in few words.
        let quoted = format!(r#"{{"return":{{}},"id":"{}"}}"#, "x".repeat(100_000));
        let Err(CloseReason::Invalid { why, text }) = parse(&quoted, MAX) else {
            panic!("taken")
        };
        assert!(
            why.starts_with("invalid type: string") && why.len() + text.len() <= 2 * QUOTE,
            "{why}"
        );
        let long = format!(r#"{{"event":"A","data":"{}"}}"#, "x".repeat(MAX));
        assert_eq!(
            parse(&long, MAX).err(),
            Some(CloseReason::EventTooLong { limit: MAX })
        );
    }
}
