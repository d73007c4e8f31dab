//! What a VM's migration needs next on this node. Pure.
//!
//! The orders come with the NICs' attachments; all of a VM's NICs carry the same. A step is taken only when
//! every NIC that the order names has been seen with it.
//!
//! Two rules keep the VM from running twice:
//! - At the target QEMU does not start the VM. The agent does, after the journal says so. So a target whose journal says
//!   nothing has never run it.
//! - At the source a VM that may have left runs again only on the order to resume, which stands on the target's word or on a
//!   person's.

use std::collections::BTreeMap;

use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationOrder, MigrationReport, MigrationState, MigrationStep, MigrationTls,
};
use hybridnic_qmp::commands::{MigrationInfo, MigrationStatus, RunState};

use super::NicEntry;
use crate::{
    journal::{Arrival, Begun, Custody},
    nic::seen::Run,
};

/// What to do to the VM.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Action {
    /// Source: make the certificate for the stream, and see whether QEMU can use it.
    Certify,
    /// Target: let QEMU listen for the VM.
    Listen,
    /// Target: the VM is loaded: start it.
    Run,
    /// Target: the VM was about to be started when the agent died, and is not to be started any more: note that.
    Forgo,
    /// Source: send the VM to this URI.
    Start(String),
    /// Source: the VM is paused before the hand-over: silence its NICs, then let it go.
    HandOver,
    /// Source: QEMU runs a VM again that may run at the target: pause it.
    Hold,
    /// Source: stop the transfer.
    Cancel,
    /// Source: run the VM again.
    Resume,
}

impl Action {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Certify => "Certify",
            Self::Listen => "Listen",
            Self::Run => "Run",
            Self::Forgo => "Forgo",
            Self::Start(_) => "Start",
            Self::HandOver => "HandOver",
            Self::Hold => "Hold",
            Self::Cancel => "Cancel",
            Self::Resume => "Resume",
        }
    }
}

/// What is seen of the VM's QEMU.
#[derive(Clone, Debug)]
pub struct VmSeen {
    /// What it does.
    pub run: RunState,
    /// Its migration.
    pub info: MigrationInfo,
}

/// What is seen of the QEMU in which the migration was begun, or of the one that is there where none was begun.
#[derive(Clone, Copy, Debug)]
pub enum Sight<'a> {
    /// It does not answer, which proves nothing.
    Silent,
    /// Its process has ended.
    Ended,
    /// It answers.
    Up(&'a VmSeen),
}

/// What this end can say of itself for a stream that is encrypted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Certified {
    /// The CA of its certificate, in PEM.
    By(String),
    /// QEMU cannot encrypt, or cannot be given the certificate; why.
    Not(String),
}

/// All that decides.
#[derive(Clone, Copy, Debug)]
pub struct Inputs<'a> {
    /// The VM's NICs, by the uid of their attachment.
    pub nics: &'a BTreeMap<String, NicEntry>,
    /// What is seen of QEMU.
    pub sight: Sight<'a>,
    /// The migration that was begun last, as the journal says.
    pub begun: Option<&'a Begun>,
    /// What was said last of this migration, by an earlier agent perhaps.
    pub said: Option<&'a MigrationReport>,
    /// What this end can say of itself where the stream is to be encrypted; `None` before it has tried.
    pub certified: Option<&'a Certified>,
}

/// What the next step is, and what to tell the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What to do.
    pub action: Option<Action>,
    /// How the migration goes; `None` where what was said last still stands.
    pub report: Option<MigrationReport>,
}

/// The order that all NICs of the VM agree on.
pub fn agreed(nics: &BTreeMap<String, NicEntry>) -> Option<MigrationOrder> {
    let order = nics.values().find_map(|n| n.order.clone())?;
    // To stop is urgent and never wrong: one NIC's word is enough.
    if let Some(stop) = nics.values().filter_map(|n| n.order.as_ref()).find(|o| {
        matches!(
            o.step,
            MigrationStep::Cancel | MigrationStep::Resume | MigrationStep::GiveUp
        )
    }) {
        return Some(stop.clone());
    }
    let has = |name: &String| {
        nics.values()
            .any(|n| n.nic == *name && n.order.as_ref() == Some(&order))
    };
    order.nics.iter().all(has).then_some(order)
}

