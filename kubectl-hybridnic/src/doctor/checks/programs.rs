//! The operator and the agents: whether they run, and which versions they have.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::{apps::v1::Deployment, core::v1::Node};
use kube::ResourceExt as _;

use crate::doctor::{
    finding::{Finding, some},
    observed::{self, Observed, VERSION},
};

/// The operator's Deployment is there and its pods are available.
pub fn operator(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "operator";
    let operators = match &observed.operators {
        Ok(operators) => operators,
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    if operators.is_empty() {
        // It may run anywhere; the lease tells.
        let leads = observed
            .leases
            .as_ref()
            .is_ok_and(|leases| leases.iter().any(|lease| lease.renewed));
        return vec![if leads {
            Finding::ok(CHECK, "it runs, but not as a Deployment of this cluster")
        } else {
            Finding::fail(
                CHECK,
                "there is none",
                "install hybridnic: helm install hybridnic deploy/chart",
            )
        }];
    }
    let mut findings: Vec<_> = operators.iter().map(deployment).collect();
    if operators.len() > 1 {
        let names: Vec<_> = operators.iter().map(name).collect();
        findings.push(Finding::fail(
            CHECK,
            format!("there are {}: {}", names.len(), some(&names)),
            "uninstall all but one: two operators write the same objects",
        ));
    }
    findings
}

fn name(deployment: &Deployment) -> String {
    format!(
        "{}/{}",
        deployment.namespace().unwrap_or_default(),
        deployment.name_any()
    )
}

fn deployment(deployment: &Deployment) -> Finding {
    const CHECK: &str = "operator";
    let wanted = deployment
        .spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1);
    let there = deployment
        .status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0);
    let message = format!(
        "Deployment {}: {there} of {wanted} pods are available",
        name(deployment)
    );
    let fix = format!(
        "kubectl -n {0} describe deployment {1}; kubectl -n {0} logs deployment/{1}",
        deployment.namespace().unwrap_or_default(),
        deployment.name_any()
    );
    match there {
        0 => Finding::fail(CHECK, message, fix),
        there if there < wanted => Finding::warn(CHECK, message, fix),
        _ => Finding::ok(CHECK, message),
    }
}

/// An operator holds the operators' lease, and renews it.
pub fn lease(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "lease";
    const FIX: &str = "see why the operator does not lead, in its log";
    let leases = match &observed.leases {
        Ok(leases) => leases,
        Err(why) => return vec![Finding::unseen(CHECK, why)],
    };
    if leases.is_empty() {
        return vec![Finding::fail(CHECK, "no operator has ever led", FIX)];
    }
    let live = leases.iter().filter(|lease| lease.renewed).count();
    let judge = |lease: &observed::ObservedLease| {
        let place = format!("{}/hybridnic-operator", lease.namespace);
        match &lease.holder {
            Some(holder) if lease.renewed => Finding::ok(CHECK, format!("{holder} leads, by {place}")),
            // Left over from an operator that was in another namespace.
            _ if live > 0 => Finding::warn(
                CHECK,
                format!("nobody renews {place}, and an operator leads by another lease"),
                format!(
                    "delete it: kubectl -n {} delete lease hybridnic-operator",
                    lease.namespace
                ),
            ),
            Some(holder) => {
                let message = format!(
                    "{holder} holds {place} and has not renewed it for {} s",
                    lease.seconds
                );
                Finding::fail(CHECK, message, FIX)
            }
            None => Finding::fail(CHECK, format!("nobody holds {place}"), FIX),
        }
    };
    let mut findings: Vec<_> = leases.iter().map(judge).collect();
    if live > 1 {
        findings.push(Finding::fail(
            CHECK,
            format!("{live} operators lead at once, in different namespaces"),
            "uninstall all but one",
        ));
    }
    findings
}

fn is_linux(node: &Node) -> bool {
    let label = node.labels().get("kubernetes.io/os");
    let info = node
        .status
        .as_ref()
        .and_then(|status| status.node_info.as_ref())
        .map(|info| &info.operating_system);
    label.or(info).is_none_or(|os| os == "linux" || os.is_empty())
}

