//! Bytes to lines, with a bound.

use tokio_util::bytes::BytesMut;
use tokio_util::codec::{Decoder, LinesCodec, LinesCodecError};

use crate::error::CloseReason;

/// Splits a byte stream into lines. Unlike [`LinesCodec`] it takes an unfinished last line for an error: QEMU
/// ends each message with CR LF, so such a line was cut off.
pub(crate) struct Lines {
    inner: LinesCodec,
}

impl Lines {
    pub(crate) fn new(max_line: usize) -> Self {
        Self {
            inner: LinesCodec::new_with_max_length(max_line),
        }
    }
}

impl Decoder for Lines {
    type Item = String;
    type Error = CloseReason;

    fn decode(&mut self, bytes: &mut BytesMut) -> Result<Option<String>, CloseReason> {
        match self.inner.decode(bytes) {
            Ok(line) => Ok(line),
            Err(LinesCodecError::MaxLineLengthExceeded) => Err(CloseReason::LineTooLong {
                limit: self.inner.max_length(),
            }),
            Err(LinesCodecError::Io(e)) if e.kind() == std::io::ErrorKind::InvalidData => {
                Err(CloseReason::Invalid {
                    why: e.to_string(),
                    text: String::new(),
                })
            }
            Err(LinesCodecError::Io(e)) => Err(e.into()),
        }
    }

    fn decode_eof(&mut self, bytes: &mut BytesMut) -> Result<Option<String>, CloseReason> {
        match self.decode(bytes)? {
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
        let fits = format!("{}\n", "x".repeat(LIMIT));
        assert_eq!(decode(&[fits.as_bytes()]).1, None);
        let over = format!("{}\n", "x".repeat(LIMIT + 1));
        assert_eq!(
            decode(&[over.as_bytes()]).1,
            Some(CloseReason::LineTooLong { limit: LIMIT })
        );
        // Without a line end in sight the limit holds as well.
        let endless = "x".repeat(LIMIT + 2);
        assert_eq!(
            decode(&[endless.as_bytes()]).1,
            Some(CloseReason::LineTooLong { limit: LIMIT })
        );
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
            let (lines, end) = decode(&chunks);
            let (whole_lines, whole_end) = decode(&[&bytes]);
            prop_assert_eq!(lines, whole_lines);
            prop_assert_eq!(end, whole_end);
        }
    }
}
