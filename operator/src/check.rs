//! `hybridnic-operator check`: does what was installed work? The pod of `helm test` runs it.

use std::fmt;
use std::pin::pin;
use std::time::Duration;

use anyhow::{Context, ensure};
use futures::StreamExt;
use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{HybridNode, crds};
use hybridnic_process::lease::Timing;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::ListParams;
use kube::runtime::wait::Condition;
use kube::runtime::wait::conditions::is_crd_established;
use kube::runtime::watcher::watch_object;
use kube::{Api, Client, ResourceExt};

/// What was looked at, and what is wrong with it.
#[derive(Debug, PartialEq, Eq)]
struct Finding {
    what: String,
    trouble: Option<String>,
}

impl Finding {
    fn good(what: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            trouble: None,
        }
    }

    fn bad(what: impl Into<String>, trouble: impl Into<String>) -> Self {
        Self {
            what: what.into(),
            trouble: Some(trouble.into()),
        }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.trouble {
            None => write!(f, "ok    {}", self.what),
            Some(trouble) => write!(f, "FAIL  {}: {trouble}", self.what),
        }
    }
}

/// Looks at the kinds, the lease and the agents' pods, which have these labels; prints a line for each. Fails when
/// something is not as it should be.
pub async fn run(client: Client, namespace: &str, lease: &str, agents: &str) -> anyhow::Result<()> {
    let mut findings = kinds(&client).await;
    findings.push(leader(Api::namespaced(client.clone(), namespace), lease).await);
    let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
    let pods = pods
        .list(&ListParams::default().labels(agents))
        .await
        .with_context(|| format!("cannot list the pods of {namespace}"))?;
    let nodes: Api<HybridNode> = Api::all(client);
    // Without the kinds there are none.
    let nodes = nodes.list(&ListParams::default()).await;
    findings.extend(judge_agents(
        &pods.items,
        &nodes.map(|list| list.items).unwrap_or_default(),
    ));
    for finding in &findings {
        println!("{finding}");
    }
    let bad = findings.iter().filter(|f| f.trouble.is_some()).count();
    ensure!(bad == 0, "{bad} of {} checks failed", findings.len());
    Ok(())
}

async fn kinds(client: &Client) -> Vec<Finding> {
    let api: Api<CustomResourceDefinition> = Api::all(client.clone());
    let mut findings = Vec::new();
    for name in crds().iter().map(ResourceExt::name_any) {
        let what = format!("kind {name}");
        findings.push(match api.get(&name).await {
            Ok(crd) if is_crd_established().matches_object(Some(&crd)) => Finding::good(what),
            Ok(_) => Finding::bad(what, "the API server does not serve it"),
            Err(error) => Finding::bad(what, error.to_string()),
        });
    }
    findings
}

/// Waits for the leader to renew its lease: that tells that it lives without comparing two machines' clocks.
async fn leader(api: Api<Lease>, name: &str) -> Finding {
    let what = format!("lease {name}");
    let patience = Timing::default().duration;
    match tokio::time::timeout(patience, renewal(api, name)).await {
        Ok(Ok(holder)) => Finding::good(format!("{what}, of {holder}")),
        Ok(Err(error)) => Finding::bad(what, format!("{error:#}")),
        Err(_) => Finding::bad(what, unrenewed(patience)),
    }
}

fn unrenewed(patience: Duration) -> String {
    format!("nobody has renewed it for {patience:?}: no operator leads")
}

/// The holder of the lease, once it has been renewed.
async fn renewal(api: Api<Lease>, name: &str) -> anyhow::Result<String> {
    let mut leases = pin!(watch_object(api, name));
    let mut first = None;
    while let Some(lease) = leases.next().await {
        let Some(spec) = lease.context("cannot watch it")?.and_then(|lease| lease.spec) else {
            continue;
        };
        let renewed = (spec.holder_identity.clone(), spec.renew_time);
        if *first.get_or_insert_with(|| renewed.clone()) != renewed
            && let Some(holder) = spec.holder_identity.filter(|holder| !holder.is_empty())
        {
            return Ok(holder);
        }
    }
    anyhow::bail!("the watch has ended")
}

