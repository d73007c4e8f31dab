//! Keeps a VM's QMP session, and does what its events ask for.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{MigrationStep, Pairing, Runtime},
};
use hybridnic_process::backoff::Backoff;
use hybridnic_qmp::{
    Client, CloseReason, Event, EventError, OnError, Options, QmpError, commands::MigrationCapability,
};
use tracing::{debug, info, warn};

use super::{
    super::{
        Machine, Moment, NicEntry, Owner, Session, Vm, VmEvent,
        kubevirt::{self, Launcher},
        listener::Listener,
        socket::Closed,
    },
    Qemu, events, migration, rx_follow,
    steps::{STEP_AGAIN, drive, hand_over, hold_if_left},
    word,
};
use crate::{
    error::{bounded, chain},
    host::Host,
    sockets::Followed,
};

/// How soon a socket that somebody may listen on soon is tried again; doubled up to the cap.
const RETRY: Duration = Duration::from_millis(50);
/// The longest wait between two tries, without its random part, where no event tells that something changed.
const RETRY_CAP: Duration = Duration::from_secs(15);

/// A session that has lasted so long counts. And a pod that makes sockets again and again is looked at no more often than that.
const STEADY: Duration = Duration::from_secs(1);
/// How long a QEMU that has sent too many events is left alone; doubled up to the cap, no matter what its socket does meanwhile.
const FLOODED: Duration = Duration::from_secs(1);
/// The longest that it is left alone; and how long it has to behave to be trusted again.
const FLOODED_CAP: Duration = Duration::from_mins(5);

/// How soon a pod's network that was not found is looked for again.
const ADOPT_AGAIN: Duration = Duration::from_secs(1);

