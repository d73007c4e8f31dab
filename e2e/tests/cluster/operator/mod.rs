//! The operator on a real API server, with the rights that the chart gives. The agents are fake: see `agent.rs`.

mod decide;
mod hostile;
mod life;
mod loss;
mod pods;
mod pools;

use std::time::Duration;

use hybridnic_api::conditions::{self, reasons, types};
use hybridnic_api::features::AgentFeature;
use hybridnic_api::names::{NIC_LABEL, VM_LABEL, attachment_name};
use hybridnic_api::v1alpha1::{
    Goal, HybridNetwork, HybridNode, MigrationPhase, NicPhase, Path, QemuRestore, QemuSave, VmHybridNic,
};
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, from_value, json};

use super::agent::{Agents, Mood};
use super::bench::{Bench, NAMESPACE, is_fast, is_in, reason, why};

const MAC: &str = "02:00:00:00:00:0a";

/// An operator, agents, and the VM `vm` on node `n1` whose NIC `eth0` is on its fast path.
async fn fast_nic() -> (Bench, Agents) {
    let mut bench = Bench::start().await;
    bench.start_operator();
    let agents = Agents::start(&bench.cluster).await;
    bench.run_pod("vm-a", "vm", "n1").await;
    bench.create_nic("eth0", "vm", None).await;
    bench.nic_with("eth0", "fast", is_fast).await;
    (bench, agents)
}

