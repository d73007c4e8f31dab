//! Takes the steps of a VM's migration on this node. [`migration`] decides on the next one.

use std::{net::IpAddr, time::Duration};

use hybridnic_api::v1alpha1::{MigrationOrder, MigrationState, MigrationStep, StandbyKind};
use hybridnic_qmp::{
    Client, QmpError,
    commands::{MigrationCapability, MigrationParameters, MigrationStatus},
};
use tracing::{info, warn};

use super::{
    super::{NicEntry, Vm, handover, process::ProcessId},
    certificates::End,
    encrypt::{admit_source, certified, certify, ends_stream, forget_certificates, send, trust_target},
    file_steps,
    migration::{self, Action, EndSeen, FileAction, VmSeen},
    plug::announce,
    rx_follow, tls,
};
use crate::{
    error::chain,
    host::Host,
    journal::{Arrival, Begun, Custody, JournalError, VmRecord},
    trace,
};

/// How soon a step of a migration that failed is taken again: in the VM's pause no event may come. No other client tries at
/// the same moment, and the VM stands still: so there is no random part.
pub(super) const STEP_AGAIN: Duration = Duration::from_secs(1);
/// How often a migration is looked at though no event has come.
const LOOK_AGAIN: Duration = Duration::from_secs(10);
/// How often is looked how much QEMU has written.
const LOOK_AT_FILE: Duration = Duration::from_secs(2);

/// Target: the VM is loaded. It is started once the journal says that it may run here.
async fn start(vm: &Vm, host: &Host, client: &Client) -> Result<(), String> {
    let fail = |error: QmpError| chain(&error);
    let _fate = vm.fate.lock().await;
    // It may have been called off since.
    let listens = |nic: &NicEntry| {
        let order = nic.order.as_ref();
        nic.heard && order.is_some_and(|order| order.step.receives())
    };
    if !vm.nics().values().all(listens) {
        return Ok(());
    }
    if !migration::is_loaded(&see_vm(client).await.map_err(fail)?) {
        // Something else has started it; it is here nevertheless.
        return arrived(vm, host, Arrival::Started).await;
    }
    let from_file = vm.nics().values().any(|nic| {
        let order = nic.order.as_ref();
        order.is_some_and(|order| order.file.is_some())
    });
    if from_file {
        file_steps::forget(client).await.map_err(fail)?;
    }
    arrived(vm, host, Arrival::Starting).await?;
    let (woken, ()) = tokio::join!(
        handover::wake(vm, &*host.macvtaps),
        rx_follow::look_in_pause(vm, client, host)
    );
    if let Err(error) = woken {
        // The NICs' own tasks try again.
        warn!(
            error = chain(&error),
            "the VM has come, and not all of its NICs are up"
        );
    }
    client.cont().await.map_err(fail)?;
    let nics = vm.nics();
    let standbys = nics.values().filter(|nic| nic.standby != StandbyKind::None);
    let devices: Vec<&str> = standbys.map(|nic| nic.standby_device.as_str()).collect();
    // None is taken for all.
    if !devices.is_empty()
        && let Err(error) = announce(client, &devices).await
    {
        warn!(error = chain(&error), "the switches are not told where the VM is");
    }
    arrived(vm, host, Arrival::Started).await
}

async fn arrived(vm: &Vm, host: &Host, arrival: Arrival) -> Result<(), String> {
    let note = |record: &mut VmRecord| {
        if let Some(begun) = &mut record.begun {
            begun.arrival = Some(arrival);
        }
    };
    vm.remember(&host.journal, note)
        .await
        .map_err(|error| chain(&error))
}

/// Source: QEMU runs a VM again by itself when its migration fails, even if it has let the VM go.
pub(super) async fn hold_if_left(vm: &Vm, client: &Client, order: &MigrationOrder) {
    if vm.custody(&order.migration.uid) != Custody::Left {
        return;
    }
    warn!(
        migration = order.migration.name,
        "QEMU runs a VM again that the target may have: it is paused until the target has spoken"
    );
    if let Err(error) = client.stop().await {
        warn!(error = chain(&error), "and cannot be paused");
    }
}