/// Each Linux node has an agent that has reported, and each report has its node.
pub fn agents(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "agents";
    let (nodes, reports) = match (&observed.nodes, &observed.hybrid_nodes) {
        (Ok(nodes), Ok(reports)) => (nodes, reports),
        (Err(why), _) | (_, Err(why)) => return vec![Finding::unseen(CHECK, why)],
    };
    let mut findings = Vec::new();
    let ready: BTreeMap<String, bool> = observed
        .agent_pods
        .iter()
        .flatten()
        .filter_map(pod_on_node)
        .collect();
    let said: BTreeSet<String> = reports
        .iter()
        .filter(|r| r.status.is_some())
        .map(kube::ResourceExt::name_any)
        .collect();
    let linux: BTreeSet<String> = nodes
        .iter()
        .filter(|node| is_linux(node))
        .map(kube::ResourceExt::name_any)
        .collect();
    let part =
        |of: &dyn Fn(&String) -> bool| linux.iter().filter(|name| of(name)).cloned().collect::<Vec<_>>();

    if let Err(why) = &observed.agent_pods {
        findings.push(Finding::unseen(CHECK, why));
    }
    let logs = observed.agent().map_or_else(
        || "read the agent's log on that node".to_owned(),
        |set| {
            format!(
                "kubectl -n {} logs ds/{}, on that node",
                set.namespace().unwrap_or_default(),
                set.name_any()
            )
        },
    );
    let silent = part(&|name| ready.contains_key(name) && !said.contains(name));
    if !silent.is_empty() {
        let message = format!(
            "{}: an agent's pod is there, and has published nothing",
            some(&silent)
        );
        findings.push(Finding::fail(CHECK, message, logs.clone()));
    }
    let broken = part(&|name| ready.get(name) == Some(&false) && said.contains(name));
    if !broken.is_empty() {
        let message = format!(
            "{}: the agent's pod is not ready; VMs keep their NICs, but nothing changes",
            some(&broken)
        );
        findings.push(Finding::fail(CHECK, message, logs));
    }
    let without = part(&|name| !ready.contains_key(name) && !said.contains(name));
    if !without.is_empty() {
        findings.push(Finding::warn(
            CHECK,
            format!("{}: no agent, so VMs there get no hybrid NIC", some(&without)),
            "nothing, if that is intended; otherwise compare the DaemonSet's nodeSelector and tolerations with the nodes",
        ));
    }
    let stale: Vec<_> = said
        .iter()
        .filter(|name| !nodes.iter().any(|node| node.name_any() == **name))
        .collect();
    if !stale.is_empty() {
        findings.push(Finding::warn(
            CHECK,
            format!("{}: published by an agent, but no such Node exists", some(&stale)),
            "kubectl delete hnode NAME, if the node is gone for good; else give the agent the node's own name (--node-name)",
        ));
    }
    let well = part(&|name| said.contains(name) && ready.get(name) != Some(&false));
    if linux.is_empty() {
        findings.push(Finding::warn(
            CHECK,
            "the cluster has no Linux node",
            "add one with an SR-IOV card",
        ));
    } else if !well.is_empty() {
        findings.insert(
            0,
            Finding::ok(
                CHECK,
                format!("{} of {} Linux nodes have an agent", well.len(), linux.len()),
            ),
        );
    }
    findings
}

fn pod_on_node(pod: &k8s_openapi::api::core::v1::Pod) -> Option<(String, bool)> {
    let node = pod.spec.as_ref()?.node_name.clone()?;
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_deref())
        .unwrap_or_default();
    Some((
        node,
        conditions
            .iter()
            .any(|c| c.type_ == "Ready" && c.status == "True"),
    ))
}

/// Operator, agents and plugin are of one release.
pub fn versions(observed: &Observed) -> Vec<Finding> {
    const CHECK: &str = "versions";
    let operator = observed.operators.iter().flatten().find_map(|operator| {
        let template = operator.spec.as_ref().map(|spec| &spec.template);
        let of_image = observed::images(template).find_map(observed::image_version);
        let of_label = operator
            .labels()
            .get("app.kubernetes.io/version")
            .map(String::as_str);
        of_image
            .or(of_label)
            .map(|version| version.trim_start_matches('v').to_owned())
    });
    let mut findings = Vec::new();
    if let Some(operator) = operator.as_ref().filter(|operator| *operator != VERSION) {
        findings.push(Finding::warn(
            CHECK,
            format!("the operator is {operator}, this plugin {VERSION}"),
            format!("use the plugin of version {operator}"),
        ));
    }
    let wanted = operator.as_deref().unwrap_or(VERSION);
    let whose = if operator.is_some() {
        "the operator's"
    } else {
        "this plugin's"
    };
    let mut others: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let reports = observed.hybrid_nodes.as_deref().unwrap_or_default();
    for report in reports.iter().filter(|report| report.status.is_some()) {
        let version = report
            .status
            .as_ref()
            .and_then(|status| status.agent_version.clone())
            .unwrap_or_default();
        if version != wanted {
            others.entry(version).or_default().push(report.name_any());
        }
    }
    for (version, nodes) in others {
        let version = if version.is_empty() {
            "of an unknown version".to_owned()
        } else {
            version
        };
        findings.push(Finding::warn(
            CHECK,
            format!("{}: the agent is {version}, {whose} version is {wanted}", some(&nodes)),
            "wait until the upgrade has rolled out; else bring the agents to that version: kubectl rollout status ds",
        ));
    }
    if findings.is_empty() && !reports.is_empty() {
        findings.push(Finding::ok(
            CHECK,
            format!("all agents have {whose} version, {wanted}"),
        ));
    }
    findings
}

#[cfg(test)]
mod tests {
    use serde_json::{from_value, json};

    use super::*;
    use crate::doctor::{
        finding::Level,
        testing::{healthy, levels, unanswered},
    };

