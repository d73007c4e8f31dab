use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;

use super::*;
use crate::v1alpha1::crds;

fn schema(crd: &CustomResourceDefinition) -> &JSONSchemaProps {
    let version = crd.spec.versions.first().unwrap();
    version
        .schema
        .as_ref()
        .unwrap()
        .open_api_v3_schema
        .as_ref()
        .unwrap()
}

/// What of a schema takes as much as somebody likes.
fn unbounded(schema: &JSONSchemaProps, at: &str, found: &mut Vec<String>) {
    let mut amiss = |what: &str| found.push(format!("{at}: {what}"));
    match schema.type_.as_deref() {
        Some("string") if schema.enum_.is_none() && schema.max_length.is_none() => amiss("no maxLength"),
        Some("array") if schema.max_items.is_none() => amiss("no maxItems"),
        Some("string" | "array" | "integer" | "number" | "boolean" | "object") => {}
        other => amiss(&format!("the type {other:?}")),
    }
    if schema.x_kubernetes_preserve_unknown_fields == Some(true)
        || schema.x_kubernetes_int_or_string == Some(true)
    {
        amiss("takes anything");
    }
    match &schema.additional_properties {
        None | Some(JSONSchemaPropsOrBool::Bool(false)) => {}
        Some(JSONSchemaPropsOrBool::Bool(true)) => amiss("takes any fields"),
        Some(JSONSchemaPropsOrBool::Schema(value)) => {
            if schema.max_properties.is_none() {
                amiss("no maxProperties");
            }
            unbounded(value, &format!("{at}.*"), found);
        }
    }
    match &schema.items {
        None => {}
        Some(JSONSchemaPropsOrArray::Schema(item)) => unbounded(item, &format!("{at}[]"), found),
        Some(JSONSchemaPropsOrArray::Schemas(_)) => found.push(format!("{at}: items of many kinds")),
    }
    for (name, field) in schema.properties.iter().flatten() {
        unbounded(field, &format!("{at}.{name}"), found);
    }
}

#[test]
fn every_string_list_and_map_of_every_kind_has_a_limit() {
    let mut found = Vec::new();
    for crd in crds() {
        let schema = schema(&crd);
        for part in ["spec", "status"] {
            unbounded(
                &schema.properties.as_ref().unwrap()[part],
                &format!("{}.{part}", crd.spec.names.kind),
                &mut found,
            );
        }
    }
    assert!(
        found.is_empty(),
        "as much as somebody likes:\n{}",
        found.join("\n")
    );
}

#[test]
fn what_has_no_limit_is_found() {
    let taken: JSONSchemaProps = serde_json::from_value(json!({
        "type": "object",
        "properties": {
            "a": {"type": "string"},
            "b": {"type": "array", "maxItems": 1, "items": {"type": "string"}},
            "c": {"type": "object", "additionalProperties": {"type": "string", "maxLength": 1}},
            "d": {"type": "array", "items": {"type": "integer"}},
            "e": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
            "f": {"type": "string", "enum": ["x"]},
        },
    }))
    .unwrap();
    let mut found = Vec::new();
    unbounded(&taken, "", &mut found);
    assert_eq!(
        found,
        [
            ".a: no maxLength",
            ".b[]: no maxLength",
            ".c: no maxProperties",
            ".d: no maxItems",
            ".e: takes anything"
        ]
    );
}

#[test]
fn what_is_too_long_is_found() {
    let crd = &crds()[0];
    let schema = schema(crd);
    let selector = |values: usize, length: usize| {
        let values = vec!["ä".repeat(length); values];
        json!({ "spec": { "nodeSelector": { "matchExpressions": [{ "key": "k", "operator": "In", "values": values }] } } })
    };
    assert_eq!(exceeded(schema, &selector(SELECTOR, LABEL)), Vec::<String>::new());
    assert_eq!(
        exceeded(schema, &selector(SELECTOR + 1, 1)),
        [".spec.nodeSelector.matchExpressions[0].values: 65 items"]
    );
    assert_eq!(
        exceeded(schema, &selector(1, LABEL + 1)),
        [".spec.nodeSelector.matchExpressions[0].values[0]: 64 characters"]
    );
    let labels: serde_json::Map<_, _> = (0..=SELECTOR).map(|n| (n.to_string(), json!("x"))).collect();
    let labels = json!({ "spec": { "nodeSelector": { "matchLabels": labels } } });
    assert_eq!(
        exceeded(schema, &labels),
        [".spec.nodeSelector.matchLabels: 65 entries"]
    );
}
