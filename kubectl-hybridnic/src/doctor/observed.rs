//! What the checks look at, and how it is fetched.

use std::time::Duration;

use anyhow::bail;
use futures::{StreamExt as _, future};
use hybridnic_api::v1alpha1::{HybridNetwork, HybridNode, NicAttachment, QemuMigration, VmHybridNic};
use jiff::Timestamp;
use k8s_openapi::{
    api::{
        admissionregistration::v1::{ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding},
        apps::v1::{DaemonSet, Deployment},
        coordination::v1::Lease,
        core::v1::{Node, Pod, PodTemplateSpec, ServiceAccount},
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::ObjectMeta,
};
use kube::{
    Api, Resource, ResourceExt as _,
    api::ListParams,
    runtime::{WatchStreamExt as _, watcher},
};
use serde::de::DeserializeOwned;

use super::{foreign, kubevirt, rights};
use crate::connect::{Cluster, Unanswered};

/// Version of this plugin; the other programs of a release have the same.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
/// The operator's lease.
const LEASE: &str = "hybridnic-operator";

/// What was fetched, or why it could not be.
pub type Fetched<T> = Result<T, Unanswered>;

/// What is observed of a cluster.
pub struct Observed {
    /// The time by this machine's clock.
    pub now: Timestamp,
    /// Version of the API server.
    pub kubernetes: Option<String>,
    /// All CustomResourceDefinitions.
    pub crds: Fetched<Vec<CustomResourceDefinition>>,
    /// The Deployments that are operators.
    pub operators: Fetched<Vec<Deployment>>,
    /// The operators' leases.
    pub leases: Fetched<Vec<ObservedLease>>,
    /// All DaemonSets: agents, and owners of VFs.
    pub daemon_sets: Fetched<Vec<DaemonSet>>,
    /// The agents' pods.
    pub agent_pods: Fetched<Vec<Pod>>,
    /// All nodes.
    pub nodes: Fetched<Vec<Node>>,
    /// What agents have published.
    pub hybrid_nodes: Fetched<Vec<HybridNode>>,
    /// All networks.
    pub networks: Fetched<Vec<HybridNetwork>>,
    /// All NICs.
    pub nics: Fetched<Vec<VmHybridNic>>,
    /// All attachments.
    pub attachments: Fetched<Vec<NicAttachment>>,
    /// All migrations.
    pub migrations: Fetched<Vec<QemuMigration>>,
    /// KubeVirt and Multus.
    pub kubevirt: kubevirt::Objects,
    /// Admission policies.
    pub policies: Fetched<Vec<ValidatingAdmissionPolicy>>,
    /// What puts them into force.
    pub policy_bindings: Fetched<Vec<ValidatingAdmissionPolicyBinding>>,
    /// What the user may not do, and would have to.
    pub rights: Vec<rights::Answer>,
    /// PFs that sriov-network-operator sets up.
    pub sriov_operator: Fetched<Vec<foreign::ForeignPf>>,
    /// Devices that DRA drivers offer.
    pub slices: Fetched<Vec<foreign::Slice>>,
}

/// A lease, looked at for as long as its holder may take to renew it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ObservedLease {
    /// Its namespace.
    pub namespace: String,
    /// Its holder.
    pub holder: Option<String>,
    /// How many seconds it lasts without a renewal.
    pub seconds: i32,
    /// Whether it was renewed while it was looked at. No two machines' clocks are compared for it.
    pub renewed: bool,
}

