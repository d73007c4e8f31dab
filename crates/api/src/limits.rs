//! How long what is in an object may be. Every string, list and map of every kind has a limit in its CRD: a client that may write one
//! object must not be able to fill the API server's store with it.
//!
//! The programs keep to the limits themselves, so that the API server never has to refuse what they have to say. What was stored
//! before there was a limit stays as it is until it is changed: from Kubernetes 1.30 on a value that an update leaves alone is not
//! judged again.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector, MicroTime};
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Value, json};

/// Characters of an object's name.
pub const NAME: usize = 253;
/// Characters of a uid, or of a label's value.
pub const LABEL: usize = 63;
/// Characters of a word: a reason, a PCI or MAC address, a driver, an interface, a port of QEMU, something that happened.
pub const WORD: usize = 64;
/// Characters of an IP address, or of what names one to QEMU.
pub const ADDRESS: usize = 64;
/// Characters of the kernel's or QEMU's own words.
pub const TEXT: usize = 1024;
/// Characters of a sentence for a person, with such words in it.
pub const MESSAGE: usize = 2048;
/// Things that happened to a NIC.
pub const TIMELINE: usize = 40;
/// Conditions of an object.
pub const CONDITIONS: usize = 16;
/// Phases of a migration.
pub const PHASES: usize = 32;
/// NICs of a VM that migrates.
pub const NICS: usize = 128;
/// Entries of a network that say which PFs it means.
pub const UPLINKS: usize = 16;
/// Networks that a node is part of.
pub const POOLS: usize = 256;
/// PFs of a node.
pub const PFS: usize = 128;
/// VFs of a PF.
pub const VFS: usize = 1024;
/// Things that an agent says it can do.
pub const FEATURES: usize = 64;
/// Requirements of a selector of labels, and values of one of them.
pub const SELECTOR: usize = 64;

/// A label's key: a prefix, a slash and a name.
const KEY: usize = NAME + 1 + LABEL;
/// A time, with as many digits as anybody writes.
const TIME: usize = 64;

/// A word as the API takes it.
pub fn word(text: &str) -> String {
    hybridnic_text::bounded(text, WORD)
}

/// The kernel's or QEMU's own words as the API takes them.
pub fn text(text: &str) -> String {
    hybridnic_text::bounded(text, TEXT)
}

/// A sentence for a person as the API takes it.
pub fn message(text: &str) -> String {
    hybridnic_text::bounded(text, MESSAGE)
}

/// Keeps the first of a list that is longer than the API takes.
pub fn first<T>(mut list: Vec<T>, max: usize) -> Vec<T> {
    list.truncate(max);
    list
}

fn limited<T: JsonSchema>(generator: &mut SchemaGenerator, limit: &str, max: usize) -> Schema {
    let mut schema = generator.subschema_for::<T>();
    schema.insert(limit.to_owned(), json!(max));
    schema
}

/// A time's schema.
pub(crate) fn time(generator: &mut SchemaGenerator) -> Schema {
    limited::<MicroTime>(generator, "maxLength", TIME)
}

/// The schema of an optional time.
pub(crate) fn maybe_time(generator: &mut SchemaGenerator) -> Schema {
    limited::<Option<MicroTime>>(generator, "maxLength", TIME)
}

/// The schema of an object's conditions.
pub(crate) fn conditions(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = limited::<Vec<Condition>>(generator, "maxItems", CONDITIONS);
    for (field, max) in [
        ("type", WORD),
        ("status", WORD),
        ("reason", WORD),
        ("message", MESSAGE),
        ("lastTransitionTime", TIME),
    ] {
        limit(
            &mut schema,
            &format!("/items/properties/{field}"),
            "maxLength",
            max,
        );
    }
    schema
}

/// The schema of an optional label selector.
pub(crate) fn selector(generator: &mut SchemaGenerator) -> Schema {
    let mut schema = generator.subschema_for::<Option<LabelSelector>>();
    let requirement = "/properties/matchExpressions/items/properties";
    for (at, what, max) in [
        ("/properties/matchLabels".to_owned(), "maxProperties", SELECTOR),
        (
            "/properties/matchLabels/additionalProperties".to_owned(),
            "maxLength",
            LABEL,
        ),
        ("/properties/matchExpressions".to_owned(), "maxItems", SELECTOR),
        (format!("{requirement}/key"), "maxLength", KEY),
        (format!("{requirement}/operator"), "maxLength", WORD),
        (format!("{requirement}/values"), "maxItems", SELECTOR),
        (format!("{requirement}/values/items"), "maxLength", LABEL),
    ] {
        limit(&mut schema, &at, what, max);
    }
    schema
}

/// A schema of Kubernetes' own that has no such part gets no limit there; the test of all kinds then says so.
fn limit(schema: &mut Schema, at: &str, what: &str, max: usize) {
    if let Some(Value::Object(part)) = schema.pointer_mut(at) {
        part.insert(what.to_owned(), json!(max));
    }
}

/// Where a value is longer than its schema lets it be.
pub fn exceeded(schema: &JSONSchemaProps, value: &Value) -> Vec<String> {
    let mut found = Vec::new();
    visit(schema, value, "", &mut found);
    found
}

fn visit(schema: &JSONSchemaProps, value: &Value, at: &str, found: &mut Vec<String>) {
    let mut compare = |what: &str, length: usize, max: Option<i64>| {
        if max.is_some_and(|max| i64::try_from(length).is_ok_and(|length| length > max)) {
            found.push(format!("{at}: {length} {what}"));
        }
    };
    match value {
        Value::String(text) => compare("characters", text.chars().count(), schema.max_length),
        Value::Array(items) => {
            compare("items", items.len(), schema.max_items);
            if let Some(JSONSchemaPropsOrArray::Schema(item)) = &schema.items {
                for (n, value) in items.iter().enumerate() {
                    visit(item, value, &format!("{at}[{n}]"), found);
                }
            }
        }
        Value::Object(fields) => {
            compare("entries", fields.len(), schema.max_properties);
            for (name, value) in fields {
                let field = schema.properties.as_ref().and_then(|all| all.get(name));
                let any = match &schema.additional_properties {
                    Some(JSONSchemaPropsOrBool::Schema(any)) => Some(any.as_ref()),
                    _ => None,
                };
                if let Some(schema) = field.or(any) {
                    visit(schema, value, &format!("{at}.{name}"), found);
                }
            }
        }
        _ => {}
    }
}

#[cfg(test)]
#[path = "limits_tests.rs"]
mod tests;
