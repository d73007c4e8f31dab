//! What a VM's migration needs next on this node. Pure.
//!
//! The orders come with the NICs' attachments; all of a VM's NICs carry the same. A step is taken only when
//! every NIC that the order names has been seen with it.

use std::collections::BTreeMap;

use hybridnic_api::v1alpha1::{
    AttachmentState, MigrationOrder, MigrationReport, MigrationState, MigrationStep,
};
use hybridnic_qmp::commands::{MigrationInfo, MigrationStatus, RunState};

use super::NicEntry;

/// What to do to the VM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Target: let QEMU listen for the VM.
    Listen,
    /// Source: send the VM to this URI.
    Start(String),
    /// Source: the VM is paused before the hand-over: silence its NICs, then let it go.
    HandOver,
    /// Source: stop the transfer.
    Cancel,
    /// Source: run the VM again.
    Resume,
}

impl Action {
    /// Its name.
    pub fn name(&self) -> &'static str {
        match self {
            Self::Listen => "Listen",
            Self::Start(_) => "Start",
            Self::HandOver => "HandOver",
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

/// What the next step is, and what to tell the operator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// What to do.
    pub action: Option<Action>,
    /// How the migration goes.
    pub report: Option<MigrationReport>,
}

/// The order that all NICs of the VM agree on.
pub fn agreed(nics: &BTreeMap<String, NicEntry>) -> Option<MigrationOrder> {
    let order = nics.values().find_map(|n| n.order.clone())?;
    // To stop is urgent and never wrong: one NIC's word is enough.
    if let Some(stop) = nics
        .values()
        .filter_map(|n| n.order.as_ref())
        .find(|o| matches!(o.step, MigrationStep::Cancel | MigrationStep::Resume))
    {
        return Some(stop.clone());
    }
    let has = |name: &String| {
        nics.values()
            .any(|n| n.nic == *name && n.order.as_ref() == Some(&order))
    };
    order.nics.iter().all(has).then_some(order)
}

/// Decides. `seen` is `None` when QEMU is gone; `started` is the migration that was begun here, as the journal
/// says.
pub fn decide(nics: &BTreeMap<String, NicEntry>, seen: Option<&VmSeen>, started: Option<&str>) -> Verdict {
    let Some(order) = agreed(nics) else {
        return Verdict::default();
    };
    let ours = started == Some(order.migration.uid.as_str());
    let report = |state| MigrationReport {
        uid: order.migration.uid.clone(),
        state,
        port: None,
        error: None,
        total_ms: None,
        downtime_ms: None,
    };
    let Some(seen) = seen else {
        return Verdict {
            action: None,
            report: ours.then(|| report(MigrationState::Lost)),
        };
    };
    let all = |state: AttachmentState| {
        order
            .nics
            .iter()
            .all(|name| nics.values().any(|n| n.nic == *name && n.state == state))
    };
    match order.step {
        MigrationStep::Listen => target(seen, ours, all(AttachmentState::Reserved), report),
        MigrationStep::Prepare => Verdict::default(),
        MigrationStep::Transfer => {
            let uri = order.target_uri.clone().filter(|_| all(AttachmentState::Standby));
            source(seen, ours, uri, report)
        }
        MigrationStep::Cancel => {
            let mut verdict = source(seen, ours, None, report);
            verdict.action = (!seen.info.status().is_idle()).then_some(Action::Cancel);
            if seen.info.status() == MigrationStatus::Cancelling {
                verdict.action = None;
            }
            if !ours || seen.run == RunState::Running && seen.info.status().is_idle() {
                verdict.report = Some(report(MigrationState::Cancelled));
            }
            verdict
        }
        MigrationStep::Resume => {
            let paused = match seen.run {
                RunState::PostMigrate => true,
                RunState::FinishMigrate => seen.info.status() == MigrationStatus::Completed,
                _ => false,
            };
            let state = if paused {
                MigrationState::Completed
            } else {
                MigrationState::Cancelled
            };
            Verdict {
                action: paused.then_some(Action::Resume),
                report: Some(report(state)),
            }
        }
    }
}

fn target(
    seen: &VmSeen,
    ours: bool,
    reserved: bool,
    report: impl Fn(MigrationState) -> MigrationReport,
) -> Verdict {
    if seen.run != RunState::InMigrate {
        // It was incoming when it was chosen, so the VM has arrived.
        let state = if seen.info.status() == MigrationStatus::Failed {
            MigrationState::Failed
        } else {
            MigrationState::Completed
        };
        return Verdict {
            action: None,
            report: ours.then(|| report(state)),
        };
    }
    match seen.info.status() {
        MigrationStatus::Failed => Verdict {
            action: None,
            report: Some(MigrationReport {
                error: seen.info.error_desc.clone(),
                ..report(MigrationState::Failed)
            }),
        },
        MigrationStatus::None | MigrationStatus::Setup => match seen.info.listening().first() {
            Some(address) if ours => Verdict {
                action: None,
                report: Some(MigrationReport {
                    port: Some(address.port.into()),
                    ..report(MigrationState::Listening)
                }),
            },
            Some(_) => Verdict {
                action: None,
                report: Some(MigrationReport {
                    error: Some("QEMU already listens for another migration".into()),
                    ..report(MigrationState::Failed)
                }),
            },
            None => Verdict {
                action: reserved.then_some(Action::Listen),
                report: None,
            },
        },
        _ => Verdict {
            action: None,
            report: Some(report(MigrationState::Active)),
        },
    }
}

fn source(
    seen: &VmSeen,
    ours: bool,
    uri: Option<String>,
    report: impl Fn(MigrationState) -> MigrationReport,
) -> Verdict {
    let ms = |n: Option<u64>| n.and_then(|n| i64::try_from(n).ok());
    if !ours {
        return Verdict {
            action: uri.map(Action::Start),
            report: None,
        };
    }
    let status = seen.info.status();
    let state = match status {
        MigrationStatus::Completed if seen.run == RunState::Running => MigrationState::Cancelled,
        MigrationStatus::Completed => MigrationState::Completed,
        MigrationStatus::Failed => MigrationState::Failed,
        MigrationStatus::Cancelled => MigrationState::Cancelled,
        // The journal was written, and the agent died before QEMU was told.
        MigrationStatus::None => {
            return Verdict {
                action: uri.map(Action::Start),
                report: None,
            };
        }
        _ => MigrationState::Active,
    };
    Verdict {
        action: (status == MigrationStatus::PreSwitchover).then_some(Action::HandOver),
        report: Some(MigrationReport {
            error: seen.info.error_desc.clone(),
            total_ms: ms(seen.info.total_time).filter(|_| state == MigrationState::Completed),
            downtime_ms: ms(seen.info.downtime).filter(|_| state == MigrationState::Completed),
            ..report(state)
        }),
    }
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::ObjectRef;

    use super::*;

    fn nics(step: MigrationStep, state: AttachmentState, names: &[&str]) -> BTreeMap<String, NicEntry> {
        let order = MigrationOrder {
            migration: ObjectRef {
                name: "m".into(),
                uid: "m1".into(),
            },
            nics: vec!["a".into(), "b".into()],
            step,
            target_uri: Some("tcp:10.0.0.2:4000".into()),
        };
        let entry = |name: &&str| {
            let nic = NicEntry {
                nic: (*name).into(),
                state,
                order: Some(order.clone()),
                ..NicEntry::default()
            };
            ((*name).to_owned(), nic)
        };
        names.iter().map(entry).collect()
    }

    fn vm(run: RunState, info: &str) -> VmSeen {
        VmSeen {
            run,
            info: serde_json::from_str(info).unwrap(),
        }
    }

    fn state(verdict: &Verdict) -> Option<MigrationState> {
        verdict.report.as_ref().map(|r| r.state)
    }

    #[test]
    fn nothing_starts_before_every_nic_is_there_and_ready() {
        let idle = vm(RunState::Running, "{}");
        let one = nics(MigrationStep::Transfer, AttachmentState::Standby, &["a"]);
        assert_eq!(decide(&one, Some(&idle), None), Verdict::default());
        let fast = nics(MigrationStep::Transfer, AttachmentState::FastPath, &["a", "b"]);
        assert_eq!(decide(&fast, Some(&idle), None).action, None);
        let ready = nics(MigrationStep::Transfer, AttachmentState::Standby, &["a", "b"]);
        assert_eq!(
            decide(&ready, Some(&idle), None).action,
            Some(Action::Start("tcp:10.0.0.2:4000".into()))
        );
    }

    #[test]
    fn a_transfer_that_failed_is_not_started_again_after_a_restart() {
        let ready = nics(MigrationStep::Transfer, AttachmentState::Standby, &["a", "b"]);
        let failed = vm(
            RunState::Running,
            r#"{"status":"failed","error-desc":"broken pipe"}"#,
        );
        let verdict = decide(&ready, Some(&failed), Some("m1"));
        assert_eq!(
            (verdict.action.clone(), state(&verdict)),
            (None, Some(MigrationState::Failed))
        );
        assert_eq!(verdict.report.unwrap().error.as_deref(), Some("broken pipe"));
        // The failure of an earlier migration is no obstacle.
        assert!(matches!(
            decide(&ready, Some(&failed), Some("m0")).action,
            Some(Action::Start(_))
        ));
    }

    #[test]
    fn the_source_hands_over_at_pre_switchover() {
        let ready = nics(MigrationStep::Transfer, AttachmentState::Standby, &["a", "b"]);
        let paused = vm(RunState::FinishMigrate, r#"{"status":"pre-switchover"}"#);
        assert_eq!(
            decide(&ready, Some(&paused), Some("m1")).action,
            Some(Action::HandOver)
        );
    }

    #[test]
    fn the_target_listens_and_arrives() {
        let ready = nics(MigrationStep::Listen, AttachmentState::Reserved, &["a", "b"]);
        assert_eq!(
            decide(&ready, Some(&vm(RunState::InMigrate, "{}")), None).action,
            Some(Action::Listen)
        );
        let listening = vm(
            RunState::InMigrate,
            r#"{"status":"setup","socket-address":[{"type":"inet","host":"0.0.0.0","port":"4001"}]}"#,
        );
        let verdict = decide(&ready, Some(&listening), Some("m1"));
        assert_eq!(verdict.report.as_ref().unwrap().port, Some(4001));
        let arrived = vm(RunState::Running, r#"{"status":"completed"}"#);
        assert_eq!(
            state(&decide(&ready, Some(&arrived), Some("m1"))),
            Some(MigrationState::Completed)
        );
        assert_eq!(
            state(&decide(&ready, None, Some("m1"))),
            Some(MigrationState::Lost)
        );
        assert_eq!(
            state(&decide(&ready, None, None)),
            None,
            "QEMU has not started yet"
        );
    }

    #[test]
    fn cancel_and_resume() {
        let cancel = nics(MigrationStep::Cancel, AttachmentState::Standby, &["a"]);
        let active = vm(RunState::Running, r#"{"status":"active"}"#);
        assert_eq!(
            decide(&cancel, Some(&active), Some("m1")).action,
            Some(Action::Cancel)
        );
        let over = vm(RunState::Running, r#"{"status":"cancelled"}"#);
        let verdict = decide(&cancel, Some(&over), Some("m1"));
        assert_eq!(
            (verdict.action.clone(), state(&verdict)),
            (None, Some(MigrationState::Cancelled))
        );
        let never = vm(RunState::Running, "{}");
        assert_eq!(
            state(&decide(&cancel, Some(&never), None)),
            Some(MigrationState::Cancelled)
        );
        let gone = vm(RunState::PostMigrate, r#"{"status":"completed"}"#);
        assert_eq!(
            state(&decide(&cancel, Some(&gone), Some("m1"))),
            Some(MigrationState::Completed)
        );

        let resume = nics(MigrationStep::Resume, AttachmentState::Standby, &["a"]);
        assert_eq!(
            decide(&resume, Some(&gone), Some("m1")).action,
            Some(Action::Resume)
        );
        let going = vm(RunState::FinishMigrate, r#"{"status":"completed"}"#);
        assert_eq!(
            decide(&resume, Some(&going), Some("m1")).action,
            Some(Action::Resume)
        );
        let back = vm(RunState::Running, r#"{"status":"completed"}"#);
        assert_eq!(
            state(&decide(&resume, Some(&back), Some("m1"))),
            Some(MigrationState::Cancelled)
        );
    }
}
