//! A picture that has the terminal to itself, until a key ends it.

use std::io;

use anyhow::Context as _;
use crossterm::{
    cursor,
    event::{Event, EventStream, KeyCode, KeyModifiers},
    execute, terminal,
};
use futures::StreamExt as _;

use crate::{print, style::Tone};

/// The terminal's other screen; dropped, the terminal is as it was.
pub struct Screen {
    keys: EventStream,
}

/// What a user does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Act {
    /// Has seen enough: `q`, Escape or Ctrl-C.
    Leave,
    /// Gives the terminal another size.
    Resize,
}

impl Screen {
    /// Takes the terminal.
    pub fn open() -> anyhow::Result<Self> {
        terminal::enable_raw_mode().context("the terminal gives no keys")?;
        let screen = Self {
            keys: EventStream::new(),
        };
        execute!(io::stdout(), terminal::EnterAlternateScreen, cursor::Hide)?;
        Ok(screen)
    }

    /// Resolves when the user does something that matters.
    pub async fn act(&mut self) -> anyhow::Result<Act> {
        loop {
            match self.keys.next().await.context("the terminal has gone")?? {
                event if is_goodbye(&event) => return Ok(Act::Leave),
                Event::Resize(..) => return Ok(Act::Resize),
                _ => {}
            }
        }
    }

    /// Draws a picture in the place of the one before.
    pub fn paint(&self, text: &str) -> anyhow::Result<()> {
        let (_, height) = terminal::size()?;
        let text = frame(text, usize::from(height));
        // Terminals that know it show nothing half drawn. Where colours are not wanted, the cursor moves all the same.
        execute!(
            io::stdout(),
            terminal::BeginSynchronizedUpdate,
            cursor::MoveTo(0, 0),
            terminal::Clear(terminal::ClearType::All)
        )?;
        // A terminal that reads keys does not return the carriage by itself.
        print::text(&text.replace('\n', "\r\n"))?;
        execute!(io::stdout(), terminal::EndSynchronizedUpdate)?;
        Ok(())
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // There is no reader left.
        let _ = execute!(io::stdout(), terminal::LeaveAlternateScreen, cursor::Show);
        let _ = terminal::disable_raw_mode();
    }
}

fn is_goodbye(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    match key.code {
        KeyCode::Char('q') | KeyCode::Esc => true,
        // The terminal makes no signal of it while its keys are read.
        KeyCode::Char('c' | 'd') => key.modifiers.contains(KeyModifiers::CONTROL),
        _ => false,
    }
}

/// As many lines as there is room for, and how many are not shown.
fn frame(text: &str, height: usize) -> String {
    let lines: Vec<_> = text.lines().collect();
    let room = height.saturating_sub(2).max(1);
    let hidden = lines.len().saturating_sub(room);
    let shown = lines[..lines.len() - hidden].join("\n");
    let footer = if hidden == 0 {
        "q ends".to_owned()
    } else {
        format!("q ends; {hidden} more lines do not fit, --once shows all")
    };
    format!("{shown}\n\n{}", Tone::Quiet.paint(footer))
}

#[cfg(test)]
mod tests {
    use crossterm::event::KeyEvent;

    use super::*;
    use crate::style::plain;

    #[test]
    fn frames_fit_the_screen() {
        assert_eq!(plain(&frame("a\nb\n", 10)), "a\nb\n\nq ends\n");
        let cut = plain(&frame("a\nb\nc\nd\n", 4));
        assert_eq!(cut, "a\nb\n\nq ends; 2 more lines do not fit, --once shows all\n");
        assert!(cut.lines().count() <= 4);
        assert_eq!(plain(&frame("a\nb", 0)).lines().count(), 3, "one line at least");
    }

    #[test]
    fn ways_out() {
        let key = |code, modifiers| Event::Key(KeyEvent::new(code, modifiers));
        assert!(is_goodbye(&key(KeyCode::Char('q'), KeyModifiers::NONE)));
        assert!(is_goodbye(&key(KeyCode::Esc, KeyModifiers::NONE)));
        assert!(is_goodbye(&key(KeyCode::Char('c'), KeyModifiers::CONTROL)));
        assert!(!is_goodbye(&key(KeyCode::Char('c'), KeyModifiers::NONE)));
        assert!(!is_goodbye(&Event::Resize(1, 1)));
    }
}