impl Observed {
    /// Fetches everything. A refusal is one of the observations; if nothing answers at all, that is an error.
    pub async fn fetch(cluster: &Cluster) -> anyhow::Result<Self> {
        let version = cluster
            .ask("the API server's version", cluster.client.apiserver_version())
            .await;
        let kubernetes = match version {
            Ok(version) => Some(version.git_version),
            // A refusal comes from an API server that was reached.
            Err(error) => match Unanswered::from(error) {
                unanswered if unanswered.forbidden => None,
                unanswered => bail!(unanswered),
            },
        };
        let (crds, operators, leases, daemon_sets, nodes) = tokio::join!(
            all::<CustomResourceDefinition>(cluster, "CustomResourceDefinitions"),
            all::<Deployment>(cluster, "Deployments"),
            leases(cluster),
            all::<DaemonSet>(cluster, "DaemonSets"),
            all::<Node>(cluster, "Nodes"),
        );
        let (hybrid_nodes, networks, nics, attachments, migrations, policies, policy_bindings) = tokio::join!(
            all::<HybridNode>(cluster, "HybridNodes"),
            all::<HybridNetwork>(cluster, "HybridNetworks"),
            all::<VmHybridNic>(cluster, "VmHybridNics"),
            all::<NicAttachment>(cluster, "NicAttachments"),
            all::<QemuMigration>(cluster, "QemuMigrations"),
            all::<ValidatingAdmissionPolicy>(cluster, "ValidatingAdmissionPolicies"),
            all::<ValidatingAdmissionPolicyBinding>(cluster, "ValidatingAdmissionPolicyBindings"),
        );
        let operators = operators.map(|list| list.into_iter().filter(is_operator).collect::<Vec<_>>());
        let agents = daemon_sets
            .as_ref()
            .map(|list| list.iter().find(|set| is_agent(set)));
        let operator = operators.as_ref().ok().and_then(|list| list.first());
        let agent = agents.as_ref().ok().copied().flatten();
        let operator_account = match operator.and_then(|o| Some((&o.metadata, &o.spec.as_ref()?.template))) {
            Some((meta, template)) => rights::Account::of_pods(meta, template),
            None => service_account(cluster, "hybridnic-operator").await,
        };
        let agent_account = match agent.and_then(|a| Some((&a.metadata, &a.spec.as_ref()?.template))) {
            Some((meta, template)) => rights::Account::of_pods(meta, template),
            None => service_account(cluster, "hybridnic-agent").await,
        };
        let agent_pods = match agents {
            Ok(Some(agent)) => pods_of(cluster, agent).await,
            Ok(None) => Ok(Vec::new()),
            Err(error) => Err(error.clone()),
        };
        let subjects = [
            rights::me(&cluster.namespace),
            rights::operator(operator_account),
            rights::agent(agent_account),
        ];
        let (rights, sriov_operator, slices, kubevirt) = tokio::join!(
            rights::ask(cluster, &subjects),
            foreign::sriov_operator(cluster, crds.as_deref().unwrap_or_default()),
            foreign::slices(cluster),
            kubevirt::Objects::fetch(cluster),
        );
        Ok(Self {
            now: Timestamp::now(),
            kubernetes,
            crds,
            operators,
            leases,
            daemon_sets,
            agent_pods,
            nodes,
            hybrid_nodes,
            networks,
            nics,
            attachments,
            migrations,
            kubevirt,
            policies,
            policy_bindings,
            rights,
            sriov_operator,
            slices,
        })
    }

    /// The agents' DaemonSet, where they run as one.
    pub fn agent(&self) -> Option<&DaemonSet> {
        self.daemon_sets.as_ref().ok()?.iter().find(|set| is_agent(set))
    }
}

async fn all<K>(cluster: &Cluster, what: &str) -> Fetched<Vec<K>>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + std::fmt::Debug,
{
    let api: Api<K> = Api::all(cluster.client.clone());
    let list = cluster.ask(what, api.list(&ListParams::default())).await;
    Ok(list?.items)
}

async fn pods_of(cluster: &Cluster, set: &DaemonSet) -> Fetched<Vec<Pod>> {
    let labels = set
        .spec
        .as_ref()
        .and_then(|spec| spec.selector.match_labels.clone())
        .unwrap_or_default();
    let labels: Vec<_> = labels
        .iter()
        .map(|(key, value)| format!("{key}={value}"))
        .collect();
    let api: Api<Pod> = Api::namespaced(cluster.client.clone(), &set.namespace().unwrap_or_default());
    let pods = cluster
        .ask(
            "the agents' pods",
            api.list(&ListParams::default().labels(&labels.join(","))),
        )
        .await;
    Ok(pods?.items)
}

/// The service account of this name, in whichever namespace it is; for programs that do not run as pods.
async fn service_account(cluster: &Cluster, name: &str) -> Option<rights::Account> {
    let api: Api<ServiceAccount> = Api::all(cluster.client.clone());
    let named = ListParams::default().fields(&format!("metadata.name={name}"));
    let list = cluster.ask("ServiceAccounts", api.list(&named)).await.ok()?;
    let namespace = list.items.first()?.namespace()?;
    Some(rights::Account::service(&namespace, name))
}

async fn leases(cluster: &Cluster) -> Fetched<Vec<ObservedLease>> {
    let api: Api<Lease> = Api::all(cluster.client.clone());
    let named = ListParams::default().fields(&format!("metadata.name={LEASE}"));
    let list = cluster.ask("Leases", api.list(&named)).await?;
    Ok(future::join_all(list.items.iter().map(|lease| look_at(cluster, lease))).await)
}

