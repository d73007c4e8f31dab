//! One VM on this node: the session with its runtime, which all of its NICs share, and its migration.
//!
//! | module | does | touches |
//! |---|---|---|
//! | `by_runtime` | passes on what a NIC asks of its [`Machine`] | what the runtime touches |
//! | [`duties`] | whether agent or runtime does each part | nothing |
//! | [`events`] | what a VM does by itself | nothing |
//! | [`guest`] | words for what is seen, asked and handed over | nothing |
//! | [`home`] | where QEMU runs, in a pod or on the host, and what is proof of its process there | nothing |
//! | [`socket`] | opens a VM's QMP socket, following nothing that others could have planted | the socket's directory |
//! | [`listener`] | holds the process behind the socket, which must be the VM's | `/proc` |
//! | [`cgroup`] | tells from control groups whether a process belongs to a pod | nothing |
//! | [`residents`] | tells whether a pod has processes | `/proc` |
//! | [`process`] | tells whether a QEMU's process has ended | `/proc` |
//! | [`handover`] | silences the NICs before the VM leaves, starts the VM when it has arrived | macvtaps, QEMU, the journal |
//! | [`qemu`] | talks to QEMU | QEMU, and by [`handover`] macvtaps |
//! | [`kubevirt`] | talks to the QEMU of a launcher of KubeVirt | the same |

mod by_runtime;
pub mod cgroup;
pub mod duties;
pub mod error;
pub mod events;
pub mod guest;
pub mod handover;
pub mod home;
pub mod kubevirt;
pub mod listener;
pub mod process;
pub mod qemu;
pub mod residents;
pub mod socket;
mod stat;

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use hybridnic_api::{
    limits,
    v1alpha1::{
        AttachmentState, Goal, GuestPorts, MigrationOrder, MigrationReport, MigrationState, Pairing, Runtime,
        StandbyKind, TimelineEntry,
    },
};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use tokio::sync::watch;

use crate::{
    error::bounded,
    journal::{Begun, Custody, Journal, JournalError, Record, VmRecord},
    links::LinkAt,
    nic::ids,
};
pub use duties::{Duties, Owner};
pub use error::MachineError;
pub use events::{Moment, VmEvent};
pub use guest::{LetGo, MachineSeen, PlugPath, Run, StandbyPlug, VfDescriptors, VfPlug};
use home::Home;
use kubevirt::Launcher;
use listener::Listener;
use process::ProcessId;
pub use qemu::migration::FileSeen;
pub use qemu::rx_filter::Beyond;
use qemu::{Qemu, dial};
use socket::Offence;

/// A session with what runs a VM. Clones share it.
#[derive(Clone, Debug)]
pub enum Machine {
    /// A QEMU that the pod runs itself.
    Qemu(Qemu),
    /// The QEMU of a launcher of KubeVirt.
    Kubevirt(Launcher),
}

/// The state of a VM's session.
#[derive(Clone, Debug)]
pub enum Session {
    /// No process listens on the socket, and no QEMU that was known here lives: none has started yet, or it has ended.
    Gone,
    /// A QEMU may be there, but cannot be talked to; says why.
    Unreachable(String),
    /// It has sent so many events that it is not listened to for a while.
    Flooding,
    /// What is at the socket's place is not talked to.
    Untrusted(Offence),
    /// QEMU answers.
    Up(Machine),
}

/// What a NIC's standby does with what the guest asks it to receive.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filtered {
    /// What no macvtap does.
    pub beyond: Beyond,
    /// Why the list could not be changed; it is tried again.
    pub failed: Option<String>,
}

/// What a NIC shows to its VM.
#[derive(Clone, Debug, Default)]
pub struct NicEntry {
    /// The NIC's name.
    pub nic: String,
    /// Its VM's name.
    pub vm: String,
    /// Its MAC address.
    pub mac: String,
    /// Where its standby's macvtap is, as the journal has it.
    pub macvtap: Option<LinkAt>,
    /// Id of its standby device in QEMU.
    pub standby_device: String,
    /// What it has besides its VF.
    pub standby: StandbyKind,
    /// How the guest pairs VF and standby.
    pub pairing: Pairing,
    /// Where it is.
    pub state: AttachmentState,
    /// Where the operator wants it.
    pub goal: Goal,
    /// What the operator wants of the VM's migration.
    pub order: Option<MigrationOrder>,
    /// Whether that is what the API server has, and not only what the journal remembers.
    pub heard: bool,
    /// The guest's ports that it has.
    pub ports: Option<GuestPorts>,
    /// Whether the guest has, or is about to get, its VF.
    pub vf: bool,
    /// What its standby does with what the guest asks it to receive.
    pub filtered: Filtered,
    /// What happened to it.
    pub timeline: Vec<TimelineEntry>,
}

