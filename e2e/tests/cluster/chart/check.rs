//! What `helm test` runs, with the rights that it has there.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use hybridnic_api::v1alpha1::{HybridNode, HybridNodeSpec};
use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::ControlPlane;
use hybridnic_e2e::controlplane::login::Login;
use hybridnic_e2e::world::binary;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

use super::{chart_path, cluster, helm, kubectl, text};

const PATIENCE: Duration = Duration::from_secs(30);

/// A process that ends with its test.
struct Killed(std::process::Child);

impl Drop for Killed {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn program(kubeconfig: &Path) -> Command {
    let mut command = Command::new(binary("hybridnic-operator").unwrap());
    command.env("KUBECONFIG", kubeconfig).stdin(Stdio::null());
    command
}

async fn login(cluster: &ControlPlane, account: &str, node: Option<&str>) -> Login {
    let bound = node.map(|node| ("Node", node));
    cluster
        .login_service_account(chart::NAMESPACE, account, bound)
        .await
        .unwrap()
}

/// Runs `helm test`, and plays the kubelet of its pod: the program runs here with the pod's arguments and account, once.
/// Gives whether helm is content, and what the program said.
async fn helm_test(cluster: &ControlPlane) -> (bool, String) {
    let pods: Api<Pod> = Api::namespaced(cluster.client_admin(), chart::NAMESPACE);
    let old = pods
        .get_opt("hybridnic-check")
        .await
        .unwrap()
        .and_then(|pod| pod.uid());
    let args = [
        "test",
        chart::RELEASE,
        "--namespace",
        chart::NAMESPACE,
        "--timeout",
        "90s",
    ];
    let (verdict, said) = tokio::join!(cluster.helm(&args), run_check(cluster, &pods, old));
    (verdict.unwrap().status.success(), said)
}

async fn run_check(cluster: &ControlPlane, pods: &Api<Pod>, old: Option<String>) -> String {
    let new = |pod: Option<&Pod>| pod.is_some_and(|pod| pod.uid() != old);
    let pod = timeout(PATIENCE, await_condition(pods.clone(), "hybridnic-check", new)).await;
    let spec = pod.expect("helm makes the pod").unwrap().unwrap().spec.unwrap();
    let kubeconfig = cluster.dir().join("check.kubeconfig");
    let account = login(cluster, &spec.service_account_name.unwrap(), None).await;
    account.write(&kubeconfig).unwrap();
    let mut command = program(&kubeconfig);
    for arg in spec.containers[0].args.iter().flatten() {
        command.arg(arg.replace("$(POD_NAMESPACE)", chart::NAMESPACE));
    }
    let output = tokio::task::spawn_blocking(move || command.output().unwrap())
        .await
        .unwrap();
    let phase = if output.status.success() {
        "Succeeded"
    } else {
        "Failed"
    };
    let status = Patch::Merge(json!({"status": {"phase": phase}}));
    pods.patch_status("hybridnic-check", &PatchParams::default(), &status)
        .await
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// What is left of the test's rights.
async fn rights(cluster: &ControlPlane) -> String {
    let kinds = "serviceaccount,role,rolebinding,clusterrole,clusterrolebinding";
    let label = "app.kubernetes.io/component=check";
    kubectl(cluster, &["get", kinds, "-A", "-l", label, "-o", "name"]).await
}

/// Plays scheduler and kubelet for the agents' pods, which the DaemonSet's controller makes, one for each node.
async fn run_pods(cluster: &ControlPlane) {
    let pods: Api<Pod> = Api::namespaced(cluster.client_admin(), chart::NAMESPACE);
    let agents = ListParams::default().labels("app.kubernetes.io/component=agent");
    let deadline = Instant::now() + PATIENCE;
    let made = loop {
        let made = pods.list(&agents).await.unwrap().items;
        if made.len() == 2 {
            break made;
        }
        assert!(Instant::now() < deadline, "{} pods of agents", made.len());
        sleep(Duration::from_millis(100)).await;
    };
    let mut nodes = BTreeSet::new();
    for pod in made {
        let spec = serde_json::to_value(pod.spec.as_ref().unwrap()).unwrap();
        let field = "/affinity/nodeAffinity/requiredDuringSchedulingIgnoredDuringExecution/nodeSelectorTerms/0\
                     /matchFields/0/values/0";
        let node = spec.pointer(field).and_then(Value::as_str).unwrap().to_owned();
        let name = pod.name_any();
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        let _: Value = pods
            .create_subresource("binding", &name, &PostParams::default(), &binding)
            .await
            .unwrap();
        let status =
            json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(&status))
            .await
            .unwrap();
        nodes.insert(node);
    }
    assert_eq!(nodes, ["n1", "n2"].map(str::to_owned).into());
}

/// What the agent of a node publishes, with its own rights.
async fn publish(cluster: &ControlPlane, node: &str, ready: (&str, &str)) {
    let client = login(cluster, chart::AGENT, Some(node))
        .await
        .client()
        .await
        .unwrap();
    let nodes: Api<HybridNode> = Api::all(client);
    let object = HybridNode::new(node, HybridNodeSpec::default());
    nodes.create(&PostParams::default(), &object).await.unwrap();
    let status = json!({
        "apiVersion": "hybridnic.io/v1alpha1", "kind": "HybridNode", "metadata": {"name": node},
        "status": {
            "agentVersion": env!("CARGO_PKG_VERSION"), "pfCount": 2,
            "conditions": [{
                "type": "Ready", "status": ready.0, "reason": ready.1, "message": "as said",
                "lastTransitionTime": "2026-01-01T00:00:00Z",
            }],
        },
    });
    nodes
        .patch_status(
            node,
            &PatchParams::apply("hybridnic-agent"),
            &Patch::Apply(&status),
        )
        .await
        .unwrap();
}

#[tokio::test]
async fn helm_test_tells_a_system_at_work_from_one_that_is_not() {
    let (cluster, dir) = cluster().await;
    text(helm(&cluster, "install", &chart_path(), &[]).await);
    chart::wait_for_kinds(&cluster).await.unwrap();
    // No kubelet: no operator, and no agent's pod has a node.
    let (content, said) = helm_test(&cluster).await;
    assert!(!content, "{said}");
    for expected in [
        "ok    kind vmhybridnics.hybridnic.io",
        "FAIL  lease hybridnic-operator: nobody has renewed it for 15s",
        "FAIL  agent",
    ] {
        assert!(said.contains(expected), "no {expected:?} in:\n{said}");
    }

    assert_eq!(rights(&cluster).await, "", "after a failure");

    let operator = dir.path().join("operator.kubeconfig");
    login(&cluster, chart::OPERATOR, None)
        .await
        .write(&operator)
        .unwrap();
    let log = fs::File::create(dir.path().join("operator.log")).unwrap();
    let mut command = program(&operator);
    command
        .args(["--lease-namespace", chart::NAMESPACE])
        .stdout(Stdio::null())
        .stderr(log);
    let _operator = Killed(command.spawn().unwrap());
    run_pods(&cluster).await;
    publish(&cluster, "n1", ("True", "Discovered")).await;
    let (content, said) = helm_test(&cluster).await;
    assert!(!content, "{said}");
    assert!(
        said.contains("FAIL  agent of node n2: it has not published what the node has"),
        "{said}"
    );

    publish(&cluster, "n2", ("False", "NoUplink")).await;
    let (content, said) = helm_test(&cluster).await;
    assert!(content, "{said}");
    for expected in [
        "ok    lease hybridnic-operator, of ",
        "ok    agent of node n1, 2 PFs",
        "ok    agent of node n2, without SR-IOV",
    ] {
        assert!(said.contains(expected), "no {expected:?} in:\n{said}");
    }
    assert!(!said.contains("FAIL"), "{said}");
    assert_eq!(rights(&cluster).await, "", "after a success");
}
