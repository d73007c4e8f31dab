//! What has to be done at once when a VM of KubeVirt stands still, or runs again; and what is reported about its migration.
//!
//! Between the pause at the source and the start at the target libvirt does not ask the agent. So at each pause the standby goes
//! down, no matter why the VM pauses, and it is up where the VM runs. A VM that stands still loses nothing while its standby is down.

use std::time::Duration;

use hybridnic_qmp::Client;
use tracing::{info, warn};

use super::{
    super::{
        Moment, Session, Vm, VmEvent, handover,
        process::ProcessId,
        qemu,
        qemu::migration::{VmSeen, agreed},
    },
    watch::{self, LauncherSeen, Missed},
};
use crate::{error::chain, host::Host, journal::VmRecord};

/// How soon to look again at what could not be seen.
const AGAIN: Duration = Duration::from_secs(1);
/// How often a migration is looked at though no event has come.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// Does what an event asks for; whether there may be something new to say.
pub(in super::super) async fn on_event(vm: &Vm, host: &Host, client: &Client, event: VmEvent) -> bool {
    match event {
        VmEvent::Stopped
        | VmEvent::Migration {
            moment: Moment::HandingOver | Moment::Sending,
            ..
        } => {
            silence(vm, host).await;
            vm.beat(false);
            true
        }
        VmEvent::Resumed => {
            wake(vm, host, client).await;
            note_run(vm, host).await;
            vm.beat(true);
            true
        }
        VmEvent::Migration { moment, .. } => {
            if matches!(moment, Moment::Completed | Moment::Over) {
                vm.beat(false);
            }
            true
        }
        // While a VM is being loaded its devices send events too, and QEMU is too busy to answer.
        VmEvent::Reset | VmEvent::FailoverNegotiated if !vm.has_run() => false,
        VmEvent::Reset | VmEvent::FailoverNegotiated => {
            vm.beat(true);
            true
        }
        // Its standbys tell by `FailoverNegotiated`.
        VmEvent::Receives => false,
        VmEvent::ShutDown | VmEvent::Unplugged => {
            vm.beat(false);
            true
        }
    }
}

async fn silence(vm: &Vm, host: &Host) {
    if let Err(error) = handover::silence(vm, &*host.macvtaps).await {
        // Nothing can be called off: libvirt does not wait for us.
        warn!(
            error = chain(&error),
            "the VM stands still, and not all of its standbys are down"
        );
    }
}

async fn wake(vm: &Vm, host: &Host, client: &Client) {
    if let Err(error) = handover::wake(vm, &*host.macvtaps).await {
        // The NICs' own tasks try again.
        warn!(
            error = chain(&error),
            "the VM runs, and not all of its standbys are up"
        );
    }
    let nics = vm.nics();
    let on_standby = nics.values().filter(|nic| !nic.vf);
    let devices: Vec<&str> = on_standby.map(|nic| nic.standby_device.as_str()).collect();
    if devices.is_empty() {
        return;
    }
    if let Err(error) = qemu::announce(client, &devices).await {
        warn!(error = chain(&error), "the switches are not told where the VM is");
    }
}

/// The VM runs in this QEMU: from now on it is here, also when it stands still.
async fn note_run(vm: &Vm, host: &Host) {
    let process = vm.peer();
    let note = |record: &mut VmRecord| {
        record.is_of(process);
        record.ran = true;
    };
    if let Err(error) = vm.remember(&host.journal, note).await {
        warn!(
            error = chain(&error),
            "after a restart the agent may take the VM for one that has not come yet"
        );
    }
}

/// Looks at the VM, and reports how its migration goes; returns when to look again even without an event.
pub(in super::super) async fn drive(vm: &Vm, host: &Host, client: Option<&Client>) -> Option<Duration> {
    let seen = match client {
        None => None,
        Some(client) => match qemu::see_vm(client).await {
            Ok(seen) => Some(seen),
            Err(error) => {
                warn!(error = chain(&error), "cannot see the VM's migration");
                return Some(AGAIN);
            }
        },
    };
    if let Some(seen) = &seen {
        settle(vm, host, seen).await;
    }
    let order = agreed(&vm.nics())?;
    let is_off = watch::is_off(order.step)?;
    let peer = vm.peer();
    let launcher = LauncherSeen {
        seen: seen.as_ref(),
        peer: peer.as_ref(),
        gone: matches!(vm.session(), Session::Gone),
    };
    let told = watch::told(order.step, vm.nics().values().map(|nic| nic.goal));
    if let Some(watched) = watch::note(&vm.record(), &order.migration.uid, launcher, told) {
        let note = |record: &mut VmRecord| record.watched = Some(watched);
        if let Err(error) = vm.remember(&host.journal, note).await {
            warn!(
                error = chain(&error),
                "what is known of the VM's migration is not in the journal"
            );
            return Some(AGAIN);
        }
    }
    let watched = vm
        .record()
        .watched
        .filter(|w| w.migration == order.migration.uid)?;
    let end = watch::end_seen(&watched, launcher, ProcessId::has_ended);
    let said = vm.migration_report().borrow().clone();
    let report = watch::report(&watched, is_off, end, said.as_ref())?;
    let over = report.state.is_final();
    if said.as_ref() != Some(&report) {
        info!(migration = order.migration.name, state = ?report.state, kept = report.kept, "migration");
    }
    vm.set_report(report);
    (!over).then_some(LOOK_AGAIN)
}

/// What an event would have asked for, where it was missed.
async fn settle(vm: &Vm, host: &Host, seen: &VmSeen) {
    match watch::missed(seen, &vm.record()) {
        None => {}
        Some(Missed::Silence) => silence(vm, host).await,
        Some(Missed::Run) => note_run(vm, host).await,
        Some(Missed::Incoming) => {
            let noted = vm.remember(&host.journal, |record| record.incoming = true).await;
            if let Err(error) = noted {
                warn!(
                    error = chain(&error),
                    "the journal does not have that the VM is to come"
                );
            }
        }
    }
}

#[cfg(test)]
#[path = "events_tests.rs"]
mod tests;