#[tokio::test]
async fn a_nic_from_its_creation_to_its_deletion() {
    let mut bench = Bench::start().await;
    bench.start_operator();
    bench.create_nic("eth0", "vm", Some("02:00:00:00:00:0A")).await;
    let waits = |reason_: &'static str| move |nic: &_| reason(nic, types::FAST_PATH) == reason_;
    bench
        .nic_with("eth0", "PodNotFound", waits(reasons::POD_NOT_FOUND))
        .await;
    bench.run_pod("vm-a", "vm", "n1").await;
    bench
        .nic_with("eth0", "AgentNotFound", waits(reasons::AGENT_NOT_FOUND))
        .await;
    let _agents = Agents::start(&bench.cluster).await;

    let nic = bench.nic_with("eth0", "fast", is_fast).await;
    let status = nic.status.unwrap();
    assert_eq!(
        (status.mac.as_deref(), status.node_name.as_deref()),
        (Some(MAC), Some("n1"))
    );
    assert_eq!(
        (status.path, status.vf.unwrap().pf.as_str()),
        (Path::FastPath, "ens1")
    );
    let pod = bench.pods().get("vm-a").await.unwrap().uid().unwrap();
    let attachment = bench
        .attachments()
        .get(&attachment_name("eth0", &pod))
        .await
        .unwrap();
    assert_eq!(
        (attachment.spec.mac.as_str(), attachment.spec.goal),
        (MAC, Goal::FastPath)
    );
    assert_eq!(attachment.labels()[NIC_LABEL], "eth0");
    assert_eq!(attachment.labels()[VM_LABEL], "vm");
    assert_eq!(attachment.owner_references()[0].kind, "VmHybridNic");

    let nodes: Api<HybridNode> = Api::all(bench.client.clone());
    assert_eq!(nodes.get("n1").await.unwrap().spec.pools[0].network, "net");
    let networks: Api<HybridNetwork> = Api::all(bench.client.clone());
    let counted = |network: Option<&HybridNetwork>| {
        let status = network.and_then(|network| network.status.as_ref());
        status.is_some_and(|s| (s.vfs.total, s.nodes, s.nics, s.on_fast_path) == (14, 2, 1, 1))
    };
    bench
        .until_object(networks.clone(), "net", "counted", counted)
        .await;

    for probe in ["GET /livez", "GET /readyz", "GET /startupz"] {
        assert_eq!(
            bench.operators[0].ask(probe, "").await,
            (200, "ok\n".into()),
            "{probe}"
        );
    }
    let metrics = bench.operators[0]
        .metrics_with(&[
            "hybridnic_leader 1",
            "hybridnic_network_vfs{network=\"net\",state=\"free\"} 14",
            "hybridnic_network_nodes{network=\"net\"} 2",
            "hybridnic_nics{network=\"net\",path=\"FastPath\",phase=\"FastPath\",asked=\"Auto\"} 1",
            "hybridnic_nodes{agent=\"supported\"} 2",
            "hybridnic_reconcile_queue_length{kind=\"VmHybridNic\"} 0",
        ])
        .await;
    let wrote =
        "hybridnic_api_requests_total{resource=\"vmhybridnics/status\",verb=\"patch\",result=\"ok\"} ";
    assert!(
        metrics.iter().any(|l| l.starts_with(wrote)),
        "{}",
        metrics.join("\n")
    );
    let forbidden = |l: &String| l.contains("result=\"forbidden\"") || l.contains("result=\"refused\"");
    assert!(!metrics.iter().any(forbidden), "{}", metrics.join("\n"));

    // The log level changes while it runs.
    let set = bench.operators[0].ask("PUT /log-level", "off").await;
    assert_eq!(set, (200, "off\n".into()));
    let (status, why) = bench.operators[0].ask("PUT /log-level", "info,kube=loud").await;
    assert_eq!(status, 400, "{why}");
    assert_eq!(bench.operators[0].ask("GET /log-level", "").await.1, "off\n");
    let set = bench.operators[0]
        .ask("PUT /log-level", "info,hybridnic_operator=debug")
        .await;
    assert_eq!(set.0, 200);

    // One address, one owner: the later NIC waits until the first is gone.
    bench.create_nic("eth1", "vm", Some(MAC)).await;
    let later = bench
        .nic_with("eth1", "MacConflict", |nic| {
            reason(nic, types::ACCEPTED) == reasons::MAC_CONFLICT
        })
        .await;
    assert_eq!(later.status.unwrap().phase, NicPhase::Failed);
    let eth1 = ListParams::default().labels(&format!("{NIC_LABEL}=eth1"));
    assert_eq!(bench.attachments().list(&eth1).await.unwrap().items, []);
    let events = bench
        .kubectl(&["get", "events.events.k8s.io", "-o", "jsonpath={.items[*].reason}"])
        .await;
    for expected in [
        reasons::VF_ACTIVE,
        reasons::MAC_CONFLICT,
        reasons::AGENT_NOT_FOUND,
    ] {
        assert!(events.contains(expected), "no event {expected} among {events}");
    }

    bench.remove(bench.nics(), "eth0").await;
    let eth0 = ListParams::default().labels(&format!("{NIC_LABEL}=eth0"));
    assert_eq!(bench.attachments().list(&eth0).await.unwrap().items, []);
    bench.nic_with("eth1", "fast", is_fast).await;

    // A NIC without an address gets one, and the pod that goes takes its attachment with it.
    bench.create_nic("eth2", "vm", None).await;
    let generated = bench
        .nic_with("eth2", "fast", is_fast)
        .await
        .status
        .unwrap()
        .mac
        .unwrap();
    assert!(generated.starts_with("02:") && generated != MAC, "{generated}");
    bench.delete_pod("vm-a").await;
    let gone = bench
        .nic_with("eth2", "PodNotFound", waits(reasons::POD_NOT_FOUND))
        .await
        .status
        .unwrap();
    assert_eq!(gone.mac, Some(generated), "the address stays");
    for attachment in bench.attachments().list(&ListParams::default()).await.unwrap() {
        bench
            .until_object(
                bench.attachments(),
                &attachment.name_any(),
                "gone",
                |attachment| attachment.is_none(),
            )
            .await;
    }

    // A node that loses its label leaves the pool.
    bench.kubectl(&["label", "node", "n2", "sriov-"]).await;
    let left = |node: Option<&HybridNode>| node.is_some_and(|node| node.spec.pools.is_empty());
    bench
        .until_object(nodes.clone(), "n2", "without pools", left)
        .await;
    let counted = |network: Option<&HybridNetwork>| {
        let status = network.and_then(|network| network.status.as_ref());
        status.is_some_and(|s| (s.vfs.total, s.nodes, s.nics, s.on_fast_path) == (7, 1, 2, 0))
    };
    bench.until_object(networks, "net", "counted", counted).await;

    // At rest nothing is written. There is no event for nothing.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = bench.writes();
    tokio::time::sleep(Duration::from_secs(5)).await;
    let after = bench.writes();
    assert_eq!(after[before.len()..], [] as [String; 0]);
    eprintln!("{} writes:\n{}", after.len(), after.join("\n"));
    let operator = bench.operators.remove(0);
    assert_eq!(operator.terminate().await, Some(0), "{}", bench.logs());
    assert!(
        !bench.logs().contains("forbidden"),
        "its rights are not enough: {}",
        bench.logs()
    );
}

#[tokio::test]
async fn a_node_that_is_gone_for_good_holds_nothing_back() {
    let (bench, agents) = fast_nic().await;
    drop(agents);
    bench
        .nics()
        .delete("eth0", &DeleteParams::default())
        .await
        .unwrap();
    bench
        .nic_with("eth0", "detaching", |nic| {
            nic.status
                .as_ref()
                .is_some_and(|s| s.phase == NicPhase::Detaching)
        })
        .await;
    bench.kubectl(&["delete", "node", "n1"]).await;
    bench
        .until_object(bench.nics(), "eth0", "gone", |nic| nic.is_none())
        .await;
    assert_eq!(
        bench
            .attachments()
            .list(&ListParams::default())
            .await
            .unwrap()
            .items,
        []
    );
}

