//! The effects: one function for each [`Step`]. Each writes the journal before it acts, and can be taken again.

mod alone;
mod announce;
mod context;
mod descriptors;
mod guest;
mod pod_link;
mod port;
mod reserve;
mod standby;
mod vf;

pub use alone::until_use_changes;
pub use context::Context;
pub use guest::until_disused;
pub use standby::VLAN_PREFIX;

use std::time::Instant;

use hybridnic_api::v1alpha1::SwitchOrder;
use hybridnic_net::netlink::PortRequest;

use super::{observe::Observation, plan::Step};
use crate::{
    error::StepError,
    journal::JournalError,
    machine::{Machine, MachineError},
    trace,
};

impl Context {
    /// Takes a step.
    pub async fn take(&mut self, step: Step, now: &Observation, order: SwitchOrder) -> Result<(), StepError> {
        let began = Instant::now();
        let span = trace::begin(<&str>::from(step));
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
        self.note(step.to_string());
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
            Step::Preassociate => return Ok(port::ask(self, PortRequest::Preassociate).await?),
            Step::Associate => return Ok(port::ask(self, PortRequest::Associate).await?),
            Step::Disassociate => return Ok(port::ask(self, PortRequest::Disassociate).await?),
            Step::RestoreVf if !port::free(self).await? => return Ok(false),
            Step::RestoreVf => vf::restore(self).await?,
            Step::RaiseMtu => standby::raise_mtu(self, now).await,
            Step::MakeStandby => standby::make(self).await?,
            Step::GuardStandby => standby::guard(self, now).await?,
            Step::SeizeStandby => standby::seize(self, now).await?,
            Step::StandbyUp => standby::up(self, now).await?,
            Step::StandbyDown => standby::down(self, now).await?,
            Step::RemoveStandby => standby::remove(self).await?,
            Step::MoveStandby => standby::move_to_vf(self).await?,
            Step::AnswerSandbox => pod_link::answer(self, now),
            Step::PlugStandby => guest::plug_standby(self, machine(now)?).await?,
            Step::UnplugStandby => guest::unplug_standby(self, machine(now)?).await?,
            Step::PlugVf => return Ok(guest::plug_vf(self, machine(now)?).await?),
            Step::AwaitGuest => guest::await_guest(self).await?,
            Step::UnplugVf => {
                self.unplug_order = Some(order);
                guest::unplug_vf(self, machine(now)?, now.vf_device.as_deref()).await?;
            }
            Step::Announce => announce::from_standby(self, machine(now)?).await?,
            Step::QuitQemu => guest::quit(self, machine(now)?).await?,
            Step::Forget => self.forget().await?,
        }
        Ok(true)
    }

    async fn forget(&mut self) -> Result<(), JournalError> {
        self.host.journal.remove(&self.record.uid).await?;
        self.recorded = false;
        Ok(())
    }
}

fn machine(now: &Observation) -> Result<&Machine, MachineError> {
    let silent = || MachineError::Gone("the VM's QEMU does not answer".to_owned());
    now.machine.as_ref().ok_or_else(silent)
}

#[cfg(test)]
mod tests;
