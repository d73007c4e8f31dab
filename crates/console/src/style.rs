//! Colours and tables.
//!
//! Everything is drawn with its colours; [`mod@crate::print`] removes them if they are not wanted. So what is drawn
//! depends only on the data.

use std::fmt::Display;

use anstyle::{AnsiColor, Style};
use comfy_table::{Attribute, Cell, Color, ContentArrangement, Row, Table, presets};

/// What a word means to the reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tone {
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong.
    Bad,
    /// Less important than what is beside it.
    Quiet,
    /// A heading.
    Strong,
    /// Nothing of all that.
    Plain,
}

impl Tone {
    /// Text in this tone.
    pub fn paint(self, text: impl AsRef<str>) -> String {
        let style = match self {
            Self::Good => Style::new().fg_color(Some(AnsiColor::Green.into())),
            Self::Warn => Style::new().fg_color(Some(AnsiColor::Yellow.into())),
            Self::Bad => Style::new().fg_color(Some(AnsiColor::Red.into())),
            Self::Quiet => Style::new().dimmed(),
            Self::Strong => Style::new().bold(),
            Self::Plain => return text.as_ref().to_owned(),
        };
        format!("{style}{}{style:#}", text.as_ref())
    }

    /// A table's cell in this tone. An empty one is a dash.
    pub fn cell(self, text: impl Display) -> Cell {
        let text = text.to_string();
        let cell = Cell::new(if text.is_empty() { "-" } else { &text });
        match self {
            Self::Good => cell.fg(Color::Green),
            Self::Warn => cell.fg(Color::Yellow),
            Self::Bad => cell.fg(Color::Red),
            Self::Quiet => cell.add_attribute(Attribute::Dim),
            Self::Strong => cell.add_attribute(Attribute::Bold),
            Self::Plain => cell,
        }
    }

    /// The tone of a condition's status.
    pub fn of_condition(status: &str) -> Self {
        match status {
            "True" => Self::Good,
            "False" => Self::Bad,
            _ => Self::Warn,
        }
    }
}

/// A plain cell.
pub fn cell(text: impl Display) -> Cell {
    Tone::Plain.cell(text)
}

/// Rows under a heading, without lines between them.
pub struct Grid {
    table: Table,
    width: Option<usize>,
}

impl Grid {
    /// An empty one. Long text is wrapped to `width` columns; without a width it is not.
    pub fn new(header: &[&str], width: Option<usize>) -> Self {
        let mut table = Table::new();
        table.load_style(presets::NOTHING).enforce_styling();
        // So that no line ends with spaces.
        table.style_text_only();
        if let Some(width) = width {
            table
                .set_content_arrangement(ContentArrangement::Dynamic)
                .set_width(u16::try_from(width).unwrap_or(u16::MAX));
        }
        if !header.is_empty() {
            table.set_header(header.iter().map(|text| Tone::Strong.cell(text)));
        }
        Self { table, width }
    }

    /// Adds a row.
    pub fn row(&mut self, cells: Vec<Cell>) {
        self.table.add_row(Row::from(cells));
    }

    /// Adds a row that is cut where it does not fit into one line.
    pub fn line(&mut self, cells: Vec<Cell>) {
        let mut row = Row::from(cells);
        if self.width.is_some() {
            row.max_height(1);
        }
        self.table.add_row(row);
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Its lines, each indented by so many spaces.
    pub fn render(mut self, indent: usize) -> String {
        for column in self.table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        let mut text = String::new();
        for line in self.table.lines() {
            text.push_str(&" ".repeat(indent));
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// Text without its colours, for tests.
///
/// # Panics
///
/// If a line ends with spaces.
#[cfg(any(test, feature = "testing"))]
pub fn plain(text: &str) -> String {
    let stripped = anstream::adapter::strip_str(text).to_string();
    assert!(
        stripped.lines().all(|line| line == line.trim_end()),
        "{stripped:?}"
    );
    if stripped.is_empty() || stripped.ends_with('\n') {
        stripped
    } else {
        stripped + "\n"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grid_has_columns_and_dashes() {
        let mut grid = Grid::new(&["NAME", "WHY"], None);
        assert!(grid.is_empty());
        grid.row(vec![Tone::Good.cell("fast"), cell("")]);
        grid.row(vec![cell("a-long-name"), cell("NoFreeVf")]);
        assert!(!grid.is_empty());
        assert_eq!(
            plain(&grid.render(2)),
            "  NAME         WHY\n  fast         -\n  a-long-name  NoFreeVf\n"
        );
    }

    #[test]
    fn a_narrow_grid_wraps_or_cuts() {
        let text = "no PF of the node matches the network's uplinks";
        let mut grid = Grid::new(&["N", "MESSAGE"], Some(30));
        grid.row(vec![cell("a"), cell(text)]);
        let wrapped = plain(&grid.render(0));
        assert!(wrapped.lines().count() > 2, "{wrapped}");
        assert!(
            wrapped.lines().all(|line| line.chars().count() <= 30),
            "{wrapped}"
        );
        let mut grid = Grid::new(&["N", "MESSAGE"], Some(30));
        grid.line(vec![cell("a"), cell(text)]);
        assert_eq!(plain(&grid.render(0)).lines().count(), 2);
    }
}
