//! A tenant, and a node that was broken into, against the operator.

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::v1alpha1::{HybridNetwork, MigrationPhase, QemuMigration, VmHybridNic};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use super::fast_nic;
use crate::agent::Agents;
use crate::bench::{Bench, NAMESPACE, is_fast, is_in, reason, why};

async fn address_of_node(bench: &Bench, node: &str, ip: &str) {
    let addresses = json!([{"type": "InternalIP", "address": ip}]);
    let nodes: Api<Node> = Api::all(bench.client.clone());
    let status = Patch::Merge(json!({"status": {"addresses": addresses}}));
    nodes
        .patch_status(node, &PatchParams::default(), &status)
        .await
        .unwrap();
}

fn waits(reason: &'static str) -> impl Fn(&QemuMigration) -> bool {
    move |migration| is_in(MigrationPhase::Pending)(migration) && why(migration) == reason
}

#[tokio::test]
async fn a_node_that_was_broken_into_does_not_get_a_vm_that_is_not_meant_for_it() {
    let (bench, _agents) = fast_nic().await;
    address_of_node(&bench, "n1", "192.168.50.1").await;
    let kubelet = bench.cluster.login("system:node:n2", &["system:nodes"]).unwrap();
    let kubelet: Api<Pod> = Api::namespaced(kubelet.client().await.unwrap(), NAMESPACE);
    let node: Node = Api::all(bench.client.clone()).get("n2").await.unwrap();

    // A mirror pod with the VM's label, in the VM's namespace: NodeRestriction lets a kubelet make that, and with that owner only.
    let owner =
        json!([{"apiVersion": "v1", "kind": "Node", "name": "n2", "uid": node.uid(), "controller": true}]);
    let mirror = |owner: Value| -> Pod {
        serde_json::from_value(json!({
            "metadata": {
                "name": "vm-x-n2", "labels": {"hybridnic.io/vm": "vm"}, "ownerReferences": owner,
                "annotations": {
                    "kubernetes.io/config.mirror": "a", "kubernetes.io/config.hash": "a", "kubernetes.io/config.source": "file",
                },
            },
            "spec": {"nodeName": "n2", "containers": [{"name": "c", "image": "x"}], "tolerations": [{"operator": "Exists"}]},
        }))
        .unwrap()
    };
    kubelet
        .create(&PostParams::default(), &mirror(json!([])))
        .await
        .unwrap_err();
    kubelet
        .create(&PostParams::default(), &mirror(owner))
        .await
        .unwrap();
    let running = json!({"phase": "Running", "podIP": "203.0.113.66", "podIPs": [{"ip": "203.0.113.66"}]});
    let running = Patch::Merge(json!({"status": running}));
    kubelet
        .patch_status("vm-x-n2", &PatchParams::default(), &running)
        .await
        .unwrap();
    bench.migrate("goes", "vm").await;
    bench
        .migration_with("goes", "NoTargetPod", waits(reasons::NO_TARGET_POD))
        .await;

    // A pod of another VM's that runs there does not get the label, either.
    bench.run_pod("other-a", "other", "n2").await;
    let label = Patch::Merge(json!({"metadata": {"labels": {"hybridnic.io/vm": "vm"}}}));
    let params = PatchParams::default();
    kubelet.patch("other-a", &params, &label).await.unwrap_err();
    kubelet
        .patch_status("other-a", &params, &label)
        .await
        .unwrap_err();

    // It cannot join by itself a pool that is selected by such a label; by another it can.
    let nodes: Api<Node> = Api::all(kubelet.clone().into_client());
    let label = |key: &str| Patch::Merge(json!({"metadata": {"labels": {key: "yes"}}}));
    nodes
        .patch("n2", &params, &label("node-restriction.kubernetes.io/sriov"))
        .await
        .unwrap_err();
    nodes
        .patch("n2", &params, &label("example.com/sriov"))
        .await
        .unwrap();

    // The kubelet reports the intended pod's address. The source is not sent to itself, nor to a node.
    let first = "127.0.0.1";
    bench.run_pod_at("vm-b", "vm", "n2", first).await;
    for ip in [first, "169.254.169.254", "192.168.50.1"] {
        let status = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
        kubelet
            .patch_status("vm-b", &params, &Patch::Merge(status))
            .await
            .unwrap();
        let refused = |migration: &QemuMigration| {
            let status = migration.status.as_ref();
            let why = status.and_then(|s| conditions::find(&s.conditions, types::SUCCEEDED));
            why.is_some_and(|why| why.reason == reasons::TARGET_ADDRESS_REFUSED && why.message.contains(ip))
        };
        bench
            .migration_with("goes", "TargetAddressRefused", refused)
            .await;
    }
    let ip = "10.0.0.9";
    let status = json!({"status": {"podIP": ip, "podIPs": [{"ip": ip}]}});
    kubelet
        .patch_status("vm-b", &params, &Patch::Merge(status))
        .await
        .unwrap();
    bench
        .migration_with("goes", "succeeded", is_in(MigrationPhase::Succeeded))
        .await;
    let nic = bench.nic_with("eth0", "fast", is_fast).await;
    assert_eq!(nic.status.unwrap().pod.unwrap().name, "vm-b");
}

