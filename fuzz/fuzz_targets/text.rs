//! Text that ends on a person's terminal: nothing in it controls the terminal, and it is not longer than allowed.
#![no_main]

use hybridnic_text::{bounded, line, steers};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: (u8, &str)| {
    let (max, text) = (usize::from(input.0), input.1);
    let shown = line(text);
    assert!(
        !shown.contains(steers) && !shown.contains(char::is_control),
        "{shown:?}"
    );
    assert_eq!(shown.chars().count(), text.chars().count());
    assert_eq!(line(&shown), shown);
    let cut = bounded(text, max);
    assert!(!cut.contains(steers) && cut.chars().count() <= max, "{cut:?}");
    match text.chars().count() <= max {
        true => assert_eq!(cut, shown),
        false => assert!(max == 0 || cut.ends_with('…') && shown.starts_with(cut.trim_end_matches('…'))),
    }
});
