//! Keeps a VM's QMP session and takes its migration's steps.

use std::{sync::Arc, time::Duration};

use hybridnic_api::v1alpha1::{MigrationOrder, MigrationReport, MigrationState, MigrationStep};
use hybridnic_qmp::{
    Client, Event, EventError, OnError, Options, QmpError,
    commands::{MigrationCapability, MigrationParameters, MigrationStatus},
};
use tokio::sync::watch;
use tracing::{debug, info, warn};

use super::{
    Session, Vm, handover,
    migration::{self, Action, VmSeen},
    socket,
};
use crate::{error::chain, host::Host, trace};

/// How soon a socket that somebody may listen on soon is tried again; doubled up to the cap.
const RETRY: Duration = Duration::from_millis(50);
/// The longest wait between two tries, where no event tells that something changed.
const RETRY_CAP: Duration = Duration::from_secs(30);

/// Runs until the VM has no NIC left here; the caller aborts it then.
pub async fn run(vm: Arc<Vm>, host: Arc<Host>, mut sockets: watch::Receiver<u64>) {
    let mut pause = RETRY;
    loop {
        sockets.mark_unchanged();
        match connect(&vm, &host).await {
            Ok(client) => {
                pause = RETRY;
                info!(namespace = vm.namespace, pod = vm.pod, qemu = %client.version(), "QMP session opened");
                let reason = serve(&vm, &host, &client).await;
                info!(
                    namespace = vm.namespace,
                    pod = vm.pod,
                    reason,
                    "QMP session closed"
                );
                client.close();
                continue;
            }
            Err(session) => {
                if let Session::Unreachable(why) = &session {
                    warn!(namespace = vm.namespace, pod = vm.pod, why, "cannot talk to QEMU");
                }
                publish(&vm, session);
                drive(&vm, &host, None).await;
            }
        }
        tokio::select! {
            changed = sockets.changed() => {
                if changed.is_err() { return }
                // The socket is bound a moment before it is listened on.
                pause = RETRY;
                tokio::time::sleep(RETRY).await;
            }
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(RETRY_CAP),
        }
    }
}

/// QEMU answers nothing while it pins a guest's memory for a VF: seconds, or more for a large guest.
fn options(host: &Host) -> Options {
    let metrics = host.metrics.clone();
    Options {
        command_timeout: Duration::from_mins(1),
        on_error: OnError::new(move |command, error| metrics.qmp_error(command, error)),
        ..Options::default()
    }
}

fn publish(vm: &Vm, session: Session) {
    let same = matches!(
        (&*vm.session.borrow(), &session),
        (Some(Session::Gone), Session::Gone) | (Some(Session::Unreachable(_)), Session::Unreachable(_))
    );
    if !same {
        vm.set_session(session);
    }
}

async fn connect(vm: &Vm, host: &Host) -> Result<Client, Session> {
    let (root, namespace, pod) = (host.options.vm_root.clone(), vm.namespace.clone(), vm.pod.clone());
    let stream = tokio::task::spawn_blocking(move || socket::connect(&root, &namespace, &pod)).await;
    let stream = match stream {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) if socket::is_gone(&error) => return Err(Session::Gone),
        Ok(Err(error)) => return Err(Session::Unreachable(error.to_string())),
        Err(error) => return Err(Session::Unreachable(error.to_string())),
    };
    let client = match Client::from_std(stream, &options(host)).await {
        Ok(client) => client,
        Err(QmpError::Closed(_)) => return Err(Session::Gone),
        Err(error) => {
            // Before there is a session, nobody else is told.
            host.metrics.qmp_error("greeting", &error);
            return Err(Session::Unreachable(chain(&error)));
        }
    };
    match client
        .migrate_set_capabilities(&[(MigrationCapability::Events, true)])
        .await
    {
        // While a migration runs capabilities cannot change; we set it before it began.
        Ok(()) | Err(QmpError::Command { .. }) => Ok(client),
        Err(error) => Err(Session::Unreachable(chain(&error))),
    }
}

/// Until the session ends; says why it did.
async fn serve(vm: &Vm, host: &Host, client: &Client) -> String {
    let mut events = client.subscribe();
    let mut nics = vm.nics_changed.subscribe();
    vm.set_session(Session::Up(client.clone()));
    loop {
        nics.mark_unchanged();
        drive(vm, host, Some(client)).await;
        loop {
            // Only the wait may be cut short, never what an event leads to.
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                _ = nics.changed() => break,
            };
            match event {
                Ok(event) => {
                    if on_event(vm, host, client, &event).await {
                        break;
                    }
                }
                Err(EventError::Closed(reason)) => return reason.to_string(),
                Err(error) => {
                    debug!(%error, "events were lost; the state is read anew");
                    vm.beat(true);
                    break;
                }
            }
        }
    }
}

