//! Drives one NIC: observes, plans, takes a step, reports; waits when there is nothing to do.

mod offers;
mod retry;
mod tell;

use std::sync::{Arc, OnceLock};

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{
        AttachmentState, Goal, GuestDevices, MigrationReport, NicAttachmentSpec, NicAttachmentStatus,
    },
};
use hybridnic_net::{MacAddr, ParseMacError};
use jiff::Timestamp;
use tokio::{sync::watch, time::Instant};
use tracing::{info, warn};

use super::{
    ids,
    link_loss::LinkLoss,
    observe::Observation,
    plan::{self, Decision, Learnt, Sends, Step},
    report,
    seen::Offer,
    steps::{self, Context},
    stopwatch::Stopwatch,
    way_home::WayHome,
};
use crate::{
    error::StepError,
    host::Host,
    journal::Record,
    machine::Vm,
    node::ledger::{Claimant, Nic},
};
use retry::Retry;

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
    retry: Retry,
    link_loss: LinkLoss,
    way_home: WayHome,
    stopwatch: Stopwatch,
    guest: GuestDevices,
    migration: Option<MigrationReport>,
    /// Why the NIC takes nothing yet: which device the kubelet has given to its pod is not known, or another NIC still uses that.
    no_ticket: Option<(&'static str, String)>,
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
    ) -> Result<Self, ParseMacError> {
        let mac: MacAddr = record.spec.mac.parse()?;
        let claimant = Claimant {
            created: record.created,
            nic: record.nic(),
            uid: record.uid.clone(),
        };
        let nic = Nic {
            namespace: record.namespace.clone(),
            pod: record.spec.pod.name.clone(),
            pod_uid: record.spec.pod.uid.clone(),
            network: record.spec.network.clone(),
        };
        host.pools.enter(&record.uid, nic);
        if let Some(vf) = &record.vf {
            host.pools.restore(claimant.clone(), vf.address);
        }
        if let Some(standby) = &record.standby {
            host.pools.note_standby(&record.uid, standby.pf);
            // Before the kubelet may give the device to another pod.
            if let Some(pod) = &standby.pod
                && let Err(other) = host.pools.tie(&record.uid, pod.device)
            {
                warn!(device = %pod.device, ?other, "two NICs have the device of one pod in the journal");
            }
        }
        host.macs.insert(&record.uid, mac);
        let way_home = WayHome::new(host.options.home_after);
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
        cx.claim_promise();
        Ok(Self {
            cx,
            wanted,
            status,
            known,
            generation: None,
            last_error: None,
            retry: Retry::default(),
            link_loss: LinkLoss::default(),
            way_home,
            stopwatch: Stopwatch::default(),
            guest: GuestDevices::default(),
            migration: None,
            no_ticket: None,
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
        if let Some(vf) = &self.cx.record.vf {
            self.cx.host.take_over_handouts(vf.address);
        }
        self.until_tried().await;
        let mut pulse = self.cx.vm.pulse();
        let mut pools = self.cx.host.pools.subscribe();
        let mut hardware = self.cx.host.hardware.subscribe();
        let mut sandboxes = self.cx.host.sandboxes.subscribe();
        let mut migration = self.cx.vm.migration_report();
        let mut fresh = pulse.borrow().fresh;
        let mut disuse = None;
        loop {
            pools.mark_unchanged();
            hardware.mark_unchanged();
            sandboxes.mark_unchanged();
            migration.mark_unchanged();
            self.take_wanted().await;
            let now = *pulse.borrow_and_update();
            if now.fresh != fresh {
                fresh = now.fresh;
                self.retry.vm_is_new();
                self.cx.disused = false;
                self.relearn();
            }
            let failed_before = self.cx.learnt.vf_failed.is_some();
            let mut at_rest = false;
            let mut uses = None;
            let mut look_at = None;
            match self.round().await {
                Ok(Decision::Do(_)) => {
                    self.retry.went_well();
                    disuse = None;
                    if !failed_before {
                        self.last_error = None;
                    }
                    continue;
                }
                Ok(Decision::Done(AttachmentState::Detached)) => return,
                Ok(decision) => {
                    at_rest = rests_on_vf(&decision);
                    uses = use_of_vf(&decision).filter(|_| self.ask().is_alone());
                    if matches!(&decision, Decision::Wait(wait) if [reasons::VF_UNKNOWN, reasons::KUBELET_UNREACHABLE].contains(&wait.reason))
                    {
                        // Nothing tells when it can be read again.
                        look_at = Some(self.retry.next());
                    } else {
                        self.retry.went_well();
                    }
                }
                Err(error) => {
                    warn!(reason = error.reason, error = error.message, "step failed");
                    self.cx.host.metrics.step_failed(error.reason);
                    self.hold(&error.message);
                    self.last_error = Some(error);
                    self.report(None, None);
                    if self.cx.learnt.vf_failed.is_some() && !failed_before {
                        // The plan knows what to do without the VF: the standby comes first.
                        continue;
                    }
                    // Another may be able to take the VF that this one could not. Its own release is no news to itself.
                    self.cx.host.pools.stop_waiting(&self.cx.claimant);
                    pools.mark_unchanged();
                    look_at = Some(self.retry.next());
                }
            }
            if !at_rest {
                disuse = None;
            }
            let ask = self.ask();
            self.retry.set(&self.cx.learnt, &ask);
            let later = [self.link_loss.next_look(), self.way_home.next_look()];
            let look_at = look_at.into_iter().chain(later.into_iter().flatten()).min();
            tokio::select! {
                changed = self.wanted.changed() => if changed.is_err() { return },
                _ = pulse.changed() => {}
                _ = pools.changed() => {}
                _ = hardware.changed() => {}
                _ = sandboxes.changed() => {}
                _ = migration.changed() => {}
                sends = steps::until_disused(&self.cx, &mut disuse), if at_rest => self.leave_vf(sends),
                () = until_other_use(&self.cx, uses) => self.relearn(),
                () = until(look_at) => {}
                () = until(self.retry.relearn_at()) => self.relearn(),
            }
        }
    }

    /// The guest does not use its VF, and has no network: it gets its standby back.
    fn leave_vf(&mut self, sends: Sends) {
        warn!(?sends, "the guest sends by its standby, which is down");
        self.cx.disused = true;
        self.cx.learnt.ignores_vf = Some(sends);
    }

    /// Reports why the pod's sandbox waits for its link, in case it waits too long.
    fn hold(&self, why: &str) {
        if let Some(ifname) = ids::ifname(&self.cx.record.spec) {
            self.cx
                .host
                .sandboxes
                .hold(&self.cx.record.spec.pod.uid, &ifname, why);
        }
    }

    /// What had failed may work now.
    fn relearn(&mut self) {
        self.retry.forget();
        self.cx.learnt = self.cx.learnt.again();
    }

    async fn take_wanted(&mut self) {
        let wanted = self.wanted.borrow_and_update().clone();
        let (old, new) = (&self.cx.record.spec, &wanted.spec);
        if (new.goal, new.aside) != (old.goal, old.aside) {
            let aside = |spec: &NicAttachmentSpec| spec.aside.map(<&str>::from);
            info!(
                from = %old.goal,
                to = %new.goal,
                aside = aside(new),
                "goal"
            );
            if new.goal != old.goal {
                self.cx.note(format!("Goal {}", new.goal));
            }
            if new.aside != old.aside {
                self.cx.note(format!("Told {}", aside(new).unwrap_or("Auto")));
            }
            if plan::goal(new) == Goal::Standby && plan::goal(old) != Goal::Standby {
                self.cx.unplug_order = None;
            }
            self.relearn();
        }
        self.generation = wanted.generation.or(self.generation);
        if self.cx.record.spec != wanted.spec {
            if self.cx.record.spec.l2 != wanted.spec.l2 {
                // What a driver refused may be asked for no more.
                self.cx.host.pools.forgive(&self.cx.record.uid);
                self.cx.learnt.vf_failures = 0;
            }
            self.cx.record.spec = wanted.spec;
            self.cx.claim_promise();
            // On disk too, so that a restart without an API server goes on with it.
            if self.cx.recorded
                && let Err(error) = self.cx.host.journal.write(&self.cx.record).await
            {
                warn!(
                    %error,
                    "the journal does not have the new goal"
                );
            }
        }
    }

    /// Observes, decides, reports, and takes the step if there is one.
    async fn round(&mut self) -> Result<Decision, StepError> {
        let observed = self.observe().await?;
        let offer = self.offer(&observed.seen(Offer::default())).await?;
        let now = observed.with(offer);
        self.name(&now);
        let ask = self.ask();
        let mut decision = plan::next(&ask, &now.seen, &self.cx.learnt);
        self.explain(&mut decision).await;
        if let Some(why) = decision.withholds()
            && now.seen.sandbox_waits
        {
            self.hold(why);
        }
        let order = plan::switch_order(&ask, &now.seen, &self.cx.learnt);
        if let Some(switch) = self
            .stopwatch
            .follow(&ask, &now.seen, order, &decision, Instant::now())
        {
            self.cx.host.metrics.switched(&switch);
            info!(
                to = %switch.to,
                order = %switch.order,
                ok = switch.ok,
                reason = switch.reason,
                took = ?switch.took,
                "switch"
            );
        }
        self.show(&now, &decision);
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
            info!(%step, "step");
            self.cx.take(step, &now, order).await?;
        }
        Ok(decision)
    }

    fn settle(&mut self, decision: &Decision, now: &Observation) {
        if matches!(decision, Decision::Wait(w) if w.reason == reasons::VF_UNKNOWN) {
            self.last_error.clone_from(&now.unknown);
            return;
        }
        // A wait after a failed step keeps the failure's own message.
        let explained = matches!(decision, Decision::Wait(w) if Some(w.reason) == self.cx.learnt.vf_failed);
        if !explained {
            self.last_error = None;
        }
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
}

/// Whether the NIC stays on its VF for now: reached, or kept there by its guest. Only then the guest may stop using it unnoticed.
fn rests_on_vf(decision: &Decision) -> bool {
    match decision {
        Decision::Done(state) => *state == AttachmentState::FastPath,
        Decision::Wait(wait) => {
            wait.state == AttachmentState::FastPath && wait.reason == reasons::GUEST_KEEPS_VF
        }
        Decision::Do(_) => false,
    }
}

/// Whether the guest uses its VF, where the NIC rests for as long as that stays so.
fn use_of_vf(decision: &Decision) -> Option<bool> {
    match decision {
        Decision::Done(AttachmentState::FastPath) => Some(true),
        Decision::Wait(wait) if wait.reason == reasons::GUEST_IGNORES_VF => Some(false),
        // Of these two the guest may or may not use it.
        Decision::Wait(wait) if [reasons::GUEST_KEEPS_VF, reasons::VF_UNKNOWN].contains(&wait.reason) => None,
        Decision::Wait(wait) => (wait.state == AttachmentState::FastPath).then_some(true),
        Decision::Done(_) | Decision::Do(_) => None,
    }
}

async fn until_other_use(cx: &Context, uses: Option<bool>) {
    match uses {
        Some(uses) => steps::until_use_changes(cx, uses).await,
        None => std::future::pending().await,
    }
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
        self.cx.host.pools.leave(&self.cx.record.uid);
    }
}

#[cfg(test)]
mod tests;
