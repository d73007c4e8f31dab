//! What the steps of one NIC work on.

use std::sync::Arc;

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{Aside, SwitchOrder},
};
use hybridnic_net::{MacAddr, dev::VfioNodes, sysfs::Inventory};
use tokio::sync::watch;

use super::super::plan::{Learnt, TRIES};
use crate::{
    error::HasReason,
    host::Host,
    journal::{JournalError, Loan, Record},
    machine::{Owner, Vm},
    node::{
        choice::Pick,
        ledger::{Claimant, Ticket},
        select,
    },
};

/// What the steps of one NIC work on.
#[derive(Debug)]
pub struct Context {
    /// The node.
    pub host: Arc<Host>,
    /// The VM.
    pub vm: Arc<Vm>,
    /// The NIC that asks.
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
    /// Whether the guest has the VF and was seen not to use it. Until the next plug.
    pub disused: bool,
    /// The order of the last switch from VF to standby.
    pub unplug_order: Option<SwitchOrder>,
    /// Resolves when the spec changes: a wait for the guest ends then.
    pub interrupt: watch::Receiver<u64>,
}

impl Context {
    /// Changes the record: on disk first, so that it stays as it was if that fails.
    pub(super) async fn commit(&mut self, change: impl FnOnce(&mut Record)) -> Result<(), JournalError> {
        let mut record = self.record.clone();
        change(&mut record);
        self.host.journal.write(&record).await?;
        self.record = record;
        self.recorded = true;
        Ok(())
    }

    /// Reports whether the NIC wants the VF that comes with its pod's device.
    pub fn claim_promise(&self) {
        let gives_back = self.record.spec.aside == Some(Aside::GiveVfBack);
        self.host.pools.set_gives_back(&self.record.uid, gives_back);
    }

    /// Which VF will do: the one whose group the pod has; otherwise one of the PF of its device, as for its standby.
    pub fn pick(&self, inventory: &Inventory) -> Pick {
        match self.loan() {
            Some(loan) => Pick::Exactly(loan.vf.address),
            None => self.pick_standby(inventory),
        }
    }

    /// Which PF will do for a standby: the one of which the kubelet has given the pod a device, unless the NIC may leave it and that PF
    /// has no link or is drained.
    pub fn pick_standby(&self, inventory: &Inventory) -> Pick {
        let (pools, network) = (&self.host.pools, &self.record.spec.network);
        match pools.ticket(&self.record.uid) {
            Some(Ticket::Device { id, tied: false })
                if pools.is_drained(network, id.pf()) || select::is_dark(inventory, id.pf()) =>
            {
                Pick::Any
            }
            Some(Ticket::Device { id, .. }) => Pick::OnPf(id.pf()),
            Some(Ticket::None) | None => Pick::Any,
        }
    }

    /// The VF whose group the pod was given for this NIC.
    pub fn loan(&self) -> Option<Loan> {
        match self.host.pools.ticket(&self.record.uid)? {
            Ticket::Device { id, .. } => self.host.pools.loan_by(id),
            Ticket::None => None,
        }
    }

    /// Why the VM can have no VF: its QEMU would open the VF's group by its path, and the pod does not have it.
    pub fn lacks_group(&self) -> Option<String> {
        let by_path = self.host.offers.nodes() == VfioNodes::Groups;
        // A plain pod may have all of /dev.
        if !by_path || self.vm.duties().standby != Owner::Runtime || self.loan().is_some() {
            return None;
        }
        match self.host.pools.ticket(&self.record.uid)? {
            Ticket::Device { id, .. } => Some(format!(
                "this node's kernel has vfio groups only, and the VM's pod has got none with its device {id}: it is a standby slot, or the \
                 pod is older than the agent; the NIC stays on its standby until the VM is restarted or migrated"
            )),
            Ticket::None => Some(
                "this node's kernel has vfio groups only, and the VM's pod has got none, as it has no device for this NIC; the NIC stays on \
                 its standby until the VM is restarted or migrated"
                    .to_owned(),
            ),
        }
    }

    /// Which VF will do in place of its own: if nothing ties the NIC to its PF it may leave it: the scheduler has counted
    /// it there, but a link is worth more. A pod that has one VF's group can have no other VF.
    pub fn pick_elsewhere(&self) -> Pick {
        if let Some(loan) = self.loan() {
            return Pick::Exactly(loan.vf.address);
        }
        match self.host.pools.ticket(&self.record.uid) {
            Some(Ticket::Device { id, tied: true }) => Pick::OnPf(id.pf()),
            Some(Ticket::Device { .. } | Ticket::None) | None => Pick::Any,
        }
    }

    /// Notes that the VF could not be made ready; one that fails again and again is given back when another is available.
    pub(super) fn vf_failed<E: HasReason>(&mut self, error: E) -> E {
        self.learnt.vf_failed = Some(error.reason());
        // One that cannot be read may be as good as any; nor is it the VF's fault that the VM has no port for it.
        let counts = ![reasons::VF_UNKNOWN, reasons::NO_GUEST_PORT].contains(&error.reason());
        self.learnt.vf_failures = self.learnt.vf_failures.saturating_add(counts.into());
        if self.learnt.vf_failures >= TRIES
            && let Some(vf) = &self.record.vf
        {
            self.host.pools.avoid(&self.record.uid, vf.address);
        }
        error
    }

    /// Notes in the timeline that something has happened.
    pub fn note(&self, event: impl Into<String>) {
        self.vm.note(&self.record.uid, event);
    }
}