impl NicEntry {
    /// Takes over what a NIC's record says.
    pub fn show(&mut self, record: &Record) {
        self.nic.clone_from(&record.spec.nic.name);
        record.spec.vm.name().clone_into(&mut self.vm);
        self.mac.clone_from(&record.spec.mac);
        // A standby that is shut stays shut when the VM arrives.
        let is_shut = record
            .standby
            .as_ref()
            .is_some_and(|standby| standby.seized.is_some());
        self.macvtap = LinkAt::of(record).filter(|_| !is_shut);
        self.standby_device = ids::standby(&record.spec);
        self.standby = record.spec.standby;
        self.pairing = record.spec.pairing;
        self.goal = record.spec.goal;
        self.order.clone_from(&record.spec.migration);
        self.ports = record.known_ports().cloned();
    }
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
    /// What runs it.
    pub runtime: Runtime,
    /// Where its QEMU runs.
    pub home: Home,
    /// `None` until QEMU has been tried: it is neither there nor gone.
    session: watch::Sender<Option<Session>>,
    /// Why what the journal has of it cannot be read.
    unread: watch::Sender<Option<String>>,
    pulse: watch::Sender<Pulse>,
    nics_changed: watch::Sender<u64>,
    report: watch::Sender<Option<MigrationReport>>,
    nics: Mutex<BTreeMap<String, NicEntry>>,
    record: Mutex<VmRecord>,
    /// The process that the session is with.
    peer: Mutex<Option<Listener>>,
    /// The migration whose stream QEMU cannot encrypt, and why.
    no_tls: Mutex<Option<(String, String)>>,
    /// What is known of the file of an order, by the uid of what it was ordered for.
    file: Mutex<Option<(String, FileSeen)>>,
    /// The connection that QEMU sends the VM by, until it knows its peer. It outlives a session.
    handshake: Mutex<Option<dial::Handshake>>,
    /// Held while the VM is started here, or its QEMU is ended: only one of the two may happen.
    pub fate: tokio::sync::Mutex<()>,
    /// Held while ports are chosen and used, so that two NICs do not choose the same.
    pub choosing_ports: tokio::sync::Mutex<()>,
    /// Held while QEMU takes a VF.
    pub plugging: tokio::sync::Mutex<()>,
}

impl Vm {
    /// A VM in a pod, of which nothing is known yet.
    pub fn new(runtime: Runtime, namespace: &str, pod: &str, pod_uid: &str) -> Self {
        Self::at(Home::pod(runtime, pod_uid), runtime, namespace, pod, pod_uid)
    }

    /// The same, of a VM whose QEMU runs there. On the host that has a name and a uid in place of a pod's.
    pub fn at(home: Home, runtime: Runtime, namespace: &str, pod: &str, pod_uid: &str) -> Self {
        Self {
            home,
            runtime,
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            pod_uid: pod_uid.to_owned(),
            session: watch::Sender::new(None),
            unread: watch::Sender::default(),
            pulse: watch::Sender::default(),
            nics_changed: watch::Sender::default(),
            report: watch::Sender::default(),
            nics: Mutex::default(),
            record: Mutex::default(),
            peer: Mutex::default(),
            no_tls: Mutex::default(),
            file: Mutex::default(),
            handshake: Mutex::default(),
            fate: tokio::sync::Mutex::default(),
            choosing_ports: tokio::sync::Mutex::default(),
            plugging: tokio::sync::Mutex::default(),
        }
    }

    /// Whether agent or runtime does each part for its NICs.
    pub fn duties(&self) -> Duties {
        match (&self.home, self.runtime) {
            (Home::Host { .. }, _) => Duties::HOST,
            (_, Runtime::Qemu) => Duties::QEMU,
            (_, Runtime::Kubevirt) => kubevirt::DUTIES,
        }
    }

    /// Whether the VM was seen to run in the QEMU that is talked to.
    pub fn has_run(&self) -> bool {
        locked(&self.record).ran
    }

