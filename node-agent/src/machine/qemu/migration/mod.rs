//! What a VM's migration needs next on this node. Pure.
//!
//! | module | decides |
//! |---|---|
//! | `source` | what the end that has the VM does |
//! | `target` | what the end that gets it does |
//! | `file` | what the only end of a VM does that goes to a file, or comes from one |
//! | `run_of` | what each NIC may assume about its VM meanwhile |
//!
//! The orders come with the NICs' attachments; all of a VM's NICs carry the same. A step is taken only when
//! every NIC that the order names has been seen with it.
//!
//! Two rules keep the VM from running twice:
//! - At the target QEMU does not start the VM. The agent does, after it has written that into the journal. So if the target's
//!   journal does not say so, the VM has never run there.
//! - At the source a VM that may have left runs again only on the order to resume, which needs the target's report or a
//!   person's decision.

mod file;
mod run_of;
mod source;
mod target;

use std::collections::BTreeMap;

use hybridnic_api::v1alpha1::{
    AttachmentState, Goal, MigrationOrder, MigrationReport, MigrationState, MigrationStep, MigrationTls,
};
use hybridnic_qmp::commands::{MigrationInfo, RunState};

use crate::{
    journal::{Begun, Custody, SaveStage},
    machine::NicEntry,
};
pub use file::{FileAction, FileSeen};
pub use run_of::{RunInputs, run_of};
pub use target::{NOT_INCOMING, OTHER_INCOMING, is_loaded};

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
    /// The VM goes to a file, or comes from one.
    File(FileAction),
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
            Self::File(action) => action.name(),
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

/// What is seen in the QEMU in which the migration was begun, or in the present one if none was begun.
#[derive(Clone, Copy, Debug)]
pub enum EndSeen<'a> {
    /// It does not answer, which proves nothing.
    Silent,
    /// Its process has ended.
    Ended,
    /// It answers.
    Up(&'a VmSeen),
}

/// What this end can report for a stream that is encrypted.
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
    pub end: EndSeen<'a>,
    /// The migration that was begun last, as the journal says.
    pub begun: Option<&'a Begun>,
    /// What was last reported about this migration, perhaps by an earlier agent.
    pub said: Option<&'a MigrationReport>,
    /// What this end can report where the stream is to be encrypted; `None` before it has tried.
    pub certified: Option<&'a Certified>,
    /// What is known about the file, if the VM goes to one or comes from one; `None` before it was looked at.
    pub file: Option<&'a FileSeen>,
}

/// What the next step is, and what to tell the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What to do.
    pub action: Option<Action>,
    /// How the migration goes; `None` if the last report still stands.
    pub report: Option<MigrationReport>,
}

/// The order that all NICs of the VM agree on.
pub fn agreed(nics: &BTreeMap<String, NicEntry>) -> Option<MigrationOrder> {
    let order = nics.values().find_map(|n| n.order.clone())?;
    // Stopping is urgent and never wrong: one NIC's order is enough.
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
    let seen = match inputs.end {
        EndSeen::Up(seen) => seen,
        EndSeen::Silent => return Verdict::default(),
        EndSeen::Ended => return ended(inputs),
    };
    let Some(order) = agreed(nics) else {
        return Verdict::default();
    };
    let begun = inputs
        .begun
        .filter(|begun| begun.migration == order.migration.uid);
    let says = Says(&order.migration.uid);
    let all = |are: fn(AttachmentState) -> bool| {
        let is_so = |name: &String| {
            let mut entries = nics.values();
            entries.any(|nic| nic.nic == *name && are(nic.state))
        };
        order.nics.iter().all(is_so)
    };
    // With the VF back in the operator's plans for this end, the VM is known to be here.
    let accepted = |nic: &NicEntry| nic.goal == Goal::FastPath && nic.order.as_ref() == Some(&order);
    let custody = if nics.values().any(accepted) {
        Custody::Here
    } else {
        begun.map(|begun| begun.custody).unwrap_or_default()
    };
    // A migration that was reported to be over does not begin again, or late.
    let over = inputs
        .said
        .is_some_and(|said| said.uid == order.migration.uid && said.state.is_final());
    let stream = Stream {
        tls: order.tls.as_ref(),
        certified: inputs.certified,
    };
    let verdict = match order.step {
        MigrationStep::Prepare if order.file.is_some() => file::prepare(seen, &order, inputs.file, says),
        MigrationStep::Save => {
            let can = !over && all(AttachmentState::is_off_vf);
            file::save(seen, begun, can, &order, says)
        }
        MigrationStep::Load => {
            let can = !over && all(|state| state == AttachmentState::Reserved);
            file::load(seen, begun, can, inputs.file, says)
        }
        MigrationStep::Cancel if order.file.is_some() => file::cancel(seen, begun, inputs.file, &order, says),
        MigrationStep::Prepare if over || stream.tls.is_none() => Verdict::default(),
        MigrationStep::Prepare => certify(&stream, says),
        MigrationStep::Listen => target::listen(
            seen,
            begun,
            !over && all(|state| state == AttachmentState::Reserved),
            &stream,
            says,
        ),
        MigrationStep::GiveUp => target::give_up(seen, begun, &stream, says),
        MigrationStep::Transfer => {
            let uri = order
                .target_uri
                .clone()
                .filter(|_| !over && all(AttachmentState::is_off_vf) && stream.knows_its_peer());
            source::transfer(seen, begun, custody, uri, says)
        }
        MigrationStep::Cancel => source::cancel(seen, begun, custody, says),
        MigrationStep::Resume => source::resume(seen, says),
        // KubeVirt's: its launcher is not looked at yet.
        MigrationStep::Watch => Verdict::default(),
    };
    // An order from the journal may have been taken back since.
    let heard = nics.values().all(|nic| nic.heard);
    let waits = matches!(verdict.action, Some(Action::Run | Action::Resume)) && !heard;
    Verdict {
        action: verdict.action.filter(|_| !waits),
        ..verdict
    }
}

/// QEMU has ended. The result of its migration does not depend on whether all NICs follow one order: some may have left already.
fn ended(inputs: &Inputs<'_>) -> Verdict {
    let ordered = |migration: &str| {
        let mut orders = inputs.nics.values().filter_map(|nic| nic.order.as_ref());
        orders.any(|order| order.migration.uid == migration)
    };
    let Some(begun) = inputs.begun.filter(|begun| ordered(&begun.migration)) else {
        return Verdict::default();
    };
    let named = matches!(begun.save_stage(), Some(SaveStage::Named(_)));
    // One that ran on past its file did not end in it.
    let ran_on = inputs
        .said
        .is_some_and(|said| said.uid == begun.migration && said.state == MigrationState::Failed);
    let state = if named && !ran_on || begun.arrival.is_some() {
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
    /// Whether it is plain, or it is known which peer may be at its other end.
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

    /// If QEMU cannot encrypt a stream that is to be encrypted: that it cannot.
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

#[cfg(test)]
mod tests;
