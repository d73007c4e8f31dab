//! To standard output and back to the shell.

use std::io::{self, IsTerminal as _, Write as _};

use anyhow::Context as _;
use serde::Serialize;

use crate::cli::Format;

/// Whether standard output is a terminal.
pub fn is_terminal() -> bool {
    io::stdout().is_terminal()
}

/// The terminal's width in columns; none where standard output is not a terminal: there lines are not wrapped.
pub fn width() -> Option<usize> {
    let (columns, _) = crossterm::terminal::size().ok().filter(|_| is_terminal())?;
    Some(usize::from(columns).max(40))
}

/// Prints text. Its colours come out only on a terminal, and not where `NO_COLOR` is set.
///
/// A reader that has gone, as `head` has, is no error.
pub fn text(text: &str) -> anyhow::Result<()> {
    let mut out = anstream::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot print"),
    }
}

/// Prints a value for programs, or what `table` makes of it for people.
pub fn value<T: Serialize>(
    format: Format,
    value: &T,
    table: impl FnOnce(&T) -> String,
) -> anyhow::Result<()> {
    text(&match format {
        Format::Table => table(value),
        Format::Json => format!("{}\n", serde_json::to_string_pretty(value)?),
        Format::Yaml => serde_saphyr::to_string(value)?,
    })
}

/// Prints what went wrong, in one line on standard error.
pub fn error(text: &str) -> io::Result<()> {
    let mut out = anstream::stderr().lock();
    writeln!(out, "{} {text}", crate::style::Tone::Bad.paint("error:"))
}

/// Prints a note beside the output, on standard error.
pub fn note(text: &str) -> io::Result<()> {
    writeln!(anstream::stderr().lock(), "{text}")
}