/// Decides.
pub fn decide(inputs: &Inputs<'_>) -> Verdict {
    let nics = inputs.nics;
    let seen = match inputs.sight {
        Sight::Up(seen) => seen,
        Sight::Silent => return Verdict::default(),
        Sight::Ended => return ended(inputs),
    };
    let Some(order) = agreed(nics) else {
        return Verdict::default();
    };
    let begun = inputs
        .begun
        .filter(|begun| begun.migration == order.migration.uid);
    let says = Says(&order.migration.uid);
    let all = |state: AttachmentState| {
        order
            .nics
            .iter()
            .all(|name| nics.values().any(|n| n.nic == *name && n.state == state))
    };
    // With the VF back in the operator's plans for this end, the VM is known to be here.
    let accepted = |nic: &NicEntry| nic.goal == Goal::FastPath && nic.order.as_ref() == Some(&order);
    let custody = if nics.values().any(accepted) {
        Custody::Here
    } else {
        begun.map(|begun| begun.custody).unwrap_or_default()
    };
    // What was said to be over does not begin, again or late.
    let over = inputs
        .said
        .is_some_and(|said| said.uid == order.migration.uid && said.state.is_final());
    let stream = Stream {
        tls: order.tls.as_ref(),
        certified: inputs.certified,
    };
    let verdict = match order.step {
        MigrationStep::Prepare if over || stream.tls.is_none() => Verdict::default(),
        MigrationStep::Prepare => certify(&stream, says),
        MigrationStep::Listen => target(
            seen,
            begun,
            !over && all(AttachmentState::Reserved),
            &stream,
            says,
        ),
        MigrationStep::GiveUp => give_up(seen, begun, &stream, says),
        MigrationStep::Transfer => {
            let uri = order
                .target_uri
                .clone()
                .filter(|_| !over && all(AttachmentState::Standby) && stream.knows_its_peer());
            source(seen, begun, custody, uri, says)
        }
        MigrationStep::Cancel => cancel(seen, begun, custody, says),
        MigrationStep::Resume => resume(seen, says),
    };
    // An order from the journal may have been taken back since.
    let heard = nics.values().all(|nic| nic.heard);
    let waits = matches!(verdict.action, Some(Action::Run | Action::Resume)) && !heard;
    Verdict {
        action: verdict.action.filter(|_| !waits),
        ..verdict
    }
}

/// QEMU has ended. What its migration came to is so whether or not all NICs go by one order: some may have left already.
fn ended(inputs: &Inputs<'_>) -> Verdict {
    let ordered = |migration: &str| {
        let mut orders = inputs.nics.values().filter_map(|nic| nic.order.as_ref());
        orders.any(|order| order.migration.uid == migration)
    };
    let Some(begun) = inputs.begun.filter(|begun| ordered(&begun.migration)) else {
        return Verdict::default();
    };
    let state = if begun.arrival.is_some() {
        MigrationState::Ended
    } else {
        MigrationState::Lost
    };
    Says(&begun.migration).state(state)
}

/// Whose migration a report is about.
#[derive(Clone, Copy)]
struct Says<'a>(&'a str);

impl Says<'_> {
    fn report(self, state: MigrationState) -> MigrationReport {
        MigrationReport::new(self.0, state)
    }

    fn state(self, state: MigrationState) -> Verdict {
        Verdict {
            action: None,
            report: Some(self.report(state)),
        }
    }

    fn failed(self, error: impl Into<Option<String>>) -> Verdict {
        let report = MigrationReport {
            error: error.into(),
            ..self.report(MigrationState::Failed)
        };
        Verdict {
            action: None,
            report: Some(report),
        }
    }
}

