//! What goes wrong is told in one line.

use std::path::Path;

use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::{ControlPlane, Options};
use hybridnic_e2e::world::repository;

use super::typed::Plugin;

#[tokio::test]
async fn what_goes_wrong_is_told_in_one_line() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = ControlPlane::start(Options::new(dir.path().join("cluster")))
        .await
        .unwrap();
    let plugin = Plugin::new(&cluster.kubeconfig_admin()).await;
    let commands: [&[&str]; 6] = [
        &["top"],
        &["nic", "eth0"],
        &["node", "n1"],
        &["migrate", "vm"],
        &["standby", "eth0"],
        &["fast", "vm"],
    ];

    // A cluster without hybridnic.
    for command in commands {
        let refusal = plugin.run(command).await.refusal();
        assert!(refusal.contains("are hybridnic's CRDs installed?"), "{refusal}");
    }
    let (report, _) = plugin.run(&["doctor"]).await.with_code(1);
    assert!(
        report.contains("missing: hybridnetworks.hybridnic.io, vmhybridnics.hybridnic.io, "),
        "{report}"
    );

    cluster.apply(&repository("crds")).await.unwrap();
    chart::wait_for_kinds(&cluster).await.unwrap();
    // Names that do not exist, and words that are not names.
    let refusal = plugin.run(&["nic", "nosuch"]).await.refusal();
    assert_eq!(
        refusal,
        "error: VmHybridNic default/nosuch: there is none with this name\n"
    );
    let refusal = plugin.run(&["node", "nosuch"]).await.refusal();
    assert_eq!(
        refusal,
        "error: HybridNode nosuch: there is none with this name\n"
    );
    for word in ["../../x", "a b", "ü", "%2e%2e", "a,b=c", &"n".repeat(300)] {
        plugin.run(&["nic", word]).await.refusal();
        plugin.run(&["node", word]).await.refusal();
        plugin.run(&["migrate", word]).await.refusal();
        plugin.run(&["standby", word]).await.refusal();
        plugin.run(&["fast", word]).await.refusal();
    }
    for wrong in [
        &["topp"] as &[&str],
        &["nic"],
        &["top", "-o", "xml"],
        &["migrate", "vm", "--to"],
        &["standby"],
        &["fast", "vm", "--keep-vf"],
        &[],
    ] {
        let (out, err) = plugin.run(wrong).await.with_code(2);
        assert!(out.is_empty() && err.contains("--help"), "{out}{err}");
    }

    // One without rights.
    let guest = plugin.with(&cluster.kubeconfig_for("guest", &[]).unwrap());
    for command in commands {
        let refusal = guest.run(command).await.refusal();
        assert!(
            refusal.contains("not allowed: ") && refusal.contains("\"guest\""),
            "{refusal}"
        );
    }
    // One with some.
    let role = [
        "create",
        "clusterrole",
        "nics",
        "--verb=list",
        "--resource=vmhybridnics.hybridnic.io",
    ];
    assert!(cluster.kubectl(&role).await.unwrap().status.success());
    let binding = [
        "create",
        "clusterrolebinding",
        "nics",
        "--clusterrole=nics",
        "--user=guest",
    ];
    assert!(cluster.kubectl(&binding).await.unwrap().status.success());
    let (out, _) = guest.run(&["top"]).await.with_code(1);
    assert!(
        out.contains("none here: -A shows") && out.contains("error: Nodes: not allowed"),
        "{out}"
    );

    // Files that are not kubeconfigs.
    let refusal = plugin.run(&["top", "--context", "nosuch"]).await.refusal();
    assert!(
        refusal.contains("nosuch") || refusal.contains("context"),
        "{refusal}"
    );
    let refusal = plugin
        .run(&["top", "--kubeconfig", "/nonexistent"])
        .await
        .refusal();
    assert!(refusal.contains("/nonexistent"), "{refusal}");
    let garbage = dir.path().join("garbage");
    std::fs::write(&garbage, "{[\u{0}").unwrap();
    plugin.with(&garbage).run(&["doctor"]).await.refusal();
    plugin
        .with(Path::new("/nonexistent"))
        .run(&["top"])
        .await
        .refusal();

    // An API server that does not answer, and none.
    cluster.pause_api().unwrap();
    let refusal = plugin.run(&["nic", "eth0"]).await.refusal();
    assert!(refusal.contains("no answer from the API server"), "{refusal}");
    cluster.resume_api().unwrap();
    cluster.kill_api();
    for command in commands.into_iter().chain([&["doctor"] as &[&str]]) {
        let refusal = plugin.run(command).await.refusal();
        assert!(
            refusal.contains("cannot reach the API server at https://"),
            "{refusal}"
        );
    }
}