/// Does what an event asks for at once; whether the migration may now have another step.
///
/// In the VM's pause each command that somebody else gives QEMU is waited for. So in the middle of a migration nobody is
/// told anything before the hand-over is done.
async fn on_event(vm: &Vm, host: &Host, client: &Client, event: &Event) -> bool {
    debug!(namespace = vm.namespace, pod = vm.pod, event = event.name, data = %event.data, "QEMU");
    let status = event.migration_status();
    for uid in vm.nics().keys() {
        match &status {
            Some(status) => vm.note(uid, format!("Migration {status}")),
            None if matches!(event.name.as_str(), "RESUME" | "STOP" | "RESET" | "SHUTDOWN") => {
                vm.note(uid, event.name.clone());
            }
            None => {}
        }
    }
    let order = migration::agreed(&vm.nics());
    let step = order.as_ref().map(|o| o.step);
    let (arriving, leaving) = (
        step == Some(MigrationStep::Listen),
        step == Some(MigrationStep::Transfer),
    );
    match (event.name.as_str(), status) {
        ("MIGRATION", Some(MigrationStatus::PreSwitchover)) => {
            // What it leads to is told by another event.
            !hand_over(vm, host, client, order.as_ref()).await
        }
        ("MIGRATION", Some(status)) => {
            if status.is_idle() {
                vm.beat(false);
            }
            status != MigrationStatus::Device
        }
        ("RESUME", _) => {
            if arriving {
                wake(vm, host, client, order.as_ref()).await;
            }
            vm.beat(true);
            true
        }
        // `pre-switchover` follows at once, and `RESUME`.
        ("STOP", _) if leaving => false,
        ("FAILOVER_NEGOTIATED", _) if arriving => false,
        ("RESET" | "FAILOVER_NEGOTIATED", _) => {
            vm.beat(true);
            true
        }
        ("STOP" | "SHUTDOWN" | "DEVICE_DELETED" | "MEM_UNPLUG_ERROR", _) => {
            vm.beat(false);
            true
        }
        _ => false,
    }
}

async fn wake(vm: &Vm, host: &Host, client: &Client, order: Option<&MigrationOrder>) {
    let span = trace::begin("Wake");
    let woken = handover::wake(vm, &host.netlink, client).await;
    let error = woken.as_ref().err().map(|error| chain(error));
    if let Some(error) = &error {
        // The NICs' own tasks try again.
        warn!(
            namespace = vm.namespace,
            pod = vm.pod,
            error,
            "the VM has come, and not all of its NICs are up"
        );
    }
    span.end(host, order, error, || attributes(vm));
}

/// Whether the migration goes on.
async fn hand_over(vm: &Vm, host: &Host, client: &Client, order: Option<&MigrationOrder>) -> bool {
    let span = trace::begin("HandOver");
    let goes_on = let_go(vm, host, client).await;
    let error = (!goes_on).then(|| "the migration does not go on".to_owned());
    span.end(host, order, error, || attributes(vm));
    goes_on
}

fn attributes(vm: &Vm) -> Vec<(&'static str, String)> {
    vec![
        ("k8s.namespace.name", vm.namespace.clone()),
        ("k8s.pod.name", vm.pod.clone()),
    ]
}

async fn let_go(vm: &Vm, host: &Host, client: &Client) -> bool {
    if let Err(error) = handover::silence(vm, &host.netlink).await {
        // Two owners of a MAC are worse than a migration that is called off.
        warn!(
            namespace = vm.namespace,
            pod = vm.pod,
            error = chain(&error),
            "a standby cannot be silenced: the migration is cancelled"
        );
        if let Err(error) = client.migrate_cancel().await {
            warn!(
                namespace = vm.namespace,
                pod = vm.pod,
                error = chain(&error),
                "and cannot be cancelled"
            );
        }
        return false;
    }
    let Err(error) = client.migrate_continue(&MigrationStatus::PreSwitchover).await else {
        return true;
    };
    // The event and a look at the state can both lead here: whoever comes second finds it done.
    let status = client.query_migrate().await.map(|i| i.status());
    let stuck = matches!(status, Ok(MigrationStatus::PreSwitchover) | Err(_));
    if stuck {
        warn!(
            namespace = vm.namespace,
            pod = vm.pod,
            error = chain(&error),
            "the migration does not go on"
        );
    }
    !stuck
}

