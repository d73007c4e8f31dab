//! Which accounts may write hybridnic's own fields, each tried as itself: the operator and agents may, a user with all rights in a
//! namespace may not.

use std::time::Duration;

use hybridnic_api::names::{AGENT_MANAGER, ATTACHMENT_FINALIZER};
use hybridnic_api::v1alpha1::{HybridNode, NicAttachment, QemuMigration, VmHybridNic};
use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::ControlPlane;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

use super::rights::{IN_FORCE, said};
use super::{cluster, kubectl};

pub(super) const TENANT: &str = "tenant";

pub(super) fn attachment(name: &str, owner: Option<&VmHybridNic>) -> NicAttachment {
    let owner = owner.map(|nic| {
        json!([{
            "apiVersion": "hybridnic.io/v1alpha1", "kind": "VmHybridNic", "name": nic.name_any(), "uid": nic.uid(),
            "controller": true, "blockOwnerDeletion": true,
        }])
    });
    serde_json::from_value(json!({
        "metadata": {"name": name, "ownerReferences": owner},
        "spec": {
            "nodeName": "n1", "nic": {"name": name, "uid": "u"}, "vm": {"qemu": {"name": "web"}}, "pod": {"name": "p", "uid": "v"},
            "network": "fast", "mac": "52:54:00:aa:bb:01", "goal": "FastPath", "noFreeVf": "Standby",
            // All that a tenant may not have.
            "l2": {"spoofCheck": false, "trust": true, "vlan": {"id": 4000}},
        },
    }))
    .unwrap()
}

pub(super) fn nic(name: &str) -> VmHybridNic {
    let nic =
        json!({"metadata": {"name": name}, "spec": {"network": "fast", "vm": {"qemu": {"name": "web"}}}});
    serde_json::from_value(nic).unwrap()
}

fn migration(name: &str) -> QemuMigration {
    serde_json::from_value(json!({"metadata": {"name": name}, "spec": {"vm": "web"}})).unwrap()
}

/// All that a user writes, in one namespace.
pub(super) struct Hand {
    pub(super) attachments: Api<NicAttachment>,
    pub(super) nics: Api<VmHybridNic>,
    migrations: Api<QemuMigration>,
}

impl Hand {
    fn new(client: Client, namespace: &str) -> Self {
        Self {
            attachments: Api::namespaced(client.clone(), namespace),
            nics: Api::namespaced(client.clone(), namespace),
            migrations: Api::namespaced(client, namespace),
        }
    }

    pub(super) async fn account(cluster: &ControlPlane, name: &str, node: Option<&str>) -> Self {
        let bound = node.map(|node| ("Node", node));
        let login = cluster.login_service_account(chart::NAMESPACE, name, bound);
        Self::new(login.await.unwrap().client().await.unwrap(), TENANT)
    }

    pub(super) async fn create(&self, attachment: &NicAttachment) -> String {
        said(self.attachments.create(&PostParams::default(), attachment).await)
    }

    pub(super) async fn merge(&self, name: &str, patch: &Value) -> String {
        said(
            self.attachments
                .patch(name, &PatchParams::default(), &Patch::Merge(patch))
                .await,
        )
    }

    pub(super) async fn apply(&self, name: &str, metadata: Value) -> String {
        let mut patch =
            json!({"apiVersion": "hybridnic.io/v1alpha1", "kind": "NicAttachment", "metadata": metadata});
        patch["metadata"]["name"] = json!(name);
        let params = PatchParams::apply(AGENT_MANAGER).force();
        said(self.attachments.patch(name, &params, &Patch::Apply(&patch)).await)
    }

    async fn create_by_apply(&self, attachment: &NicAttachment) -> String {
        let mut patch = serde_json::to_value(attachment).unwrap();
        (patch["apiVersion"], patch["kind"]) = (json!("hybridnic.io/v1alpha1"), json!("NicAttachment"));
        let params = PatchParams::apply("bob").force();
        let name = attachment.name_any();
        said(
            self.attachments
                .patch(&name, &params, &Patch::Apply(&patch))
                .await,
        )
    }