/// What the agents' pods and the nodes' objects say.
fn judge_agents(pods: &[Pod], nodes: &[HybridNode]) -> Vec<Finding> {
    let findings: Vec<Finding> = pods
        .iter()
        .filter(|pod| pod.metadata.deletion_timestamp.is_none())
        .map(|pod| judge_agent(pod, nodes))
        .collect();
    if findings.is_empty() {
        let why = "there is no pod of an agent: does the DaemonSet's node selector fit any node?";
        return vec![Finding::bad("agents", why)];
    }
    findings
}

fn judge_agent(pod: &Pod, nodes: &[HybridNode]) -> Finding {
    let Some(name) = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) else {
        return Finding::bad(format!("agent {}", pod.name_any()), "it has no node yet");
    };
    let what = format!("agent of node {name}");
    let conditions = pod.status.iter().flat_map(|s| s.conditions.iter().flatten());
    if !conditions
        .into_iter()
        .any(|c| c.type_ == "Ready" && c.status == "True")
    {
        return Finding::bad(what, format!("its pod {} is not ready", pod.name_any()));
    }
    let status = nodes
        .iter()
        .find(|node| node.name_any() == name)
        .and_then(|node| node.status.as_ref());
    let Some((status, version)) = status.and_then(|s| Some((s, s.agent_version.as_deref()?))) else {
        return Finding::bad(what, "it has not published what the node has");
    };
    let ours = env!("CARGO_PKG_VERSION");
    if version != ours {
        return Finding::bad(what, format!("it has version {version}, this is {ours}"));
    }
    match conditions::find(&status.conditions, types::READY) {
        Some(ready) if ready.status == "True" => Finding::good(format!("{what}, {} PFs", status.pf_count)),
        // Rests on a node that has nothing for it.
        Some(ready) if ready.reason == reasons::NO_UPLINK => Finding::good(format!("{what}, without SR-IOV")),
        Some(ready) => Finding::bad(what, ready.message.clone()),
        None => Finding::bad(what, "it has not said whether the node is ready"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(node: Option<&str>, ready: &str) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": "agent-x", "namespace": "ns"},
            "spec": {"nodeName": node, "containers": []},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    fn node(name: &str, version: &str, ready: (&str, &str)) -> HybridNode {
        let time = "2026-01-01T00:00:00Z";
        let condition: Value = json!({
            "type": "Ready", "status": ready.0, "reason": ready.1, "message": "as said", "lastTransitionTime": time,
        });
        let mut node = HybridNode::new(name, hybridnic_api::v1alpha1::HybridNodeSpec::default());
        node.status = Some(
            serde_json::from_value(json!({
                "agentVersion": version, "pfCount": 2, "vfs": {"total": 0, "free": 0, "held": 0, "unhealthy": 0},
                "pools": [], "pfs": [], "conditions": [condition],
            }))
            .unwrap(),
        );
        node
    }

    fn said(pod: &Pod, node: &HybridNode) -> String {
        judge_agent(pod, std::slice::from_ref(node)).to_string()
    }

    #[test]
    fn an_agent_is_well_when_its_pod_is_ready_and_its_node_published() {
        let ours = env!("CARGO_PKG_VERSION");
        let well = pod(Some("n1"), "True");
        let good = node("n1", ours, ("True", reasons::DISCOVERED));
        assert_eq!(said(&well, &good), "ok    agent of node n1, 2 PFs");
        let bare = node("n1", ours, ("False", reasons::NO_UPLINK));
        assert_eq!(said(&well, &bare), "ok    agent of node n1, without SR-IOV");

        let failed = node("n1", ours, ("False", reasons::FAILED));
        assert_eq!(said(&well, &failed), "FAIL  agent of node n1: as said");
        let old = node("n1", "0.0.1", ("True", reasons::DISCOVERED));
        assert!(said(&well, &old).contains("it has version 0.0.1"));
        assert!(said(&well, &node("n2", ours, ("True", "x"))).contains("has not published"));
        assert!(said(&pod(Some("n1"), "False"), &good).contains("agent-x is not ready"));
        assert!(said(&pod(None, "True"), &good).contains("no node yet"));
    }

    #[test]
    fn a_cluster_without_agents_is_not_well() {
        let said = judge_agents(&[], &[]);
        assert!(matches!(&said[..], [Finding { trouble: Some(why), .. }] if why.contains("node selector")));
    }
}
