//! Writes the CRD reference of the documentation from the types, or compares it with `--check`.
//!
//! Usage: `crdref [--check] FILE`

mod fields;
mod words;

use std::{env, error::Error, fmt::Write as _, fs, process::ExitCode};

use hybridnic_api::v1alpha1;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps,
};

const HEAD: &str = "<!-- Generated from crates/api by `make crds`. Do not edit. -->
# CRD reference

Every field of every kind, as the API server knows it. The same is in the cluster: `kubectl explain vmhybridnic.spec`.

A field in **bold** must be set. *Rule* is what the API server says when it refuses a value. Times are in UTC. Conditions
have the usual shape (`type`, `status`, `reason`, `message`, `lastTransitionTime`, `observedGeneration`); their reasons are
in [Troubleshooting](troubleshooting.md#reasons).
";

fn main() -> Result<ExitCode, Box<dyn Error>> {
    let args: Vec<String> = env::args().skip(1).collect();
    let check = args.iter().any(|a| a == "--check");
    let path = args
        .iter()
        .find(|a| !a.starts_with("--"))
        .map_or("docs/crd-reference.md", String::as_str);
    let text = render()?;
    if !check {
        fs::write(path, text)?;
    } else if fs::read_to_string(path).ok().as_deref() != Some(&text) {
        eprintln!("{path} differs from the types: run `make crds`");
        return Ok(ExitCode::FAILURE);
    }
    Ok(ExitCode::SUCCESS)
}

fn render() -> Result<String, Box<dyn Error>> {
    let words = words::all();
    let mut text = HEAD.to_owned();
    for crd in v1alpha1::crds() {
        kind(&mut text, &crd, &words)?;
    }
    text.push_str("\n## Words\n\nThe values of fields that take one of a few.\n");
    for word in &words {
        write!(text, "\n### {}\n\n| value | means |\n|---|---|\n", word.name)?;
        for (value, meaning) in &word.values {
            writeln!(text, "| `{value}` | {} |", plain(meaning))?;
        }
    }
    Ok(text)
}

fn kind(
    text: &mut String,
    crd: &CustomResourceDefinition,
    words: &[words::Word],
) -> Result<(), Box<dyn Error>> {
    let names = &crd.spec.names;
    let version = crd.spec.versions.first().ok_or("a CRD without a version")?;
    let schema = version
        .schema
        .as_ref()
        .and_then(|s| s.open_api_v3_schema.as_ref())
        .ok_or("a version without a schema")?;
    let short = names.short_names.as_deref().unwrap_or_default().join("`, `");
    writeln!(
        text,
        "\n## {}\n\n{}\n\n`{}/{}`, `{}`, short `{short}`; {}.",
        names.kind,
        plain(schema.description.as_deref().unwrap_or_default()),
        crd.spec.group,
        version.name,
        names.plural,
        if crd.spec.scope == "Cluster" {
            "one for the whole cluster"
        } else {
            "in a namespace"
        },
    )?;
    rules(text, schema)?;
    writeln!(
        text,
        "\n### Columns of {}\n\n| column | shows |\n|---|---|",
        names.kind
    )?;
    for column in version.additional_printer_columns.iter().flatten() {
        let wide = if column.priority.unwrap_or_default() > 0 {
            " (with `-o wide`)"
        } else {
            ""
        };
        writeln!(text, "| {} | `{}`{wide} |", column.name, column.json_path)?;
    }
    for part in ["spec", "status"] {
        let Some(schema) = schema.properties.as_ref().and_then(|p| p.get(part)) else {
            continue;
        };
        writeln!(text, "\n### {part} of {}", names.kind)?;
        rules(text, schema)?;
        writeln!(text, "\n| field | type | is |\n|---|---|---|")?;
        for field in fields::of(schema, words)? {
            writeln!(text, "| {} | {} | {} |", field.path, field.type_, field.text)?;
        }
    }
    Ok(())
}

/// The rules of a whole object, which belong to none of its fields.
fn rules(text: &mut String, schema: &JSONSchemaProps) -> Result<(), Box<dyn Error>> {
    let rules = fields::rules(schema);
    if !rules.is_empty() {
        writeln!(text)?;
    }
    for rule in rules {
        writeln!(text, "- *Rule:* {}.", plain(rule))?;
    }
    Ok(())
}

/// Text for a table's cell: one line, links to Rust items as mere names.
fn plain(text: &str) -> String {
    let mut line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    while let Some((before, (inside, after))) = line
        .split_once("[`")
        .and_then(|(before, rest)| Some((before, rest.split_once("`]")?)))
    {
        let name = inside.rsplit("::").next().unwrap_or(inside);
        line = format!("{before}`{name}`{after}");
    }
    line.replace('|', "\\|")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_fits_a_cell() {
        assert_eq!(
            plain("Name of\n the [`super::HybridNetwork`], a|b"),
            "Name of the `HybridNetwork`, a\\|b"
        );
    }

    #[test]
    fn all_kinds_have_their_fields() {
        let text = render().unwrap();
        for line in [
            "## VmHybridNic",
            "| **`vm`** | object | The virtual machine.",
            "| `uplinks[].vfs` | list of string |",
            "[NoFreeVf](#nofreevf), default `Standby`",
            "| `nodeSelector` | LabelSelector |",
            "| `Wait` | Attach it only once a VF is free",
        ] {
            assert!(text.contains(line), "{line} is not in\n{text}");
        }
    }
}
