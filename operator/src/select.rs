//! Label selectors, as `kubectl` and the API server understand them.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{ParseExpressionError, Selector, SelectorExt};

/// Whether `selector` selects an object with these labels; none selects all. Fails for an operator that is not one of
/// `In`, `NotIn`, `Exists` and `DoesNotExist`, and for `In` and `NotIn` without values.
pub fn selects(
    selector: Option<&LabelSelector>,
    labels: &BTreeMap<String, String>,
) -> Result<bool, ParseExpressionError> {
    let Some(selector) = selector else { return Ok(true) };
    Ok(Selector::try_from(selector.clone())?.matches(labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn selector(json: serde_json::Value) -> LabelSelector {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn selectors() {
        let labels = BTreeMap::from([
            ("zone".to_owned(), "a".to_owned()),
            ("sriov".to_owned(), String::new()),
        ]);
        let expression = |key: &str, operator: &str, values: &[&str]| {
            selector(
                serde_json::json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]}),
            )
        };
        let cases = [
            (selector(serde_json::json!({})), true),
            (selector(serde_json::json!({"matchLabels": {"zone": "a"}})), true),
            (
                selector(serde_json::json!({"matchLabels": {"zone": "a", "rack": "1"}})),
                false,
            ),
            (expression("zone", "In", &["a", "b"]), true),
            (expression("zone", "In", &["b"]), false),
            (expression("rack", "In", &["1"]), false),
            (expression("zone", "NotIn", &["b"]), true),
            (expression("rack", "NotIn", &["1"]), true),
            (expression("sriov", "Exists", &[]), true),
            (expression("rack", "Exists", &[]), false),
            (expression("rack", "DoesNotExist", &[]), true),
        ];
        for (selector, selected) in cases {
            assert_eq!(
                selects(Some(&selector), &labels).unwrap(),
                selected,
                "{selector:?}"
            );
        }
        assert!(selects(None, &labels).unwrap());
        assert!(selects(Some(&expression("zone", "Near", &["a"])), &labels).is_err());
        assert!(
            selects(
                Some(&selector(
                    serde_json::json!({"matchExpressions": [{"key": "a", "operator": "In"}]})
                )),
                &labels
            )
            .is_err()
        );
    }
}