/// Whether the migration goes on.
pub(super) async fn hand_over(vm: &Vm, host: &Host, client: &Client, order: &MigrationOrder) -> bool {
    let span = trace::begin("HandOver");
    let goes_on = let_go(vm, host, client).await;
    let error = (!goes_on).then(|| "the migration does not go on".to_owned());
    span.end(host, Some(order), error, || attributes(vm));
    goes_on
}

fn attributes(vm: &Vm) -> Vec<(&'static str, String)> {
    vec![
        ("k8s.namespace.name", vm.namespace.clone()),
        ("k8s.pod.name", vm.pod.clone()),
        ("k8s.pod.uid", vm.pod_uid.clone()),
    ]
}

async fn let_go(vm: &Vm, host: &Host, client: &Client) -> bool {
    // From here on the VM may leave, no matter what happens to the command: the next agent has to know.
    let (silenced, noted) = tokio::join!(
        handover::silence(vm, &*host.macvtaps),
        vm.set_custody(&host.journal, Custody::Left)
    );
    let failed = silenced
        .map_err(|error| chain(&error))
        .and_then(|()| noted.map_err(|error| chain(&error)));
    if let Err(error) = failed {
        // Two owners of a MAC, and a VM whose place is not known, are worse than a migration that is called off.
        warn!(
            error,
            "a standby cannot be silenced, or the hand-over not be noted: the migration is cancelled"
        );
        stays(vm, host).await;
        if let Err(error) = client.migrate_cancel().await {
            warn!(error = chain(&error), "and cannot be cancelled");
        }
        return false;
    }
    let Err(error) = client.migrate_continue(&MigrationStatus::PreSwitchover).await else {
        return true;
    };
    // The event and a look at the state can both lead here: the second finds it done.
    let status = client.query_migrate().await.map(|i| i.status_or_none());
    if let (QmpError::Command { .. }, Ok(MigrationStatus::PreSwitchover)) = (&error, &status) {
        stays(vm, host).await;
    }
    let stuck = matches!(status, Ok(MigrationStatus::PreSwitchover) | Err(_));
    if stuck {
        warn!(error = chain(&error), "the migration does not go on; tried again");
    }
    !stuck
}

/// Notes that the VM has not been let go. Without that note it counts as one that may have left, which is safe.
async fn stays(vm: &Vm, host: &Host) {
    if let Err(error) = vm.set_custody(&host.journal, Custody::Here).await {
        warn!(
            error = chain(&error),
            "the journal says that the VM may have left, and it has not"
        );
    }
}

/// Looks at the VM's migration and takes its next step; returns when to look again even without an event.
pub(super) async fn drive(vm: &Vm, host: &Host, client: Option<&Client>) -> Option<Duration> {
    let nics = vm.nics();
    // If they do not agree QEMU is left alone, but its end is reported nevertheless.
    let agreed = migration::agreed(&nics);
    let is_agreed = agreed.is_some();
    let Some(order) = agreed.or_else(|| nics.values().find_map(|nic| nic.order.clone())) else {
        if !nics.is_empty() && nics.values().all(|nic| nic.heard) {
            forget_certificates(vm, host, client).await;
        }
        return None;
    };
    let (begun, same) = vm.begun(&order.migration.uid);
    let ended = || {
        let process = begun.as_ref().and_then(|begun| begun.process.as_ref());
        process.is_some_and(ProcessId::has_ended)
    };
    let seen = match client {
        Some(client) if same && is_agreed => match see_vm(client).await {
            Ok(seen) => Some(seen),
            Err(error) => {
                warn!(error = chain(&error), "cannot see the VM's migration");
                return Some(STEP_AGAIN);
            }
        },
        _ => None,
    };
    let handshake = seen
        .as_ref()
        .and_then(|seen| vm.judge_handshake(&seen.info.status_or_none()));
    let usual = if order.step == MigrationStep::Save {
        LOOK_AT_FILE
    } else {
        LOOK_AGAIN
    };
    let look_again = handshake.unwrap_or(usual).min(usual);
    let end = match &seen {
        Some(seen) => EndSeen::Up(seen),
        None if ended() => EndSeen::Ended,
        None => EndSeen::Silent,
    };
    let uid = &order.migration.uid;
    if let (Some(seen), Some(_)) = (&seen, &begun)
        && matches!(order.step, MigrationStep::Transfer | MigrationStep::Cancel)
        && vm.custody(uid) == Custody::Unknown
        && is_before_hand_over(&seen.info.status_or_none())
    {
        stays(vm, host).await;
    }
    let (begun, _) = vm.begun(uid);
    let said = vm.migration_report().borrow().clone();
    let certified = certified(vm, host, &order);
    let file = vm.file(uid);
    let verdict = migration::decide(&migration::Inputs {
        nics: &nics,
        end,
        begun: begun.as_ref(),
        said: said.as_ref(),
        certified: certified.as_ref(),
        file: file.as_ref(),
    });
    let ends_here = ends_stream(verdict.report.as_ref(), order.step);
    let is_over = verdict
        .report
        .as_ref()
        .is_some_and(|report| report.state.is_final());
    if let Some(report) = verdict.report {
        vm.set_report(report);
    }
    let (Some(client), Some(action)) = (client, verdict.action) else {
        if ends_here {
            forget_certificates(vm, host, client).await;
        }
        return (!is_over).then_some(look_again);
    };
    info!(
        node = host.options.node_name,
        migration = order.migration.name,
        ?action,
        "migration"
    );
    let span = trace::begin(action.name());
    let done = act(vm, host, client, &order, &action).await;
    // HandOver records its own span, because an event can lead to it too.
    if action != Action::HandOver {
        let error = done.as_ref().err().map(|failure| failure.error.clone());
        span.end(host, Some(&order), error, || attributes(vm));
    }
    if let Err(failure) = done {
        say_failed(vm, host, &order, &action, failure);
    }
    Some(STEP_AGAIN)
}

