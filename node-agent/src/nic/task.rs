//! Drives one NIC: observes, plans, takes a step, reports; waits when there is nothing to do.

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{
        AttachmentState, Goal, GuestDevices, MigrationReport, MigrationStep, NicAttachmentSpec,
        NicAttachmentStatus, OnLinkLoss,
    },
};
use hybridnic_net::MacAddr;
use hybridnic_qmp::Client;
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use super::{
    link_loss::LinkLoss,
    observe::{self, Observation},
    plan::{self, Ask, Decision, Learnt, Step, TRIES},
    quirks,
    report::{self, Facts},
    seen::{QemuSeen, Seen, VfSight},
    steps::{self, Context, ids},
    switch::Switches,
};
use crate::{error::StepError, host::Host, journal::Record, node::pool::Claimant, vm::Vm};

/// The first pause after a step that failed; doubled up to the cap.
const BACKOFF: Duration = Duration::from_secs(1);
/// The longest pause after a step that failed.
const BACKOFF_CAP: Duration = Duration::from_mins(1);
/// How long a VF that could not be used is left alone, where nothing tells that it might now; doubled up to the cap for a
/// guest that does not use it, as each time it may be without network for some seconds.
const TRY_AGAIN: Duration = Duration::from_mins(1);
/// The longest that it is left alone.
const TRY_AGAIN_CAP: Duration = Duration::from_hours(1);

/// What the operator wants of an attachment.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    /// The spec. Goal `Detached` when the object is gone or being deleted.
    pub spec: NicAttachmentSpec,
    /// Its generation; `None` when the spec comes from the journal.
    pub generation: Option<i64>,
}

/// One NIC's task.
#[derive(Debug)]
pub struct NicTask {
    cx: Context,
    wanted: watch::Receiver<Wanted>,
    status: watch::Sender<Option<NicAttachmentStatus>>,
    /// What the API server had before this task has said anything.
    known: Arc<OnceLock<NicAttachmentStatus>>,
    generation: Option<i64>,
    last_error: Option<StepError>,
    /// When what has failed may work again.
    relearn_at: Option<Instant>,
    link_loss: LinkLoss,
    switches: Switches,
    guest: GuestDevices,
    migration: Option<MigrationReport>,
}

impl NicTask {
    /// A task for a record, which may be new or come from the journal (`recorded`).
    pub fn new(
        host: Arc<Host>,
        vm: Arc<Vm>,
        record: Record,
        recorded: bool,
        wanted: watch::Receiver<Wanted>,
        status: watch::Sender<Option<NicAttachmentStatus>>,
        known: Arc<OnceLock<NicAttachmentStatus>>,
    ) -> Result<Self, StepError> {
        let mac: MacAddr = record
            .spec
            .mac
            .parse()
            .map_err(|e: hybridnic_net::ParseMacError| StepError::from_error(reasons::FAILED, &e))?;
        let claimant = Claimant {
            created: record.created,
            nic: record.nic(),
            uid: record.uid.clone(),
        };
        if let Some(vf) = &record.vf {
            host.pools.restore(claimant.clone(), vf.address);
        }
        if let Some(standby) = &record.standby {
            host.pools.note_standby(&record.uid, standby.pf);
        }
        host.macs.insert(&record.uid, mac);
        let (_, interrupt) = watch::channel(0);
        let cx = Context {
            host,
            vm,
            claimant,
            record,
            recorded,
            mac,
            // One that died may have died before the switches were told.
            learnt: Learnt {
                announce: recorded,
                ..Learnt::default()
            },
            sent_at_plug: None,
            disused: false,
            unplug_order: None,
            interrupt,
        };
        Ok(Self {
            cx,
            wanted,
            status,
            known,
            generation: None,
            last_error: None,
            relearn_at: None,
            link_loss: LinkLoss::default(),
            switches: Switches::default(),
            guest: GuestDevices::default(),
            migration: None,
        })
    }

    /// Runs until the NIC has left the node.
    pub async fn run(mut self) {
        let (interrupt, receiver) = watch::channel(0u64);
        self.cx.interrupt = receiver;
        let mut spec_changes = self.wanted.clone();
        let forward = tokio::spawn(async move {
            while spec_changes.changed().await.is_ok() {
                interrupt.send_modify(|n| *n += 1);
            }
        });
        self.drive().await;
        forward.abort();
    }

