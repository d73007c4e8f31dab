//! Bytes of a QMP socket to lines: no matter in which pieces they come, the lines are the same, and not too much is kept.
#![no_main]

use hybridnic_qmp::fuzzing::{Line, lines};
use libfuzzer_sys::fuzz_target;

/// Short, so that lines are too long often.
const MAX: usize = 96;

fuzz_target!(|input: (u8, &[u8])| {
    let (size, bytes) = input;
    let size = usize::from(size % 80) + 1;
    let (in_pieces, end, kept) = lines(MAX, bytes.chunks(size));
    assert!(kept <= MAX + size, "{kept} octets are kept of what is no line");
    let (at_once, end_at_once, _) = lines(MAX, std::iter::once(bytes));
    assert_eq!(
        (&in_pieces, &end),
        (&at_once, &end_at_once),
        "in pieces of {size}"
    );
    for line in &in_pieces {
        if let Line::Whole(text) = line {
            assert!(text.len() <= MAX && !text.contains('\n'), "{text:?}");
        }
    }
    if end.is_none() && in_pieces.iter().all(|line| matches!(line, Line::Whole(_))) {
        assert_eq!(
            in_pieces.len(),
            bytes.iter().filter(|byte| **byte == b'\n').count()
        );
    }
});