fn accepted(nic: &VmHybridNic) -> (String, String, String) {
    let status = nic.status.as_ref();
    let accepted = status.and_then(|status| conditions::find(&status.conditions, types::ACCEPTED));
    let text = |of: fn(&k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition) -> &String| {
        accepted.map(|accepted| of(accepted).clone()).unwrap_or_default()
    };
    (text(|c| &c.status), text(|c| &c.reason), text(|c| &c.message))
}

/// The address of the PF of `n1` in these tests, see `agent.rs`.
const CARD: &str = "02:00:00:00:00:f1";
const HELD: &str = "02:00:00:00:00:0a";

#[tokio::test]
async fn a_tenant_does_not_take_an_address_that_is_not_its_own() {
    let mut bench = Bench::start().await;
    bench.start_operator();
    let _agents = Agents::start(&bench.cluster).await;
    // Another team's network on the same cards, where any address may be asked for.
    bench
        .create::<HybridNetwork>(json!({
            "metadata": {"name": "team-y"}, "spec": {"uplinks": [{"pfNames": ["ens*"]}], "macs": "Any"},
        }))
        .await;
    bench.run_pod("vm-a", "vm", "n1").await;
    bench.create_nic("eth0", "vm", Some(HELD)).await;
    bench.nic_with("eth0", "fast", is_fast).await;

    let ask = async |name: &str, network: &str, mac: &str| {
        let spec = json!({"network": network, "vm": {"qemu": {"name": "alice"}}, "mac": mac});
        let nic = serde_json::from_value(json!({"metadata": {"name": name}, "spec": spec})).unwrap();
        bench.nics().create(&PostParams::default(), &nic).await
    };
    // By the API server.
    ask("router", "team-y", "00:00:5e:00:01:01").await.unwrap_err();
    // By the operator.
    for (name, network, mac, why) in [
        ("outside", "net", "52:54:00:12:34:56", reasons::MAC_NOT_ALLOWED),
        ("card", "net", CARD, reasons::MAC_NOT_ALLOWED),
        ("cards", "team-y", CARD, reasons::MAC_NOT_ALLOWED),
        ("neighbours", "team-y", HELD, reasons::MAC_CONFLICT),
    ] {
        ask(name, network, mac).await.unwrap();
        let refused = |nic: &VmHybridNic| reason(nic, types::ACCEPTED) == why;
        let nic = bench.nic_with(name, why, refused).await;
        assert_eq!(nic.status.as_ref().unwrap().mac, None, "{:?}", accepted(&nic));
    }
    ask("free", "team-y", "52:54:00:12:34:56").await.unwrap();
    bench
        .nic_with("free", "Accepted", |nic| {
            reason(nic, types::ACCEPTED) == reasons::ACCEPTED
        })
        .await;

    // Rules that get tighter cut no live NIC, and no migration of it. It says that it would not get its address now.
    let networks: Api<HybridNetwork> = Api::all(bench.client.clone());
    let tighter = Patch::Merge(json!({"spec": {"macs": "Generated"}}));
    networks
        .patch("net", &PatchParams::default(), &tighter)
        .await
        .unwrap();
    let kept = |nic: &VmHybridNic| is_fast(nic) && accepted(nic).1 == reasons::MAC_NOT_ALLOWED;
    let nic = bench.nic_with("eth0", "fast, and MacNotAllowed", kept).await;
    assert_eq!(accepted(&nic).0, "True");
    assert_eq!(nic.status.unwrap().mac.as_deref(), Some(HELD));
    bench.run_pod("vm-b", "vm", "n2").await;
    bench.migrate("goes", "vm").await;
    bench
        .migration_with("goes", "succeeded", is_in(MigrationPhase::Succeeded))
        .await;
    // Its VM ends, and starts again: now it does not get it.
    bench.delete_pod("vm-b").await;
    bench.delete_pod("vm-a").await;
    let cut = |nic: &VmHybridNic| accepted(nic).0 == "False";
    let nic = bench.nic_with("eth0", "refused", cut).await;
    assert!(
        accepted(&nic).2.contains("macs: Generated"),
        "{:?}",
        accepted(&nic)
    );
}
