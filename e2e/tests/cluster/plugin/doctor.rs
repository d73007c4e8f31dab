//! A cluster before it works, healthy, and broken; and what doctor says about each.

use hybridnic_e2e::chart;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use serde_json::{Value, json};

use super::{publish, typed::Plugin, vf};
use crate::{
    agent::Agents,
    bench::{Bench, is_fast},
};

#[tokio::test]
async fn the_doctor() {
    let mut bench = Bench::start().await;
    let plugin = Plugin::new(&bench.cluster.kubeconfig_admin()).await;

    // Before anything runs.
    let (report, _) = plugin.run(&["doctor"]).await.with_code(1);
    for part in [
        "ok    crds",
        "FAIL  operator",
        "FAIL  lease",
        "warn  agents",
        "→ install hybridnic",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }

    // All is well.
    bench.start_operator();
    let _agents = Agents::start(&bench.cluster).await;
    let vfs: Vec<_> = (0..7).map(|index| vf(index, "Free", None, "")).collect();
    publish(&bench, "n1", &vfs).await;
    publish(&bench, "n2", &vfs).await;
    bench.run_pod("vm-a", "vm", "n1").await;
    bench.create_nic("eth0", "vm", None).await;
    bench.nic_with("eth0", "fast", is_fast).await;
    let report = plugin.kubectl(&["hybridnic", "doctor"]).await.ok();
    for part in [
        "ok  crds",
        "operator-0 leads, by ",
        "2 of 2 Linux nodes have an agent",
        "you may do what is needed",
        "the operator (",
        "all 14 VFs have an IOMMU group",
        "14 VFs are free or held",
        "1 ready, 0 on their way",
        "there is none, and no NIC belongs to a VM of it",
        ", 0 failures",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }

    // A user who may see little learns that, and what could not be checked.
    let guest = plugin.with(&bench.cluster.kubeconfig_for("guest", &[]).unwrap());
    let (report, _) = guest.run(&["doctor"]).await.with_code(0);
    assert!(
        report.contains("you may not: list/watch hybridnetworks (top)"),
        "{report}"
    );
    assert!(
        report.contains("could not be checked: ") && report.contains("not allowed"),
        "{report}"
    );

    // Everything is wrong.
    let sick: Vec<_> = vfs
        .iter()
        .cloned()
        .map(|mut vf| {
            vf["iommuGroup"] = Value::Null;
            vf["state"] = json!("Unhealthy");
            vf["message"] = json!("the VF has no IOMMU group");
            vf
        })
        .collect();
    publish(&bench, "n2", &sick).await;
    let node = json!({"status": {"allocatable": {"intel.com/sriov_netdevice": "4"}}});
    let nodes: Api<k8s_openapi::api::core::v1::Node> = Api::all(bench.client.clone());
    nodes
        .patch_status("n1", &PatchParams::default(), &Patch::Merge(&node))
        .await
        .unwrap();
    bench
        .cluster
        .apply(&written(&bench, "foreign.yaml", SRIOV_OPERATOR))
        .await
        .unwrap();
    chart::wait_for_kinds(&bench.cluster).await.unwrap();
    bench
        .cluster
        .apply(&written(&bench, "state.yaml", SRIOV_STATE))
        .await
        .unwrap();
    bench
        .kubectl(&["delete", "clusterrolebinding", "hybridnic-agent"])
        .await;
    bench.kubectl(&["delete", "node", "n2"]).await;
    let old = r#"[{"op": "remove", "path": "/spec/versions/0/schema/openAPIV3Schema/properties/status/properties/onStandby"}]"#;
    bench
        .kubectl(&[
            "patch",
            "crd",
            "hybridnetworks.hybridnic.io",
            "--type=json",
            "-p",
            old,
        ])
        .await;
    bench.operators[0].kill();
    // It waits for the lease to be renewed, so both are run at once.
    let (table, json) = tokio::join!(plugin.run(&["doctor"]), plugin.run(&["doctor", "-o", "json"]));
    let (report, _) = table.with_code(1);
    for part in [
        "hybridnetworks.hybridnic.io is of another version",
        "its schema differs at /status/onStandby",
        "operator-0 holds ",
        "has not renewed it for 15 s",
        "n2: published by an agent, but no such Node exists",
        "FAIL  iommu                   n2: 7 VFs have no IOMMU group",
        "n2: 7 VFs are unhealthy: the VF has no IOMMU group",
        "may not: list/watch/patch nicattachments (NICs)",
        "sets up PFs that are in hybridnic's pools too: n1/0000:01:00.0",
        "4 × intel.com/sriov_netdevice on n1",
    ] {
        assert!(report.contains(part), "{part}: {report}");
    }
    let (report, _) = json.with_code(1);
    let report: Value = serde_json::from_str(&report).unwrap();
    let findings = report["findings"].as_array().unwrap();
    assert!(report["failures"].as_u64().unwrap() >= 4, "{report}");
    assert!(
        findings
            .iter()
            .all(|finding| finding["level"] == "ok" || finding["fix"].is_string()),
        "{report}"
    );
}

fn written(bench: &Bench, name: &str, text: &str) -> std::path::PathBuf {
    let path = bench.dir.path().join(name);
    std::fs::write(&path, text).unwrap();
    path
}

/// As much of sriov-network-operator as is visible.
const SRIOV_OPERATOR: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: sriovnetworknodestates.sriovnetwork.openshift.io}
spec:
  group: sriovnetwork.openshift.io
  names: {kind: SriovNetworkNodeState, plural: sriovnetworknodestates}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
";

const SRIOV_STATE: &str = "
apiVersion: sriovnetwork.openshift.io/v1
kind: SriovNetworkNodeState
metadata: {name: n1, namespace: default}
spec:
  interfaces:
  - {name: ens1, numVfs: 4, pciAddress: '0000:01:00.0'}
";
