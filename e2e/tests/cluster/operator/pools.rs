//! What a network says about its pool, and that it stays while it is in use.

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{HybridNetwork, MigrationPhase};
use hybridnic_e2e::chart;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use super::fast_nic;
use crate::agent::Agents;
use crate::bench::{Bench, is_fast, is_in, reason};

#[tokio::test]
async fn a_network_stays_until_no_nic_is_attached_to_it() {
    let (bench, _agents) = fast_nic().await;
    let networks: Api<HybridNetwork> = Api::all(bench.client.clone());
    let guarded = |network: Option<&HybridNetwork>| network.is_some_and(|n| !n.finalizers().is_empty());
    bench
        .until_object(networks.clone(), "net", "guarded", guarded)
        .await;
    bench.kubectl(&["delete", "hnet", "net", "--wait=false"]).await;
    let in_use = |network: Option<&HybridNetwork>| {
        let status = network.and_then(|network| network.status.as_ref());
        let ready = status.and_then(|status| conditions::find(&status.conditions, types::READY));
        ready.is_some_and(|c| c.reason == reasons::NETWORK_IN_USE && c.message.contains("default/eth0"))
    };
    bench
        .until_object(networks.clone(), "net", "in use", in_use)
        .await;
    // It takes no more NICs, and those that it has may move.
    bench.create_nic("eth1", "vm", None).await;
    let refused = |nic: &_| reason(nic, types::ACCEPTED) == reasons::NETWORK_NOT_FOUND;
    bench.nic_with("eth1", "refused", refused).await;
    bench.run_pod("vm-b", "vm", "n2").await;
    bench.migrate("goes", "vm").await;
    bench
        .migration_with("goes", "succeeded", is_in(MigrationPhase::Succeeded))
        .await;
    bench.nic_with("eth0", "fast", is_fast).await;
    bench
        .nics()
        .delete("eth0", &DeleteParams::default())
        .await
        .unwrap();
    bench
        .until_object(networks, "net", "gone", |network| network.is_none())
        .await;
}

#[tokio::test]
async fn vfs_of_a_node_that_is_not_ready_do_not_count() {
    let (bench, _agents) = fast_nic().await;
    let networks: Api<HybridNetwork> = Api::all(bench.client.clone());
    let has = |vfs: i32, words: &'static str| {
        move |network: Option<&HybridNetwork>| {
            let status = network.and_then(|network| network.status.as_ref());
            status.is_some_and(|status| {
                let ready = conditions::find(&status.conditions, types::READY);
                status.vfs.total == vfs && ready.is_some_and(|c| c.message.ends_with(words))
            })
        }
    };
    bench
        .until_object(networks.clone(), "net", "counted", has(14, "on 2 nodes"))
        .await;
    let ready = async |status: &str| {
        let patch = format!(
            "{{\"status\":{{\"conditions\":[{{\"type\":\"Ready\",\"status\":\"{status}\",\
             \"lastTransitionTime\":\"2026-01-01T00:00:00Z\"}}]}}}}"
        );
        bench
            .kubectl(&[
                "patch",
                "node",
                "n2",
                "--subresource=status",
                "--type=merge",
                "-p",
                &patch,
            ])
            .await;
    };
    ready("Unknown").await;
    bench
        .until_object(networks.clone(), "net", "without n2", has(7, "not counted: n2"))
        .await;
    ready("True").await;
    bench
        .until_object(networks, "net", "with n2", has(14, "on 2 nodes"))
        .await;
}

#[tokio::test]
async fn vfs_of_a_node_whose_agent_is_away_do_not_count() {
    let mut bench = Bench::start().await;
    let pods: Api<Pod> = Api::namespaced(bench.client.clone(), chart::NAMESPACE);
    let create = async |node: &str| {
        let pod = json!({
            "metadata": {"name": format!("agent-{node}"), "labels": {"app.kubernetes.io/component": "agent"}},
            "spec": {"nodeName": node, "containers": [{"name": "agent", "image": "none"}]},
        });
        let pod = serde_json::from_value(pod).unwrap();
        pods.create(&PostParams::default(), &pod).await.unwrap();
    };
    let say = async |node: &str, ready: &str| {
        let status = json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let (name, params) = (format!("agent-{node}"), PatchParams::default());
        pods.patch_status(&name, &params, &Patch::Merge(status))
            .await
            .unwrap();
    };
    for node in ["n1", "n2"] {
        create(node).await;
        say(node, "True").await;
    }
    let agents = ["--agents", "app.kubernetes.io/component=agent"];
    bench.start_operator_with(&[&agents[..], &["--agent-patience", "2"]].concat());
    let _agents = Agents::start(&bench.cluster).await;
    let networks: Api<HybridNetwork> = Api::all(bench.client.clone());
    let is = async |what: &str, vfs: i32, reason: &'static str, words: &'static str| {
        let fits = |network: Option<&HybridNetwork>| {
            let status = network.and_then(|network| network.status.as_ref());
            status.is_some_and(|status| {
                let ready = conditions::find(&status.conditions, types::READY);
                let said = ready.is_some_and(|c| c.reason == reason && c.message.ends_with(words));
                status.vfs.total == vfs && said
            })
        };
        bench.until_object(networks.clone(), "net", what, fits).await;
    };
    is("counted", 14, reasons::POOL_READY, "on 2 nodes").await;
    bench.run_pod("vm-a", "vm", "n2").await;
    bench.create_nic("eth0", "vm", None).await;
    bench.nic_with("eth0", "fast", is_fast).await;

    say("n2", "False").await;
    let without = "1 node whose agent is away is not counted: n2";
    is("without n2", 7, reasons::POOL_READY, without).await;
    let params = DeleteParams::default().grace_period(0);
    pods.delete("agent-n1", &params).await.unwrap();
    let without = "2 nodes whose agents are away are not counted: n1, n2";
    is("empty", 0, reasons::NODES_AWAY, without).await;
    // Nothing is taken away.
    let nic = bench.nics().get("eth0").await.unwrap();
    assert!(is_fast(&nic), "{nic:#?}");

    create("n1").await;
    say("n1", "True").await;
    say("n2", "True").await;
    is("counted again", 14, reasons::POOL_READY, "on 2 nodes").await;
}
