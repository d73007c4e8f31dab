//! A picture on the terminal that is drawn over again in its place.

use std::io;

use crossterm::{cursor, execute, terminal};

use crate::print;

/// Where a picture is, once one was drawn.
#[derive(Debug, Default)]
pub struct Canvas {
    /// Rows that the next picture takes the place of.
    rows: u16,
}

impl Canvas {
    /// Draws a picture in the place of the one before.
    pub fn draw(&mut self, text: &str, width: usize) -> anyhow::Result<()> {
        if self.rows > 0 {
            execute!(io::stdout(), cursor::MoveToPreviousLine(self.rows))?;
        }
        execute!(io::stdout(), terminal::Clear(terminal::ClearType::FromCursorDown))?;
        print::text(text)?;
        self.rows = rows(text, width);
        Ok(())
    }
}

/// Rows of the terminal that a text takes: long lines go on in the next one.
fn rows(text: &str, width: usize) -> u16 {
    let plain = anstream::adapter::strip_str(text).to_string();
    let rows: usize = plain
        .lines()
        .map(|line| line.chars().count().div_ceil(width).max(1))
        .sum();
    u16::try_from(rows).unwrap_or(u16::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::style::Tone;

    #[test]
    fn long_lines_take_more_rows() {
        let text = format!("{}\n\nab\n", Tone::Bad.paint("a".repeat(21)));
        assert_eq!(rows(&text, 10), 3 + 1 + 1);
        assert_eq!(rows("", 10), 0);
    }
}
