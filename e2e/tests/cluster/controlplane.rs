//! The harness's own promises, each seen on the real control plane.

use std::fs;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use hybridnic_e2e::controlplane::{ControlPlane, Options};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node};
use kube::api::{Api, DeleteParams, ListParams, ObjectMeta, PostParams};
use tempfile::TempDir;
use tokio::time::timeout;

const LAB: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 78, 0, 1));

const WIDGETS: &str = "
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: widgets.test.hybridnic.io}
spec:
  group: test.hybridnic.io
  names: {kind: Widget, plural: widgets}
  scope: Namespaced
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        properties:
          spec:
            type: object
            properties:
              size: {type: integer, maximum: 4}
            x-kubernetes-validations:
            - {rule: self.size != 3, message: write 2 or 4}
";

fn widget(size: u8) -> String {
    format!(
        "apiVersion: test.hybridnic.io/v1\nkind: Widget\nmetadata: {{name: w, namespace: shop}}\nspec: {{size: {size}}}\n"
    )
}

fn namespace(name: &str) -> Namespace {
    Namespace {
        metadata: ObjectMeta {
            name: Some(name.into()),
            ..ObjectMeta::default()
        },
        ..Namespace::default()
    }
}

fn config_map(name: &str) -> ConfigMap {
    ConfigMap {
        metadata: ObjectMeta {
            name: Some(name.into()),
            ..ObjectMeta::default()
        },
        ..ConfigMap::default()
    }
}

/// The code of the API server's refusal.
fn code<T: std::fmt::Debug>(answer: Result<T, kube::Error>) -> u16 {
    match answer.expect_err("the API server allowed it") {
        kube::Error::Api(status) => status.code,
        other => unreachable!("no answer of the API server: {other}"),
    }
}

