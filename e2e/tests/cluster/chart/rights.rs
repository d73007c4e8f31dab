//! An agent writes its own node's objects and no others; users get what the roles say.

use std::fmt::Debug;
use std::time::Duration;

use hybridnic_api::names::{AGENT_MANAGER, ATTACHMENT_FINALIZER};
use hybridnic_api::v1alpha1::{HybridNode, NicAttachment};
use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::ControlPlane;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::{cluster, kubectl};

/// A policy is in force a moment after it has been made, and no event shows when.
pub(super) const IN_FORCE: Duration = Duration::from_secs(30);

/// What the API server said to a write; nothing if it was accepted.
pub(super) fn said<T: Debug>(answer: Result<T, kube::Error>) -> String {
    match answer {
        Ok(_) => String::new(),
        Err(kube::Error::Api(status)) => status.message,
        Err(error) => panic!("{error}"),
    }
}

/// Writes as an agent or the operator does them.
struct Writer {
    attachments: Api<NicAttachment>,
    nodes: Api<HybridNode>,
}

impl Writer {
    fn new(client: &Client) -> Self {
        Self {
            attachments: Api::namespaced(client.clone(), "default"),
            nodes: Api::all(client.clone()),
        }
    }

    async fn account(cluster: &ControlPlane, name: &str, node: Option<&str>) -> Self {
        let bound = node.map(|node| ("Node", node));
        let login = cluster
            .login_service_account(chart::NAMESPACE, name, bound)
            .await
            .unwrap();
        Self::new(&login.client().await.unwrap())
    }

    fn document(kind: &str, name: &str, part: &Value) -> Value {
        let mut document = json!({
            "apiVersion": "hybridnic.io/v1alpha1", "kind": kind, "metadata": {"name": name},
        });
        for (key, value) in part.as_object().unwrap() {
            if key == "finalizers" {
                document["metadata"]["finalizers"] = value.clone();
            } else {
                document[key] = value.clone();
            }
        }
        document
    }

    async fn finalizer(&self, name: &str) -> String {
        let part = json!({"finalizers": [ATTACHMENT_FINALIZER]});
        let patch = Self::document("NicAttachment", name, &part);
        let params = PatchParams::apply(AGENT_MANAGER).force();
        said(self.attachments.patch(name, &params, &Patch::Apply(&patch)).await)
    }

    async fn attachment_status(&self, name: &str, generation: i64) -> String {
        let part = json!({"status": {"observedGeneration": generation}});
        let patch = Self::document("NicAttachment", name, &part);
        let params = PatchParams::apply(AGENT_MANAGER).force();
        said(
            self.attachments
                .patch_status(name, &params, &Patch::Apply(&patch))
                .await,
        )
    }

    async fn goal(&self, name: &str, goal: &str) -> String {
        let patch = Patch::Merge(json!({"spec": {"goal": goal}}));
        said(
            self.attachments
                .patch(name, &PatchParams::default(), &patch)
                .await,
        )
    }

    async fn create_node(&self, name: &str, spec: &Value) -> String {
        let node = Self::document("HybridNode", name, &json!({"spec": spec}));
        let node: HybridNode = serde_json::from_value(node).unwrap();
        said(self.nodes.create(&PostParams::default(), &node).await)
    }

    async fn node_status(&self, name: &str, pfs: i32) -> String {
        let patch = Self::document("HybridNode", name, &json!({"status": {"pfCount": pfs}}));
        let params = PatchParams::apply(AGENT_MANAGER).force();
        said(
            self.nodes
                .patch_status(name, &params, &Patch::Apply(&patch))
                .await,
        )
    }
}

fn attachment_of(node: &str, name: &str) -> NicAttachment {
    let attachment = json!({
        "metadata": {"name": name},
        "spec": {
            "nodeName": node, "nic": {"name": name, "uid": "u"}, "vm": {"qemu": {"name": "web"}}, "pod": {"name": "p", "uid": "v"},
            "network": "fast", "mac": "52:54:00:aa:bb:01", "goal": "FastPath", "noFreeVf": "Standby",
            "l2": {"spoofCheck": true, "trust": false},
        },
    });
    serde_json::from_value(attachment).unwrap()
}

async fn create_attachment(client: &Client, name: &str, node: &str) {
    Api::<NicAttachment>::namespaced(client.clone(), "default")
        .create(&PostParams::default(), &attachment_of(node, name))
        .await
        .unwrap();
}