fn say_failed(vm: &Vm, host: &Host, order: &MigrationOrder, action: &Action, failure: Failure) {
    warn!(
        node = host.options.node_name,
        migration = order.migration.name,
        ?action,
        error = failure.error,
        "the migration's step failed"
    );
    // If QEMU refused to begin, nothing has changed, and the migration is over. Any other step is taken again.
    let begins = matches!(
        action,
        Action::Listen | Action::Start(_) | Action::File(FileAction::Write | FileAction::Load)
    );
    let over = failure.refused && begins;
    let state = match action {
        Action::Certify => MigrationState::Prepared,
        _ => MigrationState::Active,
    };
    vm.report_error(&order.migration.uid, failure.error, over, state);
}

/// Whether QEMU cannot have let the VM go yet.
fn is_before_hand_over(status: &MigrationStatus) -> bool {
    matches!(
        status,
        MigrationStatus::None
            | MigrationStatus::Setup
            | MigrationStatus::Active
            | MigrationStatus::PreSwitchover
    )
}

pub(in super::super) async fn see_vm(client: &Client) -> Result<VmSeen, QmpError> {
    // In this order: a migration is completed a moment before the run state says so.
    let info = client.query_migrate().await?;
    Ok(VmSeen {
        run: client.query_status().await?.status,
        info,
    })
}

/// A step that was not taken.
#[derive(Clone)]
pub(super) struct Failure {
    pub(super) error: String,
    /// QEMU said no, so it has not been and will not be taken. Anything else is tried again.
    pub(super) refused: bool,
}

impl From<QmpError> for Failure {
    fn from(error: QmpError) -> Self {
        let refused = matches!(error, QmpError::Command { .. });
        Self {
            error: chain(&error),
            refused,
        }
    }
}

impl From<JournalError> for Failure {
    fn from(error: JournalError) -> Self {
        Self {
            error: chain(&error),
            refused: false,
        }
    }
}