#[tokio::test]
async fn migrations_that_go_well_and_that_do_not() {
    let mut bench = Bench::start().await;
    bench.start_operator();
    let agents = Agents::start(&bench.cluster).await;
    bench.run_pod("vm-a", "vm", "n1").await;
    bench.create_nic("eth0", "vm", None).await;
    bench.create_nic("eth1", "vm", None).await;
    let mac = bench.nic_with("eth0", "fast", is_fast).await.status.unwrap().mac;
    bench.nic_with("eth1", "fast", is_fast).await;
    bench.migrate("keeps", "vm").await;
    bench
        .migration_with("keeps", "NoTargetPod", |m| why(m) == reasons::NO_TARGET_POD)
        .await;
    agents.be(Mood {
        keeps_vf: true,
        ..Mood::default()
    });
    bench.run_pod("vm-b", "vm", "n2").await;
    let kept = bench
        .migration_with("keeps", "failed", is_in(MigrationPhase::Failed))
        .await;
    assert_eq!(why(&kept), reasons::GUEST_KEEPS_VF);
    agents.be(Mood::default());
    bench.nic_with("eth0", "fast", is_fast).await;

    let before = bench.writes().len();
    bench.migrate("goes", "vm").await;
    let went = bench
        .migration_with("goes", "succeeded", is_in(MigrationPhase::Succeeded))
        .await
        .status
        .unwrap();
    assert_eq!(went.downtime_ms, Some(31));
    let names: Vec<_> = went.phases.iter().map(|phase| phase.name.as_str()).collect();
    assert_eq!(
        names,
        [
            "PreparingTarget",
            "SwitchingToStandby",
            "Transferring",
            "Completing"
        ]
    );
    assert!(went.phases.iter().all(|phase| phase.ms.is_some()) && went.total_ms.is_some());
    for name in ["eth0", "eth1"] {
        let arrived = |nic: &hybridnic_api::v1alpha1::VmHybridNic| {
            is_fast(nic)
                && nic
                    .status
                    .as_ref()
                    .is_some_and(|s| s.last_migration.as_ref().is_some_and(|m| m.result.is_some()))
        };
        let status = bench.nic_with(name, "arrived", arrived).await.status.unwrap();
        assert_eq!(status.node_name.as_deref(), Some("n2"));
        let last = status.last_migration.unwrap();
        assert_eq!(
            (last.from.as_str(), last.to.as_str(), last.result.as_deref()),
            ("n1", "n2", Some("Succeeded"))
        );
        assert_eq!((last.name.as_str(), last.downtime_ms), ("goes", Some(31)));
    }
    assert_eq!(bench.nics().get("eth0").await.unwrap().status.unwrap().mac, mac);
    eprintln!(
        "{} writes for a migration of two NICs",
        bench.writes().len() - before
    );

    // Of a VM without NICs nothing is saved, and one that runs is not restored.
    let saves: Api<QemuSave> = Api::namespaced(bench.client.clone(), NAMESPACE);
    let save =
        json!({"metadata": {"name": "none"}, "spec": {"vm": "nobody", "file": "/saves/a", "then": "End"}});
    saves
        .create(&PostParams::default(), &from_value(save).unwrap())
        .await
        .unwrap();
    let restores: Api<QemuRestore> = Api::namespaced(bench.client.clone(), NAMESPACE);
    let restore = json!({"metadata": {"name": "twice"}, "spec": {"vm": "vm", "file": "/saves/a"}});
    restores
        .create(&PostParams::default(), &from_value(restore).unwrap())
        .await
        .unwrap();

    let metrics = bench.operators[0]
        .metrics_with(&[
            "hybridnic_saves_total{kind=\"save\",result=\"failed\",reason=\"NoNics\"} 1",
            "hybridnic_saves_total{kind=\"save\",result=\"succeeded\",reason=\"Completed\"} 0",
            "hybridnic_saves_total{kind=\"restore\",result=\"failed\",reason=\"VmRuns\"} 1",
            "hybridnic_migrations_total{result=\"succeeded\",reason=\"Completed\"} 1",
            "hybridnic_migrations_total{result=\"failed\",reason=\"GuestKeepsVf\"} 1",
            "hybridnic_migrations_total{result=\"failed\",reason=\"TargetLost\"} 0",
            "hybridnic_migration_duration_seconds_count{result=\"succeeded\"} 1",
            "hybridnic_migration_downtime_seconds_sum 0.031",
            "hybridnic_migration_phase_duration_seconds_count{phase=\"PreparingTarget\"} 2",
            "hybridnic_migration_phase_duration_seconds_count{phase=\"Transferring\"} 1",
        ])
        .await;
    assert!(
        !metrics
            .iter()
            .any(|l| l.starts_with("hybridnic_migrations_active{")),
        "none is under way"
    );

    // Back again, to a new pod; cancelled halfway.
    bench.end_pod("vm-a").await;
    bench.run_pod("vm-c", "vm", "n1").await;
    agents.be(Mood {
        endless: true,
        ..Mood::default()
    });
    bench.migrate("cancelled", "vm").await;
    bench
        .migration_with("cancelled", "transferring", is_in(MigrationPhase::Transferring))
        .await;
    bench.migrate("second", "vm").await;
    bench
        .migration_with("second", "busy", |m| why(m) == reasons::MIGRATION_BUSY)
        .await;
    bench.remove(bench.migrations(), "second").await;
    // A NIC that comes now waits until it is over.
    bench.create_nic("eth2", "vm", None).await;
    let waits = |nic: &_| reason(nic, types::READY) == reasons::MIGRATING;
    bench.nic_with("eth2", "waiting", waits).await;
    bench.remove(bench.migrations(), "cancelled").await;
    let nic = bench.nic_with("eth0", "fast", is_fast).await.status.unwrap();
    assert_eq!(nic.node_name.as_deref(), Some("n2"), "it stayed");
    assert_eq!(nic.last_migration.unwrap().name, "cancelled");
    bench.nic_with("eth2", "fast", is_fast).await;

    // The target dies under the transfer.
    bench.delete_pod("vm-c").await;
    bench.run_pod("vm-d", "vm", "n1").await;
    bench.migrate("lost", "vm").await;
    bench
        .migration_with("lost", "transferring", is_in(MigrationPhase::Transferring))
        .await;
    bench.end_pod("vm-d").await;
    let lost = bench
        .migration_with("lost", "failed", is_in(MigrationPhase::Failed))
        .await;
    assert_eq!(why(&lost), reasons::TARGET_LOST);
    let nic = bench.nic_with("eth0", "fast", is_fast).await.status.unwrap();
    assert_eq!(nic.node_name.as_deref(), Some("n2"), "it stayed");
}