    /// With a session, for tests.
    #[cfg(test)]
    pub(crate) fn with_session(self, session: Session) -> Self {
        self.set_session(session);
        self
    }

    /// The session as it is now.
    pub fn session(&self) -> Session {
        let session = self.session.borrow().clone();
        session.unwrap_or_else(|| Session::Unreachable("it has not been tried yet".to_owned()))
    }

    /// Resolves when QEMU has been tried. Acting before that might take a VF from a QEMU that is there.
    pub async fn tried(&self) {
        // It is never closed: we hold the sender.
        let _ = self.session.subscribe().wait_for(Option::is_some).await;
    }

    /// Why QEMU has not been tried: what the journal has of the VM cannot be read. Resolves when that changes.
    pub fn unread(&self) -> watch::Receiver<Option<String>> {
        self.unread.subscribe()
    }

    /// Resolves when something happened that a NIC should look at.
    pub fn pulse(&self) -> watch::Receiver<Pulse> {
        self.pulse.subscribe()
    }

    /// How the VM's migration goes; resolves when that changes.
    pub fn migration_report(&self) -> watch::Receiver<Option<MigrationReport>> {
        self.report.subscribe()
    }

    /// What the journal has of it.
    pub fn record(&self) -> VmRecord {
        locked(&self.record).clone()
    }

    /// What the journal has of a migration that was begun here, and whether that was in the QEMU that is talked to now. What it
    /// has about an earlier one says nothing about this one. Without a uid: about the last one.
    pub fn begun(&self, migration: &str) -> (Option<Begun>, bool) {
        let is_it = |begun: &Begun| migration.is_empty() || begun.migration == migration;
        let begun = self.record().begun.filter(is_it);
        let peer = self.peer();
        // If the kernel names no process, two cannot be told apart.
        let same = begun
            .as_ref()
            .is_none_or(|begun| begun.process.is_none() || begun.process == peer);
        (begun, same)
    }

    /// The process that is talked to, or was last; `None` before the first.
    pub fn peer(&self) -> Option<ProcessId> {
        locked(&self.peer).as_ref().map(|peer| peer.id().clone())
    }

    /// Lets the process that is talked to lock memory without limit.
    pub fn unlimit_locked_memory(&self) -> std::io::Result<()> {
        locked(&self.peer)
            .as_ref()
            .map_or(Ok(()), Listener::unlimit_locked_memory)
    }

    /// Reads what the journal has of it.
    async fn recall(&self, journal: &Journal) -> Result<(), JournalError> {
        *locked(&self.record) = journal.vm(&self.pod_uid).await?.unwrap_or_default();
        Ok(())
    }

    /// Changes what the journal has of it; true on disk before it is true here.
    async fn remember(
        &self,
        journal: &Journal,
        change: impl FnOnce(&mut VmRecord),
    ) -> Result<(), JournalError> {
        let mut record = self.record();
        change(&mut record);
        if record == *locked(&self.record) {
            return Ok(());
        }
        journal.write_vm(&self.pod_uid, &record).await?;
        *locked(&self.record) = record;
        Ok(())
    }

    /// Where the VM is, for a migration that was begun here to send it away.
    pub fn custody(&self, migration: &str) -> Custody {
        let begun = self.record().begun.filter(|begun| begun.migration == migration);
        begun.map(|begun| begun.custody).unwrap_or_default()
    }

    fn set_peer(&self, peer: Option<Listener>) {
        *locked(&self.peer) = peer;
    }