    /// All that a user may not do, and what the API server says to it.
    async fn attacks(&self) -> Vec<(&'static str, String)> {
        let status = Patch::Merge(json!({"status": {"state": "Detached"}}));
        let mac = Patch::Merge(json!({"status": {"mac": "00:00:5e:00:01:01"}}));
        let target = json!({"nodeName": "n2", "pod": {"name": "p", "uid": "v"}, "podIp": "127.0.0.1"});
        let target = Patch::Merge(json!({"status": {"phase": "Transferring", "target": target}}));
        let (params, dry) = (PatchParams::default(), DeleteParams::default().dry_run());
        let mut replaced = self.attachments.get("live").await.unwrap();
        replaced.spec.l2.trust = false;
        vec![
            ("create", self.create(&attachment("forged", None)).await),
            (
                "create by apply",
                self.create_by_apply(&attachment("applied", None)).await,
            ),
            (
                "update",
                said(
                    self.attachments
                        .replace("live", &PostParams::default(), &replaced)
                        .await,
                ),
            ),
            (
                "patch",
                self.merge("live", &json!({"spec": {"goal": "Detached"}})).await,
            ),
            (
                "finalizer",
                self.merge("live", &json!({"metadata": {"finalizers": []}})).await,
            ),
            (
                "status",
                said(self.attachments.patch_status("live", &params, &status).await),
            ),
            ("delete", said(self.attachments.delete("live", &dry).await)),
            (
                "deletecollection",
                said(
                    self.attachments
                        .delete_collection(&dry, &ListParams::default())
                        .await,
                ),
            ),
            (
                "a NIC's status",
                said(self.nics.patch_status("mine", &params, &mac).await),
            ),
            (
                "a migration's status",
                said(self.migrations.patch_status("mine", &params, &target).await),
            ),
        ]
    }
}

/// The chart's policies and roles, and a namespace in which bob has all rights. Gives bob, once the policies are in force, and
/// the administrator.
pub(super) async fn tenant(cluster: &ControlPlane) -> (Hand, Hand) {
    chart::install_without_pods(cluster).await.unwrap();
    kubectl(cluster, &["create", "namespace", TENANT]).await;
    let role = [
        "create",
        "rolebinding",
        "bob",
        "--clusterrole=cluster-admin",
        "--user=bob",
        "-n",
        TENANT,
    ];
    kubectl(cluster, &role).await;
    let admin = Hand::new(cluster.client_admin(), TENANT);
    admin
        .nics
        .create(&PostParams::default(), &nic("mine"))
        .await
        .unwrap();
    admin
        .migrations
        .create(&PostParams::default(), &migration("mine"))
        .await
        .unwrap();
    assert_eq!(admin.create(&attachment("live", None)).await, "");
    let held = json!({"metadata": {"finalizers": [ATTACHMENT_FINALIZER]}});
    assert_eq!(admin.merge("live", &held).await, "");

    let bob = cluster.login("bob", &[]).unwrap().client().await.unwrap();
    let bob = Hand::new(bob, TENANT);
    let dry = PostParams {
        dry_run: true,
        ..PostParams::default()
    };
    let deadline = Instant::now() + IN_FORCE;
    while !said(bob.attachments.create(&dry, &attachment("early", None)).await)
        .contains("written by hybridnic")
    {
        assert!(Instant::now() < deadline, "the policy is not in force");
        sleep(Duration::from_millis(200)).await;
    }
    (bob, admin)
}

#[tokio::test]
async fn all_rights_in_a_namespace_do_not_forge_an_attachment() {
    let (cluster, _dir) = cluster().await;
    let (bob, admin) = tenant(&cluster).await;
    let through: Vec<_> = bob
        .attacks()
        .await
        .into_iter()
        .filter(|(_, said)| !said.contains("written by hybridnic: bob may not"))
        .collect();
    assert!(through.is_empty(), "{through:#?}");

    // What is bob's own is bob's.
    assert_eq!(
        said(bob.nics.create(&PostParams::default(), &nic("new")).await),
        ""
    );
    assert_eq!(said(bob.nics.delete("new", &DeleteParams::default()).await), "");
    assert_eq!(
        said(
            bob.migrations
                .create(&PostParams::default(), &migration("new"))
                .await
        ),
        ""
    );

    // A user with all rights in the whole cluster is an administrator, in any group: kubeadm's are not in system:masters.
    let bind = [
        "create",
        "clusterrolebinding",
        "carol",
        "--clusterrole=cluster-admin",
        "--user=carol",
    ];
    kubectl(&cluster, &bind).await;
    let carol = cluster.login("carol", &[]).unwrap().client().await.unwrap();
    let carol = Hand::new(carol, TENANT);
    assert_eq!(
        carol
            .merge("live", &json!({"metadata": {"finalizers": []}}))
            .await,
        ""
    );
    assert_eq!(
        admin
            .merge(
                "live",
                &json!({"metadata": {"finalizers": [ATTACHMENT_FINALIZER]}})
            )
            .await,
        ""
    );

    // It is this policy that refuses, and nothing else.
    kubectl(
        &cluster,
        &[
            "delete",
            "validatingadmissionpolicybinding",
            "writers.hybridnic.io",
        ],
    )
    .await;
    let deadline = Instant::now() + IN_FORCE;
    while !bob.create(&attachment("forged", None)).await.is_empty() {
        assert!(
            Instant::now() < deadline,
            "without its binding the policy refuses still"
        );
        sleep(Duration::from_millis(200)).await;
    }
    admin
        .attachments
        .delete("forged", &DeleteParams::default())
        .await
        .unwrap();
    let refused: Vec<_> = bob
        .attacks()
        .await
        .into_iter()
        .filter(|(_, said)| !said.is_empty())
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}

