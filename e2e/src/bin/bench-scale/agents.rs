//! All agents of the cluster: they do at once what they are told, and report it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use futures::future::join_all;
use hybridnic_api::conditions::{self, NewCondition, reasons, types};
use hybridnic_api::names::{AGENT_MANAGER, ATTACHMENT_FINALIZER};
use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, GuestDevices, MigrationOrder, MigrationReport, MigrationState, MigrationStep,
    NicAttachment, NicAttachmentStatus, Path, StandbyRef, VfRef,
};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Value, json};

use crate::say;

/// What the agents have seen of time.
#[derive(Clone, Debug, Default)]
pub struct Times {
    /// From the answer to a report on a migration to the next order for the VM: where it is without its VFs,
    pub urgent: Vec<Duration>,
    /// and elsewhere.
    pub others: Vec<Duration>,
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

/// A VM's attachments by name, and what its agents are at.
#[derive(Default)]
struct Vm {
    attachments: HashMap<String, NicAttachment>,
    reported: Option<Reported>,
    /// Whether somebody reports; and whether there is more to report.
    busy: bool,
    again: bool,
}

/// A report on a migration, and when it was answered.
#[derive(Default)]
struct Reported(Option<Instant>);

impl Agents {
    /// Starts them.
    pub fn start(client: Client) -> Self {
        let this = Self(Arc::default());
        let agents = this.clone();
        tokio::spawn(async move {
            let config = watcher::Config::default();
            let events = watcher(Api::<NicAttachment>::all(client.clone()), config).default_backoff();
            let mut events = std::pin::pin!(events);
            while let Some(event) = events.next().await {
                match event {
                    Ok(watcher::Event::Apply(a) | watcher::Event::InitApply(a)) => agents.seen(&client, a),
                    Ok(watcher::Event::Delete(a)) => {
                        agents.known().vm(&a).attachments.remove(&a.name_any());
                    }
                    Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
                    Err(error) => say(&format!("the agents' watch: {error}")),
                }
            }
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

    /// An attachment has changed. Each VM's agents go on by themselves: nobody waits for those of another.
    fn seen(&self, client: &Client, attachment: NicAttachment) {
        let key = key(&attachment);
        let mut known = self.known();
        known.put(attachment);
        let vm = known.vms.entry(key.clone()).or_default();
        vm.again = true;
        if std::mem::replace(&mut vm.busy, true) {
            return;
        }
        drop(known);
        let (agents, client) = (self.clone(), client.clone());
        tokio::spawn(async move {
            while let Some(all) = agents.to_report(&key) {
                join_all(all.iter().map(|one| agents.report(&client, one, &all))).await;
            }
        });
    }

    /// The VM's attachments, if there is something new of them.
    fn to_report(&self, vm: &str) -> Option<Vec<NicAttachment>> {
        let mut known = self.known();
        let vm = known.vms.get_mut(vm)?;
        vm.busy = std::mem::take(&mut vm.again);
        vm.busy.then(|| vm.attachments.values().cloned().collect())
    }

    async fn report(&self, client: &Client, of: &NicAttachment, all: &[NicAttachment]) {
        let held = of.finalizers().iter().any(|f| f == ATTACHMENT_FINALIZER);
        let deleting = of.metadata.deletion_timestamp.is_some();
        if !held {
            if !deleting {
                let finalizers = json!({"metadata": {"finalizers": [ATTACHMENT_FINALIZER]}});
                let taken = self.write(client, of, finalizers).await;
                if let Some(now) = taken {
                    self.put(now);
                }
            }
            return;
        }
        let status = reported_status(of, all);
        if of.status.as_ref() != Some(&status) {
            let migrates = of.spec.migration.is_some();
            if migrates {
                self.known().vm(of).reported = Some(Reported::default());
            }
            let said = self.write(client, of, json!({"status": status})).await;
            if let Some(reported) = self.known().vm(of).reported.as_mut().filter(|_| migrates) {
                *reported = Reported(Some(Instant::now()));
            }
            if let Some(now) = said {
                self.put(now);
            }
        } else if deleting && status.state == AttachmentState::Detached {
            self.write(client, of, json!({"metadata": {"finalizers": []}}))
                .await;
        }
    }

    fn put(&self, attachment: NicAttachment) {
        let mut known = self.known();
        let key = key(&attachment);
        known.put(attachment);
        known.vms.entry(key).or_default().again = true;
    }

    /// Gives the attachment as it is then.
    async fn write(&self, client: &Client, of: &NicAttachment, part: Value) -> Option<NicAttachment> {
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
            Ok(now) => {
                self.known().times.writes.push(begun.elapsed());
                Some(now)
            }
            // It is gone already: another report of this one was faster.
            Err(kube::Error::Api(status)) if status.is_not_found() || status.is_conflict() => None,
            Err(error) => {
                say(&format!("an agent's write: {error}"));
                None
            }
        }
    }
}

impl Known {
    fn vm(&mut self, attachment: &NicAttachment) -> &mut Vm {
        self.vms.entry(key(attachment)).or_default()
    }

    /// What is newer takes the place of what was.
    fn put(&mut self, attachment: NicAttachment) {
        let version = |a: &NicAttachment| a.resource_version().and_then(|v| v.parse::<u64>().ok());
        let vm = self.vm(&attachment);
        let before = vm.attachments.get(&attachment.name_any());
        if before.is_some_and(|before| version(before) >= version(&attachment)) {
            return;
        }
        let ordered = before.is_none_or(|before| before.spec != attachment.spec);
        let reported = vm.reported.take_if(|_| ordered);
        let order = attachment.spec.migration.as_ref().map(|order| order.step);
        let sends = attachment.spec.goal == Goal::Standby && order == Some(MigrationStep::Transfer);
        vm.attachments.insert(attachment.name_any(), attachment);
        let since = |Reported(answered)| answered.map_or(Duration::ZERO, |at| at.elapsed());
        let times = if sends {
            &mut self.times.urgent
        } else {
            &mut self.times.others
        };
        times.extend(reported.map(since));
    }
}

/// Namespace and name of an attachment's VM.
fn key(attachment: &NicAttachment) -> String {
    format!(
        "{}/{}",
        attachment.namespace().unwrap_or_default(),
        attachment.spec.vm.name()
    )
}

/// The word of QEMU on a migration.
fn word(of: &NicAttachment, all: &[NicAttachment]) -> Option<MigrationState> {
    let sent = all.iter().any(|other| {
        let order = other.spec.migration.as_ref();
        order.is_some_and(|order| order.step == MigrationStep::Transfer && order.target_uri.is_some())
    });
    let said = of.status.as_ref().and_then(|status| status.migration.as_ref());
    let arrived = said.is_some_and(|report| report.state == MigrationState::Completed);
    let order = of.spec.migration.as_ref()?;
    match order.step {
        MigrationStep::Listen if sent || arrived => Some(MigrationState::Completed),
        MigrationStep::GiveUp if arrived => Some(MigrationState::Completed),
        MigrationStep::GiveUp => Some(MigrationState::Lost),
        MigrationStep::Listen => Some(MigrationState::Listening),
        MigrationStep::Transfer if sent => Some(MigrationState::Completed),
        MigrationStep::Transfer => Some(MigrationState::Active),
        MigrationStep::Cancel | MigrationStep::Resume => Some(MigrationState::Cancelled),
        MigrationStep::Prepare if order.tls.is_some() => Some(MigrationState::Prepared),
        MigrationStep::Prepare | MigrationStep::Watch | MigrationStep::Save | MigrationStep::Load => None,
    }
}

/// How the other end would know this one.
fn certificate(order: &MigrationOrder, state: MigrationState) -> Option<String> {
    let says = matches!(state, MigrationState::Prepared | MigrationState::Listening);
    (says && order.tls.is_some()).then(|| "the certificate of a CA".to_owned())
}

/// What the agent says once it has done what it is told.
fn reported_status(of: &NicAttachment, all: &[NicAttachment]) -> NicAttachmentStatus {
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
            port: (state == MigrationState::Listening).then_some(40000),
            downtime_ms: (order.step == MigrationStep::Transfer && state == MigrationState::Completed)
                .then_some(31),
            ca: certificate(order, state),
            ..MigrationReport::new(&order.migration.uid, state)
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