/// What the agent of node `n1` says of itself.
async fn say(bench: &Bench, status: &Value) {
    let patch = json!({ "status": status }).to_string();
    bench
        .kubectl(&[
            "patch",
            "hnode",
            "n1",
            "--subresource=status",
            "--type=merge",
            "-p",
            &patch,
        ])
        .await;
}

#[tokio::test]
async fn an_agent_of_another_version_gets_no_nic_and_keeps_those_it_has() {
    let (bench, _agents) = fast_nic().await;
    say(&bench, &json!({ "agentVersion": "99.0.0" })).await;
    bench.create_nic("eth1", "vm", None).await;
    let refused = |nic: &_| reason(nic, types::READY) == reasons::AGENT_VERSION_UNSUPPORTED;
    bench.nic_with("eth1", "refused", refused).await;
    bench.nic_with("eth0", "fast", is_fast).await;
    bench.operators[0]
        .metrics_with(&["hybridnic_nodes{agent=\"unsupported\"} 1"])
        .await;
    // Once it is upgraded, the NIC goes on by itself.
    say(&bench, &json!({ "agentVersion": env!("CARGO_PKG_VERSION") })).await;
    bench.nic_with("eth1", "fast", is_fast).await;
}

/// It would not see `standby: None`, and make a standby.
#[tokio::test]
async fn an_agent_that_does_not_know_what_a_nic_asks_for_does_not_get_it() {
    let (bench, _agents) = fast_nic().await;
    say(&bench, &json!({ "features": null })).await;
    let alone = json!({
        "metadata": {"name": "eth1"},
        "spec": {"network": "net", "vm": {"qemu": {"name": "vm"}}, "standby": "None"},
    });
    let alone = serde_json::from_value(alone).unwrap();
    bench.nics().create(&PostParams::default(), &alone).await.unwrap();
    let refused = |nic: &VmHybridNic| {
        let conditions = nic.status.as_ref().map(|status| status.conditions.as_slice());
        let ready = conditions::find(conditions.unwrap_or_default(), types::READY);
        ready.is_some_and(|c| {
            c.reason == reasons::AGENT_VERSION_UNSUPPORTED && c.message.contains("standby: None")
        })
    };
    bench.nic_with("eth1", "refused", refused).await;
    // Others ask for nothing new.
    bench.create_nic("eth2", "vm", None).await;
    bench.nic_with("eth2", "fast", is_fast).await;
    let placed = async || {
        let all = bench.attachments().list(&ListParams::default()).await.unwrap();
        all.iter().any(|a| a.spec.nic.name == "eth1")
    };
    assert!(!placed().await, "it was placed on an agent that does not know it");
    say(&bench, &json!({ "features": AgentFeature::words() })).await;
    let passes = |nic: &VmHybridNic| !refused(nic);
    bench.nic_with("eth1", "placed", passes).await;
    assert!(placed().await, "nothing is in its way");
}