#[tokio::test]
async fn an_agent_writes_its_own_nodes_objects_only() {
    let (cluster, _dir) = cluster().await;
    chart::install_without_pods(&cluster).await.unwrap();
    let admin = cluster.client_admin();
    create_attachment(&admin, "of-n1", "n1").await;
    create_attachment(&admin, "of-n2", "n2").await;
    let n1 = Writer::account(&cluster, chart::AGENT, Some("n1")).await;
    let n2 = Writer::account(&cluster, chart::AGENT, Some("n2")).await;
    let nowhere = Writer::account(&cluster, chart::AGENT, None).await;
    let operator = Writer::account(&cluster, chart::OPERATOR, None).await;

    let deadline = Instant::now() + IN_FORCE;
    let mut generation = 0;
    while n1.attachment_status("of-n2", generation).await.is_empty() {
        assert!(Instant::now() < deadline, "the policy is not in force");
        generation += 1;
        sleep(Duration::from_millis(200)).await;
    }

    // Everything that an agent does, on its own objects.
    let network = json!({"pools": [{"network": "fast", "uplinks": []}]});
    assert_eq!(n1.finalizer("of-n1").await, "");
    assert_eq!(n1.attachment_status("of-n1", 1).await, "");
    assert_eq!(n1.create_node("n1", &json!({})).await, "");
    assert_eq!(n1.node_status("n1", 2).await, "");
    assert_eq!(n2.finalizer("of-n2").await, "");

    let attachment = "the agent of node n1 may not write this NicAttachment: it is of node n2";
    let node = "the agent of node n1 may not write the HybridNode of node n2";
    let refusals = [
        (n1.finalizer("of-n2").await, attachment),
        (n1.attachment_status("of-n2", 1).await, attachment),
        (n1.goal("of-n2", "Detached").await, attachment),
        (
            n1.goal("of-n1", "Detached").await,
            "a node agent may not change the spec of a NicAttachment",
        ),
        (n1.create_node("n2", &json!({})).await, node),
        (
            n2.create_node("n2", &network).await,
            "a node agent may not say which pools its node is part of",
        ),
        (
            n2.create_node("n2", &json!({"drain": {"all": true}})).await,
            "a node agent may not say which pools its node is part of, or what of it is drained",
        ),
        (n2.create_node("n2", &json!({})).await, ""),
        (n1.node_status("n2", 9).await, node),
        (
            nowhere.attachment_status("of-n1", 1).await,
            "a node agent must use a token that names its node",
        ),
        (
            nowhere.create_node("n3", &json!({})).await,
            "a node agent must use a token that names its node",
        ),
        // Roles come first.
        (
            said(n1.attachments.delete("of-n1", &DeleteParams::default()).await),
            "cannot delete resource",
        ),
        (
            said(
                n1.nodes
                    .patch(
                        "n1",
                        &PatchParams::default(),
                        &Patch::Merge(json!({"spec": network})),
                    )
                    .await,
            ),
            "cannot patch resource \"hybridnodes\"",
        ),
    ];
    let wrong: Vec<_> = refusals
        .iter()
        .filter(|(said, words)| !said.contains(words) || said.is_empty() != words.is_empty())
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");

    // The operator is no agent.
    assert_eq!(operator.goal("of-n1", "Standby").await, "");

    // Were an agent's role wider, the policy would still hold it.
    let more = [
        "create",
        "clusterrolebinding",
        "all-to-agents",
        "--clusterrole=cluster-admin",
        "--serviceaccount=hybridnic-system:hybridnic-agent",
    ];
    kubectl(&cluster, &more).await;
    let deadline = Instant::now() + IN_FORCE;
    let gone = async || said(n1.attachments.delete("of-n2", &DeleteParams::default()).await);
    while gone().await.contains("cannot delete resource") {
        assert!(Instant::now() < deadline, "the role is not in force");
        sleep(Duration::from_millis(200)).await;
    }
    assert!(gone().await.contains(attachment));
    let deleted = said(n1.attachments.delete("of-n1", &DeleteParams::default()).await);
    assert!(deleted.contains("a node agent deletes nothing"), "{deleted}");
    let made = said(
        n1.attachments
            .create(&PostParams::default(), &attachment_of("n1", "new"))
            .await,
    );
    assert!(
        made.contains("a node agent may not make a NicAttachment"),
        "{made}"
    );
    let patch = Patch::Merge(json!({"spec": network}));
    let pools = said(n1.nodes.patch("n1", &PatchParams::default(), &patch).await);
    assert!(
        pools.contains("a node agent may not change the spec of a HybridNode"),
        "{pools}"
    );

    // It is the policy that refuses, and nothing else.
    let unbind = [
        "delete",
        "validatingadmissionpolicybinding",
        "agents.hybridnic.io",
    ];
    kubectl(&cluster, &unbind).await;
    let deadline = Instant::now() + IN_FORCE;
    while !n1.goal("of-n2", "Standby").await.is_empty() {
        assert!(
            Instant::now() < deadline,
            "without its binding the policy refuses still"
        );
        sleep(Duration::from_millis(200)).await;
    }
}