/// Watches a lease until it is renewed, or until it should have been.
async fn look_at(cluster: &Cluster, lease: &Lease) -> ObservedLease {
    let namespace = lease.namespace().unwrap_or_default();
    let spec = lease.spec.clone().unwrap_or_default();
    let mut seen = ObservedLease {
        namespace: namespace.clone(),
        holder: spec.holder_identity.filter(|holder| !holder.is_empty()),
        seconds: spec.lease_duration_seconds.unwrap_or(15),
        renewed: false,
    };
    if seen.holder.is_none() {
        return seen;
    }
    let api: Api<Lease> = Api::namespaced(cluster.client.clone(), &namespace);
    let before = lease.resource_version();
    let renewal = watcher::watch_object(api, LEASE)
        .default_backoff()
        .filter(|change| {
            let version = change
                .as_ref()
                .ok()
                .and_then(Option::as_ref)
                .and_then(Lease::resource_version);
            future::ready(version.is_some() && version != before)
        });
    let patience = Duration::from_secs(u64::try_from(seen.seconds).unwrap_or(15));
    seen.renewed = tokio::time::timeout(patience, Box::pin(renewal).next())
        .await
        .is_ok_and(|change| change.is_some());
    seen
}

fn is_operator(deployment: &Deployment) -> bool {
    let template = deployment.spec.as_ref().map(|spec| &spec.template);
    is_part(&deployment.metadata, template, "operator")
}

fn is_agent(set: &DaemonSet) -> bool {
    is_part(
        &set.metadata,
        set.spec.as_ref().map(|spec| &spec.template),
        "agent",
    )
}

/// Whether a workload is our operator or agent: by its labels, its name, or the image that it runs. Charts rename the
/// first two, and mirrors only what lies before the image's name.
fn is_part(meta: &ObjectMeta, template: Option<&PodTemplateSpec>, part: &str) -> bool {
    let label = |key: &str| {
        meta.labels
            .as_ref()
            .and_then(|labels| labels.get(key))
            .map(String::as_str)
    };
    let ours = label("app.kubernetes.io/name") == Some("hybridnic")
        || label("app.kubernetes.io/part-of") == Some("hybridnic");
    let program = format!("hybridnic-{part}");
    (ours && label("app.kubernetes.io/component") == Some(part))
        || meta.name.as_deref() == Some(program.as_str())
        || images(template).any(|image| image_name(image) == program)
}

/// The images of a template's containers.
pub fn images(template: Option<&PodTemplateSpec>) -> impl Iterator<Item = &str> {
    let containers = template
        .and_then(|template| template.spec.as_ref())
        .map(|spec| spec.containers.as_slice());
    containers
        .unwrap_or_default()
        .iter()
        .filter_map(|container| container.image.as_deref())
}

/// The last part of an image's path, without tag and digest.
pub fn image_name(image: &str) -> &str {
    let path = image.split('@').next().unwrap_or(image);
    let last = path.rsplit('/').next().unwrap_or(path);
    last.split(':').next().unwrap_or(last)
}

/// The version that an image's tag says, if it is one.
pub fn image_version(image: &str) -> Option<&str> {
    let last = image.split('@').next()?.rsplit('/').next()?;
    let tag = last.split_once(':')?.1.trim_start_matches('v');
    let numbers = tag.split(['.', '-', '+']).take(3);
    let is_version = tag.matches('.').count() >= 2 && numbers.clone().count() == 3;
    (is_version
        && numbers
            .into_iter()
            .all(|n| !n.is_empty() && n.chars().all(|c| c.is_ascii_digit())))
    .then_some(tag)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, from_value, json};

    use super::*;

    fn deployment(name: &str, labels: &Value, image: &str) -> Deployment {
        from_value(json!({
            "metadata": {"name": name, "labels": labels},
            "spec": {"selector": {}, "template": {"spec": {"containers": [{"name": "c", "image": image}]}}},
        }))
        .unwrap()
    }

    #[test]
    fn operators_are_known_by_labels_name_or_image() {
        let labels =
            json!({"app.kubernetes.io/name": "hybridnic", "app.kubernetes.io/component": "operator"});
        assert!(is_operator(&deployment("x", &labels, "x")));
        assert!(is_operator(&deployment("hybridnic-operator", &json!({}), "x")));
        assert!(is_operator(&deployment(
            "x",
            &json!({}),
            "mirror:5000/a/hybridnic-operator:0.1.0@sha256:0"
        )));
        assert!(!is_operator(&deployment("x", &json!({}), "hybridnic-agent:1")));
        let other = json!({"app.kubernetes.io/name": "other", "app.kubernetes.io/component": "operator"});
        assert!(!is_operator(&deployment("x", &other, "x")));
    }

    #[test]
    fn versions_of_images() {
        assert_eq!(
            image_version("mirror:5000/hybridnic-operator:v0.1.0"),
            Some("0.1.0")
        );
        assert_eq!(
            image_version("hybridnic-operator:0.2.0-rc.1@sha256:00"),
            Some("0.2.0-rc.1")
        );
        for none in [
            "hybridnic-operator",
            "hybridnic-operator:latest",
            "a:5000/b",
            "b:1.2",
            "b:1.2.x",
        ] {
            assert_eq!(image_version(none), None, "{none}");
        }
    }
}