async fn drive(vm: &Vm, host: &Host, client: Option<&Client>) {
    let nics = vm.nics();
    let Some(order) = migration::agreed(&nics) else {
        return;
    };
    let seen = match client {
        None => None,
        Some(client) => match look(client).await {
            Ok(seen) => Some(seen),
            Err(error) => {
                debug!(
                    namespace = vm.namespace,
                    pod = vm.pod,
                    error = chain(&error),
                    "cannot see the VM's migration"
                );
                return;
            }
        },
    };
    let started = match host.journal.started(&vm.pod_uid) {
        Ok(started) => started,
        Err(error) => {
            // Whether it was begun is not known, so nothing is done and nothing is reported.
            warn!(namespace = vm.namespace, pod = vm.pod, %error, "cannot read the journal of the VM's migration");
            return;
        }
    };
    let verdict = migration::decide(&nics, seen.as_ref(), started.as_deref());
    if let Some(report) = verdict.report {
        vm.set_report(report);
    }
    let (Some(client), Some(action)) = (client, verdict.action) else {
        return;
    };
    info!(
        namespace = vm.namespace,
        pod = vm.pod,
        node = host.options.node_name,
        migration = order.migration.name,
        ?action,
        "migration"
    );
    let span = trace::begin(action.name());
    let done = act(vm, host, client, &order, &action).await;
    // A hand-over tells of itself, for an event can lead to it too.
    if action != Action::HandOver {
        span.end(host, Some(&order), done.clone().err(), || attributes(vm));
    }
    if let Err(error) = done {
        warn!(
            namespace = vm.namespace,
            pod = vm.pod,
            node = host.options.node_name,
            migration = order.migration.name,
            ?action,
            error,
            "the migration's step failed"
        );
        vm.set_report(MigrationReport {
            uid: order.migration.uid,
            state: MigrationState::Failed,
            port: None,
            error: Some(error),
            total_ms: None,
            downtime_ms: None,
        });
    }
}

async fn look(client: &Client) -> Result<VmSeen, QmpError> {
    Ok(VmSeen {
        run: client.query_status().await?.status,
        info: client.query_migrate().await?,
    })
}

async fn act(
    vm: &Vm,
    host: &Host,
    client: &Client,
    order: &MigrationOrder,
    action: &Action,
) -> Result<(), String> {
    let uid = &order.migration.uid;
    let fail = |error: QmpError| chain(&error);
    match action {
        Action::Listen => {
            prepare(host, client).await.map_err(fail)?;
            host.journal
                .set_started(&vm.pod_uid, uid)
                .map_err(|e| chain(&e))?;
            client.migrate_incoming("tcp:0.0.0.0:0").await.map_err(fail)?;
            // The port is in QEMU's answer: look again.
            vm.nics_changed.send_modify(|n| *n += 1);
        }
        Action::Start(uri) => {
            let blocked = client.query_migrate().await.map_err(fail)?.blocked_reasons;
            if !blocked.is_empty() {
                return Err(format!("QEMU cannot migrate the VM: {}", blocked.join("; ")));
            }
            prepare(host, client).await.map_err(fail)?;
            host.journal
                .set_started(&vm.pod_uid, uid)
                .map_err(|e| chain(&e))?;
            client.migrate(uri).await.map_err(fail)?;
        }
        Action::HandOver => {
            hand_over(vm, host, client, Some(order)).await;
        }
        Action::Cancel => client.migrate_cancel().await.map_err(fail)?,
        Action::Resume => {
            client.until_migration_settled().await.map_err(fail)?;
            client.cont().await.map_err(fail)?;
        }
    }
    Ok(())
}

/// Capabilities and parameters; they must be the same at both ends.
async fn prepare(host: &Host, client: &Client) -> Result<(), QmpError> {
    client
        .migrate_set_capabilities(&[
            (MigrationCapability::Events, true),
            (MigrationCapability::ReturnPath, true),
            (MigrationCapability::PauseBeforeSwitchover, true),
        ])
        .await?;
    client
        .migrate_set_parameters(&MigrationParameters {
            max_bandwidth: Some(host.options.migration_bandwidth),
            downtime_limit: Some(host.options.migration_downtime_ms),
        })
        .await
}
