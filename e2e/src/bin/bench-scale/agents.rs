//! All agents of the cluster: they do at once what they are told, and say so.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::names::{AGENT_MANAGER, ATTACHMENT_FINALIZER};
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, GuestDevices, MigrationReport, MigrationState, MigrationStep, NicAttachment,
    NicAttachmentStatus, Path, StandbyRef, VfRef,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::say;

/// Writes at once.
const AT_ONCE: usize = 64;

/// What the agents have seen of time.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// From the answer to a report on a migration to the next order for the VM.
    pub steps: Vec<Duration>,
    /// How long writes took.
    pub writes: Vec<Duration>,
}

/// All agents.
#[derive(Clone)]
pub struct Agents(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    times: Times,
    vms: HashMap<String, Vm>,
}

/// A VM's attachments by name, and since when the operator is to say what comes next.
#[derive(Default)]
struct Vm {
    attachments: HashMap<String, NicAttachment>,
    reported: Option<Instant>,
}

impl Agents {
    /// Starts them.
    pub fn start(client: Client) -> Self {
        let this = Self(Arc::default());
        let agents = this.clone();
        tokio::spawn(async move {
            let events = watcher(
                Api::<NicAttachment>::all(client.clone()),
                watcher::Config::default(),
            );
            let agents = &agents;
            events
                .default_backoff()
                .for_each_concurrent(AT_ONCE, |event| {
                    let client = client.clone();
                    async move {
                        match event {
                            Ok(watcher::Event::Apply(a) | watcher::Event::InitApply(a)) => {
                                agents.act(&client, a).await;
                            }
                            Ok(watcher::Event::Delete(a)) => {
                                agents.known().vm(&a).attachments.remove(&a.name_any());
                            }
                            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                            Err(error) => say(&format!("the agents' watch: {error}")),
                        }
                    }
                })
                .await;
        });
        this
    }

    /// Forgets the times so far.
    pub fn forget_times(&self) {
        self.known().times = Times::default();
    }

