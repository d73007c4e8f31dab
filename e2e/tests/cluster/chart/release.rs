//! A release comes, changes and goes; kinds and NICs stay.

use std::fs;
use std::path::Path;

use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::ControlPlane;
use tempfile::TempDir;

use super::{chart_path, cluster, helm, kubectl, refusal, text};

const NIC: &str = "
apiVersion: hybridnic.io/v1alpha1
kind: VmHybridNic
metadata:
  name: web-0
  namespace: default
  # As the operator guards it.
  finalizers: [hybridnic.io/nic]
spec: {network: fast, vm: {qemu: {name: web}}}
";

/// A copy of the chart with a newer version and a kind that has changed.
fn newer(dir: &Path) -> String {
    let copy = dir.join("newer");
    let copied = std::process::Command::new("cp")
        .args(["-r", &chart_path()])
        .arg(&copy)
        .status()
        .unwrap();
    assert!(copied.success());
    let change = |file: &str, from: &str, to: &str| {
        let path = copy.join(file);
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{file} has no {from:?}");
        fs::write(path, text.replacen(from, to, 1)).unwrap();
    };
    let version = env!("CARGO_PKG_VERSION");
    change(
        "Chart.yaml",
        &format!("\nversion: {version}\n"),
        "\nversion: 99.0.0\n",
    );
    change(
        "files/crds/vmhybridnics.yaml",
        "    shortNames:\n",
        "    shortNames:\n    - newnic\n",
    );
    copy.to_str().unwrap().to_owned()
}

async fn short_names(cluster: &ControlPlane) -> String {
    let args = [
        "get",
        "crd",
        "vmhybridnics.hybridnic.io",
        "-o",
        "jsonpath={.spec.names.shortNames}",
    ];
    kubectl(cluster, &args).await
}

async fn uid(cluster: &ControlPlane) -> String {
    let args = ["get", "vmhybridnic", "web-0", "-o", "jsonpath={.metadata.uid}"];
    kubectl(cluster, &args).await
}

async fn replicas(cluster: &ControlPlane) -> String {
    let args = [
        "get",
        "deployment",
        "hybridnic-operator",
        "-n",
        chart::NAMESPACE,
        "-o",
        "jsonpath={.spec.replicas}",
    ];
    kubectl(cluster, &args).await
}