async fn kubectl(cluster: &ControlPlane, args: &[&str]) -> String {
    let output = cluster.kubectl(args).await.expect("kubectl runs");
    assert!(
        output.status.success(),
        "kubectl {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).expect("kubectl prints UTF-8")
}

#[tokio::test]
async fn objects_outlive_a_restart_of_the_api_server() {
    let dir = TempDir::new().unwrap();
    let started = Instant::now();
    let mut cluster = ControlPlane::start(Options::new(dir.path()).reachable_at(LAB))
        .await
        .unwrap();
    eprintln!(
        "ready after {:.1} s; resident KiB: {:?}",
        started.elapsed().as_secs_f32(),
        cluster.resident_kib()
    );

    let version = kubectl(&cluster, &["version"]).await;
    let versions: Vec<_> = version
        .lines()
        .filter_map(|line| line.split_once(" Version: "))
        .collect();
    assert!(versions.contains(&("Client", "v1.37.2")), "{version}");
    assert!(versions.contains(&("Server", "v1.37.2")), "{version}");

    kubectl(&cluster, &["create", "namespace", "shop"]).await;
    let manifests = dir.path().join("manifests");
    fs::create_dir(&manifests).unwrap();
    fs::write(manifests.join("widgets.yaml"), WIDGETS).unwrap();
    cluster.apply(&manifests).await.unwrap();
    kubectl(
        &cluster,
        &[
            "wait",
            "--for=condition=Established",
            "crd/widgets.test.hybridnic.io",
        ],
    )
    .await;

    let file = dir.path().join("widget.yaml");
    fs::write(&file, widget(3)).unwrap();
    let refusal = cluster.apply(&file).await.unwrap_err().to_string();
    assert!(refusal.contains("write 2 or 4"), "{refusal}");
    fs::write(&file, widget(2)).unwrap();
    cluster.apply(&file).await.unwrap();

    cluster.kill_api();
    let configs = Api::<ConfigMap>::default_namespaced(cluster.client_admin());
    assert!(
        configs.list(&ListParams::default()).await.is_err(),
        "a killed API server answers"
    );
    let restarted = Instant::now();
    cluster.start_api().await.unwrap();
    eprintln!("ready again after {:.1} s", restarted.elapsed().as_secs_f32());
    let size = kubectl(
        &cluster,
        &["get", "widget", "w", "-n", "shop", "-o", "jsonpath={.spec.size}"],
    )
    .await;
    assert_eq!(size, "2");
}

#[tokio::test]
async fn a_paused_api_server_says_nothing_until_resumed() {
    let dir = TempDir::new().unwrap();
    let cluster = ControlPlane::start(Options::new(dir.path())).await.unwrap();
    let namespaces = Api::<Namespace>::all(cluster.client_admin());

    cluster.pause_api().unwrap();
    let silent = timeout(Duration::from_secs(1), namespaces.get("default")).await;
    assert!(silent.is_err(), "a stopped process answered: {silent:?}");
    cluster.resume_api().unwrap();
    let answer = timeout(Duration::from_secs(20), namespaces.get("default"))
        .await
        .unwrap();
    answer.unwrap();
}

#[tokio::test]
async fn writes_are_counted_by_user_and_reads_are_not() {
    let dir = TempDir::new().unwrap();
    let cluster = ControlPlane::start(Options::new(dir.path())).await.unwrap();
    let client = cluster
        .login("counted:ann", &["system:masters", "second"])
        .unwrap()
        .client()
        .await
        .unwrap();
    let configs = Api::<ConfigMap>::default_namespaced(client);
    assert_eq!(cluster.count_writes("counted:").unwrap(), 0);

    configs
        .create(&PostParams::default(), &config_map("a"))
        .await
        .unwrap();
    configs.get("a").await.unwrap();
    configs.delete("a", &DeleteParams::default()).await.unwrap();
    assert_eq!(code(configs.delete("a", &DeleteParams::default()).await), 404);

    assert_eq!(cluster.count_writes("counted:").unwrap(), 3);
    let writes = cluster.writes().unwrap();
    let last = writes.iter().rfind(|write| write.user == "counted:ann").unwrap();
    assert_eq!(
        (&*last.verb, &*last.resource, &*last.namespace, &*last.name),
        ("delete", "configmaps", "default", "a")
    );
}

#[tokio::test]
async fn a_user_may_do_what_rbac_says_and_no_more() {
    let dir = TempDir::new().unwrap();
    let cluster = ControlPlane::start(Options::new(dir.path())).await.unwrap();
    kubectl(
        &cluster,
        &[
            "create",
            "role",
            "reader",
            "--verb=get,list",
            "--resource=configmaps",
        ],
    )
    .await;
    kubectl(
        &cluster,
        &[
            "create",
            "rolebinding",
            "reader",
            "--role=reader",
            "--group=readers",
        ],
    )
    .await;

    let client = cluster
        .login("ann", &["others", "readers"])
        .unwrap()
        .client()
        .await
        .unwrap();
    let configs = Api::<ConfigMap>::default_namespaced(client);
    configs.list(&ListParams::default()).await.unwrap();
    assert_eq!(
        code(configs.create(&PostParams::default(), &config_map("a")).await),
        403
    );

    let kubeconfig = cluster.kubeconfig_for("ann", &["readers"]).unwrap();
    let kubeconfig = format!("--kubeconfig={}", kubeconfig.display());
    let whoami = kubectl(&cluster, &[&kubeconfig, "auth", "whoami"]).await;
    assert!(whoami.contains("ann") && whoami.contains("readers"), "{whoami}");
}

#[tokio::test]
async fn with_controllers_a_service_account_logs_in_for_its_node_and_a_namespace_goes_away() {
    let dir = TempDir::new().unwrap();
    let started = Instant::now();
    let cluster = ControlPlane::start(Options::new(dir.path()).with_controllers())
        .await
        .unwrap();
    eprintln!(
        "ready after {:.1} s; resident KiB: {:?}",
        started.elapsed().as_secs_f32(),
        cluster.resident_kib()
    );

    let node = Node {
        metadata: ObjectMeta {
            name: Some("n1".into()),
            ..ObjectMeta::default()
        },
        ..Node::default()
    };
    Api::all(cluster.client_admin())
        .create(&PostParams::default(), &node)
        .await
        .unwrap();
    let login = cluster
        .login_service_account("default", "default", Some(("Node", "n1")))
        .await
        .unwrap();
    let configs = Api::<ConfigMap>::default_namespaced(login.client().await.unwrap());
    assert_eq!(
        code(configs.create(&PostParams::default(), &config_map("a")).await),
        403
    );
    let writes = cluster.writes().unwrap();
    let write = writes
        .iter()
        .rfind(|write| write.user == "system:serviceaccount:default:default")
        .unwrap();
    assert_eq!(write.node.as_deref(), Some("n1"));

    let namespaces = Api::all(cluster.client_admin());
    namespaces
        .create(&PostParams::default(), &namespace("gone"))
        .await
        .unwrap();
    kubectl(&cluster, &["delete", "namespace", "gone", "--timeout=60s"]).await;
    assert_eq!(code(namespaces.get("gone").await), 404);
}

#[tokio::test]
async fn a_lab_address_is_in_the_certificate_and_clusters_run_side_by_side() {
    // 127.0.0.2 stands for the address of the lab's bridge: on this host always, and not loopback's own name.
    let address = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 2));
    let (dir, other_dir) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let (cluster, other) = tokio::join!(
        ControlPlane::start(Options::new(dir.path()).reachable_at(address)),
        ControlPlane::start(Options::new(other_dir.path())),
    );
    let (cluster, other) = (cluster.unwrap(), other.unwrap());
    let client = cluster.admin().clone().at(address).client().await.unwrap();
    client.apiserver_version().await.unwrap();

    assert_ne!(cluster.port(), other.port());
    let unknown = other.admin().clone().at(address).client().await.unwrap();
    assert!(
        unknown.apiserver_version().await.is_err(),
        "an address that is not in the certificate is trusted"
    );

    let again = ControlPlane::start(Options::new(dir.path())).await.err().unwrap();
    assert!(again.to_string().contains("holds another cluster"), "{again}");
}
