//! The documentation as data: pages with their anchors, links, tables and blocks of commands.

use std::{
    collections::BTreeSet,
    fs, io,
    ops::Range,
    path::{Path, PathBuf},
};

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};

/// A page, as it is written.
#[derive(Debug, Default)]
pub struct Page {
    /// Where it is, below the repository.
    pub path: PathBuf,
    /// What a link to it may have behind its `#`.
    pub anchors: BTreeSet<String>,
    /// What it links to, pictures too.
    pub links: Vec<Link>,
    /// Its fenced blocks.
    pub blocks: Vec<Block>,
    /// Its tables.
    pub tables: Vec<Table>,
}

/// A link.
#[derive(Debug)]
pub struct Link {
    /// The line that it is on, from 1.
    pub line: usize,
    /// Where it leads to, as it is written.
    pub to: String,
    /// Whether it is a picture.
    pub picture: bool,
}

/// A fenced block.
#[derive(Debug)]
pub struct Block {
    /// The line of its opening fence, from 1.
    pub line: usize,
    /// What the fence says: a language and, after it, words for the tests.
    pub info: String,
    /// What is in it.
    pub text: String,
}

impl Block {
    /// The language.
    pub fn language(&self) -> &str {
        self.info.split_whitespace().next().unwrap_or_default()
    }

    /// What the fence says behind the language.
    pub fn words(&self) -> &str {
        self.info
            .split_once(char::is_whitespace)
            .map_or("", |(_, words)| words.trim())
    }
}

/// A table.
#[derive(Debug, Default)]
pub struct Table {
    /// The line that it begins on, from 1.
    pub line: usize,
    /// Its rows, the header first; of each cell the words without their marks.
    pub rows: Vec<Vec<String>>,
}

/// The repository's root.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// All pages: those at the root, and `docs/` with what is below it.
pub fn pages() -> io::Result<Vec<Page>> {
    let root = root();
    let mut paths = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"]
        .map(PathBuf::from)
        .to_vec();
    below(&root, Path::new("docs"), &mut paths)?;
    paths.retain(|path| path.extension().is_some_and(|e| e == "md"));
    paths
        .into_iter()
        .map(|path| Ok(parse(&fs::read_to_string(root.join(&path))?, path)))
        .collect()
}

/// All files of a directory of the repository, and of those below it.
pub fn below(root: &Path, dir: &Path, into: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut names: Vec<_> = fs::read_dir(root.join(dir))?
        .map(|entry| Ok(entry?.file_name()))
        .collect::<io::Result<_>>()?;
    names.sort();
    for name in names {
        let path = dir.join(name);
        if root.join(&path).is_dir() {
            below(root, &path, into)?;
        } else {
            into.push(path);
        }
    }
    Ok(())
}

/// Reads a page.
pub fn parse(text: &str, path: PathBuf) -> Page {
    let mut page = Page {
        path,
        ..Page::default()
    };
    let line = |at: &Range<usize>| text[..at.start].matches('\n').count() + 1;
    let mut heading = None;
    let mut block: Option<Block> = None;
    let options = Options::ENABLE_TABLES | Options::ENABLE_STRIKETHROUGH | Options::ENABLE_FOOTNOTES;
    for (event, at) in Parser::new_ext(text, options).into_offset_iter() {
        match event {
            Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
            Event::End(TagEnd::Heading(_)) => {
                let anchor = anchor(&heading.take().unwrap_or_default(), &page.anchors);
                page.anchors.insert(anchor);
            }
            Event::Start(Tag::Link { dest_url, .. }) => page.links.push(Link {
                line: line(&at),
                to: dest_url.into_string(),
                picture: false,
            }),
            Event::Start(Tag::Image { dest_url, .. }) => page.links.push(Link {
                line: line(&at),
                to: dest_url.into_string(),
                picture: true,
            }),
            Event::Start(Tag::CodeBlock(CodeBlockKind::Fenced(info))) => {
                block = Some(Block {
                    line: line(&at),
                    info: info.into_string(),
                    text: String::new(),
                });
            }
            Event::End(TagEnd::CodeBlock) => page.blocks.extend(block.take()),
            Event::Start(Tag::Table(_)) => page.tables.push(Table {
                line: line(&at),
                rows: Vec::new(),
            }),
            Event::Start(Tag::TableHead | Tag::TableRow) => {
                if let Some(table) = page.tables.last_mut() {
                    table.rows.push(Vec::new());
                }
            }
            Event::Start(Tag::TableCell) => {
                if let Some(row) = page.tables.last_mut().and_then(|t| t.rows.last_mut()) {
                    row.push(String::new());
                }
            }
            Event::Text(words) | Event::Code(words) => {
                if let Some(block) = &mut block {
                    block.text.push_str(&words);
                } else if let Some(heading) = &mut heading {
                    heading.push_str(&words);
                } else if let Some(cell) = page
                    .tables
                    .last_mut()
                    .and_then(|t| t.rows.last_mut())
                    .and_then(|r| r.last_mut())
                {
                    cell.push_str(&words);
                }
            }
            _ => {}
        }
    }
    page
}

/// How mdBook and the usual forges name a heading.
fn anchor(heading: &str, taken: &BTreeSet<String>) -> String {
    let name: String = heading
        .trim()
        .to_lowercase()
        .chars()
        .filter_map(|c| match c {
            c if c.is_alphanumeric() || c == '_' || c == '-' => Some(c),
            c if c.is_whitespace() => Some('-'),
            _ => None,
        })
        .collect();
    let again = (1..).map(|n| format!("{name}-{n}"));
    std::iter::once(name.clone())
        .chain(again)
        .find(|name| !taken.contains(name))
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAGE: &str = "\
# What `a` is, and why

See [b](b.md#c) and ![p](p.svg).

```sh run
kubectl get vhn
```

# What `a` is, and why

| reason | do |
|---|---|
| `X` | a *b* |
";

    #[test]
    fn a_page_is_read() {
        let page = parse(PAGE, "docs/x.md".into());
        assert_eq!(
            page.anchors.iter().collect::<Vec<_>>(),
            ["what-a-is-and-why", "what-a-is-and-why-1"]
        );
        let links: Vec<_> = page
            .links
            .iter()
            .map(|l| (l.line, l.to.as_str(), l.picture))
            .collect();
        assert_eq!(links, [(3, "b.md#c", false), (3, "p.svg", true)]);
        let block = &page.blocks[0];
        assert_eq!(
            (block.line, block.language(), block.words(), block.text.as_str()),
            (5, "sh", "run", "kubectl get vhn\n")
        );
        assert_eq!(page.tables[0].rows, [["reason", "do"], ["X", "a b"]]);
    }
}
