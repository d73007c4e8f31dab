//! Bytes to lines, with a bound.

use tokio_util::bytes::{Buf, BytesMut};
use tokio_util::codec::Decoder;

use crate::error::CloseReason;

/// How much is kept of either end of a line that is too long.
const END: usize = 64;

/// A line, or what is kept of one that is too long.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Frame {
    /// A line without its end.
    Line(String),
    /// The ends of a line that was longer than it may be.
    Long(Long),
}

/// Both ends of a line that is too long: they tell which command it answers.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Long {
    head: Vec<u8>,
    tail: Vec<u8>,
}

impl Long {
    fn take(&mut self, bytes: &[u8]) {
        let room = END - self.head.len();
        self.head.extend(bytes.iter().take(room));
        self.tail.extend(&bytes[bytes.len().saturating_sub(END)..]);
        let over = self.tail.len().saturating_sub(END);
        self.tail.drain(..over);
    }

    /// Whether it begins like an answer. The end of anything else is not waited for: it may have none.
    fn is_reply(&self) -> bool {
        let head = self.head.trim_ascii_start();
        head.starts_with(b"{\"return\"") || head.starts_with(b"{\"id\":")
    }

    /// The command that it answers. QEMU writes the id of a command after the return value; the id before
    /// it works too. No text of a guest looks like it, because its quotes are escaped.
    pub(crate) fn id(&self) -> Option<u64> {
        let tail = String::from_utf8_lossy(&self.tail);
        let head = String::from_utf8_lossy(&self.head);
        let (before, after) = (head.trim_start(), tail.trim_end());
        let number = if before.starts_with("{\"return\"") {
            after.strip_suffix('}')?.rsplit_once("\"id\":")?.1
        } else {
            let (number, _) = before.strip_prefix("{\"id\":")?.split_once(',')?;
            number
        };
        number.trim().parse().ok()
    }
}

/// Splits a byte stream into lines. An unfinished last line is an error: QEMU ends each message with CR LF, so such a line
/// was cut off. Both ends of a line that is too long are kept, and the lines after it are read as before.
pub(crate) struct Lines {
    max_line: usize,
    /// Up to here there is no line end in the buffer.
    scanned: usize,
    long: Option<Long>,
}

impl Lines {
    pub(crate) fn new(max_line: usize) -> Self {
        Self {
            max_line,
            scanned: 0,
            long: None,
        }
    }
}

impl Decoder for Lines {
    type Item = Frame;
    type Error = CloseReason;

    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<Frame>, CloseReason> {
        let end = bytes[self.scanned..].iter().position(|byte| *byte == b'\n');
        let length = end.map_or(bytes.len(), |end| self.scanned + end);
        if self.long.is_some() || length > self.max_line {
            let mut long = self.long.take().unwrap_or_default();
            long.take(&bytes[..length]);
            self.scanned = 0;
            if !long.is_reply() {
                return Err(CloseReason::LineTooLong { limit: self.max_line });
            }
            return Ok(if end.is_some() {
                bytes.advance(length + 1);
                Some(Frame::Long(long))
            } else {
                bytes.clear();
                self.long = Some(long);
                None
            });
        }
        if end.is_none() {
            self.scanned = length;
            return Ok(None);
        }
        self.scanned = 0;
        let mut line = bytes.split_to(length);
        bytes.advance(1);
        if line.last() == Some(&b'\r') {
            line.truncate(length - 1);
        }
        let line = String::from_utf8(line.into()).map_err(|error| CloseReason::Invalid {
            why: error.to_string(),
            text: String::new(),
        })?;
        Ok(Some(Frame::Line(line)))
    }