    /// Waits until QEMU has been tried, and says why where nothing can be before that.
    async fn until_tried(&mut self) {
        let vm = Arc::clone(&self.cx.vm);
        let mut unread = vm.unread();
        loop {
            let generation = self.wanted.borrow_and_update().generation;
            let why = unread.borrow_and_update().clone();
            // Before the object was seen, it is not known what its status was.
            if let (Some(why), Some(_)) = (why, generation) {
                let mut status = self.last_status().unwrap_or_default();
                report::held_back(&mut status, generation, &why, Timestamp::now());
                self.tell(status);
            }
            tokio::select! {
                () = vm.tried() => return,
                // The sender is the VM's: it never closes.
                _ = unread.changed() => {}
                changed = self.wanted.changed() => if changed.is_err() { return vm.tried().await },
            }
        }
    }

    async fn drive(&mut self) {
        self.until_tried().await;
        let mut pulse = self.cx.vm.pulse();
        let mut pools = self.cx.host.pools.subscribe();
        let mut hardware = self.cx.host.hardware.subscribe();
        let mut migration = self.cx.vm.migration_report();
        let mut fresh = pulse.borrow().fresh;
        let (mut backoff, mut try_again) = (BACKOFF, TRY_AGAIN);
        let mut disuse = None;
        loop {
            pools.mark_unchanged();
            hardware.mark_unchanged();
            migration.mark_unchanged();
            self.take_wanted().await;
            let now = *pulse.borrow_and_update();
            if now.fresh != fresh {
                fresh = now.fresh;
                try_again = TRY_AGAIN;
                self.cx.disused = false;
                self.relearn();
            }
            let failed_before = self.cx.learnt.vf_failed.is_some();
            let mut at_rest = false;
            let mut look_at = None;
            match self.round().await {
                Ok(Decision::Do(_)) => {
                    (backoff, disuse) = (BACKOFF, None);
                    if !failed_before {
                        self.last_error = None;
                    }
                    continue;
                }
                Ok(Decision::Done(AttachmentState::Detached)) => return,
                Ok(decision) => {
                    at_rest = decision == Decision::Done(AttachmentState::FastPath);
                    if matches!(&decision, Decision::Wait(wait) if wait.reason == reasons::VF_UNKNOWN) {
                        // Nothing tells when it can be read again.
                        look_at = Some(Instant::now() + backoff);
                        backoff = (backoff * 2).min(BACKOFF_CAP);
                    } else {
                        backoff = BACKOFF;
                    }
                }
                Err(error) => {
                    warn!(
                        namespace = self.cx.record.namespace,
                        nic = self.cx.record.spec.nic.name,
                        node = self.cx.record.spec.node_name,
                        reason = error.reason,
                        error = error.message,
                        "step failed"
                    );
                    self.cx.host.metrics.step_failed(&error);
                    self.last_error = Some(error);
                    self.report(None, None);
                    if self.cx.learnt.vf_failed.is_some() && !failed_before {
                        // The plan knows what to do without the VF: the standby comes first.
                        continue;
                    }
                    // Another may be able to take the VF that this one could not. That it let it go is no news to itself.
                    self.cx.host.pools.stop_waiting(&self.cx.claimant);
                    pools.mark_unchanged();
                    look_at = Some(Instant::now() + backoff);
                    backoff = (backoff * 2).min(BACKOFF_CAP);
                }
            }
            if !at_rest {
                disuse = None;
            }
            self.relearn_at = self.forgets_after(try_again).map(|pause| {
                let at = Instant::now() + pause;
                self.relearn_at.map_or(at, |before| before.min(at))
            });
            let look_at = look_at.into_iter().chain(self.link_loss.next_look()).min();
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                _ = pulse.changed() => {}
                _ = pools.changed() => {}
                _ = hardware.changed() => {}
                _ = migration.changed() => {}
                () = steps::until_disused(&self.cx, &mut disuse), if at_rest => self.leave_vf(),
                () = until(look_at) => {}
                () = until(self.relearn_at) => {
                    if self.cx.learnt.ignores_vf {
                        try_again = (2 * try_again).min(TRY_AGAIN_CAP);
                    }
                    self.relearn();
                }
            }
        }
    }

    /// After which pause what has failed is tried again, where something has; `ignored` for a guest that did not use its VF.
    fn forgets_after(&self, ignored: Duration) -> Option<Duration> {
        let learnt = &self.cx.learnt;
        let stuck = (learnt.keeps_vf || learnt.keeps_standby) && self.cx.record.spec.goal == Goal::Detached;
        if learnt.ignores_vf {
            Some(ignored)
        } else if learnt.vf_failed.is_some() || learnt.not_parked || learnt.mtu_refused || stuck {
            Some(TRY_AGAIN)
        } else {
            None
        }
    }

    /// The guest goes without its VF, and without network: it gets its standby back.
    fn leave_vf(&mut self) {
        warn!(
            namespace = self.cx.record.namespace,
            nic = self.cx.record.spec.nic.name,
            node = self.cx.record.spec.node_name,
            "the guest sends by its standby, and its VF is still"
        );
        self.cx.disused = true;
        self.cx.learnt.ignores_vf = true;
    }

    /// What had failed may work now.
    fn relearn(&mut self) {
        self.relearn_at = None;
        self.cx.learnt = self.cx.learnt.again();
    }

    async fn take_wanted(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        if wanted.spec.goal != self.cx.record.spec.goal {
            info!(
                namespace = self.cx.record.namespace,
                nic = self.cx.record.spec.nic.name,
                node = self.cx.record.spec.node_name,
                from = ?self.cx.record.spec.goal,
                to = ?wanted.spec.goal,
                "goal"
            );
            self.cx
                .vm
                .note(&self.cx.record.uid, format!("Goal {:?}", wanted.spec.goal));
            self.relearn();
            if wanted.spec.goal == Goal::Standby {
                self.cx.unplug_order = None;
            }
        }
        self.generation = wanted.generation.or(self.generation);
        if self.cx.record.spec != wanted.spec {
            if self.cx.record.spec.l2 != wanted.spec.l2 {
                // What a driver refused may be asked for no more.
                self.cx.host.pools.forgive(&self.cx.record.uid);
                self.cx.learnt.vf_failures = 0;
            }
            self.cx.record.spec = wanted.spec;
            // On disk too, so that a restart without an API server goes on with it.
            if self.cx.recorded
                && let Err(error) = self.cx.host.journal.write(&self.cx.record).await
            {
                warn!(
                    namespace = self.cx.record.namespace,
                    nic = self.cx.record.spec.nic.name,
                    node = self.cx.record.spec.node_name,
                    %error,
                    "the journal does not have the new goal"
                );
            }
        }
    }

    /// Observes, decides, reports, and takes the step if there is one.
    async fn round(&mut self) -> Result<Decision, StepError> {
        let mut now = observe::observe(&self.cx.host, &self.cx.vm, &self.cx.record, self.cx.mac).await?;
        self.complete(&mut now).await?;
        self.name(&now);
        if let QemuSeen::Up(guest) = &mut now.seen.qemu {
            guest.uses_vf &= !self.cx.disused;
        }
        let ask = self.ask();
        let decision = plan::next(&ask, &now.seen, &self.cx.learnt);
        let order = plan::order(&ask, &now.seen, &self.cx.learnt);
        if let Some(switch) = self
            .switches
            .look(&ask, &now.seen, order, &decision, Instant::now())
        {
            self.cx.host.metrics.switched(&switch);
            info!(
                namespace = self.cx.record.namespace,
                nic = self.cx.record.spec.nic.name,
                node = self.cx.record.spec.node_name,
                to = ?switch.to,
                order = ?switch.order,
                ok = switch.ok,
                reason = switch.reason,
                took = ?switch.took,
                "switch"
            );
        }
        self.show(&decision);
        if !matches!(decision, Decision::Do(_)) {
            self.settle(&decision, &now);
        }
        // Steps follow each other in milliseconds; what they lead to is reported. A migration's end waits for none.
        let news = self.moves(&now) || *self.cx.vm.migration_report().borrow() != self.migration;
        if news || !matches!(decision, Decision::Do(_)) {
            self.look_at_guest(&now).await;
            self.report(Some(&now), Some(&decision));
        }
        if let Decision::Do(step) = decision {
            let leaves = matches!(step, Step::UnplugVf | Step::RemoveStandby | Step::RestoreVf);
            if leaves && now.seen.there().is_some_and(|vf| vf.dark && !vf.link) {
                self.link_loss.leaves(Instant::now());
            }
            info!(
                namespace = self.cx.record.namespace,
                nic = self.cx.record.spec.nic.name,
                node = self.cx.record.spec.node_name,
                ?step,
                "step"
            );
            self.cx.take(step, &now, order).await?;
        }
        Ok(decision)
    }

    fn settle(&mut self, decision: &Decision, now: &Observation) {
        if matches!(decision, Decision::Wait(w) if w.reason == reasons::VF_UNKNOWN) {
            self.last_error.clone_from(&now.unknown);
            return;
        }
        // A wait that a failed step led to keeps the failure's own words.
        let explained = matches!(decision, Decision::Wait(w) if Some(w.reason) == self.cx.learnt.vf_failed);
        if !explained {
            self.last_error = None;
        }
    }

    fn ask(&self) -> Ask {
        let driver = self.cx.record.vf.as_ref().map_or("", |vf| vf.pf_driver.as_str());
        Ask {
            goal: self.cx.record.spec.goal,
            no_free_vf: self.cx.record.spec.no_free_vf,
            order: quirks::switch_order(driver),
            expected: self
                .cx
                .record
                .spec
                .migration
                .as_ref()
                .is_some_and(|m| matches!(m.step, MigrationStep::Listen | MigrationStep::GiveUp)),
        }
    }

    /// What pool and journal know.
    async fn complete(&mut self, now: &mut Observation) -> Result<(), StepError> {
        now.seen.recorded = self.cx.recorded;
        let pools = &self.cx.host.pools;
        if self.cx.record.vf.is_some() || self.cx.record.spec.goal == Goal::Detached {
            pools.stop_waiting(&self.cx.claimant);
            self.look_elsewhere(now, Instant::now()).await;
            return Ok(());
        }
        let inventory = self
            .cx
            .host
            .inventory()
            .await
            .map_err(|e| e.into_step(reasons::VF_LOST))?;
        let network = &self.cx.record.spec.network;
        let standby_pf = self.cx.record.standby.as_ref().map(|s| s.pf);
        now.seen.uplink = pools.standby_pf(&inventory, network).is_some();
        if could_take_vf(&self.ask(), &now.seen, &self.cx.learnt) {
            now.seen.vf_offered = pools.offers(&inventory, network, &self.cx.claimant, standby_pf);
        } else {
            pools.stop_waiting(&self.cx.claimant);
        }
        Ok(())
    }

    /// Whether the NIC may leave its VF, and there is a better one.
    async fn look_elsewhere(&mut self, now: &mut Observation, time: Instant) {
        let (Some(VfSight::There(seen)), Some(vf)) = (&mut now.seen.vf, &self.cx.record.vf) else {
            return;
        };
        if self.cx.record.spec.goal == Goal::Detached {
            return;
        }
        let stays = self.cx.record.spec.l2.on_link_loss == OnLinkLoss::Stay;
        let dark = self.link_loss.look(vf.pf, seen.link || stays, time);
        seen.dark = dark && !stays;
        let dark = (seen.dark && !seen.link).then_some(vf.pf);
        if dark.is_none() && self.cx.learnt.vf_failures < TRIES {
            return;
        }
        // Without an inventory nothing is known to be better.
        let Ok(inventory) = self.cx.host.inventory().await else {
            return;
        };
        let network = &self.cx.record.spec.network;
        let pools = &self.cx.host.pools;
        now.seen.other_vf = pools.offers_better(&inventory, network, &self.cx.claimant, dark);
    }

    /// Takes the PFs' names as they are now: people read them.
    fn name(&mut self, now: &Observation) {
        let record = &mut self.cx.record;
        if let (Some(vf), Some(pf)) = (&mut record.vf, &now.vf_pf) {
            vf.pf_name.clone_from(&pf.name);
        }
        if let (Some(standby), Some(pf)) = (&mut record.standby, &now.standby_pf) {
            standby.pf_name.clone_from(&pf.name);
        }
    }

    /// Both devices' addresses in the guest.
    async fn look_at_guest(&mut self, now: &Observation) {
        let nic = &self.cx.record.spec.nic.name;
        let ports = self.cx.record.ports.as_ref();
        let mut guest = GuestDevices {
            vf_port: ports.map(|p| p.vf.clone()),
            standby_port: ports.map(|p| p.standby.clone()),
            ..GuestDevices::default()
        };
        if let (Some(client), QemuSeen::Up(seen)) = (&now.client, now.seen.qemu)
            && seen.standby
        {
            guest.standby_pci_address = address(client, &ids::standby(nic)).await;
            if let Some(device) = &now.vf_device {
                guest.vf_pci_address = address(client, device).await;
            }
        }
        self.guest = guest;
    }

    /// Shows the VM's task where the NIC is.
    fn show(&self, decision: &Decision) {
        let record = &self.cx.record;
        let state = match decision {
            Decision::Done(state) => *state,
            Decision::Wait(wait) => wait.state,
            Decision::Do(_) => AttachmentState::Pending,
        };
        let spec = &record.spec;
        let macvtap = record.standby.as_ref().map(|s| s.macvtap.as_str());
        let heard = self.generation.is_some();
        let nics = self.cx.vm.nics();
        let same = nics.get(&record.uid).is_some_and(|shown| {
            shown.state == state
                && shown.goal == spec.goal
                && shown.order == spec.migration
                && shown.heard == heard
                && shown.macvtap.as_deref() == macvtap
                && shown.ports == record.ports
        });
        if !same {
            self.cx.vm.update_nic(&record.uid, |shown| {
                shown.show(record);
                (shown.state, shown.heard) = (state, heard);
            });
        }
    }

    /// Whether the traffic has moved to another device since the last report, or there was none.
    fn moves(&self, now: &Observation) -> bool {
        let path = report::path(&self.facts(Some(now), None));
        self.status.borrow().as_ref().is_none_or(|s| s.path != path)
    }

    fn facts<'a>(&'a self, now: Option<&'a Observation>, decision: Option<&'a Decision>) -> Facts<'a> {
        let shown = self.cx.vm.nics().remove(&self.cx.record.uid).unwrap_or_default();
        Facts {
            record: &self.cx.record,
            generation: self.generation,
            seen: now.map(|n| &n.seen),
            running: now.is_some_and(|n| n.running),
            decision,
            error: self.last_error.as_ref(),
            guest: self.guest.clone(),
            unplug_order: self.cx.unplug_order,
            migration: self.migration.clone(),
            filtered: shown.filtered,
            timeline: shown.timeline,
        }
    }

    fn report(&mut self, now: Option<&Observation>, decision: Option<&Decision>) {
        if let Some(report) = self.cx.vm.migration_report().borrow().clone() {
            self.migration = Some(report);
        }
        if self.generation.is_none() && self.cx.record.spec.migration.is_some() {
            // What the last agent has said stands until it is known.
            return;
        }
        let facts = self.facts(now, decision);
        let old = self.last_status();
        let mut status = report::build(facts, old.as_ref(), Timestamp::now());
        if let (None, Some(old)) = (now, old) {
            // Nothing could be seen: what was true before is the best guess.
            (status.state, status.path) = (old.state, old.path);
            status.migration = status.migration.or(old.migration);
            if status.guest == GuestDevices::default() {
                status.guest = old.guest;
            }
        }
        self.tell(status);
    }

    /// What the NIC's status is now: what was said last, also by an agent before this one.
    fn last_status(&self) -> Option<NicAttachmentStatus> {
        let said = self.status.borrow().clone();
        said.or_else(|| self.known.get().cloned())
    }

    fn tell(&self, status: NicAttachmentStatus) {
        self.status.send_if_modified(|s| {
            let changed = s.as_ref() != Some(&status);
            *s = Some(status);
            changed
        });
    }
}

/// Whether a VF is all that is missing: the plan would take one. A NIC that waits for its QEMU keeps none from others.
fn could_take_vf(ask: &Ask, seen: &Seen, learnt: &Learnt) -> bool {
    let offered = Seen {
        vf_offered: true,
        ..*seen
    };
    seen.vf.is_none()
        && learnt.vf_failed.is_none()
        && plan::next(ask, &offered, learnt) == Decision::Do(Step::Reserve)
}

async fn address(client: &Client, id: &str) -> Option<String> {
    client
        .guest_pci_address(id)
        .await
        .ok()
        .flatten()
        .map(|a| a.to_string())
}

async fn until(time: Option<Instant>) {
    match time {
        Some(time) => tokio::time::sleep_until(time).await,
        None => std::future::pending().await,
    }
}

impl Drop for NicTask {
    fn drop(&mut self) {
        self.cx.host.pools.stop_waiting(&self.cx.claimant);
        self.cx.vm.remove_nic(&self.cx.record.uid);
        self.cx.host.macs.remove(&self.cx.record.uid);
        self.cx.host.pools.forgive(&self.cx.record.uid);
    }
}

#[cfg(test)]
#[path = "task_tests.rs"]
mod tests;
