//! A node is lost: nothing goes live elsewhere before it is proven, or said, to be off.

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::names::attachment_name;
use hybridnic_api::v1alpha1::{Goal, MigrationPhase, NicAttachment, QemuMigration, VmHybridNic};
use kube::ResourceExt;
use kube::api::{DeleteParams, ListParams};

use super::fast_nic;
use crate::agent::{Agents, Mood};
use crate::bench::{Bench, is_fast, reason};

const TAINT: &str = "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute";

/// `n1` is cut off: neither its kubelet nor its agent reports, and somebody deletes the VM's pod by force.
async fn cut_off(bench: &Bench, agents: &Agents) {
    agents.be(Mood {
        silent: &["n1"],
        ..Mood::default()
    });
    bench.kubelet_says("n1", "Unknown").await;
    bench.delete_pod("vm-a").await;
}

async fn attachments(bench: &Bench) -> Vec<NicAttachment> {
    let all = bench.attachments().list(&ListParams::default()).await.unwrap();
    all.items
}

fn is_lost(nic: &VmHybridNic) -> bool {
    reason(nic, types::READY) == reasons::NODE_UNREACHABLE
}

fn runs_on(node: &str) -> impl Fn(&VmHybridNic) -> bool {
    move |nic| {
        is_fast(nic)
            && nic
                .status
                .as_ref()
                .is_some_and(|s| s.node_name.as_deref() == Some(node))
    }
}

/// Waits until an attachment is gone.
async fn gone(bench: &Bench, name: &str) {
    bench
        .until_object(bench.attachments(), name, "gone", |attachment| {
            attachment.is_none()
        })
        .await;
}

#[tokio::test]
async fn a_nic_leaves_a_lost_node_when_that_is_said_to_be_off() {
    let (mut bench, agents) = fast_nic().await;
    let first = attachments(&bench).await.remove(0).name_any();
    cut_off(&bench, &agents).await;
    bench.run_pod("vm-b", "vm", "n2").await;
    let nic = bench.nic_with("eth0", "NodeUnreachable", is_lost).await;
    let status = nic.status.unwrap();
    let ready = conditions::find(&status.conditions, types::READY).unwrap();
    for part in [
        "node n1",
        "since 2026-01-01",
        "kubectl taint node n1",
        "kubectl delete node n1",
    ] {
        assert!(ready.message.contains(part), "{}", ready.message);
    }
    let events = ["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"];
    assert!(bench.kubectl(&events).await.contains(reasons::NODE_UNREACHABLE));

    // One that takes over knows as little.
    bench.operators.remove(0).kill();
    bench.start_operator();
    bench.operators[0]
        .metrics_with(&["hybridnic_leader 1", "hybridnic_nics_unreachable 1"])
        .await;
    bench.kubectl(&["annotate", "vhn", "eth0", "look=again"]).await;
    let written = |nic: &VmHybridNic| nic.annotations().contains_key("look") && is_lost(nic);
    bench.nic_with("eth0", "looked at", written).await;
    let left = attachments(&bench).await;
    assert_eq!(left.len(), 1, "{left:#?}");
    assert_eq!(
        (left[0].name_any(), left[0].spec.goal),
        (first.clone(), Goal::Detached)
    );

    bench.kubectl(&["taint", "node", "n1", TAINT]).await;
    bench.nic_with("eth0", "fast on n2", runs_on("n2")).await;
    gone(&bench, &first).await;
    bench.operators[0]
        .metrics_with(&["hybridnic_nics_unreachable 0"])
        .await;
}

