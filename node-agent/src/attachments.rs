//! Runs a task for each attachment that should be here, with a `Reporter` that sends its reports.
//!
//! The API server is needed for news only: while it is away, tasks work with the specs that they have, a
//! restart takes them from the journal, and reports wait.

mod reporter;

use std::{
    collections::{BTreeSet, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{AttachmentState, Goal, NicAttachmentStatus},
};
use jiff::Timestamp;
use reporter::Reporter;
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument as _, error, error_span, info, warn};

use crate::{
    error::chain,
    host::Host,
    journal::{Contents, Record, Unreadable, VERSION},
    machine::{self, Vm, home::Home},
    nic::{
        report,
        task::{NicTask, Wanted},
    },
    node::ledger::Claimant,
    sockets::Sockets,
    wants::{Heard, Want, WantId, Wants, Word},
};

struct Running {
    wanted: watch::Sender<Wanted>,
    pod_uid: String,
    task: JoinHandle<()>,
    /// Its task has come to its end, and not to a panic.
    over: Arc<AtomicBool>,
    _reporter: AbortOnDropHandle<()>,
    deleting: watch::Sender<bool>,
    /// What its task has said last.
    said: watch::Receiver<Option<NicAttachmentStatus>>,
    /// Its object's status when it was seen first.
    known: Arc<OnceLock<NicAttachmentStatus>>,
    /// Seen in the list that is being received.
    listed: bool,
    /// Its object is gone.
    gone: bool,
}

struct RunningVm {
    vm: Arc<Vm>,
    _task: AbortOnDropHandle<()>,
}

/// All attachments of this node.
pub struct Attachments<W> {
    wants: W,
    host: Arc<Host>,
    sockets: Sockets,
    running: HashMap<String, Running>,
    /// Records of attachments that cannot be read, by the attachment's uid.
    unreadable: HashMap<String, Unreadable>,
    vms: HashMap<String, RunningVm>,
    /// Uids of the pods whose VMs the journal may remember something about.
    remembered: BTreeSet<String>,
    progress: Progress,
}

/// How far the agent is after its start.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// Whether every record of the journal has its task.
    pub resumed: watch::Sender<bool>,
    /// Whether everything that should be here was heard of once.
    pub listed: watch::Sender<bool>,
}

impl<W: Wants> Attachments<W> {
    /// Nothing runs yet.
    pub fn new(wants: W, host: Arc<Host>, sockets: Sockets, progress: Progress) -> Self {
        Self {
            wants,
            host,
            sockets,
            running: HashMap::new(),
            unreadable: HashMap::new(),
            vms: HashMap::new(),
            remembered: BTreeSet::new(),
            progress,
        }
    }

    /// Goes on with what the journal has, then follows what is heard.
    pub async fn run(mut self, journal: Contents) {
        self.remembered = journal.vms;
        for unreadable in journal.unreadable {
            self.hold_back(unreadable);
        }
        for record in journal.records {
            info!(
                namespace = record.namespace,
                nic = record.spec.nic.name,
                node = record.spec.node_name,
                goal = ?record.spec.goal,
                "resumed from the journal"
            );
            let wanted = Wanted {
                spec: record.spec.clone(),
                generation: None,
            };
            self.start(record, true, wanted, false, OnceLock::new());
        }
        self.progress.resumed.send_replace(true);
        let mut ended = tokio::time::interval(Duration::from_secs(30));
        loop {
            tokio::select! {
                heard = self.wants.next() => match heard {
                    Some(heard) => self.on_heard(heard),
                    None => return,
                },
                _ = ended.tick() => self.sweep(),
            }
        }
    }

    /// A record that cannot be read: what is held for its NIC stays as it is, and no NIC gets its VF.
    fn hold_back(&mut self, unreadable: Unreadable) {
        let what = format!("record {}", unreadable.uid);
        self.host
            .troubles
            .begin(&what, reasons::JOURNAL_FAILED, unreadable.to_string());
        if let Some(vf) = unreadable.vf {
            let claimant = Claimant {
                created: 0,
                nic: unreadable.nic.clone().unwrap_or_else(|| what.clone()),
                uid: unreadable.uid.clone(),
            };
            self.host.pools.restore(claimant, vf);
        }
        self.unreadable.insert(unreadable.uid.clone(), unreadable);
    }

