//! What two node agents do, as far as the operator can see it: no device and no QEMU, only reports. Each writes with the
//! chart's rights and a token of its own node. The real agent is tested with the real operator in the lab.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use futures::StreamExt;
use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::features::AgentFeature;
use hybridnic_api::names::{AGENT_MANAGER, ATTACHMENT_FINALIZER};
use hybridnic_api::v1alpha1::{
    Aside, AttachmentState, Goal, GuestDevices, HybridNode, HybridNodeSpec, MigrationOrder, MigrationReport,
    MigrationState, MigrationStep, NicAttachment, NicAttachmentStatus, Path, StandbyRef, VfRef,
};
use hybridnic_e2e::chart;
use hybridnic_e2e::controlplane::ControlPlane;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ListParams, Patch, PatchParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::bench::NAMESPACE;

/// What the agents do otherwise than well.
#[derive(Clone, Copy, Debug, Default)]
pub struct Mood {
    /// The transfer goes on and on.
    pub endless: bool,
    /// The guest does not let go of its VF.
    pub keeps_vf: bool,
    /// The agents of these nodes say nothing.
    pub silent: &'static [&'static str],
    /// QEMU in these pods waits for a VM (`-incoming`).
    pub waits: &'static [&'static str],
}

/// Both agents. Dropped, they say nothing more.
pub struct Agents {
    task: JoinHandle<()>,
    mood: Arc<Mutex<Mood>>,
}

impl Drop for Agents {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Agents {
    /// Publishes both nodes, with seven VFs each, and does what the operator says.
    pub async fn start(cluster: &ControlPlane) -> Self {
        let mut clients = BTreeMap::new();
        for name in ["n1", "n2"] {
            let login = cluster
                .login_service_account(chart::NAMESPACE, chart::AGENT, Some(("Node", name)))
                .await
                .unwrap();
            let client = login.client().await.unwrap();
            publish(&client, name).await;
            clients.insert(name.to_owned(), client);
        }
        let mood = Arc::new(Mutex::new(Mood::default()));
        let task = tokio::spawn(serve(clients, mood.clone()));
        Self { task, mood }
    }