#[tokio::test]
async fn an_agent_changes_nothing_but_its_finalizer_of_its_attachments_metadata() {
    let (cluster, _dir) = cluster().await;
    let (_, admin) = tenant(&cluster).await;
    let agent = Hand::account(&cluster, chart::AGENT, Some("n1")).await;
    let foreign = json!(["kubernetes.io/pv-protection"]);
    let both = json!([ATTACHMENT_FINALIZER, "kubernetes.io/pv-protection"]);
    let gone = json!([{"apiVersion": "v1", "kind": "ConfigMap", "name": "gone", "uid": "0e4fd1b9-0d6c-4f3e-9d7b-000000000000"}]);
    let metadata = "may not change owners, labels or annotations";
    let finalizer = "its own finalizer on a NicAttachment and take it off, and no other";

    let attacks = [
        (
            agent
                .merge("live", &json!({"metadata": {"ownerReferences": gone}}))
                .await,
            metadata,
        ),
        (
            agent
                .merge("live", &json!({"metadata": {"labels": {"a": "b"}}}))
                .await,
            metadata,
        ),
        (
            agent
                .merge("live", &json!({"metadata": {"annotations": {"a": "b"}}}))
                .await,
            metadata,
        ),
        (
            agent
                .merge("live", &json!({"metadata": {"finalizers": foreign}}))
                .await,
            finalizer,
        ),
        (
            agent
                .merge("live", &json!({"metadata": {"finalizers": both}}))
                .await,
            finalizer,
        ),
        (
            agent.apply("live", json!({"ownerReferences": gone})).await,
            metadata,
        ),
        (agent.apply("live", json!({"labels": {"a": "b"}})).await, metadata),
        (
            agent.apply("live", json!({"finalizers": foreign})).await,
            finalizer,
        ),
    ];
    let through: Vec<_> = attacks
        .iter()
        .filter(|(said, words)| !said.contains(words))
        .collect();
    assert!(through.is_empty(), "{through:#?}");
    // It removes and adds its own finalizer, in both of its ways.
    for _ in 0..2 {
        assert_eq!(agent.apply("live", json!({"finalizers": []})).await, "");
        assert_eq!(
            agent
                .merge("live", &json!({"metadata": {"finalizers": []}}))
                .await,
            ""
        );
        assert_eq!(
            agent
                .apply("live", json!({"finalizers": [ATTACHMENT_FINALIZER]}))
                .await,
            ""
        );
    }
    // A foreign one that others put on it does not keep the agent from its own.
    assert_eq!(
        admin
            .merge("live", &json!({"metadata": {"finalizers": both}}))
            .await,
        ""
    );
    assert_eq!(
        agent
            .merge("live", &json!({"metadata": {"finalizers": foreign}}))
            .await,
        ""
    );
    assert!(
        agent
            .merge("live", &json!({"metadata": {"finalizers": []}}))
            .await
            .contains(finalizer)
    );
    assert_eq!(
        admin
            .merge("live", &json!({"metadata": {"finalizers": []}}))
            .await,
        ""
    );

    // Metadata that goes with a status is not taken.
    let status =
        json!({"metadata": {"labels": {"a": "b"}, "ownerReferences": gone}, "status": {"state": "Standby"}});
    let patched = agent
        .attachments
        .patch_status("live", &PatchParams::default(), &Patch::Merge(&status))
        .await;
    let patched = patched.unwrap();
    assert!(
        patched.labels().is_empty() && patched.owner_references().is_empty(),
        "{patched:?}"
    );

    // Nor does the object that it makes for its node have any.
    let nodes: Api<HybridNode> = Api::all(agent.attachments.into_client());
    for metadata in [
        json!({"name": "n1", "ownerReferences": gone}),
        json!({"name": "n1", "finalizers": foreign}),
        json!({"name": "n1", "labels": {"a": "b"}}),
        json!({"name": "n1", "annotations": {"a": "b"}}),
    ] {
        let node: HybridNode = serde_json::from_value(json!({"metadata": metadata, "spec": {}})).unwrap();
        let refusal = said(nodes.create(&PostParams::default(), &node).await);
        assert!(
            refusal.contains("makes its HybridNode without"),
            "{refusal}: {node:?}"
        );
    }
}
