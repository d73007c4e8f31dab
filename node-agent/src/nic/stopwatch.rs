//! Tells when a switch between VF and standby begins and ends, from what is asked, seen and decided. Pure.
//!
//! A switch ends when nothing is left to do: successfully if the NIC is then where it was going, or with the reason why it is not.
//! What happened to the traffic meanwhile is not known here.

use std::time::Duration;

use hybridnic_api::{
    conditions::reasons,
    v1alpha1::{AttachmentState, Goal, SwitchOrder},
};
use tokio::time::Instant;

use super::{
    plan::{Ask, Decision, Step},
    seen::{Guest, QemuSeen, Run, Seen, VfSeen},
};

/// Where a switch goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, strum::Display, strum::IntoStaticStr)]
pub enum To {
    /// To the VF.
    FastPath,
    /// To the standby, or, where the NIC has none, out of the guest.
    Standby,
}

/// A switch that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch {
    /// Where it went.
    pub to: To,
    /// The order of its two halves.
    pub order: SwitchOrder,
    /// Whether the NIC got there.
    pub ok: bool,
    /// One of [`reasons`]: why it went there, or why not.
    pub reason: &'static str,
    /// From its first step to its end.
    pub took: Duration,
}

#[derive(Clone, Copy, Debug)]
struct Current {
    to: To,
    order: SwitchOrder,
    since: Instant,
    /// Why a VF is left that the goal would keep.
    why: &'static str,
}

impl Current {
    fn end(self, ok: bool, reason: &'static str, now: Instant) -> Switch {
        Switch {
            to: self.to,
            order: self.order,
            ok,
            reason,
            took: now.saturating_duration_since(self.since),
        }
    }
}

/// The switches of one NIC.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stopwatch {
    current: Option<Current>,
}

impl Stopwatch {
    /// Looks at a decision; gives a switch that it ends.
    pub fn follow(
        &mut self,
        ask: &Ask,
        seen: &Seen,
        order: SwitchOrder,
        decision: &Decision,
        now: Instant,
    ) -> Option<Switch> {
        if ask.goal == Goal::Detached {
            // The NIC leaves: no switch.
            self.current = None;
            return None;
        }
        // To give the VF back is no part of the switch.
        let settled = Decision::Done(ask.off_vf());
        let leaves = ask.goal == Goal::Standby || ask.leaves_vf();
        let gives_back = leaves && *decision == Decision::Do(Step::RestoreVf);
        let decision = if gives_back { &settled } else { decision };
        let Decision::Do(step) = decision else {
            let current = self.current.take()?;
            let (ok, reason) = outcome(ask, current.to, decision)?;
            return Some(current.end(ok, reason, now));
        };
        let to = begins(ask, seen, *step)?;
        let begun = Current {
            to,
            order,
            since: now,
            why: why(ask, seen),
        };
        match self.current {
            None => {
                self.current = Some(begun);
                None
            }
            // The driver has refused one MAC twice, and the order has changed.
            Some(current) if current.to == to => {
                self.current = Some(Current { order, ..current });
                None
            }
            // A useless VF is taken out again; the reason comes when the NIC has settled.
            Some(current) if current.to == To::FastPath && ask.goal == Goal::FastPath => None,
            // One VF is left for another.
            Some(current)
                if current.to == To::Standby
                    && ask.goal == Goal::FastPath
                    && current.why != reasons::MIGRATING =>
            {
                self.current = Some(begun);
                Some(current.end(true, current.why, now))
            }
            // The goal has changed under way.
            Some(current) => {
                self.current = Some(begun);
                Some(current.end(false, reasons::MIGRATING, now))
            }
        }
    }
}

/// Why a VF is left although it is the goal; `Migrating` where nothing is wrong with it.
fn why(ask: &Ask, seen: &Seen) -> &'static str {
    match seen.vf {
        _ if ask.leaves_vf() => reasons::PF_DRAINED,
        Some(VfSeen::There(vf)) if !vf.link => reasons::PF_LINK_DOWN,
        Some(VfSeen::Gone) | None => reasons::VF_LOST,
        _ if seen.home_vf => reasons::SPLIT,
        _ => reasons::MIGRATING,
    }
}