/// How the VM is to be sent.
#[derive(Clone, Copy)]
struct Stream<'a> {
    /// What is ordered; `None`: plain.
    tls: Option<&'a MigrationTls>,
    certified: Option<&'a Certified>,
}

impl Stream<'_> {
    /// Whether it is plain, or it is known who may be at its other end.
    fn knows_its_peer(&self) -> bool {
        self.tls.is_none_or(|tls| tls.peer_ca.is_some())
    }

    /// The CA by which the other end knows this one.
    fn ca(&self) -> Option<String> {
        match self.certified.filter(|_| self.tls.is_some())? {
            Certified::By(ca) => Some(ca.clone()),
            Certified::Not(_) => None,
        }
    }

    /// Where QEMU cannot encrypt what is to be encrypted: that it cannot.
    fn refusal(&self, says: Says<'_>) -> Option<MigrationReport> {
        match self.certified.filter(|_| self.tls.is_some())? {
            Certified::By(_) => None,
            Certified::Not(why) => Some(MigrationReport {
                error: Some(why.clone()),
                no_tls: true,
                ..says.report(MigrationState::Prepared)
            }),
        }
    }
}

/// Source: nothing has begun.
fn certify(stream: &Stream<'_>, says: Says<'_>) -> Verdict {
    let made = stream.ca().map(|ca| MigrationReport {
        ca: Some(ca),
        ..says.report(MigrationState::Prepared)
    });
    let report = made.or_else(|| stream.refusal(says));
    Verdict {
        action: report.is_none().then_some(Action::Certify),
        report,
    }
}

/// Why a target cannot take the VM of a migration that was not begun in its QEMU.
pub const NOT_INCOMING: &str =
    "QEMU at the target was not started with -incoming defer, or runs a guest already";
/// Why a target cannot take the VM of a migration that was not begun in its QEMU.
pub const OTHER_INCOMING: &str = "QEMU at the target already waits for another migration";

fn target(
    seen: &VmSeen,
    begun: Option<&Begun>,
    reserved: bool,
    stream: &Stream<'_>,
    says: Says<'_>,
) -> Verdict {
    let status = seen.info.status();
    let incoming = seen.run == RunState::InMigrate;
    let listen = || {
        let report = stream.refusal(says);
        let can = reserved && stream.knows_its_peer() && report.is_none();
        Verdict {
            action: can.then_some(Action::Listen),
            report,
        }
    };
    let Some(begun) = begun else {
        return match (incoming, is_waiting(seen)) {
            // It has received a VM: of this migration or not, the journal cannot tell.
            (false, _) if status == MigrationStatus::Completed => Verdict {
                action: None,
                report: Some(MigrationReport {
                    error: Some(NOT_INCOMING.to_owned()),
                    ..says.report(MigrationState::Active)
                }),
            },
            (false, _) => says.failed(NOT_INCOMING.to_owned()),
            (true, false) => says.failed(OTHER_INCOMING.to_owned()),
            (true, true) => listen(),
        };
    };
    if let Some(arrival) = begun.arrival {
        let stopped_halfway = arrival == Arrival::Starting && is_loaded(seen);
        return if stopped_halfway {
            Verdict {
                action: Some(Action::Run),
                report: None,
            }
        } else {
            says.state(MigrationState::Completed)
        };
    }
    match status {
        MigrationStatus::Failed => says.failed(seen.info.error_desc.clone()),
        _ if !incoming => Verdict {
            // Loaded; or started by somebody else, which has to be in the journal all the same.
            action: (is_loaded(seen) || seen.run == RunState::Running).then_some(Action::Run),
            report: Some(says.report(MigrationState::Active)),
        },
        MigrationStatus::None | MigrationStatus::Setup => match seen.info.listening().first() {
            Some(address) => Verdict {
                action: None,
                report: Some(MigrationReport {
                    port: Some(address.port.into()),
                    ca: stream.ca(),
                    ..says.report(MigrationState::Listening)
                }),
            },
            // The journal was written, and the agent died before QEMU was told.
            None => listen(),
        },
        _ => says.state(MigrationState::Active),
    }
}