    /// Reports that an attachment's record cannot be read, and leaves the rest of its status as it was: the devices are
    /// where they were.
    fn report_unreadable(&self, want: &Want, unreadable: &Unreadable) {
        let mut status = want.status.clone().unwrap_or_default();
        let message = format!(
            "{unreadable}. Nothing is changed for this NIC until an agent that can read the record runs here. A damaged record may be \
             given up: end the VM first, then remove the file and restart the agent. While the VM runs, a NIC whose record is gone \
             loses its network"
        );
        report::held_back(&mut status, want.generation, &message, Timestamp::now());
        if want.status.as_ref() == Some(&status) {
            return;
        }
        let reporter = Reporter::new(self.wants.teller(&want.id));
        // It ends with its write; a newer one of the same object says the same.
        tokio::spawn(async move { reporter.patiently(&Word::Status(&status)).await });
    }

    fn on_heard(&mut self, heard: Heard) {
        match heard {
            Heard::Begins => self.running.values_mut().for_each(|r| r.listed = false),
            Heard::Wanted(want) => self.on_want(*want),
            Heard::Ends => {
                let gone: Vec<String> = self
                    .running
                    .iter()
                    .filter(|(_, r)| !r.listed)
                    .map(|(uid, _)| uid.clone())
                    .collect();
                for uid in gone {
                    self.on_gone(&uid);
                }
                self.progress.listed.send_replace(true);
            }
            Heard::Gone(uid) => self.on_gone(&uid),
        }
        self.sweep();
    }

    fn on_want(&mut self, want: Want) {
        let uid = want.id.uid.clone();
        if let Some(unreadable) = self.unreadable.get(&uid) {
            return self.report_unreadable(&want, unreadable);
        }
        self.hear(&want);
        let Want {
            id,
            created,
            mut spec,
            socket,
            generation,
            deleting,
            status,
        } = want;
        if deleting {
            spec.goal = Goal::Detached;
        }
        let wanted = Wanted { spec, generation };
        if let Some(running) = self.running.get_mut(&uid)
            && !running.task.is_finished()
        {
            running.listed = true;
            running.deleting.send_replace(deleting);
            // Before the task hears that there is an object.
            if let Some(status) = status {
                let _ = running.known.set(status);
            }
            running.wanted.send_if_modified(|w| {
                let changed = *w != wanted;
                *w = wanted;
                changed
            });
            return;
        }
        if let Some(running) = self.running.get_mut(&uid)
            && wanted.spec.goal == Goal::Detached
            && has_left(running.said.borrow().as_ref(), wanted.generation, deleting)
        {
            // It has left already; the reporter repeats that until the object is gone.
            running.listed = true;
            running.deleting.send_replace(deleting);
            return;
        }
        if let Some(running) = self.running.get_mut(&uid)
            && !running.over.load(Ordering::Acquire)
        {
            // What it has is in the journal, which the next agent reads. A new task without a record would report that it has nothing.
            running.listed = true;
            return error!(
                namespace = id.namespace,
                attachment = id.name,
                "the task of this NIC has panicked, and nothing more happens to it: restart this agent"
            );
        }
        self.running.remove(&uid);
        let record = Record {
            version: VERSION,
            namespace: id.namespace,
            name: id.name,
            uid,
            created,
            spec: wanted.spec.clone(),
            socket,
            vf: None,
            standby: None,
            ports: None,
            plugs: 0,
        };
        let known = status.map(OnceLock::from).unwrap_or_default();
        self.start(record, false, wanted, deleting, known);
    }

    /// What was said of the VM's migration stands as long as there is nothing new to say.
    fn hear(&self, want: &Want) {
        let (order, status) = (&want.spec.migration, &want.status);
        let said = status.as_ref().and_then(|status| status.migration.as_ref());
        if let (Some(order), Some(said)) = (order, said)
            && order.migration.uid == said.uid
            && let Some(running) = self.vms.get(&want.spec.pod.uid)
        {
            running.vm.said_before(said);
        }
    }

    /// The object is gone, whatever its finalizer said: nothing of it may be left.
    fn on_gone(&mut self, uid: &str) {
        if let Some(running) = self.running.get_mut(uid) {
            running.gone = true;
            running.wanted.send_modify(|w| w.spec.goal = Goal::Detached);
        }
    }