    /// Notes where the VM is; true on disk before it is true here.
    async fn set_custody(&self, journal: &Journal, custody: Custody) -> Result<(), JournalError> {
        let note = |record: &mut VmRecord| {
            if let Some(begun) = &mut record.begun {
                begun.custody = custody;
            }
        };
        self.remember(journal, note).await
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

    /// Reports how the migration goes. An error stays as long as the state in which it occurred.
    fn set_report(&self, mut report: MigrationReport) {
        // QEMU's own words, and a guest may have taken QEMU over.
        report.error = report.error.map(|error| bounded(&error));
        let changed = self.report.send_if_modified(|old| {
            let same = old
                .as_ref()
                .filter(|old| old.uid == report.uid && old.state == report.state);
            if let (None, Some(old)) = (&report.error, same) {
                report.error.clone_from(&old.error);
            }
            let changed = old.as_ref() != Some(&report);
            *old = Some(report);
            changed
        });
        if changed {
            self.beat(false);
        }
    }

    /// Takes over what an earlier agent has said of the migration: it stands until there is something new to say.
    pub fn said_before(&self, said: &MigrationReport) {
        self.report.send_if_modified(|now| {
            let stands = stands_against(now.as_ref(), said);
            if !stands {
                let error = said.error.as_deref().map(bounded);
                *now = Some(MigrationReport {
                    error,
                    ..said.clone()
                });
            }
            !stands
        });
    }

    /// Reports that a step of the migration was not taken, and whether the migration is over because of it. It is in `state` if
    /// nothing was reported about it yet.
    fn report_error(&self, migration: &str, error: String, over: bool, state: MigrationState) {
        let last = self.report.borrow().clone();
        let last = last
            .filter(|report| report.uid == migration)
            .unwrap_or_else(|| MigrationReport::new(migration, state));
        self.set_report(MigrationReport {
            state: if over { MigrationState::Failed } else { last.state },
            error: Some(error),
            kept: over,
            total_ms: None,
            downtime_ms: None,
            ..last
        });
    }

    /// The NICs, by the uid of their attachment.
    pub fn nics(&self) -> BTreeMap<String, NicEntry> {
        locked(&self.nics).clone()
    }

    /// Changes what a NIC shows; its VM's task is told.
    pub fn update_nic(&self, uid: &str, change: impl FnOnce(&mut NicEntry)) {
        change(locked(&self.nics).entry(uid.to_owned()).or_default());
        self.nics_changed.send_modify(|n| *n += 1);
    }

    /// Shows what a NIC's standby receives; its task hears about a change.
    fn show_filtered(&self, uid: &str, filtered: Filtered) {
        let mut nics = self.nics.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = nics.get_mut(uid).is_some_and(|nic| {
            let changed = nic.filtered != filtered;
            nic.filtered = filtered;
            changed
        });
        drop(nics);
        if changed {
            self.beat(false);
        }
    }

    /// What is known of the file of an order; `None` before it was looked at.
    pub fn file(&self, uid: &str) -> Option<FileSeen> {
        let known = locked(&self.file).clone();
        known.filter(|(of, _)| of == uid).map(|(_, seen)| seen)
    }

    /// Notes what is known of the file of an order; the NICs may have waited for it.
    fn set_file(&self, uid: &str, seen: FileSeen) {
        *locked(&self.file) = Some((uid.to_owned(), seen));
        self.beat(true);
    }

    /// Removes a NIC that has left.
    pub fn remove_nic(&self, uid: &str) {
        locked(&self.nics).remove(uid);
        self.nics_changed.send_modify(|n| *n += 1);
    }

    /// Notes that something happened to a NIC now.
    pub fn note(&self, uid: &str, event: impl Into<String>) {
        let entry = TimelineEntry {
            event: limits::word(&event.into()),
            at: MicroTime(Timestamp::now()),
        };
        let mut nics = locked(&self.nics);
        if let Some(nic) = nics.get_mut(uid) {
            nic.timeline.push(entry);
            let excess = nic.timeline.len().saturating_sub(limits::TIMELINE);
            nic.timeline.drain(..excess);
        }
    }
}

/// Whether this agent's report about a migration stands, although an earlier agent has reported this.
pub fn stands_against(now: Option<&MigrationReport>, said: &MigrationReport) -> bool {
    now.is_some_and(|now| now.uid != said.uid || now.state.is_final() || !said.state.is_final())
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_earlier_migration_in_a_qemu_that_has_ended_is_no_obstacle_to_another() {
        let process = |pid| ProcessId {
            boot: "b".into(),
            pid,
            start: 1,
        };
        let vm = Vm::new(Runtime::Qemu, "ns", "a", "a-uid");
        let begun = Begun {
            migration: "m1".into(),
            process: Some(process(1)),
            arrival: None,
            custody: Custody::Unknown,
            saving: None,
        };
        locked(&vm.record).begun = Some(begun.clone());
        vm.set_peer(Some(Listener::pretend(process(2))));
        assert_eq!(vm.begun("m1"), (Some(begun), false));
        assert_eq!(vm.begun("m2"), (None, true));
        assert!(vm.begun("").0.is_some());
    }
}
