//! KubeVirt on real Kubernetes nodes, emulated: launchers are pods that kubelets start.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test ends where something is not as it should be"
)]

use std::time::{Duration, Instant};

use hybridnic_e2e::cluster::Cluster;
use hybridnic_e2e::kubevirt::{Kind, OnNodes, image};
use hybridnic_e2e::until::until;
use kube::api::{DynamicObject, PostParams};
use serde_json::{Value, json};

const NAMESPACE: &str = "default";
/// In MiB: beside what `nodes` has, an image of 400 MB twice, and virt-handler.
const MEMORY: u32 = 6144;
/// For a VM's start or move, all of it emulated.
const LONG: Duration = Duration::from_mins(5);

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_starts_and_moves() {
    let began = Instant::now();
    let say = |what: &str| eprintln!("--- {:5.1} s  {what}", began.elapsed().as_secs_f64());
    let image = image().await.unwrap();
    let cluster = Cluster::start_with("kubevirt", MEMORY, &[image], |what| eprintln!("--- {what}"))
        .await
        .unwrap();
    say("the cluster is ready");
    // The nodes' own KVM, nested in what emulates them.
    let _kubevirt = OnNodes::start(&cluster, json!({})).await.unwrap();
    say("KubeVirt is ready");
    let vmi = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance", "metadata": { "name": "plain" },
        "spec": {
            "domain": {
                "cpu": { "model": "host-passthrough" }, "memory": { "guest": "64Mi" },
                "devices": { "autoattachPodInterface": false, "autoattachGraphicsDevice": false },
            },
        },
    });
    create(&cluster, Kind::VirtualMachineInstance, vmi).await;
    let asked = Instant::now();
    reached(&cluster, Kind::VirtualMachineInstance, "plain", "Running").await;
    eprintln!(
        "figure: a VM from asked to running {:.1} s",
        asked.elapsed().as_secs_f64()
    );
    say("a VM runs");
    let migration = json!({
        "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstanceMigration", "metadata": { "name": "moves" },
        "spec": { "vmiName": "plain" },
    });
    create(&cluster, Kind::VirtualMachineInstanceMigration, migration).await;
    let asked = Instant::now();
    reached(
        &cluster,
        Kind::VirtualMachineInstanceMigration,
        "moves",
        "Succeeded",
    )
    .await;
    eprintln!(
        "figure: its migration from asked to succeeded {:.1} s",
        asked.elapsed().as_secs_f64()
    );
    say("it has moved");
}

async fn create(cluster: &Cluster, kind: Kind, object: Value) {
    let object: DynamicObject = serde_json::from_value(object).unwrap();
    kind.api(cluster.client(), NAMESPACE)
        .create(&PostParams::default(), &object)
        .await
        .unwrap();
}

/// Waits until an object is in a phase, or in one that it does not leave.
async fn reached(cluster: &Cluster, kind: Kind, name: &str, phase: &str) {
    let all = kind.api(cluster.client(), NAMESPACE);
    let is = |object: &DynamicObject| {
        let now = object.data.pointer("/status/phase").and_then(Value::as_str);
        now == Some(phase) || now == Some("Failed")
    };
    let reached = until(all, name, LONG, phase, is).await;
    let told = reached
        .as_ref()
        .is_ok_and(|object| object.data["status"]["phase"] == phase);
    if !told {
        for what in ["vmi", "vmim", "pods", "events"] {
            let shown = cluster.kubectl(&["get", what, "-A", "-o", "wide"]).await;
            eprintln!("{}", shown.unwrap_or_else(|e| e.to_string()));
        }
        panic!("{name} is not {phase}: {reached:#?}");
    }
}