#[tokio::test]
async fn a_lost_node_that_comes_back_gives_the_nic_back_itself() {
    let (bench, agents) = fast_nic().await;
    let first = attachments(&bench).await.remove(0).name_any();
    cut_off(&bench, &agents).await;
    bench.run_pod("vm-b", "vm", "n2").await;
    bench.nic_with("eth0", "NodeUnreachable", is_lost).await;
    agents.be(Mood::default());
    bench.kubelet_says("n1", "True").await;
    // Something must change for the agents to look again.
    bench.look_again().await;
    bench.nic_with("eth0", "fast on n2", runs_on("n2")).await;
    gone(&bench, &first).await;

    // A pod that is replaced on a healthy node waits only for its agent.
    bench.delete_pod("vm-b").await;
    bench.run_pod("vm-c", "vm", "n2").await;
    let uid = bench.pods().get("vm-c").await.unwrap().uid().unwrap();
    let there = |nic: &VmHybridNic| {
        is_fast(nic)
            && nic
                .status
                .as_ref()
                .is_some_and(|s| s.pod.as_ref().is_some_and(|p| p.uid == uid))
    };
    bench.nic_with("eth0", "fast in vm-c", there).await;
    let last = attachment_name("eth0", &uid);
    let fits = |attachment: Option<&NicAttachment>| attachment.is_some();
    bench
        .until_object(bench.attachments(), &last, "there", fits)
        .await;
}

#[tokio::test]
async fn a_lost_node_is_left_without_proof_only_by_a_deadline_that_somebody_has_set() {
    let mut bench = Bench::start().await;
    bench.start_operator_with(&["--node-loss-timeout", "2"]);
    let agents = Agents::start(&bench.cluster).await;
    bench.run_pod("vm-a", "vm", "n1").await;
    bench.create_nic("eth0", "vm", None).await;
    bench.nic_with("eth0", "fast", is_fast).await;
    cut_off(&bench, &agents).await;
    bench.run_pod("vm-b", "vm", "n2").await;
    bench.nic_with("eth0", "fast on n2", runs_on("n2")).await;
    bench
        .logged(&["WARN", "nothing proves that the NIC has left node n1"])
        .await;
    // What is there is left to its agent, in case that comes back.
    let mut nodes: Vec<_> = attachments(&bench)
        .await
        .into_iter()
        .map(|attachment| (attachment.spec.node_name, attachment.spec.goal))
        .collect();
    nodes.sort_by(|a, b| a.0.cmp(&b.0));
    assert_eq!(
        nodes,
        [
            ("n1".to_owned(), Goal::Detached),
            ("n2".to_owned(), Goal::FastPath)
        ]
    );
}

#[tokio::test]
async fn the_target_of_a_migration_whose_source_is_lost_is_no_way_round_the_fence() {
    let (bench, agents) = fast_nic().await;
    let source = attachments(&bench).await.remove(0).name_any();
    bench.run_pod("vm-b", "vm", "n2").await;
    // The target does not get ready, and has not taken the NIC back when the migration has failed. The source is heard once: without
    // its certificate nothing is made at the target.
    agents.be(Mood {
        silent: &["n2"],
        ..Mood::default()
    });
    bench.migrate("goes", "vm").await;
    let uid = bench.pods().get("vm-b").await.unwrap().uid().unwrap();
    let target = attachment_name("eth0", &uid);
    let there = |attachment: Option<&NicAttachment>| attachment.is_some();
    bench
        .until_object(bench.attachments(), &target, "there", there)
        .await;
    agents.be(Mood {
        silent: &["n1", "n2"],
        ..Mood::default()
    });
    // Held by its agent, as any that is not brand new.
    let held = r#"{"metadata":{"finalizers":["hybridnic.io/attachment"]}}"#;
    bench
        .kubectl(&["patch", "nicatt", &target, "--type=merge", "-p", held])
        .await;
    bench.kubelet_says("n1", "Unknown").await;
    bench.delete_pod("vm-a").await;
    let failed = |migration: &QemuMigration| {
        let status = migration.status.as_ref();
        status.is_some_and(|status| status.phase == MigrationPhase::Failed)
    };
    bench.migration_with("goes", "failed", failed).await;
    bench.nic_with("eth0", "NodeUnreachable", is_lost).await;
    for name in [&source, &target] {
        let goal = bench.attachments().get(name).await.unwrap().spec.goal;
        assert_eq!(goal, Goal::Detached, "{name}");
    }

    bench.kubectl(&["taint", "node", "n1", TAINT]).await;
    agents.be(Mood {
        silent: &["n1"],
        ..Mood::default()
    });
    bench.look_again().await;
    bench.nic_with("eth0", "fast on n2", runs_on("n2")).await;
}