    #[test]
    fn an_operator_runs() {
        let mut observed = healthy();
        assert_eq!(levels(&operator(&observed)), [Level::Ok]);
        let list = observed.operators.as_mut().unwrap();
        list[0].status.as_mut().unwrap().available_replicas = Some(1);
        list.push(list[0].clone());
        list[1].status = None;
        let findings = operator(&observed);
        assert_eq!(levels(&findings), [Level::Warn, Level::Fail, Level::Fail]);
        assert!(
            findings[0]
                .fix
                .as_ref()
                .unwrap()
                .contains("-n sys logs deployment/hybridnic-operator")
        );
        assert!(findings[2].message.starts_with("there are 2"));
        observed.operators = Ok(Vec::new());
        assert_eq!(levels(&operator(&observed)), [Level::Ok], "the lease is renewed");
        observed.leases = Ok(Vec::new());
        assert_eq!(levels(&operator(&observed)), [Level::Fail]);
        observed.operators = Err(unanswered());
        assert_eq!(levels(&operator(&observed)), [Level::Warn]);
    }

    #[test]
    fn a_lease_is_renewed_or_not() {
        let mut observed = healthy();
        assert_eq!(levels(&lease(&observed)), [Level::Ok]);
        let list = observed.leases.as_mut().unwrap();
        list.push(observed::ObservedLease {
            namespace: "old".to_owned(),
            renewed: false,
            ..list[0].clone()
        });
        let findings = lease(&observed);
        assert_eq!(levels(&findings), [Level::Ok, Level::Warn]);
        assert!(findings[1].fix.as_ref().unwrap().contains("-n old delete lease"));
        observed.leases.as_mut().unwrap()[1].renewed = true;
        assert_eq!(levels(&lease(&observed)), [Level::Ok, Level::Ok, Level::Fail]);
        let list = observed.leases.as_mut().unwrap();
        (list[0].renewed, list[1].renewed, list[1].holder) = (false, false, None);
        let findings = lease(&observed);
        assert_eq!(levels(&findings), [Level::Fail, Level::Fail]);
        assert!(
            findings[0].message.contains("has not renewed it for 15 s"),
            "{findings:?}"
        );
        assert!(findings[1].message.contains("nobody holds"), "{findings:?}");
        observed.leases = Ok(Vec::new());
        assert_eq!(levels(&lease(&observed)), [Level::Fail]);
    }

    #[test]
    fn agents_and_their_nodes() {
        let mut observed = healthy();
        assert_eq!(
            agents(&observed),
            [Finding::ok("agents", "2 of 2 Linux nodes have an agent")]
        );
        let node = |name: &str, os: &str| {
            from_value(json!({"metadata": {"name": name, "labels": {"kubernetes.io/os": os}}})).unwrap()
        };
        observed.nodes.as_mut().unwrap().extend([
            node("n3", "linux"),
            node("n4", "linux"),
            node("w", "windows"),
        ]);
        // On n1 the pod is not ready, on n3 it has said nothing, on n4 there is none; n2 is no longer a node.
        let pods = observed.agent_pods.as_mut().unwrap();
        pods[0].status = None;
        pods.push(
            from_value(json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n3", "containers": []}}))
                .unwrap(),
        );
        observed
            .nodes
            .as_mut()
            .unwrap()
            .retain(|node| node.name_any() != "n2");
        let findings = agents(&observed);
        let texts: Vec<_> = findings
            .iter()
            .map(|f| f.message.split(':').next().unwrap())
            .collect();
        assert_eq!(texts, ["n3", "n1", "n4", "n2"], "{findings:?}");
        assert_eq!(
            levels(&findings),
            [Level::Fail, Level::Fail, Level::Warn, Level::Warn]
        );
        observed.nodes = Err(unanswered());
        assert_eq!(levels(&agents(&observed)), [Level::Warn]);
    }

    #[test]
    fn one_release() {
        let mut observed = healthy();
        assert_eq!(levels(&versions(&observed)), [Level::Ok]);
        observed.hybrid_nodes.as_mut().unwrap()[0]
            .status
            .as_mut()
            .unwrap()
            .agent_version = Some("0.0.9".to_owned());
        let findings = versions(&observed);
        assert_eq!(levels(&findings), [Level::Warn]);
        assert!(
            findings[0]
                .message
                .starts_with("n1: the agent is 0.0.9, the operator's version is"),
            "{findings:?}"
        );
        let template = &mut observed.operators.as_mut().unwrap()[0]
            .spec
            .as_mut()
            .unwrap()
            .template;
        template.spec.as_mut().unwrap().containers[0].image = Some("hybridnic-operator:0.0.9".to_owned());
        let findings = versions(&observed);
        assert!(
            findings[0]
                .message
                .starts_with("the operator is 0.0.9, this plugin"),
            "{findings:?}"
        );
        assert!(
            findings[1].message.starts_with("n2: the agent is"),
            "{findings:?}"
        );
    }
}
