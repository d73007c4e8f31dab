//! From `values.yaml` to a table. It is read by lines, because a YAML parser drops comments: each value is on a line of
//! its own, with its meaning in the comment above; maps of values are indented by two spaces.

use std::fmt::Write as _;

use anyhow::{Context as _, Result, bail, ensure};

/// Stands before the table.
const BEGIN: &str = "<!-- Generated from values.yaml by `make chart`. Do not edit. -->";
/// Stands after the table.
const END: &str = "<!-- End of what is generated. -->";

/// One value.
#[derive(Debug, PartialEq, Eq)]
pub struct Value {
    /// As `helm --set` takes it: `operator.replicas`.
    pub path: String,
    /// As it is written.
    pub default: String,
    /// The comment above it.
    pub meaning: String,
}

/// All values in their order. Each must have a comment.
pub fn parse(text: &str) -> Result<Vec<Value>> {
    let (mut path, mut meaning): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut values = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let number = number + 1;
        let content = line.trim_start();
        if content.is_empty() {
            // A comment that no value follows is about the file.
            meaning.clear();
            continue;
        }
        if let Some(comment) = content.strip_prefix('#') {
            meaning.push(comment.trim());
            continue;
        }
        let indent = line.len() - content.len();
        ensure!(
            indent.is_multiple_of(2) && indent / 2 <= path.len(),
            "line {number} is indented by neither its map's depth nor two more"
        );
        path.truncate(indent / 2);
        let (key, default) = content
            .split_once(':')
            .with_context(|| format!("line {number} is no value: {content:?}"))?;
        path.push(key);
        let default = default.trim();
        if default.is_empty() {
            ensure!(
                meaning.is_empty(),
                "line {number}: the comment of a map is in no table"
            );
            continue;
        }
        let path = path.join(".");
        ensure!(!meaning.is_empty(), "line {number}: {path} has no comment");
        values.push(Value {
            path,
            default: default.to_owned(),
            meaning: meaning.join(" "),
        });
        meaning.clear();
    }
    ensure!(!values.is_empty(), "no values");
    Ok(values)
}

/// The table in Markdown.
pub fn render(values: &[Value]) -> String {
    let mut table = "| value | default | is |\n|---|---|---|\n".to_owned();
    for Value {
        path,
        default,
        meaning,
    } in values
    {
        let cell = |text: &str| text.replace('|', "\\|");
        // A String takes all that is written to it.
        let _ = writeln!(
            table,
            "| `{path}` | `{}` | {}. |",
            cell(default),
            cell(meaning.trim_end_matches('.'))
        );
    }
    table
}

/// The document with its table replaced.
pub fn put(document: &str, table: &str) -> Result<String> {
    let (before, rest) = document
        .split_once(BEGIN)
        .with_context(|| format!("no line {BEGIN}"))?;
    let Some((_, after)) = rest.split_once(END) else {
        bail!("no line {END}");
    };
    Ok(format!("{before}{BEGIN}\n\n{table}\n{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VALUES: &str = "\
# About the file.

# What it is
name: \"\"

image:
  # Where it is,
  # a|b
  tag: {a: b}
  limits:
    # Most
    cpu: 10m
next: 1 # no
";

    #[test]
    fn values_have_paths_defaults_and_meanings() {
        let text = VALUES.replace("next: 1 # no\n", "");
        let values = parse(&text).unwrap();
        let paths: Vec<_> = values
            .iter()
            .map(|v| (v.path.as_str(), v.default.as_str()))
            .collect();
        assert_eq!(
            paths,
            [
                ("name", "\"\""),
                ("image.tag", "{a: b}"),
                ("image.limits.cpu", "10m")
            ]
        );
        assert_eq!(values[1].meaning, "Where it is, a|b");
        assert!(render(&values).contains("| `image.tag` | `{a: b}` | Where it is, a\\|b. |"));
    }

    #[test]
    fn what_the_table_would_hide_is_refused() {
        let refusal = |text: &str| parse(text).unwrap_err().to_string();
        assert!(refusal(VALUES).contains("next has no comment"));
        assert!(refusal("# of a map\na:\n  # x\n  b: 1\n").contains("comment of a map"));
        assert!(refusal("# x\na: 1\n     # y\n     b: 2\n").contains("indented"));
        assert!(refusal("# x\n- a\n").contains("no value"));
        assert!(refusal("# nothing\n").contains("no values"));
    }

    #[test]
    fn only_the_table_is_replaced() {
        let document = format!("a\n{BEGIN}\nold\n{END}\nb\n");
        let new = put(&document, "| t |\n").unwrap();
        assert_eq!(new, format!("a\n{BEGIN}\n\n| t |\n\n{END}\nb\n"));
        assert_eq!(put(&new, "| t |\n").unwrap(), new);
        assert!(put("a\n", "t").is_err());
        assert!(put(BEGIN, "t").is_err());
    }
}