#[tokio::test]
async fn what_has_outlived_its_nic_goes_with_its_node() {
    let (bench, agents) = fast_nic().await;
    let first = attachments(&bench).await.remove(0).name_any();
    agents.be(Mood {
        silent: &["n1"],
        ..Mood::default()
    });
    bench.kubelet_says("n1", "Unknown").await;
    // Somebody has lost patience. The operator may set its finalizer again before the deletion.
    bench
        .nics()
        .delete("eth0", &DeleteParams::default())
        .await
        .unwrap();
    bench.nic_with("eth0", "NodeUnreachable", is_lost).await;
    bench
        .kubectl(&[
            "patch",
            "vhn",
            "eth0",
            "--type=merge",
            "-p",
            r#"{"metadata":{"finalizers":[]}}"#,
        ])
        .await;
    bench
        .until_object(bench.nics(), "eth0", "gone", |nic| nic.is_none())
        .await;
    // As the garbage collector would, which does not run here.
    bench
        .attachments()
        .delete(&first, &DeleteParams::default())
        .await
        .unwrap();
    bench.kubectl(&["taint", "node", "n1", TAINT]).await;
    bench
        .kubectl(&["wait", "--for=jsonpath={.spec.taints}", "node/n1"])
        .await;
    let held = bench.attachments().get(&first).await.unwrap();
    assert!(
        held.metadata.deletion_timestamp.is_some(),
        "its pod is still said to run"
    );
    bench.delete_pod("vm-a").await;
    gone(&bench, &first).await;
}

/// As after a newer version was taken back: what it has written need not be known to the one before.
#[tokio::test]
async fn nothing_is_done_about_a_nic_with_an_attachment_that_cannot_be_read() {
    const GOALS: &str = "/spec/versions/0/schema/openAPIV3Schema/properties/spec/properties/goal/enum/-";
    let (mut bench, agents) = fast_nic().await;
    let name = attachments(&bench).await.remove(0).name_any();
    bench.operators.remove(0).kill();
    drop(agents);
    let allow = format!(r#"[{{"op": "add", "path": "{GOALS}", "value": "Elsewhere"}}]"#);
    let crd = "nicattachments.hybridnic.io";
    bench
        .kubectl(&["patch", "crd", crd, "--type=json", "-p", &allow])
        .await;
    // The API server takes the new schema a little later.
    let goal = |goal: &str| format!(r#"{{"spec": {{"goal": "{goal}"}}}}"#);
    let elsewhere = goal("Elsewhere");
    let args = ["patch", "nicatt", &name, "--type=merge", "-p", &elsewhere];
    while !bench.cluster.kubectl(&args).await.unwrap().status.success() {}

    // A leader that has never seen how it was. The VM is in another pod, and its NIC deleted.
    bench.delete_pod("vm-a").await;
    bench.run_pod("vm-b", "vm", "n2").await;
    bench.start_operator();
    let unreadable = |nic: &VmHybridNic| reason(nic, types::READY) == reasons::ATTACHMENT_UNREADABLE;
    bench.nic_with("eth0", "AttachmentUnreadable", unreadable).await;
    bench.kubectl(&["delete", "vhn", "eth0", "--wait=false"]).await;
    bench.kubectl(&["annotate", "vhn", "eth0", "look=again"]).await;
    let looked_at = |nic: &VmHybridNic| nic.metadata.deletion_timestamp.is_some() && unreadable(nic);
    bench.nic_with("eth0", "kept", looked_at).await;
    let names = [
        "get",
        "nicatt",
        "-o",
        "jsonpath={.items[*].metadata.name} {.items[*].spec.goal}",
    ];
    assert_eq!(bench.kubectl(&names).await, format!("{name} Elsewhere"));

    let _agents = Agents::start(&bench.cluster).await;
    bench
        .kubectl(&["patch", "nicatt", &name, "--type=merge", "-p", &goal("Detached")])
        .await;
    bench
        .until_object(bench.nics(), "eth0", "gone", |nic| nic.is_none())
        .await;
    assert!(attachments(&bench).await.is_empty());
}
