//! Inserts text into a document and leaves every other byte as it is.

use std::ops::Range;

use roxmltree::Node;

/// Text, and the bytes that it replaces: mostly none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Insertion {
    place: Range<usize>,
    text: String,
}

impl Insertion {
    /// The last child of an element.
    pub fn last_in(element: Node<'_, '_>, text: String) -> Self {
        let Range { start, end } = element.range();
        let source = &element.document().input_text()[start..end];
        // An element ends with its end tag, or is nothing but one tag.
        if let Some(tag) = source.strip_suffix("/>") {
            let name = qualified_name(source);
            return Self {
                place: start + tag.len()..end,
                text: format!(">{text}</{name}>"),
            };
        }
        let at = start + source.rfind("</").unwrap_or(source.len());
        Self { place: at..at, text }
    }
}

/// The prefix of an element's name, with its colon.
pub fn prefix<'a>(element: Node<'a, '_>) -> &'a str {
    let name = qualified_name(&element.document().input_text()[element.range()]);
    name.find(':').map_or("", |colon| &name[..=colon])
}

/// The name of an element as it is written.
fn qualified_name(source: &str) -> &str {
    let name = source.strip_prefix('<').unwrap_or(source);
    let end = name.find(|c: char| c.is_ascii_whitespace() || matches!(c, '/' | '>'));
    &name[..end.unwrap_or(name.len())]
}

/// The text with all of these; none if two want the same bytes.
pub fn insert(source: &str, mut insertions: Vec<Insertion>) -> Option<String> {
    insertions.sort_by_key(|insertion| (insertion.place.start, insertion.place.end));
    let mut result =
        String::with_capacity(source.len() + insertions.iter().map(|i| i.text.len()).sum::<usize>());
    let mut done = 0;
    for Insertion { place, text } in insertions {
        result += source.get(done..place.start)?;
        result += &text;
        done = place.end;
    }
    result += source.get(done..)?;
    Some(result)
}