    pub fn be(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }
}

/// Makes the node's object where it is not there, and says what the node has.
async fn publish(client: &Client, name: &str) {
    let nodes: Api<HybridNode> = Api::all(client.clone());
    let node = HybridNode::new(name, HybridNodeSpec::default());
    match nodes.create(&PostParams::default(), &node).await {
        Ok(_) => {}
        Err(kube::Error::Api(status)) if status.is_already_exists() => {}
        Err(error) => panic!("{error}"),
    }
    let pf = json!({
        "name": "ens1", "pciAddress": "0000:01:00.0", "vendor": "8086", "device": "10c9", "linkUp": true, "totalVfs": 7,
        "mac": format!("02:00:00:00:00:F{}", &name[1..]),
    });
    let status = json!({
        "apiVersion": "hybridnic.io/v1alpha1", "kind": "HybridNode", "metadata": {"name": name},
        "status": {"agentVersion": env!("CARGO_PKG_VERSION"), "features": AgentFeature::words(), "pfs": [pf], "pools": [
            {"network": "net", "vfs": {"total": 7, "free": 7, "held": 0, "unhealthy": 0}},
        ]},
    });
    nodes
        .patch_status(name, &params(), &Patch::Apply(&status))
        .await
        .unwrap();
}

fn params() -> PatchParams {
    PatchParams::apply(AGENT_MANAGER).force()
}

async fn serve(clients: BTreeMap<String, Client>, mood: Arc<Mutex<Mood>>) {
    let api = |client: &Client| Api::<NicAttachment>::namespaced(client.clone(), NAMESPACE);
    let writers: BTreeMap<&str, _> = clients
        .iter()
        .map(|(node, client)| (node.as_str(), api(client)))
        .collect();
    // Either may read all.
    let api = writers["n1"].clone();
    let mut watch = watcher(api.clone(), watcher::Config::default())
        .default_backoff()
        .applied_objects()
        .boxed();
    while let Some(change) = watch.next().await {
        let Ok(changed) = change else { continue };
        let mood = *mood.lock().unwrap();
        // What one end does shows at the other.
        let Ok(all) = api.list(&ListParams::default()).await else {
            continue;
        };
        let heard = |other: &&NicAttachment| {
            other.spec.vm == changed.spec.vm && !mood.silent.contains(&other.spec.node_name.as_str())
        };
        for attachment in all.items.iter().filter(heard) {
            act(
                &writers[&*attachment.spec.node_name],
                attachment,
                &all.items,
                mood,
            )
            .await;
        }
    }
}

async fn act(api: &Api<NicAttachment>, attachment: &NicAttachment, all: &[NicAttachment], mood: Mood) {
    let name = attachment.name_any();
    let held = attachment
        .finalizers()
        .iter()
        .any(|finalizer| finalizer == ATTACHMENT_FINALIZER);
    let deleting = attachment.metadata.deletion_timestamp.is_some();
    let document = |part: serde_json::Value| {
        let mut patch = json!({
            "apiVersion": "hybridnic.io/v1alpha1", "kind": "NicAttachment",
            "metadata": {"name": name, "uid": attachment.metadata.uid},
        });
        patch
            .as_object_mut()
            .unwrap()
            .extend(part.as_object().unwrap().clone());
        patch
    };
    if !held {
        if !deleting {
            let mut patch = document(json!({}));
            patch["metadata"]["finalizers"] = json!([ATTACHMENT_FINALIZER]);
            let _ = api.patch(&name, &params(), &Patch::Apply(&patch)).await;
        }
        return;
    }
    let status = reported_status(attachment, all, mood);
    if attachment.status.as_ref() != Some(&status) {
        // The API server may be away; the next change comes here again.
        let _ = api
            .patch_status(
                &name,
                &params(),
                &Patch::Apply(&document(json!({"status": status}))),
            )
            .await;
    } else if deleting && status.state == AttachmentState::Detached {
        let mut patch = document(json!({}));
        patch["metadata"]["finalizers"] = json!([]);
        let _ = api.patch(&name, &params(), &Patch::Apply(&patch)).await;
    }
}

/// How the other end would know this one.
fn certificate(order: &MigrationOrder, state: MigrationState) -> Option<String> {
    let says = matches!(state, MigrationState::Prepared | MigrationState::Listening);
    (says && order.tls.is_some()).then(|| "the certificate of a CA".to_owned())
}

fn reported_status(attachment: &NicAttachment, all: &[NicAttachment], mood: Mood) -> NicAttachmentStatus {
    let spec = &attachment.spec;
    let deleting = attachment.metadata.deletion_timestamp.is_some();
    let goal = if deleting { Goal::Detached } else { spec.goal };
    let mut status = attachment.status.clone().unwrap_or_default();
    let step = spec.migration.as_ref().map(|order| order.step);
    let certifies = spec.migration.as_ref().is_some_and(|order| order.tls.is_some());
    let sent = all.iter().any(|other| {
        let order = other.spec.migration.as_ref();
        order.is_some_and(|order| order.step == MigrationStep::Transfer && order.target_uri.is_some())
            && other.spec.vm == spec.vm
    });
    let arrived = sent && !mood.endless;
    // Until a migration brings one.
    let waits = mood.waits.contains(&spec.pod.name.as_str()) && spec.migration.is_none();
    let was = status.migration.as_ref().map(|report| report.state);
    let word = match step {
        Some(MigrationStep::Listen) if arrived || was == Some(MigrationState::Completed) => {
            Some(MigrationState::Completed)
        }
        // What has been sent cannot be cancelled, and what has come stays.
        Some(MigrationStep::Cancel | MigrationStep::GiveUp) if was == Some(MigrationState::Completed) => was,
        Some(MigrationStep::GiveUp) => Some(MigrationState::Lost),
        Some(MigrationStep::Listen) => Some(MigrationState::Listening),
        Some(MigrationStep::Transfer) => Some(if arrived {
            MigrationState::Completed
        } else {
            MigrationState::Active
        }),
        Some(MigrationStep::Cancel | MigrationStep::Resume) => Some(MigrationState::Cancelled),
        Some(MigrationStep::Prepare) if certifies => Some(MigrationState::Prepared),
        _ => None,
    };
    status.migration = spec
        .migration
        .as_ref()
        .zip(word)
        .map(|(order, state)| MigrationReport {
            port: (state == MigrationState::Listening).then_some(40_000),
            downtime_ms: (step == Some(MigrationStep::Transfer) && arrived).then_some(31),
            ca: certificate(order, state),
            ..MigrationReport::new(&order.migration.uid, state)
        });
    let aside = spec.aside.filter(|_| goal == Goal::FastPath);
    let to_standby = goal == Goal::Standby || aside.is_some();
    let (state, path) = match goal {
        Goal::Detached => (AttachmentState::Detached, Path::None),
        Goal::Reserved => (AttachmentState::Reserved, Path::None),
        Goal::FastPath if waits => (AttachmentState::Reserved, Path::None),
        Goal::FastPath if word == Some(MigrationState::Listening) => (AttachmentState::Reserved, Path::None),
        _ if to_standby && !mood.keeps_vf => (AttachmentState::Standby, Path::Standby),
        Goal::FastPath | Goal::Standby => (AttachmentState::FastPath, Path::FastPath),
    };
    (status.state, status.path, status.observed_generation) = (state, path, attachment.metadata.generation);
    let gone = state == AttachmentState::Detached;
    let given_back = spec.aside == Some(Aside::GiveVfBack) && state == AttachmentState::Standby;
    status.vf = (!gone && !given_back).then(|| VfRef {
        pci_address: "0000:01:10.0".into(),
        pf: "ens1".into(),
        index: 0,
    });
    status.standby = (!gone).then(|| StandbyRef {
        macvtap: "hnic0".into(),
        pf: "ens1".into(),
    });
    status.guest = GuestDevices {
        vf_port: Some("rp1".into()),
        standby_port: Some("rp0".into()),
        ..GuestDevices::default()
    };
    let ready = if to_standby && mood.keeps_vf && path == Path::FastPath {
        NewCondition::no(
            types::READY,
            reasons::GUEST_KEEPS_VF,
            "the guest has no hot-plug driver",
        )
    } else if goal == Goal::FastPath && waits {
        NewCondition::no(types::READY, reasons::VM_INCOMING, "QEMU waits for a VM")
    } else {
        NewCondition::yes(types::READY, reasons::ATTACHED, "the NIC is where it should be")
    };
    let fast = if path == Path::FastPath {
        NewCondition::yes(types::FAST_PATH, reasons::VF_ACTIVE, "the VF carries the traffic")
    } else if aside.is_some() && path == Path::Standby {
        let message = "the NIC is told to stay on its standby";
        NewCondition::no(types::FAST_PATH, reasons::STANDBY_REQUESTED, message)
    } else if waits {
        NewCondition {
            type_: types::FAST_PATH,
            ..ready.clone()
        }
    } else {
        NewCondition::no(
            types::FAST_PATH,
            reasons::ATTACHED,
            "the standby carries the traffic",
        )
    };
    for condition in [ready, fast] {
        conditions::set(&mut status.conditions, None, Timestamp::UNIX_EPOCH, condition);
    }
    status
}