pub(super) async fn act(
    vm: &Vm,
    host: &Host,
    client: &Client,
    order: &MigrationOrder,
    action: &Action,
) -> Result<(), Failure> {
    let uid = &order.migration.uid;
    match action {
        Action::Certify => {
            certify(vm, host, client, uid, End::Source).await?;
            vm.nics_changed.send_modify(|n| *n += 1);
        }
        Action::Listen => {
            let uri = listen_uri(order).ok_or_else(|| Failure {
                error: match &order.listen_address {
                    None => "the target's pod has no address to listen on".to_owned(),
                    Some(text) => format!("the target's pod has no address to listen on: {text:?} is none"),
                },
                refused: true,
            })?;
            if let Some(order) = &order.tls
                && !admit_source(vm, host, client, uid, order.peer_ca.as_deref()).await?
            {
                vm.nics_changed.send_modify(|n| *n += 1);
                return Ok(());
            }
            prepare(host, client, order, End::Target).await?;
            // QEMU then leaves the VM paused when it has loaded it (`qmp_stop` in QEMU's monitor/qmp-cmds.c): the agent starts
            // it, and the journal knows.
            client.stop().await?;
            begin(vm, host, uid, Custody::Unknown).await?;
            client.migrate_incoming(&uri).await?;
            // The port is in QEMU's answer: look again.
            vm.nics_changed.send_modify(|n| *n += 1);
        }
        Action::Run => {
            let started = start(vm, host, client).await;
            // The next look says how it stands.
            vm.nics_changed.send_modify(|n| *n += u64::from(started.is_ok()));
            started.map_err(|error| Failure {
                error,
                refused: false,
            })?;
        }
        Action::Forgo => {
            let _fate = vm.fate.lock().await;
            let note = |record: &mut VmRecord| {
                if let Some(begun) = &mut record.begun {
                    begun.arrival = None;
                }
            };
            if migration::is_loaded(&see_vm(client).await?) {
                vm.remember(&host.journal, note).await?;
            }
        }
        Action::Start(to) => {
            let blocked = client.query_migrate().await?.blocked_reasons;
            if !blocked.is_empty() {
                let error = format!("QEMU cannot migrate the VM: {}", blocked.join("; "));
                return Err(Failure { error, refused: true });
            }
            if let Some(order) = &order.tls {
                trust_target(vm, host, client, uid, order.peer_ca.as_deref()).await?;
            }
            prepare(host, client, order, End::Source).await?;
            begin(vm, host, uid, Custody::Here).await?;
            match &order.tls {
                Some(_) => send(vm, host, client, to).await?,
                None => client.migrate(to).await?,
            }
        }
        Action::HandOver => {
            hand_over(vm, host, client, order).await;
        }
        Action::Hold => client.stop().await?,
        Action::Cancel => client.migrate_cancel().await?,
        Action::File(action) => file_steps::act(vm, host, client, order, *action).await?,
        Action::Resume => {
            client.until_migration_settled().await?;
            vm.set_custody(&host.journal, Custody::Here).await?;
            client.cont().await?;
        }
    }
    Ok(())
}

/// Notes that a migration is about to begin, so that it is not begun again after a restart.
async fn begin(vm: &Vm, host: &Host, migration: &str, custody: Custody) -> Result<(), JournalError> {
    let begun = Begun {
        migration: migration.to_owned(),
        process: vm.peer(),
        arrival: None,
        custody,
        saving: None,
    };
    vm.remember(&host.journal, |record| record.begun = Some(begun))
        .await
}

/// Where the target's QEMU listens: on the pod's own address alone, and on a port that the kernel chooses.
fn listen_uri(order: &MigrationOrder) -> Option<String> {
    let address: IpAddr = order.listen_address.as_deref()?.parse().ok()?;
    match address {
        address if address.is_unspecified() => None,
        IpAddr::V4(address) => Some(format!("tcp:{address}:0")),
        IpAddr::V6(address) => Some(format!("tcp:[{address}]:0")),
    }
}

/// Capabilities and parameters; except for the stream's encryption they must be the same at both ends.
async fn prepare(host: &Host, client: &Client, order: &MigrationOrder, end: End) -> Result<(), QmpError> {
    client
        .migrate_set_capabilities(&[
            (MigrationCapability::Events, true),
            (MigrationCapability::ReturnPath, true),
            (MigrationCapability::PauseBeforeSwitchover, true),
        ])
        .await?;
    let encrypted = order.tls.as_ref().map(|_| (order.migration.uid.as_str(), end));
    client
        .migrate_set_parameters(&MigrationParameters {
            max_bandwidth: Some(host.options.migration_bandwidth),
            downtime_limit: Some(host.options.migration_downtime_ms),
            ..tls::parameters(encrypted)
        })
        .await
}

#[cfg(test)]
#[path = "steps_tests.rs"]
mod tests;
