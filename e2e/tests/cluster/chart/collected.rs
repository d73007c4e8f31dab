//! What is collected: the garbage collector and the namespace controller write what hybridnic says, each as itself.

use std::fmt::Debug;
use std::time::Duration;

use hybridnic_api::names::ATTACHMENT_FINALIZER;
use hybridnic_api::v1alpha1::NicAttachment;
use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::ControlPlane;
use k8s_openapi::api::core::v1::Namespace;
use kube::api::{DeleteParams, PostParams, PropagationPolicy};
use kube::runtime::conditions::is_deleted;
use kube::runtime::wait::await_condition;
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::time::timeout;

use super::cluster;
use super::writers::{Hand, TENANT, attachment, nic, tenant};

const GARBAGE_COLLECTOR: &str = "system:serviceaccount:kube-system:generic-garbage-collector";
const NAMESPACE_CONTROLLER: &str = "system:serviceaccount:kube-system:namespace-controller";
/// Two controllers that look again after an error, and a machine that may be busy.
const COLLECTED: Duration = Duration::from_mins(1);

/// Which clients deleted or patched the attachments of this name, as the API server saw it.
fn writers(cluster: &ControlPlane, name: &str) -> Vec<String> {
    let writes = cluster.writes().unwrap().into_iter();
    let ours = writes
        .filter(|write| write.resource == "nicattachments" && (write.name == name || write.name.is_empty()));
    ours.map(|write| format!("{} {}", write.user, write.verb))
        .collect()
}

async fn gone<K>(api: &Api<K>, name: &str, uid: &str)
where
    K: kube::Resource + Clone + Debug + Send + serde::de::DeserializeOwned + 'static,
{
    let gone = timeout(COLLECTED, await_condition(api.clone(), name, is_deleted(uid))).await;
    gone.unwrap_or_else(|_| panic!("{name} is there still")).unwrap();
}

#[tokio::test]
async fn what_is_collected_goes_by_the_collectors_own_hands() {
    let (cluster, _dir) = cluster().await;
    let (_, admin) = tenant(&cluster).await;
    let operator = Hand::account(&cluster, chart::OPERATOR, None).await;
    let agent = Hand::account(&cluster, chart::AGENT, Some("n1")).await;

    // A NIC and its attachment go, in either order; the agent releases it as usual.
    for (name, policy) in [
        ("back", PropagationPolicy::Background),
        ("fore", PropagationPolicy::Foreground),
    ] {
        let owner = admin
            .nics
            .create(&PostParams::default(), &nic(name))
            .await
            .unwrap();
        assert_eq!(operator.create(&attachment(name, Some(&owner))).await, "");
        assert_eq!(
            agent
                .apply(name, json!({"finalizers": [ATTACHMENT_FINALIZER]}))
                .await,
            ""
        );
        let born = admin.attachments.get(name).await.unwrap().uid().unwrap();
        let params = DeleteParams {
            propagation_policy: Some(policy),
            ..DeleteParams::default()
        };
        admin.nics.delete(name, &params).await.unwrap();
        let asked = |a: Option<&NicAttachment>| a.is_some_and(|a| a.metadata.deletion_timestamp.is_some());
        let asked = await_condition(admin.attachments.clone(), name, asked);
        timeout(COLLECTED, asked)
            .await
            .expect("nobody collects it")
            .unwrap();
        assert_eq!(agent.apply(name, json!({"finalizers": []})).await, "");
        gone(&admin.attachments, name, &born).await;
        gone(&admin.nics, name, &owner.uid().unwrap()).await;
        let by = writers(&cluster, name);
        assert!(by.contains(&format!("{GARBAGE_COLLECTOR} delete")), "{by:?}");
    }

    // A NIC that leaves its attachment behind: the collector takes the owner off.
    let owner = admin
        .nics
        .create(&PostParams::default(), &nic("orphan"))
        .await
        .unwrap();
    assert_eq!(operator.create(&attachment("orphan", Some(&owner))).await, "");
    let params = DeleteParams {
        propagation_policy: Some(PropagationPolicy::Orphan),
        ..DeleteParams::default()
    };
    admin.nics.delete("orphan", &params).await.unwrap();
    gone(&admin.nics, "orphan", &owner.uid().unwrap()).await;
    assert!(
        admin
            .attachments
            .get("orphan")
            .await
            .unwrap()
            .owner_references()
            .is_empty()
    );
    let by = writers(&cluster, "orphan");
    assert!(by.contains(&format!("{GARBAGE_COLLECTOR} patch")), "{by:?}");

    // A namespace goes with all that is in it.
    let owner = admin
        .nics
        .create(&PostParams::default(), &nic("last"))
        .await
        .unwrap();
    assert_eq!(operator.create(&attachment("last", Some(&owner))).await, "");
    let namespaces: Api<Namespace> = Api::all(cluster.client_admin());
    let uid = namespaces.get(TENANT).await.unwrap().uid().unwrap();
    assert_eq!(
        agent
            .merge("live", &json!({"metadata": {"finalizers": []}}))
            .await,
        ""
    );
    namespaces.delete(TENANT, &DeleteParams::default()).await.unwrap();
    gone(&namespaces, TENANT, &uid).await;
    let by = writers(&cluster, "last");
    assert!(by.iter().any(|by| by.starts_with(NAMESPACE_CONTROLLER)), "{by:?}");
}
