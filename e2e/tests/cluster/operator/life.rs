//! The operator as a process: another one takes over, the API server goes and comes, a right is missing.

use hybridnic_api::v1alpha1::MigrationPhase;
use hybridnic_e2e::chart;

use crate::agent::{Agents, Mood};
use crate::bench::{Bench, is_fast};

use super::fast_nic;

#[tokio::test]
async fn another_operator_goes_on_in_the_middle_of_a_migration() {
    let (mut bench, agents) = fast_nic().await;
    bench.start_operator();
    bench.run_pod("vm-b", "vm", "n2").await;
    agents.be(Mood {
        endless: true,
        ..Mood::default()
    });
    bench.migrate("goes", "vm").await;
    let at = |phase: MigrationPhase| {
        move |m: &hybridnic_api::v1alpha1::QemuMigration| m.status.as_ref().is_some_and(|s| s.phase == phase)
    };
    bench
        .migration_with("goes", "transferring", at(MigrationPhase::Transferring))
        .await;
    bench.operators[0].kill();
    agents.be(Mood::default());
    // Something must change for the agents to look again.
    bench.look_again().await;
    bench
        .migration_with("goes", "succeeded", at(MigrationPhase::Succeeded))
        .await;
    let holder = bench
        .kubectl(&[
            "get",
            "lease",
            "-n",
            chart::NAMESPACE,
            "hybridnic-operator",
            "-o",
            "jsonpath={.spec.holderIdentity}",
        ])
        .await;
    assert_eq!(holder, "operator-1");
}

#[tokio::test]
async fn an_operator_outlives_a_restart_of_the_api_server_but_not_its_absence() {
    let (mut bench, _agents) = fast_nic().await;
    bench.cluster.kill_api();
    bench.cluster.start_api().await.unwrap();
    bench.create_nic("eth1", "vm", None).await;
    bench.nic_with("eth1", "fast", is_fast).await;

    bench.cluster.pause_api().unwrap();
    let operator = bench.operators.remove(0);
    // To be started again would not help it.
    let (alive, why) = operator.ask("GET /livez", "").await;
    assert_eq!(alive, 200, "{why}");
    let ended = operator.ended().await;
    bench.cluster.resume_api().unwrap();
    assert_eq!(
        ended,
        Some(1),
        "who cannot renew its lease must end, with an error: {}",
        bench.logs()
    );
    bench.start_operator();
    bench.create_nic("eth2", "vm", None).await;
    bench.nic_with("eth2", "fast", is_fast).await;
}

#[tokio::test]
async fn an_operator_without_one_of_its_rights_says_which_and_goes_on_once_it_has_it() {
    let mut bench = Bench::start().await;
    let _agents = Agents::start(&bench.cluster).await;
    bench.run_pod("vm-a", "vm", "n1").await;

    // Without its lease it does not lead.
    let namespace = ["-n", chart::NAMESPACE];
    let role = [
        "patch",
        "role",
        chart::OPERATOR,
        "--type=merge",
        "-p",
        r#"{"rules":[]}"#,
    ];
    bench.kubectl(&[&role[..], &namespace].concat()).await;
    bench.start_operator();
    bench
        .logged(&["WARN", "cannot watch the lease", "forbidden"])
        .await;
    let role = [
        "patch",
        "role",
        chart::OPERATOR,
        "--type=merge",
        "-p",
        r#"{"rules":[{"apiGroups":["coordination.k8s.io"],"resources":["leases"],"verbs":["get","list","watch"]}]}"#,
    ];
    bench.kubectl(&[&role[..], &namespace].concat()).await;
    bench
        .logged(&["WARN", "may not take the lease", "cannot create resource"])
        .await;
    assert!(bench.operators[0].is_running());
    bench.restore_rights().await;
    bench.create_nic("eth0", "vm", None).await;
    bench.nic_with("eth0", "fast", is_fast).await;

    // Without a watch it leads and decides nothing; without a write it reports what it could not write.
    let rights = [
        (
            "eth1",
            r#"[{"op":"test","path":"/rules/2/resources/0","value":"pods"},{"op":"remove","path":"/rules/2"}]"#,
            ["WARN", "Pod", "pods is forbidden"],
        ),
        (
            "eth2",
            r#"[{"op":"test","path":"/rules/6/verbs/2","value":"create"},{"op":"remove","path":"/rules/6/verbs/2"}]"#,
            ["WARN", "NicAttachment", "cannot create resource"],
        ),
    ];
    for (nic, patch, words) in rights {
        let operator = bench.operators.remove(0);
        assert_eq!(operator.terminate().await, Some(0), "{}", bench.logs());
        bench
            .kubectl(&[
                "patch",
                "clusterrole",
                chart::OPERATOR,
                "--type=json",
                "-p",
                patch,
            ])
            .await;
        bench.start_operator();
        bench.create_nic(nic, "vm", None).await;
        bench.logged(&words).await;
        assert!(bench.operators[0].is_running());
        bench.restore_rights().await;
        bench.nic_with(nic, "fast", is_fast).await;
    }
}