    fn start(
        &mut self,
        record: Record,
        recorded: bool,
        wanted: Wanted,
        deleting: bool,
        known: OnceLock<NicAttachmentStatus>,
    ) {
        let uid = record.uid.clone();
        let vm = self.vm(&record);
        // At once, not only after its task has looked: a hand-over may come before that.
        vm.update_nic(&uid, |shown| shown.show(&record));
        let pod_uid = vm.pod_uid.clone();
        let (wanted_tx, wanted_rx) = watch::channel(wanted);
        let (status_tx, status_rx) = watch::channel(None);
        let (deleting_tx, deleting_rx) = watch::channel(deleting);
        let id = WantId {
            namespace: record.namespace.clone(),
            name: record.name.clone(),
            uid: uid.clone(),
        };
        let reporter = Reporter::new(self.wants.teller(&id));
        let (namespace, nic) = (record.namespace.clone(), record.spec.nic.name.clone());
        let known = Arc::new(known);
        let told = Arc::clone(&known);
        let host = Arc::clone(&self.host);
        let task = match NicTask::new(host, vm, record, recorded, wanted_rx, status_tx, told) {
            Ok(task) => task,
            Err(error) => {
                let error = chain(&error);
                return warn!(namespace, nic, uid, error, "this attachment cannot be understood");
            }
        };
        let (finalizer_tx, mut finalizer_rx) = watch::channel(recorded);
        let said = status_rx.clone();
        let reporter = tokio::spawn(reporter.run(status_rx, deleting_rx, finalizer_tx));
        // At any log level, because the fields belong to errors too.
        let span = error_span!("nic", namespace, nic, node = self.host.options.node_name);
        let over = Arc::new(AtomicBool::new(false));
        let ended = Arc::clone(&over);
        let run = async move {
            // Nothing is taken before the object is sure to stay until it is given back.
            if finalizer_rx.wait_for(|set| *set).await.is_ok() {
                task.run().await;
            }
            ended.store(true, Ordering::Release);
        };
        let task = tokio::spawn(run.instrument(span));
        let running = Running {
            wanted: wanted_tx,
            pod_uid,
            task,
            over,
            _reporter: AbortOnDropHandle::new(reporter),
            deleting: deleting_tx,
            said,
            known,
            listed: true,
            gone: false,
        };
        self.running.insert(uid, running);
    }

    fn vm(&mut self, record: &Record) -> Arc<Vm> {
        let (pod, runtime) = (&record.spec.pod, record.spec.vm.runtime());
        self.remembered.insert(pod.uid.clone());
        let running = self.vms.entry(pod.uid.clone()).or_insert_with(|| {
            let home = Home::of(record);
            let followed = self
                .sockets
                .follow(home.clone(), &record.namespace, &pod.name, &pod.uid);
            let vm = Vm::at(home, runtime, &record.namespace, &pod.name, &pod.uid);
            let vm = Arc::new(vm);
            let run = machine::qemu::session::run(Arc::clone(&vm), Arc::clone(&self.host), followed);
            let span = error_span!("vm", namespace = record.namespace, pod = pod.name);
            let task = tokio::spawn(run.instrument(span));
            RunningVm {
                vm,
                _task: AbortOnDropHandle::new(task),
            }
        });
        Arc::clone(&running.vm)
    }

    /// Lets go of VMs that have no NIC left here. What is remembered of one stays as long as there is an attachment to its pod:
    /// the result of its migration may be asked for again, and must be the same answer then.
    fn sweep(&mut self) {
        self.running.retain(|_, r| !(r.gone && r.task.is_finished()));
        let unfinished = self.running.values().filter(|r| !r.task.is_finished());
        let used: BTreeSet<&str> = unfinished.map(|r| r.pod_uid.as_str()).collect();
        self.vms.retain(|uid, _| used.contains(uid.as_str()));
        // Before the list was read, attachments that no longer have a record are not known; and nobody knows
        // which VM an unreadable record is about.
        if !*self.progress.listed.borrow() || !self.unreadable.is_empty() {
            return;
        }
        let there: BTreeSet<&str> = self.running.values().map(|r| r.pod_uid.as_str()).collect();
        let over: Vec<String> = self
            .remembered
            .iter()
            .filter(|uid| !there.contains(uid.as_str()))
            .cloned()
            .collect();
        for uid in over {
            self.remembered.remove(&uid);
            self.host.keys.forget(&uid);
            // Its turn is before that of whatever comes next.
            let cleared = self.host.journal.remove_vm(&uid);
            tokio::spawn(async move {
                if let Err(error) = cleared.await {
                    warn!(%error, "the journal keeps a migration that is over");
                }
            });
        }
    }
}

/// Whether a task that has ended has reported that its NIC has left, about the object as it is now. A task from the journal may have
/// ended before it knew the object.
fn has_left(said: Option<&NicAttachmentStatus>, generation: Option<i64>, deleting: bool) -> bool {
    said.is_some_and(|said| {
        let is_current = said.observed_generation == generation;
        said.state == AttachmentState::Detached && (is_current || deleting)
    })
}

#[cfg(test)]
#[path = "attachments_tests.rs"]
mod tests;
