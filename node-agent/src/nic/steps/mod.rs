//! The effects: one function for each [`Step`]. Each writes the journal before it acts, and can be taken again.

mod guest;
mod reserve;
mod standby;
mod vf;

pub use guest::until_disused;
pub use standby::VLAN_PREFIX;

use std::{sync::Arc, time::Instant};

use hybridnic_api::{conditions::reasons, v1alpha1::SwitchOrder};
use hybridnic_net::MacAddr;
use hybridnic_qmp::Client;
use tokio::sync::watch;

use super::{
    observe::Observation,
    plan::{Learnt, Step, TRIES},
};
use crate::{error::StepError, host::Host, journal::Record, machine::Vm, node::pool::Claimant, trace};

/// The ids of a NIC's devices in QEMU.
pub mod ids {
    /// The standby.
    pub fn standby(nic: &str) -> String {
        format!("sb-{nic}")
    }

    /// The standby's netdev.
    pub fn netdev(nic: &str) -> String {
        format!("hn-{nic}")
    }

    /// The VF at its `plug`-th plug: QEMU may still remember an id that it has seen.
    pub fn vf(nic: &str, plug: u32) -> String {
        format!("vf-{nic}-g{plug}")
    }

    /// Whether an id is that of the NIC's VF, at any plug.
    pub fn is_vf(id: &str, nic: &str) -> bool {
        id.strip_prefix("vf-")
            .and_then(|rest| rest.strip_prefix(nic))
            .and_then(|rest| rest.strip_prefix("-g"))
            .is_some_and(|n| !n.is_empty() && n.bytes().all(|b| b.is_ascii_digit()))
    }

    /// The macvtap: at most 15 octets, the same each time it is made for an attachment.
    pub fn macvtap(attachment_uid: &str) -> String {
        let short: String = attachment_uid
            .chars()
            .filter(char::is_ascii_alphanumeric)
            .take(11)
            .collect();
        format!("hn{short}")
    }

    #[cfg(test)]
    mod tests {
        #[test]
        fn one_nic_is_not_taken_for_another() {
            assert!(super::is_vf(&super::vf("a", 3), "a"));
            assert!(!super::is_vf(&super::vf("a-g1", 3), "a"));
            assert!(!super::is_vf("vf-a-g", "a"));
            assert!(super::macvtap("0b2e7c1d-90aa-4f6e-8d2f-000000000001").len() <= 15);
        }
    }
}

/// What the steps of one NIC work on.
#[derive(Debug)]
pub struct Context {
    /// The node.
    pub host: Arc<Host>,
    /// The VM.
    pub vm: Arc<Vm>,
    /// Who asks.
    pub claimant: Claimant,
    /// What is held; on disk whenever a step acts.
    pub record: Record,
    /// Whether the record is on disk.
    pub recorded: bool,
    /// The NIC's MAC.
    pub mac: MacAddr,
    /// What earlier steps have taught.
    pub learnt: Learnt,
    /// Packets that the standby had sent at the last plug of the VF.
    pub sent_at_plug: Option<u64>,
    /// Whether the guest has the VF and was seen to go without it. Until the next plug.
    pub disused: bool,
    /// The order of the last switch from VF to standby.
    pub unplug_order: Option<SwitchOrder>,
    /// Resolves when the spec changes: a wait for the guest ends then.
    pub interrupt: watch::Receiver<u64>,
}

impl Context {
    /// Changes the record: on disk first, so that it is as it was where that fails.
    async fn commit(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), StepError> {
        let mut record = self.record.clone();
        change(&mut record);
        self.host
            .journal
            .write(&record)
            .await
            .map_err(|e| StepError::from_error(reasons::JOURNAL_FAILED, &e))?;
        self.record = record;
        self.recorded = true;
        Ok(())
    }

    /// Notes that the VF could not be made ready; one that fails again and again is given back when another is to be had.
    fn vf_failed(&mut self, error: StepError) -> StepError {
        self.learnt.vf_failed = Some(error.reason);
        // One that cannot be read may be as good as any.
        let counts = error.reason != reasons::VF_UNKNOWN;
        self.learnt.vf_failures = self.learnt.vf_failures.saturating_add(counts.into());
        if self.learnt.vf_failures >= TRIES
            && let Some(vf) = &self.record.vf
        {
            self.host.pools.avoid(&self.record.uid, vf.address);
        }
        error
    }

    fn note(&self, event: impl Into<String>) {
        self.vm.note(&self.record.uid, event);
    }

    /// Takes a step.
    pub async fn take(&mut self, step: Step, now: &Observation, order: SwitchOrder) -> Result<(), StepError> {
        let began = Instant::now();
        let span = trace::begin(format!("{step:?}"));
        let done = self.act(step, now, order).await;
        let error = done.as_ref().err().map(ToString::to_string);
        span.end(&self.host, self.record.spec.migration.as_ref(), error, || {
            vec![
                ("k8s.namespace.name", self.record.namespace.clone()),
                ("hybridnic.nic", self.record.spec.nic.name.clone()),
                (
                    "hybridnic.vf",
                    self.record
                        .vf
                        .as_ref()
                        .map(|vf| vf.address.to_string())
                        .unwrap_or_default(),
                ),
            ]
        });
        if !done? {
            return Ok(());
        }
        self.host.metrics.step_taken(step, began.elapsed());
        self.note(format!("{step:?}"));
        Ok(())
    }

    /// Whether the step was taken: where it has to wait for its turn, a change of the spec comes first.
    async fn act(&mut self, step: Step, now: &Observation, order: SwitchOrder) -> Result<bool, StepError> {
        match step {
            Step::Reserve => reserve::reserve(self).await?,
            Step::Bind => vf::bind(self).await?,
            Step::Park => vf::park(self).await?,
            Step::DropVf => vf::drop_lost(self).await?,
            Step::ConfigureVf => vf::configure(self, now).await?,
            Step::RestoreVf => vf::restore(self).await?,
            Step::RaiseMtu => standby::raise_mtu(self, now).await,
            Step::MakeStandby => standby::make(self).await?,
            Step::GuardStandby => standby::guard(self, now).await?,
            Step::SeizeStandby => standby::seize(self, now).await?,
            Step::StandbyUp => standby::up(self, now).await?,
            Step::StandbyDown => standby::down(self, now).await?,
            Step::RemoveStandby => standby::remove(self).await?,
            Step::MoveStandby => standby::move_to_vf(self).await?,
            Step::PlugStandby => guest::plug_standby(self, client(now)?).await?,
            Step::UnplugStandby => guest::unplug_standby(self, client(now)?).await?,
            Step::PlugVf => return guest::plug_vf(self, client(now)?).await,
            Step::AwaitGuest => guest::await_guest(self).await?,
            Step::UnplugVf => {
                self.unplug_order = Some(order);
                guest::unplug_vf(self, client(now)?, now.vf_device.as_deref()).await?;
            }
            Step::Announce => guest::announce(self, client(now)?).await?,
            Step::QuitQemu => guest::quit(self, client(now)?).await?,
            Step::Forget => self.forget().await?,
        }
        Ok(true)
    }

    async fn forget(&mut self) -> Result<(), StepError> {
        self.host
            .journal
            .remove(&self.record.uid)
            .await
            .map_err(|e| StepError::from_error(reasons::JOURNAL_FAILED, &e))?;
        self.recorded = false;
        Ok(())
    }
}

fn client(now: &Observation) -> Result<&Client, StepError> {
    now.client
        .as_ref()
        .ok_or_else(|| StepError::new(reasons::QMP_UNAVAILABLE, "the VM's QEMU does not answer"))
}

#[cfg(test)]
mod tests;
