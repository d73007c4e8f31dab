//! When a failed step is tried again. NICs fail together when their PF does, but should not try again together: each pause
//! has a random part.

use std::time::Duration;

use hybridnic_api::v1alpha1::Goal;
use hybridnic_process::backoff::Backoff;
use tokio::time::Instant;

use super::super::plan::{Ask, Learnt};

/// The first pause after a step that failed; doubled up to the cap.
const STEP: Duration = Duration::from_secs(1);
/// The longest pause after a step that failed.
const STEP_CAP: Duration = Duration::from_mins(1);
/// How long what has failed is left alone, where nothing tells that it might work now; doubled up to the cap for a guest that does
/// not use its VF, because each time it may be without network for some seconds, or that keeps it, because each time its standby is up
/// beside it.
const LEARNT: Duration = Duration::from_mins(1);
/// The longest that a guest's VF is left alone.
const UNWILLING_CAP: Duration = Duration::from_hours(1);

/// What is waited for, before what was learnt is forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    /// The guest did not use its VF, or did not let go of it on request.
    Unwilling,
    /// Something else has failed.
    Failed,
}

/// When a NIC's task tries again.
#[derive(Debug)]
pub struct Retry {
    step: Backoff,
    unwilling: Backoff,
    failed: Backoff,
    set: Option<(Cause, Instant)>,
}

impl Default for Retry {
    fn default() -> Self {
        Self {
            step: Backoff::new(STEP, STEP_CAP),
            unwilling: Backoff::new(LEARNT, UNWILLING_CAP),
            failed: Backoff::new(LEARNT, LEARNT),
            set: None,
        }
    }
}

impl Retry {
    /// A step was taken, or there is none.
    pub fn went_well(&mut self) {
        self.step.reset();
    }

    /// A step has failed: when to look again.
    pub fn next(&mut self) -> Instant {
        Instant::now() + self.step.next_pause()
    }

    /// The VM has started again: its guest may be another.
    pub fn vm_is_new(&mut self) {
        self.unwilling.reset();
    }

    /// Begins to wait if something was learnt that is to be forgotten again; goes on if it waits already.
    pub fn set(&mut self, learnt: &Learnt, ask: &Ask) {
        let Some(cause) = cause(learnt, ask) else {
            return self.forget();
        };
        if self.set.is_some_and(|(known, _)| known == cause) {
            return;
        }
        let pause = match cause {
            Cause::Unwilling => self.unwilling.next_pause(),
            Cause::Failed => self.failed.next_pause(),
        };
        let at = Instant::now() + pause;
        let at = self.set.map_or(at, |(_, before)| before.min(at));
        self.set = Some((cause, at));
    }

    /// When what was learnt is forgotten.
    pub fn relearn_at(&self) -> Option<Instant> {
        self.set.map(|(_, at)| at)
    }

    /// It is forgotten.
    pub fn forget(&mut self) {
        self.set = None;
    }
}