/// Runs until the VM has no NIC left here; the caller aborts it then.
pub async fn run(vm: Arc<Vm>, host: Arc<Host>, mut followed: Followed) {
    recall(&vm, &host).await;
    // Agents that start together do not all ask at once.
    let mut pauses = Backoff::new(RETRY, RETRY_CAP);
    let mut floods = Backoff::new(FLOODED, FLOODED_CAP);
    let mut woken = None::<Instant>;
    loop {
        match connect(&vm, &host, &mut followed).await {
            Ok((client, peer)) => {
                followed.rest();
                let opened = Instant::now();
                info!(qemu = %client.version(), "QMP session opened");
                let reason = tokio::select! {
                    reason = serve(&vm, &host, &client, Some(peer)) => reason,
                    never = rx_follow::follow(&vm, &client, &*host) => match never {},
                };
                info!(
                    %reason,
                    "QMP session closed"
                );
                client.close();
                if opened.elapsed() >= FLOODED_CAP {
                    floods.reset();
                }
                if is_flood(&reason) {
                    leave_alone(&vm, &host, floods.next_pause()).await;
                    continue;
                }
                if opened.elapsed() >= STEADY {
                    pauses.reset();
                    continue;
                }
                // One that greets and hangs up would be greeted for ever.
            }
            Err(session) => {
                if vm.runtime == Runtime::Kubevirt {
                    kubevirt::adopt(&vm, &host).await;
                }
                publish(&vm, session);
                drive_migration(&vm, &host, None).await;
            }
        }
        let known = vm.record().process.filter(|process| !process.has_ended());
        let ended = async {
            match &known {
                Some(process) => process.ended().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = followed.changed() => {
                pauses.reset();
                // The socket is bound a moment before it is listened on.
                let again = woken.replace(Instant::now()).is_some_and(|last| last.elapsed() < STEADY);
                tokio::time::sleep(if again { STEADY } else { RETRY }).await;
            }
            () = ended => pauses.reset(),
            () = pauses.pause() => {}
        }
    }
}

/// Reads what the journal knows about the VM: the result of its migration here decides what QEMU may be told.
async fn recall(vm: &Vm, host: &Host) {
    let what = format!("record of the VM {}/{} ({})", vm.namespace, vm.pod, vm.pod_uid);
    while let Err(error) = vm.recall(&host.journal).await {
        let why = bounded(&format!(
            "the {what} cannot be read: {}. Nothing is done to the VM and its NICs until it can be read. A newer agent's record needs \
             that agent back; a damaged file may be removed once the VM and its migration have ended",
            chain(&error)
        ));
        host.troubles.begin(&what, reasons::JOURNAL_FAILED, why.as_str());
        vm.unread.send_replace(Some(why));
        tokio::time::sleep(STEP_AGAIN).await;
    }
    host.troubles.end(&what);
    vm.unread.send_replace(None);
}

/// QEMU answers nothing while it pins a guest's memory for a VF: seconds, or more for a large guest.
fn options(host: &Host) -> Options {
    let metrics = host.metrics.clone();
    Options {
        command_timeout: Duration::from_mins(1),
        on_error: OnError::new(move |command, error| metrics.qmp_error(command, word(error))),
        ..Options::default()
    }
}

fn is_flood(reason: &CloseReason) -> bool {
    matches!(reason, CloseReason::TooManyEvents { .. })
}

/// The agent does not listen for a while to a QEMU that floods: its guest has taken it over, or it is broken. Its NICs say so. In a
/// migration its VM may stand still until QEMU gets a command, so the agent listens again soon.
async fn leave_alone(vm: &Vm, host: &Host, pause: Duration) {
    warn!(
        ?pause,
        "QEMU sends too many events, and is left alone for a while"
    );
    publish(vm, Session::Flooding);
    drive_migration(vm, host, None).await;
    // One that ends, and another that takes its place, would be greeted at once.
    let least = pause.min(RETRY_CAP);
    let began = Instant::now();
    let over = async {
        tokio::time::sleep(least).await;
        if let Some(process) = vm.record().process.filter(|process| !process.has_ended()) {
            tokio::select! {
                () = process.ended() => {}
                () = tokio::time::sleep(pause.saturating_sub(least)) => {}
            }
        }
    };
    let migrates = async {
        let mut nics = vm.nics_changed.subscribe();
        while vm.nics().values().all(|nic| nic.order.is_none()) {
            // It is never closed: the VM holds the sender.
            let _ = nics.changed().await;
        }
        tokio::time::sleep(FLOODED.min(pause).saturating_sub(began.elapsed())).await;
    };
    tokio::select! {
        () = over => {}
        () = migrates => {}
    }
}

/// Logs a change only once: a pod may cause changes as often as it likes.
fn publish(vm: &Vm, session: Session) {
    let same = match (&*vm.session.borrow(), &session) {
        (Some(Session::Gone), Session::Gone)
        | (Some(Session::Unreachable(_)), Session::Unreachable(_))
        | (Some(Session::Flooding), Session::Flooding) => true,
        (Some(Session::Untrusted(old)), Session::Untrusted(new)) => old == new,
        _ => false,
    };
    if same {
        return;
    }
    match &session {
        Session::Unreachable(why) => {
            warn!(why, "cannot talk to QEMU");
        }
        Session::Untrusted(why) => {
            warn!(%why, "not talked to");
        }
        Session::Gone | Session::Flooding | Session::Up(_) => {}
    }
    vm.set_session(session);
}

/// A session, and the process of the pod that it is with.
async fn connect(vm: &Vm, host: &Host, followed: &mut Followed) -> Result<(Client, Listener), Session> {
    let reach = |followed: &mut Followed| {
        let stream = followed.open()?.connect()?;
        let peer = Listener::of(&stream, &vm.home)?;
        Ok((stream, peer))
    };
    let (stream, peer) = match reach(followed) {
        Ok(reached) => reached,
        Err(Closed::Absent) => return Err(nobody_listens(vm)),
        Err(Closed::Busy) => {
            host.metrics.qmp_error("connect", word(&QmpError::Busy));
            return Err(Session::Unreachable(chain(&QmpError::Busy)));
        }
        Err(Closed::Untrusted(offence)) => return Err(Session::Untrusted(offence)),
        Err(Closed::Failed(error)) => return Err(Session::Unreachable(bounded(&error.to_string()))),
    };
    let client = match Client::from_std(stream, &options(host)).await {
        Ok(client) => client,
        Err(QmpError::Closed(_)) => return Err(nobody_listens(vm)),
        Err(error) => {
            // Before there is a session, no other task is told.
            host.metrics.qmp_error("greeting", word(&error));
            return Err(Session::Unreachable(chain(&error)));
        }
    };
    match client
        .migrate_set_capabilities(&[(MigrationCapability::Events, true)])
        .await
    {
        // While a migration runs capabilities cannot change; we set it before it began.
        Ok(()) | Err(QmpError::Command { .. }) => Ok((client, peer)),
        Err(error) => Err(Session::Unreachable(chain(&error))),
    }
}

/// A socket that refuses is no proof: QEMU may live behind another one.
fn nobody_listens(vm: &Vm) -> Session {
    match vm.record().process {
        Some(process) if !process.has_ended() => Session::Unreachable(format!(
            "its process {} lives, but does not listen on its QMP socket",
            process.pid
        )),
        _ => Session::Gone,
    }
}

/// Takes the next step of the VM's migration, or reports how it goes; returns when to look again even without an event.
async fn drive_migration(vm: &Vm, host: &Host, client: Option<&Client>) -> Option<Duration> {
    match vm.duties().migration {
        Owner::Agent => drive(vm, host, client).await,
        Owner::Runtime => kubevirt::drive(vm, host, client).await,
    }
}

/// Until the session ends; says why it did.
pub(in super::super) async fn serve(
    vm: &Vm,
    host: &Host,
    client: &Client,
    peer: Option<Listener>,
) -> CloseReason {
    let mut events = client.subscribe();
    let mut nics = vm.nics_changed.subscribe();
    vm.set_peer(peer);
    let process = vm.peer();
    if let Err(error) = vm.remember(&host.journal, |record| record.is_of(process)).await {
        warn!(
            error = chain(&error),
            "after a restart the agent cannot tell whether this QEMU has ended"
        );
    }
    let machine = match vm.runtime {
        Runtime::Qemu => Machine::Qemu(Qemu::new(client.clone())),
        Runtime::Kubevirt => Machine::Kubevirt(Launcher::new(client.clone()).await),
    };
    let mut adopted = vm.runtime == Runtime::Qemu || kubevirt::adopt(vm, host).await;
    vm.set_session(Session::Up(machine));
    loop {
        nics.mark_unchanged();
        let again = drive_migration(vm, host, Some(client)).await;
        if !adopted {
            adopted = kubevirt::adopt(vm, host).await;
        }
        let again = if adopted {
            again
        } else {
            Some(again.unwrap_or(ADOPT_AGAIN).min(ADOPT_AGAIN))
        };
        let look_again = async {
            match again {
                Some(pause) => tokio::time::sleep(pause).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(look_again);
        loop {
            // Only the wait may be cut short, never what an event leads to.
            let event = tokio::select! {
                biased;
                event = events.recv() => event,
                _ = nics.changed() => break,
                () = &mut look_again => break,
            };
            match event {
                Ok(event) => {
                    if on_event(vm, host, client, &event).await {
                        break;
                    }
                }
                Err(EventError::Closed(reason)) => return reason,
                Err(error) => {
                    debug!(%error, "events were lost; the state is read again");
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
    debug!(event = event.name, data = %event.data, "QEMU");
    let Some(event) = events::of(event) else {
        return false;
    };
    if let Some(note) = event.note() {
        for uid in vm.nics().keys() {
            vm.note(uid, note.clone());
        }
    }
    if vm.runtime == Runtime::Kubevirt {
        return kubevirt::on_event(vm, host, client, event).await;
    }
    let order = migration::agreed(&vm.nics());
    let step = order.as_ref().map(|o| o.step);
    let arriving = step.is_some_and(MigrationStep::receives);
    let leaving = matches!(
        step,
        Some(MigrationStep::Transfer | MigrationStep::Cancel | MigrationStep::Save)
    );
    match event {
        VmEvent::Migration {
            moment: Moment::HandingOver,
            ..
        } => match &order {
            // Another event tells what it leads to.
            Some(order) if order.step == MigrationStep::Transfer => !hand_over(vm, host, client, order).await,
            _ => true,
        },
        VmEvent::Migration { moment, .. } => {
            // A VM that has arrived is started before its NICs' tasks give QEMU anything else to do.
            let starts = arriving && moment == Moment::Completed;
            if matches!(moment, Moment::Completed | Moment::Over) && !starts {
                vm.beat(false);
            }
            moment != Moment::Sending
        }
        VmEvent::Resumed => {
            if let Some(order) = order.filter(|_| leaving) {
                hold_if_left(vm, client, &order).await;
            }
            vm.beat(true);
            true
        }
        // `pre-switchover` follows at once; in a save, `completed`.
        VmEvent::Stopped if matches!(step, Some(MigrationStep::Transfer | MigrationStep::Save)) => false,
        VmEvent::FailoverNegotiated if arriving => false,
        VmEvent::Reset | VmEvent::FailoverNegotiated => {
            vm.beat(true);
            true
        }
        // A standby that is a plain virtio-net has no other sign of its driver's start. QEMU sends the event again only after
        // it was asked what the guest receives, which is done once a second at most.
        VmEvent::Receives => {
            let is_bonded = |nic: &NicEntry| nic.pairing == Pairing::Bond;
            if !leaving && vm.nics().values().any(is_bonded) {
                vm.beat(false);
            }
            false
        }
        VmEvent::Stopped | VmEvent::ShutDown | VmEvent::Unplugged => {
            vm.beat(false);
            true
        }
    }
}

#[cfg(test)]
#[path = "flood_tests.rs"]
mod flood_tests;
#[cfg(test)]
#[path = "receives_tests.rs"]
mod receives_tests;
#[cfg(test)]
#[path = "untrusted_tests.rs"]
mod untrusted_tests;