    fn decode_eof(&mut self, bytes: &mut BytesMut) -> Result<Option<Frame>, CloseReason> {
        match self.decode(bytes)? {
            None if self.long.is_some() => Err(CloseReason::LineTooLong { limit: self.max_line }),
            None if !bytes.is_empty() => Err(CloseReason::HalfLine { bytes: bytes.len() }),
            line => Ok(line),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMIT: usize = 64;

    /// Feeds the chunks as they would come from a socket, then the end of file.
    fn decode(chunks: &[&[u8]]) -> (Vec<String>, Option<CloseReason>) {
        let (frames, end) = frames(chunks);
        let line = |frame| match frame {
            Frame::Line(line) => line,
            Frame::Long(_) => "too long".to_owned(),
        };
        (frames.into_iter().map(line).collect(), end)
    }

    fn frames(chunks: &[&[u8]]) -> (Vec<Frame>, Option<CloseReason>) {
        let mut codec = Lines::new(LIMIT);
        let mut buffer = BytesMut::new();
        let mut lines = Vec::new();
        for chunk in chunks {
            buffer.extend_from_slice(chunk);
            loop {
                match codec.decode(&mut buffer) {
                    Ok(Some(line)) => lines.push(line),
                    Ok(None) => break,
                    Err(reason) => return (lines, Some(reason)),
                }
            }
        }
        loop {
            match codec.decode_eof(&mut buffer) {
                Ok(Some(line)) => lines.push(line),
                Ok(None) => return (lines, None),
                Err(reason) => return (lines, Some(reason)),
            }
        }
    }

    #[test]
    fn half_line_at_the_end_is_an_error() {
        let (lines, end) = decode(&[b"{}\r\n{\"a\""]);
        assert_eq!(lines, ["{}"]);
        assert_eq!(end, Some(CloseReason::HalfLine { bytes: 4 }));
    }

    #[test]
    fn invalid_utf8_is_an_error() {
        assert!(matches!(
            decode(&[b"\xff\xfe\n"]).1,
            Some(CloseReason::Invalid { .. })
        ));
    }

    #[test]
    fn a_line_of_the_limit_passes_and_one_more_byte_does_not() {
        let fits = "x".repeat(LIMIT);
        assert_eq!(decode(&[format!("{fits}\n").as_bytes()]), (vec![fits], None));
        // Anything but an answer ends it at once, with or without the line's end.
        let end = Some(CloseReason::LineTooLong { limit: LIMIT });
        for over in [LIMIT + 1, LIMIT + 2] {
            let over = "x".repeat(over);
            assert_eq!(decode(&[over.as_bytes()]), (Vec::new(), end.clone()));
            assert_eq!(
                decode(&[format!("{over}\n").as_bytes()]),
                (Vec::new(), end.clone())
            );
        }
        // An answer is read to its end, and what follows it too.
        let over = format!("{{\"return\": \"{}\"}}\r\nnext\n", "x".repeat(LIMIT));
        let read = (vec!["too long".to_owned(), "next".to_owned()], None);
        assert_eq!(decode(&[over.as_bytes()]), read);
        let endless = format!("{{\"return\": \"{}", "x".repeat(LIMIT));
        assert_eq!(decode(&[endless.as_bytes()]), (Vec::new(), end));
    }

    #[test]
    fn a_line_that_is_too_long_still_says_what_it_answers() {
        let long = "x".repeat(500);
        let id = |line: &str| match &frames(&[format!("{line}\r\n").as_bytes()]).0[..] {
            [Frame::Long(long)] => long.id(),
            other => panic!("{other:?}"),
        };
        assert_eq!(id(&format!(r#"{{"return": ["{long}"], "id": 47}}"#)), Some(47));
        assert_eq!(id(&format!(r#"{{"return":["{long}"],"id":47}}"#)), Some(47));
        assert_eq!(id(&format!(r#"{{"id": 47, "return": ["{long}"]}}"#)), Some(47));
        for none in [
            format!(r#"{{"return": ["{long}", "\"id\": 47"]}}"#),
            format!(r#"{{"return": "{long}", "id": "47"}}"#),
        ] {
            assert_eq!(id(&none), None, "{none}");
        }
    }

    proptest! {
        #[test]
        fn chunking_changes_nothing(
            lines in proptest::collection::vec("[ -~äß☃]{0,16}", 0..12),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..16),
            crlf: bool,
        ) {
            let end = if crlf { "\r\n" } else { "\n" };
            let bytes: Vec<u8> = lines.iter().flat_map(|l| format!("{l}{end}").into_bytes()).collect();
            let mut at: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(decode(&chunks), (lines, None));
        }

        #[test]
        fn any_bytes_in_any_chunks_give_the_same_as_all_at_once(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), any::<u8>()], 0..300),
            size in 1usize..40,
        ) {
            let chunks: Vec<&[u8]> = bytes.chunks(size).collect();
            let (lines, end) = frames(&chunks);
            let (whole_lines, whole_end) = frames(&[&bytes]);
            prop_assert_eq!(lines, whole_lines);
            prop_assert_eq!(end, whole_end);
        }
    }
}
