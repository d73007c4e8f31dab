//! One VM on this node: its QMP session, which all of its NICs share, and its migration.
//!
//! | module | does | touches |
//! |---|---|---|
//! | [`socket`] | opens a pod's QMP socket, following nothing that the pod could have planted | the socket's directory |
//! | [`migration`] | decides what a migration needs next | nothing |
//! | [`handover`] | silences the NICs before the VM leaves, wakes them when it has come | macvtaps, QEMU |
//! | [`task`] | keeps the session, and takes the migration's steps | the others |

pub mod handover;
pub mod migration;
pub mod socket;
pub mod task;

use std::{
    collections::BTreeMap,
    sync::{Mutex, PoisonError},
};

use hybridnic_api::v1alpha1::{AttachmentState, GuestPorts, MigrationOrder, MigrationReport, TimelineEntry};
use hybridnic_qmp::Client;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::sync::watch;

/// How many things that happened are kept for each NIC.
const TIMELINE: usize = 40;

/// The state of a VM's QMP session.
#[derive(Clone, Debug)]
pub enum Session {
    /// Nobody listens on the socket: QEMU has not started, or has ended.
    Gone,
    /// Somebody may, but cannot be talked to; says why.
    Unreachable(String),
    /// QEMU answers.
    Up(Client),
}

/// What a NIC shows to its VM.
#[derive(Clone, Debug, Default)]
pub struct NicEntry {
    /// The NIC's name.
    pub nic: String,
    /// Index of its standby's macvtap, once made.
    pub macvtap: Option<u32>,
    /// Id of its standby device in QEMU.
    pub standby_device: String,
    /// Where it is.
    pub state: AttachmentState,
    /// What the operator wants of the VM's migration.
    pub order: Option<MigrationOrder>,
    /// The guest's ports that it has.
    pub ports: Option<GuestPorts>,
    /// What happened to it.
    pub timeline: Vec<TimelineEntry>,
}

/// Counts of what happened, so that waiters see that something did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pulse {
    /// Anything that a NIC should look at.
    pub any: u64,
    /// Things after which a NIC should try again what had failed: the guest started, resumed, or spoke.
    pub fresh: u64,
}

/// A VM, shared by its task and its NICs' tasks.
#[derive(Debug)]
pub struct Vm {
    /// Namespace of its pod.
    pub namespace: String,
    /// Its pod's name.
    pub pod: String,
    /// Its pod's uid.
    pub pod_uid: String,
    /// `None` until QEMU has been tried: it is neither there nor gone.
    session: watch::Sender<Option<Session>>,
    pulse: watch::Sender<Pulse>,
    nics_changed: watch::Sender<u64>,
    report: watch::Sender<Option<MigrationReport>>,
    nics: Mutex<BTreeMap<String, NicEntry>>,
    /// Held while ports are chosen and used, so that two NICs do not choose the same.
    pub choosing_ports: tokio::sync::Mutex<()>,
    /// Held while QEMU takes a VF.
    pub plugging: tokio::sync::Mutex<()>,
}

impl Vm {
    /// A VM of which nothing is known yet.
    pub fn new(namespace: &str, pod: &str, pod_uid: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            pod_uid: pod_uid.to_owned(),
            session: watch::Sender::new(None),
            pulse: watch::Sender::default(),
            nics_changed: watch::Sender::default(),
            report: watch::Sender::default(),
            nics: Mutex::default(),
            choosing_ports: tokio::sync::Mutex::default(),
            plugging: tokio::sync::Mutex::default(),
        }
    }

    /// The session as it is now.
    pub fn session(&self) -> Session {
        let session = self.session.borrow().clone();
        session.unwrap_or_else(|| Session::Unreachable("it has not been tried yet".to_owned()))
    }

    /// Resolves when QEMU has been tried. Who acts before might take a VF from one that is there.
    pub async fn tried(&self) {
        // It is never closed: we hold the sender.
        let _ = self.session.subscribe().wait_for(Option::is_some).await;
    }

    /// Resolves when something happened that a NIC should look at.
    pub fn pulse(&self) -> watch::Receiver<Pulse> {
        self.pulse.subscribe()
    }

    /// How the VM's migration goes; resolves when that changes.
    pub fn migration_report(&self) -> watch::Receiver<Option<MigrationReport>> {
        self.report.subscribe()
    }

    fn beat(&self, fresh: bool) {
        self.pulse.send_modify(|p| {
            p.any += 1;
            p.fresh += u64::from(fresh);
        });
    }

    fn set_session(&self, session: Session) {
        self.session.send_replace(Some(session));
        self.beat(true);
    }

    fn set_report(&self, report: MigrationReport) {
        let changed = self.report.send_if_modified(|old| {
            let changed = old.as_ref() != Some(&report);
            *old = Some(report);
            changed
        });
        if changed {
            self.beat(false);
        }
    }

    /// The NICs, by the uid of their attachment.
    pub fn nics(&self) -> BTreeMap<String, NicEntry> {
        self.nics.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what a NIC shows; its VM's task is told.
    pub fn update_nic(&self, uid: &str, change: impl FnOnce(&mut NicEntry)) {
        change(
            self.nics
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .entry(uid.to_owned())
                .or_default(),
        );
        self.nics_changed.send_modify(|n| *n += 1);
    }

    /// Removes a NIC that has left.
    pub fn remove_nic(&self, uid: &str) {
        self.nics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
        self.nics_changed.send_modify(|n| *n += 1);
    }

    /// Notes that something happened to a NIC now.
    pub fn note(&self, uid: &str, event: impl Into<String>) {
        let entry = TimelineEntry {
            event: event.into(),
            at: MicroTime(Timestamp::now()),
        };
        let mut nics = self.nics.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nic) = nics.get_mut(uid) {
            nic.timeline.push(entry);
            let excess = nic.timeline.len().saturating_sub(TIMELINE);
            nic.timeline.drain(..excess);
        }
    }
}
