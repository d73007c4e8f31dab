//! To standard output, as the command line says how.

pub use hybridnic_console::print::{error, is_terminal, note, text, width};
use serde::Serialize;

use crate::cli::Format;

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