    /// The times since then.
    pub fn times(&self) -> Times {
        self.known().times.clone()
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An attachment has changed: what is to be said of any of the VM's.
    async fn act(&self, client: &Client, attachment: NicAttachment) {
        let all: Vec<NicAttachment> = {
            let mut known = self.known();
            let vm = known.vm(&attachment);
            let before = vm.attachments.insert(attachment.name_any(), attachment.clone());
            let ordered = before.is_none_or(|before| before.spec != attachment.spec);
            let step = vm.reported.take_if(|_| ordered).map(|at| at.elapsed());
            let all = vm.attachments.values().cloned().collect();
            known.times.steps.extend(step);
            all
        };
        for one in &all {
            self.report(client, one, &all).await;
        }
    }

    async fn report(&self, client: &Client, of: &NicAttachment, all: &[NicAttachment]) {
        let held = of.finalizers().iter().any(|f| f == ATTACHMENT_FINALIZER);
        let deleting = of.metadata.deletion_timestamp.is_some();
        if !held {
            if !deleting {
                self.write(
                    client,
                    of,
                    json!({"metadata": {"finalizers": [ATTACHMENT_FINALIZER]}}),
                )
                .await;
            }
            return;
        }
        let status = status(of, all);
        if of.status.as_ref() != Some(&status) {
            let migrates = of.spec.migration.is_some();
            self.write(client, of, json!({"status": status})).await;
            if migrates {
                self.known().vm(of).reported = Some(Instant::now());
            }
        } else if deleting && status.state == AttachmentState::Detached {
            self.write(client, of, json!({"metadata": {"finalizers": []}}))
                .await;
        }
    }

    async fn write(&self, client: &Client, of: &NicAttachment, part: Value) {
        let api: Api<NicAttachment> = Api::namespaced(client.clone(), &of.namespace().unwrap_or_default());
        let name = of.name_any();
        let (params, is_status) = (
            PatchParams::apply(AGENT_MANAGER).force(),
            part.get("status").is_some(),
        );
        let mut document = part;
        document["apiVersion"] = json!("hybridnic.io/v1alpha1");
        document["kind"] = json!("NicAttachment");
        document["metadata"]["name"] = json!(name);
        document["metadata"]["uid"] = json!(of.metadata.uid);
        let begun = Instant::now();
        let patch = Patch::Apply(&document);
        let done = if is_status {
            api.patch_status(&name, &params, &patch).await
        } else {
            api.patch(&name, &params, &patch).await
        };
        match done {
            Ok(_) => self.known().times.writes.push(begun.elapsed()),
            // It is gone already: another report of this one was faster.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => {}
            Err(error) => say(&format!("an agent's write: {error}")),
        }
    }
}

impl Known {
    fn vm(&mut self, attachment: &NicAttachment) -> &mut Vm {
        let vm = format!(
            "{}/{}",
            attachment.namespace().unwrap_or_default(),
            attachment.spec.vm
        );
        self.vms.entry(vm).or_default()
    }
}

/// The word of QEMU on a migration.
fn word(of: &NicAttachment, all: &[NicAttachment]) -> Option<MigrationState> {
    let sent = all.iter().any(|other| {
        let order = other.spec.migration.as_ref();
        order.is_some_and(|order| order.step == MigrationStep::Transfer && order.target_uri.is_some())
    });
    let said = of.status.as_ref().and_then(|status| status.migration.as_ref());
    let arrived = said.is_some_and(|report| report.state == MigrationState::Completed);
    match of.spec.migration.as_ref()?.step {
        MigrationStep::Listen if sent || arrived => Some(MigrationState::Completed),
        MigrationStep::GiveUp if arrived => Some(MigrationState::Completed),
        MigrationStep::GiveUp => Some(MigrationState::Lost),
        MigrationStep::Listen => Some(MigrationState::Listening),
        MigrationStep::Transfer if sent => Some(MigrationState::Completed),
        MigrationStep::Transfer => Some(MigrationState::Active),
        MigrationStep::Cancel | MigrationStep::Resume => Some(MigrationState::Cancelled),
        MigrationStep::Prepare => None,
    }
}

/// What the agent says once it has done what it is told.
fn status(of: &NicAttachment, all: &[NicAttachment]) -> NicAttachmentStatus {
    let deleting = of.metadata.deletion_timestamp.is_some();
    let goal = if deleting { Goal::Detached } else { of.spec.goal };
    let word = word(of, all);
    let mut status = of.status.clone().unwrap_or_default();
    status.migration = of
        .spec
        .migration
        .as_ref()
        .zip(word)
        .map(|(order, state)| MigrationReport {
            uid: order.migration.uid.clone(),
            state,
            port: (state == MigrationState::Listening).then_some(40000),
            error: None,
            kept: false,
            total_ms: None,
            downtime_ms: (order.step == MigrationStep::Transfer && state == MigrationState::Completed)
                .then_some(31),
        });
    let (state, path) = match goal {
        Goal::Detached => (AttachmentState::Detached, Path::None),
        Goal::Reserved => (AttachmentState::Reserved, Path::None),
        Goal::FastPath if word == Some(MigrationState::Listening) => (AttachmentState::Reserved, Path::None),
        Goal::Standby => (AttachmentState::Standby, Path::Standby),
        Goal::FastPath => (AttachmentState::FastPath, Path::FastPath),
    };
    (status.state, status.path) = (state, path);
    status.observed_generation = of.metadata.generation;
    let there = state != AttachmentState::Detached;
    status.vf = there.then(|| VfRef {
        pci_address: "0000:01:10.0".into(),
        pf: "ens1".into(),
        index: 0,
    });
    status.standby = there.then(|| StandbyRef {
        macvtap: "hnic0".into(),
        pf: "ens1".into(),
    });
    status.guest = GuestDevices {
        vf_port: Some("rp1".into()),
        standby_port: Some("rp0".into()),
        ..GuestDevices::default()
    };
    let ready = NewCondition::yes(types::READY, reasons::ATTACHED, "the NIC is where it should be");
    let fast = if path == Path::FastPath {
        NewCondition::yes(types::FAST_PATH, reasons::VF_ACTIVE, "the VF carries the traffic")
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