/// The NICs' own tasks end the QEMU; a VM that is about to be started here is not started any more.
fn give_up(seen: &VmSeen, begun: Option<&Begun>, stream: &Stream<'_>, says: Says<'_>) -> Verdict {
    match begun {
        // Nothing of it was ever here.
        None => Verdict::default(),
        Some(begun) if begun.arrival == Some(Arrival::Starting) && is_loaded(seen) => Verdict {
            action: Some(Action::Forgo),
            report: None,
        },
        Some(_) => Verdict {
            action: None,
            ..target(seen, begun, false, stream, says)
        },
    }
}

/// Whether an incoming QEMU has not been told yet where the VM comes from.
fn is_waiting(seen: &VmSeen) -> bool {
    seen.info.status() == MigrationStatus::None && seen.info.listening().is_empty()
}

/// Whether the VM is loaded and has not been started.
pub fn is_loaded(seen: &VmSeen) -> bool {
    seen.run == RunState::Paused && seen.info.status() == MigrationStatus::Completed
}

fn source(
    seen: &VmSeen,
    begun: Option<&Begun>,
    custody: Custody,
    uri: Option<String>,
    says: Says<'_>,
) -> Verdict {
    let ms = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok());
    let status = seen.info.status();
    // Where the journal was written, and the agent died before QEMU was told, there is no status, or that of the VM's own
    // arrival: this migration has not completed before the hand-over.
    let arrived =
        seen.run == RunState::Paused && status == MigrationStatus::Completed && custody == Custody::Here;
    if begun.is_none() || status == MigrationStatus::None || arrived {
        return Verdict {
            action: uri.map(Action::Start),
            report: None,
        };
    }
    let state = match status {
        MigrationStatus::Completed if seen.run == RunState::Running => MigrationState::Cancelled,
        MigrationStatus::Completed => MigrationState::Completed,
        MigrationStatus::Failed => MigrationState::Failed,
        // After the hand-over nobody of ours cancels; if somebody did, the target may have the VM.
        MigrationStatus::Cancelled if custody == Custody::Left => MigrationState::Failed,
        MigrationStatus::Cancelled => MigrationState::Cancelled,
        _ => MigrationState::Active,
    };
    let action = match state {
        MigrationState::Active if status == MigrationStatus::PreSwitchover => Some(Action::HandOver),
        MigrationState::Failed if custody == Custody::Left && seen.run == RunState::Running => {
            Some(Action::Hold)
        }
        _ => None,
    };
    let completed = state == MigrationState::Completed;
    Verdict {
        action,
        report: Some(MigrationReport {
            error: seen.info.error_desc.clone(),
            kept: state == MigrationState::Failed && custody == Custody::Here,
            total_ms: ms(seen.info.total_time).filter(|_| completed),
            downtime_ms: ms(seen.info.downtime).filter(|_| completed),
            ..says.report(state)
        }),
    }
}

fn cancel(seen: &VmSeen, begun: Option<&Begun>, custody: Custody, says: Says<'_>) -> Verdict {
    let status = seen.info.status();
    if begun.is_none() || status == MigrationStatus::None {
        return says.state(MigrationState::Cancelled);
    }
    let verdict = source(seen, begun, custody, None, says);
    // QEMU would run the VM again, whether or not the target has it by then.
    let too_late = custody == Custody::Left || status == MigrationStatus::Device;
    if !status.is_idle() {
        let cancel = !too_late && status != MigrationStatus::Cancelling;
        // An agent died between the note that the VM may leave and the command: it was not sent, or is about to be obeyed.
        let half = status == MigrationStatus::PreSwitchover && custody == Custody::Left;
        let action = cancel.then_some(Action::Cancel);
        return Verdict {
            action: action.or_else(|| half.then_some(Action::HandOver)),
            ..verdict
        };
    }
    if seen.run == RunState::Running && verdict.report.as_ref().is_some_and(|report| report.kept) {
        return says.state(MigrationState::Cancelled);
    }
    verdict
}

