//! Neither end of a migration can say where the VM runs: a person does, when they are asked, and not before.

use hybridnic_api::conditions::reasons;
use hybridnic_api::v1alpha1::{MigrationPhase, QemuMigration};
use kube::api::{Patch, PatchParams};
use serde_json::json;

use super::fast_nic;
use crate::agent::{Agents, Mood};
use crate::bench::{Bench, is_fast, is_in, why};

/// What the API server says about a decision; nothing if it accepts it.
async fn decide(bench: &Bench, decision: &str) -> String {
    let patch = Patch::Merge(json!({ "spec": { "decision": decision } }));
    match bench
        .migrations()
        .patch("m", &PatchParams::default(), &patch)
        .await
    {
        Ok(_) => String::new(),
        Err(kube::Error::Api(status)) => status.message,
        Err(error) => panic!("{error}"),
    }
}

/// A migration whose source has let the VM go when the target's node is cut off and its pod deleted by force.
async fn undecided() -> (Bench, Agents) {
    let (bench, agents) = fast_nic().await;
    agents.be(Mood {
        endless: true,
        ..Mood::default()
    });
    bench.run_pod("vm-b", "vm", "n2").await;
    bench.migrate("m", "vm").await;
    bench
        .migration_with("m", "transferring", is_in(MigrationPhase::Transferring))
        .await;
    let refusal = decide(&bench, "ResumeSource").await;
    assert!(refusal.contains("once the migration asks for it"), "{refusal}");

    agents.be(Mood {
        silent: &["n2"],
        ..Mood::default()
    });
    // The agents look when something changes.
    bench.look_again().await;
    let completed = [
        "wait",
        "nicatt",
        "--field-selector=spec.nodeName=n1",
        "--for=jsonpath={.status.migration.state}=Completed",
    ];
    bench.kubectl(&completed).await;
    bench.kubelet_says("n2", "Unknown").await;
    bench.delete_pod("vm-b").await;
    let asks = |m: &QemuMigration| why(m) == reasons::NEEDS_DECISION;
    let migration = bench.migration_with("m", "in need of a decision", asks).await;
    let status = migration.status.unwrap();
    assert!(status.undecided_since.is_some() && status.resuming_since.is_none());
    let events = ["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"];
    assert!(bench.kubectl(&events).await.contains(reasons::NEEDS_DECISION));
    (bench, agents)
}

#[tokio::test]
async fn a_person_lets_the_source_go_on() {
    let (bench, _agents) = undecided().await;
    assert_eq!(decide(&bench, "ResumeSource").await, "");
    let failed = bench
        .migration_with("m", "failed", is_in(MigrationPhase::Failed))
        .await;
    assert_eq!(why(&failed), reasons::TARGET_LOST);
    assert!(failed.status.unwrap().resuming_since.is_some());
    let nic = bench.nic_with("eth0", "fast", is_fast).await.status.unwrap();
    assert_eq!(nic.node_name.as_deref(), Some("n1"));
    let refusal = decide(&bench, "AbandonSource").await;
    assert!(refusal.contains("cannot be taken back"), "{refusal}");
}

#[tokio::test]
async fn a_person_gives_the_source_up() {
    let (bench, _agents) = undecided().await;
    assert_eq!(decide(&bench, "AbandonSource").await, "");
    let done = bench
        .migration_with("m", "succeeded", is_in(MigrationPhase::Succeeded))
        .await;
    assert_eq!(done.status.unwrap().resuming_since, None);
}
