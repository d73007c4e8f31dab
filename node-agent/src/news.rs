//! How long a report may wait for the next one, to be written with it. Pure.

use std::time::Duration;

use hybridnic_api::v1alpha1::NicAttachmentStatus;

/// For what nobody acts on: words, times, addresses in the guest.
const LATER: Duration = Duration::from_secs(2);
/// For a spec that was seen and has changed nothing yet: what it leads to mostly follows at once.
const SOON: Duration = Duration::from_millis(50);

/// How long the change from what was `written` to `now` may wait.
pub fn patience(written: &NicAttachmentStatus, now: &NicAttachmentStatus) -> Duration {
    if bare(written) != bare(now) {
        Duration::ZERO
    } else if written.observed_generation != now.observed_generation {
        SOON
    } else {
        LATER
    }
}

/// What the operator acts on, and what people wait for; but for the generation.
fn bare(status: &NicAttachmentStatus) -> NicAttachmentStatus {
    let mut status = status.clone();
    status.observed_generation = None;
    status.guest.vf_pci_address = None;
    status.guest.standby_pci_address = None;
    status.unplug_order = None;
    status.timeline.clear();
    for condition in &mut status.conditions {
        condition.message.clear();
        condition.observed_generation = None;
    }
    status
}

#[cfg(test)]
mod tests {
    use super::*;
    use hybridnic_api::conditions::{self, NewCondition, reasons, types};
    use hybridnic_api::v1alpha1::{AttachmentState, MigrationReport, MigrationState, TimelineEntry};
    use jiff::Timestamp;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;

    fn set(status: &mut NicAttachmentStatus, generation: i64, reason: &str, message: &str) {
        let condition = NewCondition::no(types::READY, reason, message);
        let list = &mut status.conditions;
        conditions::set(list, Some(generation), Timestamp::UNIX_EPOCH, condition);
        status.observed_generation = Some(generation);
    }

    #[test]
    fn what_is_acted_on_does_not_wait() {
        let mut written = NicAttachmentStatus::default();
        set(&mut written, 1, reasons::PROGRESSING, "next step: Plug");
        let after = |change: &dyn Fn(&mut NicAttachmentStatus)| {
            let mut now = written.clone();
            change(&mut now);
            patience(&written, &now)
        };
        let report = |state| MigrationReport {
            uid: "m".to_owned(),
            state,
            port: None,
            error: None,
            kept: false,
            total_ms: None,
            downtime_ms: None,
        };
        assert_eq!(after(&|s| s.state = AttachmentState::Standby), Duration::ZERO);
        assert_eq!(
            after(&|s| s.migration = Some(report(MigrationState::Active))),
            Duration::ZERO
        );
        assert_eq!(after(&|s| set(s, 2, reasons::GUEST_KEEPS_VF, "")), Duration::ZERO);
        assert_eq!(after(&|s| set(s, 2, reasons::PROGRESSING, "")), SOON);
        assert_eq!(after(&|s| set(s, 1, reasons::PROGRESSING, "other")), LATER);
        let entry = TimelineEntry {
            event: "STOP".to_owned(),
            at: MicroTime(Timestamp::UNIX_EPOCH),
        };
        assert_eq!(after(&|s| s.timeline.push(entry.clone())), LATER);
    }
}
