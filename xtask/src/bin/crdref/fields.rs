//! A schema as a list of fields.

use std::fmt::Write as _;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};

use crate::{plain, words::Word};

/// A row of the reference, in Markdown.
pub struct Field {
    /// Where it is in the object, `uplinks[].pfNames`.
    pub path: String,
    /// What it takes.
    pub type_: String,
    /// What it is, and what is asked of it.
    pub text: String,
}

/// All fields below `schema`, an object's before those of the objects in it.
pub fn of(schema: &JSONSchemaProps, words: &[Word]) -> Result<Vec<Field>, String> {
    let mut fields = Vec::new();
    below(schema, "", words, &mut fields)?;
    Ok(fields)
}

/// What the API server says when a rule of `schema` itself is broken.
pub fn rules(schema: &JSONSchemaProps) -> Vec<&str> {
    schema
        .x_kubernetes_validations
        .iter()
        .flatten()
        .filter_map(|rule| rule.message.as_deref())
        .collect()
}

fn below(schema: &JSONSchemaProps, at: &str, words: &[Word], into: &mut Vec<Field>) -> Result<(), String> {
    let required = schema.required.as_deref().unwrap_or_default();
    for (name, field) in schema.properties.iter().flatten() {
        let path = format!("{at}{name}");
        let shown = if required.contains(name) {
            format!("**`{path}`**")
        } else {
            format!("`{path}`")
        };
        into.push(Field {
            path: shown,
            type_: type_of(field, words).map_err(|why| format!("{path}: {why}"))?,
            text: text_of(field),
        });
        if known(field).is_none() {
            match item(field).filter(|item| known(item).is_none()) {
                Some(item) => below(item, &format!("{path}[]."), words, into)?,
                None => below(field, &format!("{path}."), words, into)?,
            }
        }
    }
    Ok(())
}

/// Shapes of Kubernetes itself, which its own reference explains.
fn known(schema: &JSONSchemaProps) -> Option<&'static str> {
    let properties = schema.properties.as_ref()?;
    if properties.contains_key("matchExpressions") {
        Some("LabelSelector")
    } else if properties.contains_key("lastTransitionTime") {
        Some("Condition")
    } else {
        None
    }
}

fn item(schema: &JSONSchemaProps) -> Option<&JSONSchemaProps> {
    match schema.items.as_ref()? {
        JSONSchemaPropsOrArray::Schema(item) => Some(item),
        JSONSchemaPropsOrArray::Schemas(_) => None,
    }
}

fn type_of(schema: &JSONSchemaProps, words: &[Word]) -> Result<String, String> {
    let mut type_ = match (known(schema), &schema.enum_, item(schema)) {
        (Some(name), _, _) => name.to_owned(),
        (None, Some(values), _) => {
            let values: Vec<_> = values.iter().filter_map(|v| v.0.as_str()).collect();
            let word = words
                .iter()
                .find(|w| {
                    w.values
                        .iter()
                        .map(|(v, _)| v.as_str())
                        .eq(values.iter().copied())
                })
                .ok_or_else(|| format!("no word of words.rs has the values {values:?}"))?;
            format!("[{}](#{})", word.name, word.name.to_lowercase())
        }
        (None, None, Some(item)) => format!("list of {}", type_of(item, words)?),
        (None, None, None) => match (&schema.format, &schema.type_) {
            (Some(format), _) if format == "date-time" => "time".to_owned(),
            (_, Some(type_)) => type_.clone(),
            _ => return Err("a field without a type".to_owned()),
        },
    };
    if let Some(JSONSchemaPropsOrBool::Schema(value)) = &schema.additional_properties {
        type_ = format!("map of {}", type_of(value, words)?);
    }
    // An empty list or object as the default is not worth mentioning.
    if let Some(default) = schema
        .default
        .as_ref()
        .filter(|d| !d.0.is_array() && !d.0.is_object() && d.0.as_str() != Some(""))
    {
        let shown = default
            .0
            .as_str()
            .map_or_else(|| default.0.to_string(), str::to_owned);
        write!(type_, ", default `{shown}`").map_err(|e| e.to_string())?;
    }
    Ok(type_)
}

fn text_of(schema: &JSONSchemaProps) -> String {
    let mut parts = vec![plain(schema.description.as_deref().unwrap_or_default())];
    let mut all = rules(schema);
    all.extend(item(schema).map(rules).unwrap_or_default());
    parts.extend(all.into_iter().map(|rule| format!("*Rule:* {}.", plain(rule))));
    parts.retain(|part| !part.is_empty());
    parts.join(" ")
}