/// Whether a step is the first, or one, of a switch.
fn begins(ask: &Ask, seen: &Seen, step: Step) -> Option<To> {
    let QemuSeen::Up(Guest {
        run: Run::Here, vf, ..
    }) = seen.qemu
    else {
        return None;
    };
    match step {
        Step::StandbyDown | Step::ConfigureVf | Step::PlugVf if ask.goal == Goal::FastPath && !vf => {
            Some(To::FastPath)
        }
        // After a restart of the agent, or of the guest.
        Step::AwaitGuest if ask.goal == Goal::FastPath => Some(To::FastPath),
        Step::StandbyUp if ask.goal == Goal::FastPath && vf && !ask.leaves_vf() => Some(To::FastPath),
        Step::StandbyUp | Step::UnplugVf if vf => Some(To::Standby),
        _ => None,
    }
}

/// Whether a switch has come to its end with this decision, and why; none where the VM has left meanwhile.
fn outcome(ask: &Ask, to: To, decision: &Decision) -> Option<(bool, &'static str)> {
    // On the standby without a reason of its own: that is what was asked for.
    let asked = match ask.aside {
        Some(_) => reasons::STANDBY_REQUESTED,
        None if ask.leaves_vf() => reasons::PF_DRAINED,
        None => reasons::MIGRATING,
    };
    let (state, reason) = match decision {
        Decision::Done(state) => (*state, None),
        Decision::Wait(wait) => (wait.state, Some(wait.reason)),
        Decision::Do(_) => return None,
    };
    match (to, state, reason) {
        (To::FastPath, AttachmentState::FastPath, _) => Some((true, reasons::VF_ACTIVE)),
        (To::Standby, AttachmentState::Standby | AttachmentState::Aside, reason) => {
            Some((true, reason.unwrap_or(asked)))
        }
        (_, _, Some(reason)) => Some((false, reason)),
        (_, AttachmentState::FastPath | AttachmentState::Standby | AttachmentState::Aside, None) => {
            Some((false, asked))
        }
        (_, _, None) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nic::plan::{
        Wait,
        tests::{FRESH, ask},
    };

    const MAKE: SwitchOrder = SwitchOrder::MakeBeforeBreak;

    fn seen(vf: bool) -> Seen {
        Seen {
            recorded: true,
            vf_offered: false,
            standby_recorded: true,
            macvtap: Some(true),
            qemu: QemuSeen::Up(Guest {
                run: Run::Here,
                standby: true,
                vf,
                uses_vf: vf,
                failover: Some(true),
                migrating: false,
                acpi: true,
            }),
            ..FRESH
        }
    }

    fn waiting(state: AttachmentState, reason: &'static str) -> Decision {
        Decision::Wait(Wait {
            state,
            reason,
            message: String::new(),
        })
    }

    /// Takes the decisions one second apart; gives what ended, as text.
    fn story(decisions: &[(Goal, bool, Decision)]) -> Vec<(To, bool, &'static str, u64)> {
        let mut stopwatch = Stopwatch::default();
        let mut now = Instant::now();
        let mut ended = Vec::new();
        for (goal, vf, decision) in decisions {
            let switch = stopwatch.follow(&ask(*goal), &seen(*vf), MAKE, decision, now);
            ended.extend(switch.map(|s| (s.to, s.ok, s.reason, s.took.as_secs())));
            now += Duration::from_secs(1);
        }
        ended
    }

    #[test]
    fn there_and_back() {
        use Decision::{Do, Done};
        let ended = story(&[
            (Goal::FastPath, false, Do(Step::Bind)),
            (Goal::FastPath, false, Do(Step::ConfigureVf)),
            (Goal::FastPath, false, Do(Step::PlugVf)),
            (Goal::FastPath, true, Do(Step::AwaitGuest)),
            (Goal::FastPath, true, Do(Step::StandbyDown)),
            (Goal::FastPath, true, Done(AttachmentState::FastPath)),
            (Goal::FastPath, true, Do(Step::ConfigureVf)),
            (Goal::FastPath, true, Done(AttachmentState::FastPath)),
            (Goal::Standby, true, Do(Step::StandbyUp)),
            (Goal::Standby, true, Do(Step::UnplugVf)),
            (Goal::Standby, false, Do(Step::Park)),
            (Goal::Standby, false, Do(Step::Announce)),
            (Goal::Standby, false, Done(AttachmentState::Standby)),
        ]);
        assert_eq!(
            ended,
            [
                (To::FastPath, true, reasons::VF_ACTIVE, 4),
                (To::Standby, true, reasons::MIGRATING, 4)
            ],
            "a change of settings is no switch"
        );
    }

    #[test]
    fn a_vf_that_is_of_no_use_is_one_switch_that_failed() {
        use Decision::Do;
        let ended = story(&[
            (Goal::FastPath, false, Do(Step::PlugVf)),
            (Goal::FastPath, true, Do(Step::AwaitGuest)),
            (Goal::FastPath, true, Do(Step::UnplugVf)),
            (Goal::FastPath, false, Do(Step::Park)),
            (
                Goal::FastPath,
                false,
                waiting(AttachmentState::Standby, reasons::GUEST_IGNORES_VF),
            ),
        ]);
        assert_eq!(ended, [(To::FastPath, false, reasons::GUEST_IGNORES_VF, 4)]);
    }

    #[test]
    fn a_guest_that_keeps_its_vf_and_a_link_that_is_lost() {
        use Decision::Do;
        let kept = story(&[
            (Goal::Standby, true, Do(Step::UnplugVf)),
            (
                Goal::Standby,
                true,
                waiting(AttachmentState::FastPath, reasons::GUEST_KEEPS_VF),
            ),
        ]);
        assert_eq!(kept, [(To::Standby, false, reasons::GUEST_KEEPS_VF, 1)]);
        let lost = story(&[
            (Goal::FastPath, true, Do(Step::UnplugVf)),
            (
                Goal::FastPath,
                false,
                waiting(AttachmentState::Standby, reasons::PF_LINK_DOWN),
            ),
        ]);
        assert_eq!(lost, [(To::Standby, true, reasons::PF_LINK_DOWN, 1)]);
    }

    /// To give the VF back is no part of it.
    #[test]
    fn a_switch_that_the_nic_was_told_to_make_ends_on_its_standby() {
        let told = Ask {
            aside: Some(hybridnic_api::v1alpha1::Aside::GiveVfBack),
            ..ask(Goal::Standby)
        };
        let (mut stopwatch, now) = (Stopwatch::default(), Instant::now());
        let mut follow = |vf, decision| stopwatch.follow(&told, &seen(vf), MAKE, &decision, now);
        assert_eq!(follow(true, Decision::Do(Step::StandbyUp)), None);
        assert_eq!(follow(true, Decision::Do(Step::UnplugVf)), None);
        let ended = follow(false, Decision::Do(Step::RestoreVf)).unwrap();
        assert_eq!(
            (ended.to, ended.ok, ended.reason),
            (To::Standby, true, reasons::STANDBY_REQUESTED)
        );
        assert_eq!(follow(false, Decision::Done(AttachmentState::Standby)), None);
    }

    #[test]
    fn a_migration_under_way_ends_a_plug_and_a_deletion_ends_all() {
        use Decision::{Do, Done};
        let turned = story(&[
            (Goal::FastPath, true, Do(Step::AwaitGuest)),
            (Goal::Standby, true, Do(Step::UnplugVf)),
            (Goal::Standby, false, Done(AttachmentState::Standby)),
        ]);
        assert_eq!(
            turned,
            [
                (To::FastPath, false, reasons::MIGRATING, 1),
                (To::Standby, true, reasons::MIGRATING, 1)
            ]
        );
        let deleted = story(&[
            (Goal::FastPath, true, Do(Step::AwaitGuest)),
            (Goal::Detached, true, Do(Step::UnplugVf)),
            (Goal::Detached, false, Done(AttachmentState::Detached)),
        ]);
        assert_eq!(deleted, []);
    }
}
