//! The chart on a real API server: what it renders is taken, what is wrong is refused with a message, releases come,
//! change and go, and it gives exactly the intended rights. No kubelet runs its pods here.

mod check;
mod collected;
mod conform;
mod metrics;
mod release;
mod render;
mod rights;
mod writers;

use std::process::Output;

use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::{ControlPlane, Options};
use k8s_openapi::api::core::v1::Node;
use kube::Api;
use kube::api::{ObjectMeta, PostParams};
use tempfile::TempDir;

/// A control plane with its controllers, and the nodes `n1` and `n2`.
async fn cluster() -> (ControlPlane, TempDir) {
    let dir = TempDir::new().unwrap();
    let cluster = ControlPlane::start(Options::new(dir.path().join("cp")).with_controllers())
        .await
        .unwrap();
    let nodes: Api<Node> = Api::all(cluster.client_admin());
    for name in ["n1", "n2"] {
        let node = Node {
            metadata: ObjectMeta {
                name: Some(name.into()),
                labels: Some([("kubernetes.io/os".to_owned(), "linux".to_owned())].into()),
                ..ObjectMeta::default()
            },
            ..Node::default()
        };
        nodes.create(&PostParams::default(), &node).await.unwrap();
    }
    (cluster, dir)
}

/// What a program printed; it must have succeeded.
fn text(output: Output) -> String {
    assert!(output.status.success(), "{}", refusal(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// What a program complained of.
fn refusal(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

async fn kubectl(cluster: &ControlPlane, args: &[&str]) -> String {
    text(cluster.kubectl(args).await.unwrap())
}

/// `helm VERB RELEASE CHART` in the release's namespace, which is made.
async fn helm(cluster: &ControlPlane, verb: &str, chart: &str, more: &[&str]) -> Output {
    let mut args = vec![verb, chart::RELEASE, chart, "--namespace", chart::NAMESPACE];
    if verb == "install" {
        args.push("--create-namespace");
    }
    args.extend(more);
    cluster.helm(&args).await.unwrap()
}

fn chart_path() -> String {
    chart::path().to_str().unwrap().to_owned()
}