fn resume(seen: &VmSeen, says: Says<'_>) -> Verdict {
    let status = seen.info.status();
    let paused = match seen.run {
        RunState::PostMigrate => true,
        RunState::FinishMigrate => status == MigrationStatus::Completed,
        // We held it.
        RunState::Paused => matches!(status, MigrationStatus::Failed | MigrationStatus::Cancelled),
        _ => false,
    };
    if !paused {
        return says.state(MigrationState::Cancelled);
    }
    let state = if status == MigrationStatus::Completed {
        MigrationState::Completed
    } else {
        MigrationState::Failed
    };
    Verdict {
        action: Some(Action::Resume),
        report: Some(says.report(state)),
    }
}

/// What is known of a migration from before a look.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// The migration that was begun last, as the journal says.
    pub begun: Option<&'a Begun>,
    /// Whether it was begun in the QEMU that is seen.
    pub same: bool,
}

/// What a NIC with this goal and order may think of its VM: where the VM may run elsewhere, the NIC is silent here.
pub fn run_of(seen: &VmSeen, goal: Goal, order: Option<&MigrationOrder>, known: Known<'_>) -> Run {
    let Known { begun, same } = known;
    let status = seen.info.status();
    let plain = match (&seen.run, &status) {
        (RunState::InMigrate, _) => Run::Incoming,
        // The second is the first, a moment before QEMU's run state follows.
        (RunState::PostMigrate, _) | (RunState::FinishMigrate, MigrationStatus::Completed) => Run::HandedOver,
        (RunState::FinishMigrate, _) | (_, MigrationStatus::PreSwitchover | MigrationStatus::Device) => {
            Run::HandingOver
        }
        _ => Run::Here,
    };
    let Some(order) = order else {
        // Somebody else has a VM come, say from a file: a device more would spoil it, and it is not ours to end.
        let ours = is_waiting(seen) || begun.is_some() && same;
        return match plain {
            Run::Incoming if !ours => Run::Occupied,
            plain => plain,
        };
    };
    let begun = begun.filter(|begun| begun.migration == order.migration.uid);
    match (order.step, begun) {
        (MigrationStep::Listen | MigrationStep::GiveUp, None)
            if plain == Run::Incoming && is_waiting(seen) =>
        {
            Run::Incoming
        }
        (MigrationStep::Listen | MigrationStep::GiveUp, None) => Run::Occupied,
        (step @ (MigrationStep::Listen | MigrationStep::GiveUp), Some(begun)) if plain == Run::Here => {
            match begun.arrival {
                // Another QEMU than the one that the VM has gone to.
                _ if !same => Run::Occupied,
                // Loaded, and not started.
                None => Run::Incoming,
                Some(Arrival::Starting) if is_loaded(seen) => match step {
                    MigrationStep::GiveUp => Run::Incoming,
                    _ => Run::Starting,
                },
                Some(_) => Run::Here,
            }
        }
        (MigrationStep::Transfer | MigrationStep::Cancel, Some(begun))
            if plain == Run::Here && goal != Goal::FastPath =>
        {
            let ended_badly = status == MigrationStatus::Failed && begun.custody != Custody::Here;
            let left = begun.custody == Custody::Left && status.is_idle();
            if !same || ended_badly || left {
                Run::HandedOver
            } else {
                Run::Here
            }
        }
        _ => plain,
    }
}

#[cfg(test)]
#[path = "migration_tests.rs"]
mod tests;

#[cfg(test)]
#[path = "run_of_tests.rs"]
mod run_of_tests;