#[tokio::test]
async fn the_policies_compile_against_the_kinds() {
    let (cluster, _dir) = cluster().await;
    chart::install_without_pods(&cluster).await.unwrap();
    for policy in [
        "agents.hybridnic.io",
        "writers.hybridnic.io",
        "kubevirt.hybridnic.io",
    ] {
        let args = [
            "wait",
            &format!("validatingadmissionpolicy/{policy}"),
            "--for=jsonpath={.status.observedGeneration}=1",
            "--timeout=60s",
        ];
        kubectl(&cluster, &args).await;
        let args = [
            "get",
            "validatingadmissionpolicy",
            policy,
            "-o",
            "jsonpath={.status.typeChecking.expressionWarnings}",
        ];
        assert_eq!(kubectl(&cluster, &args).await, "", "{policy}");
    }
}

#[tokio::test]
async fn users_get_what_the_roles_say() {
    let (cluster, _dir) = cluster().await;
    chart::install_without_pods(&cluster).await.unwrap();
    for role in ["view", "edit", "admin"] {
        let name = format!("user-{role}");
        let clusterrole = format!("--clusterrole={role}");
        let user = format!("--user={name}");
        kubectl(
            &cluster,
            &[
                "create",
                "rolebinding",
                &name,
                &clusterrole,
                &user,
                "-n",
                "default",
            ],
        )
        .await;
    }
    kubectl(
        &cluster,
        &[
            "create",
            "clusterrolebinding",
            "user-all",
            "--clusterrole=view",
            "--user=user-all",
        ],
    )
    .await;
    let may = async |user: &str, verb: &str, what: &str, namespace: &str| -> bool {
        let user = format!("--as={user}");
        let what = format!("{what}.hybridnic.io");
        // For a kind without namespaces the question is about the whole cluster.
        let place = match namespace {
            "" => "--all-namespaces".to_owned(),
            _ => format!("--namespace={namespace}"),
        };
        let args = ["auth", "can-i", verb, &what, &user, &place];
        cluster.kubectl(&args).await.unwrap().status.success()
    };
    // The controller adds the rules to the cluster's roles after a while.
    let deadline = Instant::now() + IN_FORCE;
    while !(may("user-view", "get", "vmhybridnics", "default").await
        && may("user-admin", "create", "vmhybridnics", "default").await)
    {
        assert!(Instant::now() < deadline, "the roles are not added");
        sleep(Duration::from_millis(200)).await;
    }
    let mut wrong = Vec::new();
    for (user, verb, what, namespace, expected) in [
        ("user-view", "watch", "qemumigrations", "default", true),
        ("user-view", "list", "nicattachments", "default", true),
        ("user-view", "create", "vmhybridnics", "default", false),
        ("user-view", "get", "vmhybridnics", "kube-system", false),
        ("user-view", "list", "hybridnodes", "", false),
        ("user-all", "list", "hybridnodes", "", true),
        ("user-all", "list", "hybridnetworks", "", true),
        ("user-all", "create", "hybridnetworks", "", false),
        ("user-edit", "list", "vmhybridnics", "default", true),
        ("user-edit", "create", "vmhybridnics", "default", true),
        ("user-edit", "delete", "qemumigrations", "default", true),
        ("user-edit", "create", "qemusaves", "default", true),
        ("user-view", "list", "qemurestores", "default", true),
        ("user-view", "create", "qemurestores", "default", false),
        ("user-edit", "patch", "nicattachments", "default", false),
        ("user-edit", "create", "vmhybridnics", "kube-system", false),
        ("user-admin", "delete", "vmhybridnics", "default", true),
        ("user-admin", "create", "hybridnetworks", "", false),
    ] {
        if may(user, verb, what, namespace).await != expected {
            wrong.push(format!(
                "{user} {verb} {what} in {namespace}: expected {expected}"
            ));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}
