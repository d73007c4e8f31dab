//! When a report is written: at once, or with what comes next. Pure.
//!
//! Reports depend on QEMU, which a guest may have taken over, so in the long run no report may cost the API server more than a
//! write a second.

use std::time::Duration;

use hybridnic_api::v1alpha1::NicAttachmentStatus;
use hybridnic_process::pace::Pace;
use tokio::time::Instant;

/// For what nobody acts on: words, times, addresses in the guest.
const LATER: Duration = Duration::from_secs(2);
/// For a spec that was seen and has changed nothing yet: what it leads to mostly follows at once.
const SOON: Duration = Duration::from_millis(50);
/// How far apart writes are that move nothing; and all writes, once the burst is spent.
const APART: Duration = Duration::from_secs(1);
/// How many writes may follow each other at once: a NIC's migration has about ten on each node.
const BURST: u32 = 30;

/// What is new in a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum News {
    /// Where the NIC is, what carries its traffic, or how its VM's migration goes.
    Moved,
    /// A newer spec was seen.
    Seen,
    /// Something else that the operator acts on, or that people wait for.
    Said,
    /// What nobody acts on.
    Detail,
}

impl News {
    /// What is new from what was `written` to `now`.
    pub fn of(written: &NicAttachmentStatus, now: &NicAttachmentStatus) -> Self {
        let moves = |s: &NicAttachmentStatus| (s.state, s.path, s.migration.clone());
        if moves(written) != moves(now) {
            Self::Moved
        } else if written.observed_generation != now.observed_generation {
            Self::Seen
        } else if bare(written) != bare(now) {
            Self::Said
        } else {
            Self::Detail
        }
    }
}

/// Keeps a report's writes apart.
#[derive(Debug)]
pub struct Gate {
    pace: Pace,
    last: Option<Instant>,
}

impl Default for Gate {
    fn default() -> Self {
        Self {
            pace: Pace::new(BURST, APART),
            last: None,
        }
    }
}

impl Gate {
    /// How long to wait before `news`, which have waited since `since`, are written.
    pub fn rest(&self, news: News, since: Instant, now: Instant) -> Duration {
        let until = |then: Instant| then.saturating_duration_since(now);
        let apart = self.last.map_or(Duration::ZERO, |last| until(last + APART));
        let rest = match news {
            News::Moved => Duration::ZERO,
            News::Seen => until(since + SOON),
            News::Said => apart,
            News::Detail => until(since + LATER).max(apart),
        };
        rest.max(self.pace.time_left(now))
    }

    /// A write was tried.
    pub fn wrote(&mut self, now: Instant) {
        self.pace.done(now);
        self.last = Some(now);
    }
}

/// What the operator acts on, and what people wait for; without the generation.
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
    use hybridnic_api::v1alpha1::{AttachmentState, MigrationReport, MigrationState, Path, TimelineEntry};
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
            News::of(&written, &now)
        };
        let report = |state| MigrationReport::new("m", state);
        assert_eq!(after(&|s| s.state = AttachmentState::Standby), News::Moved);
        assert_eq!(after(&|s| s.path = Path::Standby), News::Moved);
        assert_eq!(
            after(&|s| s.migration = Some(report(MigrationState::Active))),
            News::Moved
        );
        assert_eq!(after(&|s| set(s, 1, reasons::GUEST_KEEPS_VF, "")), News::Said);
        assert_eq!(after(&|s| set(s, 2, reasons::PROGRESSING, "")), News::Seen);
        assert_eq!(after(&|s| set(s, 1, reasons::PROGRESSING, "other")), News::Detail);
        let entry = TimelineEntry {
            event: "STOP".to_owned(),
            at: MicroTime(Timestamp::UNIX_EPOCH),
        };
        assert_eq!(after(&|s| s.timeline.push(entry.clone())), News::Detail);
    }

    /// How many writes a minute of news every 10 ms makes.
    fn writes_a_minute(news: News) -> u32 {
        let begin = Instant::now();
        let (mut gate, mut writes, mut since) = (Gate::default(), 0, None);
        for tick in 0..6000 {
            let now = begin + Duration::from_millis(10) * tick;
            if gate.rest(news, *since.get_or_insert(now), now).is_zero() {
                gate.wrote(now);
                (writes, since) = (writes + 1, None);
            }
        }
        writes
    }

    #[test]
    fn whatever_changes_there_is_a_write_a_second_in_the_long_run() {
        assert_eq!(writes_a_minute(News::Said), 60);
        assert_eq!(writes_a_minute(News::Moved), 60 + BURST - 1);
        assert!(writes_a_minute(News::Seen) <= 60 + BURST);
        assert!(writes_a_minute(News::Detail) <= 30);
    }

    #[test]
    fn the_first_and_what_moves_are_written_at_once() {
        let (mut gate, now) = (Gate::default(), Instant::now());
        for news in [News::Moved, News::Said] {
            assert_eq!(gate.rest(news, now, now), Duration::ZERO);
        }
        gate.wrote(now);
        assert_eq!(gate.rest(News::Said, now, now), APART);
        for _ in 1..BURST {
            assert_eq!(gate.rest(News::Moved, now, now), Duration::ZERO);
            assert_eq!(gate.rest(News::Seen, now, now), SOON);
            gate.wrote(now);
        }
        assert_eq!(gate.rest(News::Moved, now, now), APART);
    }
}
