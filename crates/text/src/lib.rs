//! Text from outside: from a QEMU that its guest may have taken over, from the kernel's files, from a user.
//!
//! It ends in a status, in an event, in a log and on a person's terminal. It must be no longer than its reader allows, and it must
//! not control the terminal: no escape code that moves the cursor, no mark that reverses the text after it.

/// What replaces a character that is not shown.
pub const HIDDEN: char = char::REPLACEMENT_CHARACTER;

/// Whether a character controls what displays it, and is not itself visible: controls (C0, DEL and C1), marks of direction, ends of lines
/// and paragraphs that only some programs know, annotations, tags.
pub fn steers(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{061c}'
                | '\u{200e}'..='\u{200f}'
                | '\u{2028}'..='\u{202e}'
                | '\u{2060}'..='\u{206f}'
                | '\u{feff}'
                | '\u{fff9}'..='\u{fffb}'
                | '\u{e0000}'..='\u{e007f}'
        )
}

/// A character as it may be shown within one line.
pub fn shown(c: char) -> char {
    match c {
        '\t' | '\n' | '\r' => ' ',
        c if steers(c) => HIDDEN,
        c => c,
    }
}

/// A text on one line, without anything that controls a terminal.
pub fn line(text: &str) -> String {
    text.chars().map(shown).collect()
}

/// The same, and at most `max` characters of it. The last of them is `…` if there was more.
pub fn bounded(text: &str, max: usize) -> String {
    match text.char_indices().nth(max) {
        None => line(text),
        Some(_) => text
            .chars()
            .map(shown)
            .take(max.saturating_sub(1))
            .chain((max > 0).then_some('…'))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_steers_a_terminal_is_left() {
        let escapes = "a\u{1b}[2Jb\u{9b}31mc\u{7f}d\u{8}e\u{0}f";
        assert_eq!(line(escapes), "a�[2Jb�31mc�d�e�f");
        for turned in [
            "\u{202e}",
            "\u{2066}",
            "\u{2069}",
            "\u{200f}",
            "\u{61c}",
            "\u{2028}",
            "\u{feff}",
            "\u{e0041}",
        ] {
            assert_eq!(line(&format!("a{turned}b")), "a�b", "{turned:?}");
        }
        assert_eq!(line("two\r\nlines\tof it"), "two  lines of it");
        // Scripts need joiners, and people their signs.
        for fine in ["ü ß ☃ 漢字 می‌خواهم", "👩‍💻", "a…b"] {
            assert_eq!(line(fine), fine);
        }
    }

    #[test]
    fn what_is_too_long_is_cut_between_two_characters() {
        assert_eq!(bounded("short", 5), "short");
        assert_eq!(bounded("longer", 5), "long…");
        assert_eq!(bounded(&"ä".repeat(1000), 3), "ää…");
        assert_eq!(bounded("\u{1b}[0m\n", 3), "�[…");
        assert_eq!(
            (bounded("", 0), bounded("a", 0), bounded("ab", 1)),
            (String::new(), String::new(), "…".to_owned())
        );
    }
}
