//! What is installed: CRDs, the admission policy, rights.

use hybridnic_api::{names::GROUP, v1alpha1};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::ResourceExt as _;
use serde_json::Value;

use crate::{
    connect::Unanswered,
    doctor::{
        finding::{Finding, some},
        observed::{Observed, VERSION},
        rights::Who,
    },
};

/// The CRDs are there, established, and as this version has them.
pub fn crds(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "crds";
    let there = match &observed.crds {
        Ok(there) => there,
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    let wanted = v1alpha1::crds();
    let (mut findings, mut missing) = (Vec::new(), Vec::new());
    for wanted in &wanted {
        let name = wanted.name_any();
        let Some(crd) = there.iter().find(|crd| crd.name_any() == name) else {
            missing.push(name);
            continue;
        };
        if let Some(why) = not_established(crd) {
            findings.push(Finding::fail(
                CHECK,
                format!("{name} is not established: {why}"),
                format!("kubectl describe crd {name}"),
            ));
        } else if let Some(difference) = difference(wanted, crd) {
            findings.push(Finding::fail(
                CHECK,
                format!("{name} is of another version than {VERSION}: {difference}"),
                "apply the CRDs of the operator's version (helm upgrade), \
                 and use the plugin of that version",
            ));
        }
    }
    if !missing.is_empty() {
        let message = format!("missing: {}", some(&missing));
        findings.push(Finding::fail(
            CHECK,
            message,
            "install hybridnic: helm install hybridnic deploy/chart",
        ));
    }
    if findings.is_empty() {
        let message = format!(
            "{} kinds of {GROUP}, established, of version {VERSION}",
            wanted.len()
        );
        findings.push(Finding::ok(CHECK, message));
    }
    findings
}

fn not_established(crd: &CustomResourceDefinition) -> Option<String> {
    let conditions = crd
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    if conditions
        .iter()
        .any(|c| c.type_ == "Established" && c.status == "True")
    {
        return None;
    }
    let words = conditions
        .iter()
        .filter(|c| c.status != "True")
        .filter_map(|c| c.message.clone());
    let words: Vec<_> = words.collect();
    Some(if words.is_empty() {
        "the API server has not looked at it yet".to_owned()
    } else {
        words.join("; ")
    })
}

/// The first place in which the schemas of two definitions differ.
fn difference(wanted: &CustomResourceDefinition, there: &CustomResourceDefinition) -> Option<String> {
    for version in &wanted.spec.versions {
        let Some(found) = there
            .spec
            .versions
            .iter()
            .find(|found| found.name == version.name)
        else {
            return Some(format!("it has no {}", version.name));
        };
        if !found.served {
            return Some(format!("{} is not served", version.name));
        }
        let schema = |version| serde_json::to_value(version).unwrap_or_default();
        let (wanted, found) = (schema(&version.schema), schema(&found.schema));
        if let Some(path) = first_difference(&wanted, &found) {
            return Some(format!(
                "its schema differs at {}",
                path.replace("/openAPIV3Schema", "").replace("/properties", "")
            ));
        }
    }
    None
}

/// The path of the first value that differs; what is left out is the same as null.
fn first_difference(a: &Value, b: &Value) -> Option<String> {
    match (a, b) {
        (Value::Object(a), Value::Object(b)) => {
            let mut keys: Vec<_> = a.keys().chain(b.keys()).collect();
            keys.sort();
            keys.dedup();
            keys.into_iter().find_map(|key| {
                let below = first_difference(
                    a.get(key).unwrap_or(&Value::Null),
                    b.get(key).unwrap_or(&Value::Null),
                )?;
                Some(format!("/{key}{below}"))
            })
        }
        (Value::Array(a), Value::Array(b)) if a.len() == b.len() => a
            .iter()
            .zip(b)
            .enumerate()
            .find_map(|(at, (a, b))| Some(format!("/{at}{}", first_difference(a, b)?))),
        // JSON has one kind of number; clients write 0 and 0.0.
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => None,
        (a, b) => (a != b).then(String::new),
    }
}

/// An agent is held to its own node's objects.
pub fn policy(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "policy";
    let (policies, bindings) = match (&observed.policies, &observed.policy_bindings) {
        (Ok(policies), Ok(bindings)) => (policies, bindings),
        (Err(why), _) | (_, Err(why)) => return vec![Finding::unseen(CHECK, why)],
    };
    let ours: Vec<_> = policies
        .iter()
        .filter(|policy| {
            let rules = policy
                .spec
                .as_ref()
                .and_then(|spec| spec.match_constraints.as_ref());
            let rules = rules
                .and_then(|rules| rules.resource_rules.as_deref())
                .unwrap_or_default();
            rules
                .iter()
                .any(|rule| rule.api_groups.iter().flatten().any(|group| group == GROUP))
        })
        .map(kube::ResourceExt::name_any)
        .collect();
    if ours.is_empty() {
        return vec![Finding::warn(
            CHECK,
            format!(
                "no ValidatingAdmissionPolicy is about {GROUP}: an agent can write the objects of every node"
            ),
            "install hybridnic with its chart, which has one",
        )];
    }
    let in_force = |name: &String| {
        bindings
            .iter()
            .filter_map(|binding| binding.spec.as_ref())
            .any(|spec| {
                spec.policy_name.as_ref() == Some(name)
                    && spec
                        .validation_actions
                        .iter()
                        .flatten()
                        .any(|action| action == "Deny")
            })
    };
    let idle: Vec<_> = ours.iter().filter(|name| !in_force(name)).collect();
    if idle.is_empty() {
        vec![Finding::ok(CHECK, format!("{} in force", some(&ours)))]
    } else {
        vec![Finding::warn(
            CHECK,
            format!("no binding denies what {} refuses", some(&idle)),
            "create its ValidatingAdmissionPolicyBinding with validationActions: [Deny]",
        )]
    }
}

/// Everyone may do what they need.
pub fn rights(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "rights";
    let judge = |answer: &crate::doctor::rights::Answer| {
        let who = answer.who.words();
        match (&answer.lacks, &answer.who) {
            (Err(unanswered), _) => Finding::unseen(
                CHECK,
                &Unanswered {
                    why: format!("{who}: {unanswered}"),
                    forbidden: unanswered.forbidden,
                },
            ),
            (Ok(lacks), _) if lacks.is_empty() => Finding::ok(CHECK, format!("{who} may do what is needed")),
            (Ok(lacks), Who::Me) => Finding::warn(
                CHECK,
                format!("you may not: {}", lacks.join(", ")),
                "the commands in brackets will not work; ask for a role that has these rights",
            ),
            (Ok(lacks), _) => Finding::fail(
                CHECK,
                format!("{who} may not: {}", lacks.join(", ")),
                "bring the roles and bindings to the operator's version: helm upgrade",
            ),
        }
    };
    observed.rights.iter().map(judge).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;
    use crate::doctor::{
        finding::Level,
        rights::{self, Answer},
        testing::{healthy, levels, unanswered},
    };

    #[test]
    fn crds_of_this_version() {
        let mut observed = healthy();
        assert_eq!(levels(&crds(&observed)), [Level::Ok]);
        // Another schema, one that is not established, one that is missing.
        let there = observed.crds.as_mut().unwrap();
        let mut schema = serde_json::to_value(&there[0]).unwrap();
        *schema
            .pointer_mut("/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/mtu/type")
            .unwrap() = json!("string");
        there[0] = from_value(schema).unwrap();
        there[1].status.as_mut().unwrap().conditions = None;
        there.retain(|crd| crd.metadata.name.as_deref() != Some("hybridnodes.hybridnic.io"));
        let findings = crds(&observed);
        assert_eq!(levels(&findings), [Level::Fail; 3]);
        assert!(
            findings[0]
                .message
                .ends_with("its schema differs at /spec/mtu/type"),
            "{findings:?}"
        );
        assert!(findings[1].message.contains("is not established"), "{findings:?}");
        assert!(
            findings[2].message.contains("missing: hybridnodes.hybridnic.io"),
            "{findings:?}"
        );
        observed.crds = Err(unanswered());
        assert_eq!(levels(&crds(&observed)), [Level::Warn]);
    }

    #[test]
    fn differences_are_found_where_they_are() {
        let find = |a: Value, b: Value| first_difference(&a, &b);
        assert_eq!(
            find(json!({"a": [1, {"b": 2}]}), json!({"a": [1.0, {"b": 2}]})),
            None
        );
        assert_eq!(
            find(json!({"a": [1, {"b": 2}]}), json!({"a": [1, {"b": 3}]})).as_deref(),
            Some("/a/1/b")
        );
        assert_eq!(find(json!({"a": null}), json!({})), None);
        assert_eq!(find(json!({"a": [1]}), json!({"a": []})).as_deref(), Some("/a"));
    }

    #[test]
    fn a_policy_counts_only_when_it_is_bound() {
        let mut observed = healthy();
        assert_eq!(levels(&policy(&observed)), [Level::Ok]);
        observed.policy_bindings = Ok(Vec::new());
        assert!(policy(&observed)[0].message.starts_with("no binding denies"));
        observed.policies = Ok(Vec::new());
        assert!(
            policy(&observed)[0]
                .message
                .starts_with("no ValidatingAdmissionPolicy")
        );
        observed.policies = Err(unanswered());
        assert!(policy(&observed)[0].message.starts_with("could not be checked"));
    }

    #[test]
    fn missing_rights_of_a_program_are_worse_than_ones_own() {
        let mut observed = healthy();
        assert_eq!(levels(&rights(&observed)), [Level::Ok; 3]);
        let lacks = Ok(vec!["list nodes (pools)".to_owned()]);
        for answer in &mut observed.rights {
            answer.lacks = lacks.clone();
        }
        let findings = rights(&observed);
        assert_eq!(levels(&findings), [Level::Warn, Level::Fail, Level::Fail]);
        assert!(
            findings[1].message.contains("may not: list nodes (pools)"),
            "{findings:?}"
        );
        observed.rights = vec![Answer {
            who: rights::Who::Me,
            lacks: Err(unanswered()),
        }];
        assert_eq!(levels(&super::rights(&observed)), [Level::Warn]);
    }
}