fn cause(learnt: &Learnt, ask: &Ask) -> Option<Cause> {
    // A migration gives up by itself.
    let stuck = (learnt.keeps_vf || learnt.keeps_standby) && ask.goal == Goal::Detached;
    let told = ask.aside.is_some() && !ask.ordered || ask.leaves_vf();
    // The VF that is all that a NIC has stays in the guest, and is looked at.
    let ignores = learnt.ignores_vf.is_some() && !ask.is_alone();
    // It is asked for because a VF is better, or because its own is drained or useless; that does not end by itself.
    let alone = ask.is_alone() && ask.goal == Goal::FastPath;
    if ignores || learnt.keeps_vf && (told || alone) {
        Some(Cause::Unwilling)
    } else if learnt.vf_failed.is_some() || learnt.not_parked || learnt.mtu_refused || stuck {
        Some(Cause::Failed)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use hybridnic_api::v1alpha1::{Aside, StandbyKind};

    use super::*;
    use crate::nic::plan::{Sends, tests::ask};

    fn ignores() -> Learnt {
        Learnt {
            ignores_vf: Some(Sends::ByStandby),
            ..Learnt::default()
        }
    }

    /// How long is waited, in minutes; a pause is up to twice as long as it would be without its random part.
    fn assert_relearns_in(retry: &Retry, minutes: std::ops::Range<u64>) {
        let left = retry.relearn_at().unwrap() - Instant::now();
        let range = Duration::from_mins(minutes.start)..Duration::from_mins(minutes.end);
        assert!(range.contains(&left), "{left:?} of {range:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_vf_that_is_not_used_is_left_alone_for_longer_each_time() {
        let mut retry = Retry::default();
        for minutes in [1..2, 2..4, 4..8, 8..16, 16..32, 32..64, 60..120, 60..120] {
            retry.set(&ignores(), &ask(Goal::FastPath));
            assert_relearns_in(&retry, minutes);
            let at = retry.relearn_at();
            tokio::time::advance(Duration::from_secs(30)).await;
            retry.set(&ignores(), &ask(Goal::FastPath));
            assert_eq!(retry.relearn_at(), at, "it goes on waiting");
            retry.forget();
        }
        retry.vm_is_new();
        retry.set(&ignores(), &ask(Goal::FastPath));
        assert_relearns_in(&retry, 1..2);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_waited_for_ends_with_its_cause() {
        let mut retry = Retry::default();
        let keeps = Learnt {
            keeps_vf: true,
            ..Learnt::default()
        };
        retry.set(&keeps, &ask(Goal::Standby));
        assert_eq!(retry.relearn_at(), None, "a migration gives up by itself");
        retry.set(&keeps, &ask(Goal::Detached));
        assert_relearns_in(&retry, 1..2);
        retry.set(&Learnt::default(), &ask(Goal::Detached));
        assert_eq!(retry.relearn_at(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_keeps_its_vf_at_a_word_is_asked_ever_more_seldom() {
        let mut retry = Retry::default();
        let keeps = Learnt {
            keeps_vf: true,
            ..Learnt::default()
        };
        let told = Ask {
            aside: Some(Aside::GiveVfBack),
            ..ask(Goal::Standby)
        };
        for minutes in [1..2, 2..4, 4..8] {
            retry.set(&keeps, &told);
            assert_relearns_in(&retry, minutes);
            retry.forget();
        }
        let moves = Ask {
            ordered: true,
            ..told
        };
        retry.set(&keeps, &moves);
        assert_eq!(retry.relearn_at(), None, "the migration gives up by itself");
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_that_keeps_all_that_its_nic_has_is_asked_again() {
        let mut retry = Retry::default();
        let keeps = Learnt {
            keeps_vf: true,
            ..Learnt::default()
        };
        let alone = |goal| Ask {
            standby: StandbyKind::None,
            ..ask(goal)
        };
        retry.set(&keeps, &alone(Goal::FastPath));
        assert_relearns_in(&retry, 1..2);
        retry.set(&keeps, &alone(Goal::Standby));
        assert_eq!(retry.relearn_at(), None, "a migration gives up by itself");
        retry.set(&keeps, &ask(Goal::FastPath));
        assert_eq!(retry.relearn_at(), None, "it has its standby");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_fail_together_do_not_come_back_together() {
        let pauses: std::collections::BTreeSet<_> = (0..10).map(|_| Retry::default().next()).collect();
        assert!(pauses.len() > 1, "all alike: {pauses:?}");
        let (mut retry, now) = (Retry::default(), Instant::now());
        for seconds in [1, 2, 4] {
            let pause = retry.next() - now;
            assert!(pause >= Duration::from_secs(seconds) && pause < Duration::from_secs(2 * seconds));
        }
        retry.went_well();
        assert!(retry.next() - now < Duration::from_secs(2));
    }
}