#[tokio::test]
async fn a_release_comes_changes_and_goes_and_its_kinds_and_nics_stay() {
    let (cluster, _dir) = cluster().await;
    let dir = TempDir::new().unwrap();
    let chart = chart_path();
    let said = text(helm(&cluster, "install", &chart, &[]).await);
    assert!(said.contains("helm test hybridnic -n hybridnic-system"), "{said}");
    chart::wait_for_kinds(&cluster).await.unwrap();
    let nic = dir.path().join("nic.yaml");
    fs::write(&nic, NIC).unwrap();
    cluster.apply(&nic).await.unwrap();
    let born = uid(&cluster).await;
    let names = short_names(&cluster).await;
    assert_eq!((names.as_str(), &*replicas(&cluster).await), ("[\"vhn\"]", "2"));

    // An upgrade changes kinds too, a rollback takes that back.
    let newer = newer(dir.path());
    text(helm(&cluster, "upgrade", &newer, &["--set", "operator.replicas=3"]).await);
    let changed = short_names(&cluster).await;
    assert_eq!(
        (changed.as_str(), &*replicas(&cluster).await),
        ("[\"newnic\",\"vhn\"]", "3")
    );
    text(helm(&cluster, "rollback", "1", &[]).await);
    assert_eq!(
        (short_names(&cluster).await, &*replicas(&cluster).await),
        (names, "2")
    );
    assert_eq!(uid(&cluster).await, born);

    // Uninstalled: no program, no rights, but every kind and NIC, and what keeps attachments from being forged meanwhile.
    let uninstall = ["uninstall", chart::RELEASE, "--namespace", chart::NAMESPACE];
    text(cluster.helm(&uninstall).await.unwrap());
    let ours = [
        "get",
        "deployment,daemonset,clusterrole,clusterrolebinding,role,serviceaccount,validatingadmissionpolicy,\
         validatingadmissionpolicybinding",
        "-A",
        "-l",
        "app.kubernetes.io/instance=hybridnic",
        "-o",
        "name",
    ];
    let kept = kubectl(&cluster, &ours).await;
    let kept: Vec<_> = kept.lines().collect();
    let [policy, binding] = ["policy", "policybinding"]
        .map(|kind| format!("validatingadmission{kind}.admissionregistration.k8s.io/writers.hybridnic.io"));
    assert_eq!(kept, [policy, binding]);
    assert_eq!(uid(&cluster).await, born);
    let guard = [
        "get",
        "vmhybridnic",
        "web-0",
        "-o",
        "jsonpath={.metadata.deletionTimestamp}",
    ];
    assert_eq!(kubectl(&cluster, &guard).await, "", "nobody has asked it to go");

    // Another name finds kinds that are not its own, and must say that it wants them.
    let other = [
        "install",
        "other",
        &chart,
        "--namespace",
        "elsewhere",
        "--create-namespace",
    ];
    let said = refusal(&cluster.helm(&other).await.unwrap());
    assert!(said.contains("ownership"), "{said}");
    let take = [&other[..], &["--take-ownership"]].concat();
    text(cluster.helm(&take).await.unwrap());
    assert_eq!(uid(&cluster).await, born);
    text(
        cluster
            .helm(&["uninstall", "other", "--namespace", "elsewhere"])
            .await
            .unwrap(),
    );

    // The same name goes on where it was.
    text(helm(&cluster, "install", &chart, &["--take-ownership"]).await);
    text(cluster.helm(&uninstall).await.unwrap());
    text(helm(&cluster, "install", &chart, &[]).await);
    assert_eq!((uid(&cluster).await, &*replicas(&cluster).await), (born, "2"));
}

#[tokio::test]
async fn a_second_release_is_refused_in_words() {
    let (cluster, _dir) = cluster().await;
    let chart = chart_path();
    text(helm(&cluster, "install", &chart, &[]).await);
    let words = "hybridnic is installed in this cluster already, as release \"hybridnic\" in namespace \"hybridnic-system\"";
    for (name, namespace) in [
        ("second", chart::NAMESPACE),
        ("second", "elsewhere"),
        (chart::RELEASE, "elsewhere"),
    ] {
        let args = [
            "install",
            name,
            &chart,
            "--namespace",
            namespace,
            "--create-namespace",
            // Not even who wants to.
            "--take-ownership",
        ];
        let output = cluster.helm(&args).await.unwrap();
        let said = refusal(&output);
        assert!(
            !output.status.success() && said.contains(words),
            "{name} in {namespace}: {said}"
        );
    }
    // The first is none of its own seconds.
    text(helm(&cluster, "upgrade", &chart, &[]).await);
}

#[tokio::test]
async fn a_namespace_that_refuses_privileged_pods_is_told_of() {
    let (cluster, _dir) = cluster().await;
    kubectl(&cluster, &["create", "namespace", chart::NAMESPACE]).await;
    let chart = chart_path();
    let label = "pod-security.kubernetes.io/enforce=baseline";
    kubectl(&cluster, &["label", "namespace", chart::NAMESPACE, label]).await;
    let said = text(helm(&cluster, "install", &chart, &[]).await);
    assert!(
        said.contains("WARNING: the namespace refuses privileged pods"),
        "{said}"
    );
    let label = "pod-security.kubernetes.io/enforce=privileged";
    kubectl(
        &cluster,
        &["label", "--overwrite", "namespace", chart::NAMESPACE, label],
    )
    .await;
    let said = text(helm(&cluster, "upgrade", &chart, &[]).await);
    assert!(!said.contains("WARNING"), "{said}");
}
